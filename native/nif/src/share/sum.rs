//! The bytes of the contents that a value leads to.

use super::link::ShareLink;
use crate::terms::Anchor;
use erlmcp_memory_core::packed::Links;
use std::collections::HashSet;

/// The bytes of contents that are shared, directly or through another one, each once.
#[derive(Default)]
pub struct SharedBytes {
    seen: HashSet<u64>,
    bytes: usize,
}

impl SharedBytes {
    /// Adds a content and those that it leads to.
    pub fn add(&mut self, share: &ShareLink) {
        if self.seen.insert(share.id()) {
            self.bytes += share.shared().heap_bytes();
            self.add_links(share.shared().packed().links());
        }
    }

    /// Adds the contents that links lead to.
    pub fn add_links(&mut self, links: &Links<Anchor>) {
        // Owned: a state may be cleaned up meanwhile.
        let mut rest = vec![links.clone()];
        while let Some(links) = rest.pop() {
            links.each_anchor(&mut |id, anchor| match anchor {
                Anchor::Share(share) if self.seen.insert(id) => {
                    self.bytes += share.shared().heap_bytes();
                    rest.push(share.shared().packed().links().clone());
                }
                Anchor::State(state) if self.seen.insert(id) => rest.push(state.links()),
                Anchor::Parked(parked) if self.seen.insert(id) => {
                    rest.push(parked.kept().packed().links().clone());
                }
                _ => {}
            });
        }
    }

    /// How many there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
