//! The content of a pooled connection state: a map of any Erlang terms, stored off the heaps of
//! the processes that use it.

use crate::lane::{Busy, Lane};
use crate::reaper;
use crate::terms::{Anchor, Source, unpack};
use erlmcp_memory_core::map::MapBuf;
use erlmcp_memory_core::packed::View;
use erlmcp_memory_core::pool::Recycle;
use rustler::{Env, Term};

/// A map; an empty one takes no memory before its first content.
#[derive(Default)]
pub struct ConnectionState {
    content: MapBuf<Anchor>,
}

/// Bytes of packed content that an idle state keeps room for.
const KEPT: usize = 256;

impl ConnectionState {
    /// Puts the entries of a packed map in; those of keys that were there are replaced.
    pub fn merge(&mut self, entries: View<'_, Anchor>) {
        let before = self.content.heap_bytes();
        let replaced = self.content.merge(entries);
        if !replaced.is_empty() {
            // Most of it is in the map still.
            let freed = before.saturating_sub(self.content.heap_bytes());
            reaper::free(replaced, freed);
        }
    }

    /// Whether the map has no entry.
    pub fn is_empty(&self) -> bool {
        self.content.view().is_none()
    }

    /// The map.
    pub fn to_term<'a>(&self, env: Env<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
        match self.content.view() {
            Some(map) => unpack(env, map, Source::Owned, lane),
            None => Ok(Term::map_new(env)),
        }
    }
}

impl Recycle for ConnectionState {
    fn prepared() -> Self {
        ConnectionState {
            content: MapBuf::with_capacity(KEPT),
        }
    }

    fn recycle(&mut self) {
        let links = self.content.clear(KEPT);
        if !links.is_empty() {
            let bytes = links.heap_bytes();
            reaper::free(links, bytes);
        }
    }

    fn heap_bytes(&self) -> usize {
        self.content.heap_bytes()
    }
}
