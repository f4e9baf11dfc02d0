//! The content of a pooled connection state: a map of any Erlang terms, stored off the heaps of
//! the processes that use it.

use crate::lane::{Busy, Lane};
use crate::reaper;
use crate::terms::{Anchor, PackError, Source, pack, unpack};
use erlmcp_memory_core::map::Map;
use erlmcp_memory_core::packed::Packed;
use erlmcp_memory_core::pool::Recycle;
use rustler::{Env, Term};

/// A map; nothing for an empty one, which takes no memory.
#[derive(Default)]
pub struct ConnectionState {
    content: Option<Map<Anchor>>,
}

impl ConnectionState {
    /// Packs a map for [`merge`](Self::merge). Nothing is taken from the pool yet, so a call that
    /// is repeated on the dirty lane leaves no trace in the pool's counters.
    pub fn pack(map: Term<'_>, lane: Lane) -> Result<Packed<Anchor>, PackError> {
        pack(map.get_env(), map, lane)
    }

    /// Puts the entries of a packed map in; those of keys that were there are replaced.
    pub fn merge(&mut self, entries: Packed<Anchor>) {
        const NOTHING_IS_ABSENT: &[u8] = &[];
        self.content = match self.content.take() {
            None => Map::from_packed(entries).filter(|map| !map.is_empty()),
            // The empty path leads to the map itself, so this cannot fail.
            Some(map) => map
                .merge(&[], entries.view(), NOTHING_IS_ABSENT)
                .ok()
                .or(Some(map)),
        };
    }

    /// The map.
    pub fn to_term<'a>(&self, env: Env<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
        match &self.content {
            Some(map) => unpack(env, map.view(), Source::Owned, lane),
            None => Ok(Term::map_new(env)),
        }
    }
}

impl Recycle for ConnectionState {
    fn recycle(&mut self) {
        if let Some(map) = self.content.take() {
            let bytes = map.heap_bytes();
            reaper::free(map, bytes);
        }
    }

    fn heap_bytes(&self) -> usize {
        self.content.as_ref().map_or(0, Map::heap_bytes)
    }
}
