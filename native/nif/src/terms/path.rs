//! Fields and paths of keys, as callers pass them.

use super::Anchor;
use super::error::PackError;
use super::kind::list_cell;
use super::pack::pack_keys;
use super::words::word;
use crate::lane::Lane;
use erlmcp_memory_core::map::MAX_PATH;
use erlmcp_memory_core::packed::{Links, Scalar, Scratch, View, Writer, pack_atom};
use rustler::Term;
use smallvec::SmallVec;
use std::cell::Cell;

/// The most keys of a path that are read without allocating memory.
const FEW: usize = 8;

/// Packed keys. A single atom, which is what nearly all calls name, takes no memory.
pub enum Path {
    /// A field.
    Field(Scalar, usize),
    /// Keys; the first may be a field.
    Keys(Keys),
}

/// Keys one after another, and where each ends.
pub struct Keys {
    scratch: Scratch,
    ends: SmallVec<[usize; FEW]>,
    links: Links<Anchor>,
}

thread_local! {
    /// What keys are packed into, separate from what the value is packed into.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// The capacity that the vector of a thread keeps.
const SCRATCH_KEPT: usize = 1 << 10;

impl Drop for Keys {
    fn drop(&mut self) {
        if self.scratch.capacity() <= SCRATCH_KEPT {
            SCRATCH.set(std::mem::take(&mut self.scratch));
        }
    }
}

impl Path {
    /// A field, or a list of 1 to 64 keys whose first one is a field.
    pub fn of_state<'a>(
        path: Term<'a>,
        opened: Term<'a>,
        lane: Lane,
    ) -> Result<Self, PackError<'a>> {
        if path.is_atom() {
            return Ok(Self::field(path));
        }
        match list_cell(path) {
            Some((field, _)) if field.is_atom() => Self::keys(path, opened, lane),
            _ => Err(PackError::NotAPath),
        }
    }

    fn field(atom: Term<'_>) -> Self {
        let mut bytes = Scalar::default();
        let len = pack_atom(word(atom), &mut bytes);
        Path::Field(bytes, len)
    }

    /// A list of at most 64 keys.
    pub fn keys<'a>(keys: Term<'a>, opened: Term<'a>, lane: Lane) -> Result<Self, PackError<'a>> {
        let writer = Writer::reusing(SCRATCH.take());
        let mut ends = SmallVec::new();
        let writer = pack_keys(keys, opened, lane, writer, |end| {
            ends.push(end);
            ends.len() <= MAX_PATH
        })?;
        let (scratch, links) = writer.into_parts();
        Ok(Path::Keys(Keys {
            scratch,
            ends,
            links,
        }))
    }

    /// Calls `with` with the keys.
    pub fn with<R>(&self, with: impl FnOnce(&[View<'_, Anchor>]) -> R) -> R {
        match self {
            Path::Field(bytes, len) => with(&[View::new(&bytes[..*len], &Links::default())]),
            Path::Keys(keys) => {
                let mut start = 0;
                let views: SmallVec<[_; FEW]> = keys
                    .ends
                    .iter()
                    .map(|end| {
                        let start = std::mem::replace(&mut start, *end);
                        let bytes = &keys.scratch.bytes()[start..*end];
                        View::new(bytes, &keys.links)
                    })
                    .collect();
                with(&views)
            }
        }
    }
}
