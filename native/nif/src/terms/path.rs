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

/// Packed keys, one after another, and where each ends.
pub struct Path {
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

impl Drop for Path {
    fn drop(&mut self) {
        if self.scratch.capacity() <= SCRATCH_KEPT {
            SCRATCH.set(std::mem::take(&mut self.scratch));
        }
    }
}

/// Calls `with` with the keys of a path in a state: a field, or a list of 1 to 64 keys whose first
/// one is a field. A single atom, which is what nearly all calls name, takes no memory.
pub fn with_state_path<'a, R>(
    path: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    with: impl FnOnce(&[View<'_, Anchor>]) -> R,
) -> Result<R, PackError<'a>> {
    if path.is_atom() {
        let mut bytes = Scalar::default();
        let len = pack_atom(word(path), &mut bytes);
        return Ok(with(&[View::new(&bytes[..len], &Links::default())]));
    }
    match list_cell(path) {
        Some((field, _)) if field.is_atom() => Ok(Path::keys(path, opened, lane)?.with(with)),
        _ => Err(PackError::NotAPath),
    }
}

impl Path {
    /// A list of at most 64 keys.
    pub fn keys<'a>(keys: Term<'a>, opened: Term<'a>, lane: Lane) -> Result<Self, PackError<'a>> {
        let writer = Writer::reusing(SCRATCH.take());
        let mut ends = SmallVec::new();
        let writer = pack_keys(keys, opened, lane, writer, |end| {
            ends.push(end);
            ends.len() <= MAX_PATH
        })?;
        let (scratch, links) = writer.into_parts();
        Ok(Path {
            scratch,
            ends,
            links,
        })
    }

    /// Calls `with` with the keys.
    pub fn with<R>(&self, with: impl FnOnce(&[View<'_, Anchor>]) -> R) -> R {
        let mut start = 0;
        let views: SmallVec<[_; FEW]> = self
            .ends
            .iter()
            .map(|end| {
                let start = std::mem::replace(&mut start, *end);
                View::new(&self.scratch.bytes()[start..*end], &self.links)
            })
            .collect();
        with(&views)
    }
}
