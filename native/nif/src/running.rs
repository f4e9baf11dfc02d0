//! Whether the node's pool runs.

use std::sync::atomic::{AtomicBool, Ordering};

/// Between `pool_start` and `pool_stop`. A pool process that was killed leaves it on: its states
/// and the acquisitions of others do not depend on the process.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Whether the pool hands out states and buffers.
pub fn started() -> bool {
    STARTED.load(Ordering::Relaxed)
}

/// Allows the pool to hand out states and buffers.
pub fn start() {
    STARTED.store(true, Ordering::Relaxed);
}

/// Stops the pool from handing out states and buffers.
pub fn stop() {
    STARTED.store(false, Ordering::Relaxed);
}
