//! The content of a pooled connection state: a map of any Erlang terms, stored off the heaps of
//! the processes that use it.

use crate::lane::{Busy, Lane};
use crate::reaper;
use crate::terms::{Anchor, Source, unpack, with_room};
use erlmcp_memory_core::map::MapBuf;
use erlmcp_memory_core::packed::{Entry, Links, Packed, Target, View};
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
    /// Inserts the entries of a packed map; existing keys get the new values.
    pub fn merge(&mut self, entries: View<'_, Anchor>) {
        free(self.content.merge(entries));
    }

    /// The same for a few small entries, sorted by key; `false` if that is not the way.
    pub fn merge_small(&mut self, entries: &[Entry<'_>]) -> bool {
        match with_room(|room| self.content.merge_small(entries, room)) {
            Some(links) => {
                free(links);
                true
            }
            None => false,
        }
    }

    /// Whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.content.view().is_none()
    }

    /// What the map links to.
    pub fn links(&self) -> &Links<Anchor> {
        self.content.links()
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
        free(self.content.clear(KEPT));
    }

    fn heap_bytes(&self) -> usize {
        self.content.heap_bytes()
    }
}

/// Frees what a map linked to: at once if that is a single value that cannot lead here again, for a
/// chain of pooled states can be of any length.
fn free(links: Links<Anchor>) {
    let is_short = match &links {
        Links::None => true,
        Links::One((_, Target::Anchor(anchor))) => !matches!(anchor, Anchor::Pooled(_)),
        Links::One(_) | Links::Many(..) => false,
    };
    if !is_short {
        reaper::free_value(Packed::new(Box::default(), links));
    }
}
