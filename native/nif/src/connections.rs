//! How many connections the node has.

use crate::{park, pool, state};

/// Connections: states of all kinds.
pub fn connections() -> usize {
    pool::stock().0.count + state::stock().count + park::stock().count
}
