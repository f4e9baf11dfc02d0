//! Why terms cannot be packed.

use crate::lane::Busy;
use rustler::Term;

/// Why a term was not packed.
pub enum PackError<'a> {
    /// It is more than a normal scheduler should do.
    Busy,
    /// It has more than [`MAX_BYTES`](erlmcp_memory_core::packed::MAX_BYTES) in the packed form.
    TooLarge,
    /// It nests deeper than [`MAX_DEPTH`](erlmcp_memory_core::packed::MAX_DEPTH).
    TooDeep,
    /// Funs close over funs deeper than [`MAX_FUNS`](erlmcp_memory_core::packed::MAX_FUNS).
    TooManyFuns,
    /// Maps are keys in keys deeper than [`MAX_KEYS`](erlmcp_memory_core::packed::MAX_KEYS).
    TooManyKeys,
    /// A path is not a list of keys that begins with a field, or is too long.
    NotAPath,
    /// These terms in it must be opened first.
    Closed(Vec<Term<'a>>),
    /// It holds a term of an unknown kind.
    Unknown,
    /// It is many times as large with nothing shared.
    TooShared,
}

impl From<Busy> for PackError<'_> {
    fn from(Busy: Busy) -> Self {
        PackError::Busy
    }
}
