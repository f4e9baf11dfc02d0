//! Changing a map that is one small page, in memory that is there already.
//!
//! Most changes are of this kind: a field of a small state. A block of the allocator for each new
//! version, and one for each map on the path, would be a third of what such a change takes.

use super::node::{INLINE, MAX_PATH, PAGE, Scope, links_with};
use crate::packed::{Anchor, Entry, Links, Page, View, build_into};
use smallvec::SmallVec;
use std::iter;

/// Memory that small maps are built in, one after the other.
#[derive(Debug, Default)]
pub struct Room {
    built: Vec<u8>,
    inner: Vec<u8>,
}

impl Room {
    /// The bytes of the map that was built last.
    pub fn bytes(&self) -> &[u8] {
        &self.built
    }

    /// Builds a map of entries without links, sorted by key and none twice.
    pub fn build(&mut self, entries: &[Entry<'_>]) {
        build_into(&mut self.built, entries.iter().map(|entry| [entry.bytes()]));
    }

    /// Builds a map of keys and values, as [`build`](Self::build).
    pub(crate) fn build_pairs(&mut self, entries: &[(&[u8], &[u8])]) {
        let parts = entries.iter().map(|(key, value)| [*key, *value]);
        build_into(&mut self.built, parts);
    }

    /// Builds a map with another value under a path of keys; see [`super::put`]. Its links; `None`
    /// if a map on the path is missing or out of line, or the value or the result would be. Then
    /// what is in the room means nothing.
    pub fn put<A: Anchor>(
        &mut self,
        map: View<'_, A>,
        path: &[View<'_, A>],
        value: View<'_, A>,
    ) -> Option<Links<A>> {
        if path.len() > MAX_PATH {
            return None;
        }
        let Room { built, inner } = self;
        put(map, Scope::Own, path, value, PAGE, built, inner)
    }

    /// Builds a map with other entries, which are sorted by key and have no links; as
    /// [`put`](Self::put).
    pub fn put_all<A: Anchor>(
        &mut self,
        map: View<'_, A>,
        entries: &[Entry<'_>],
    ) -> Option<Links<A>> {
        merge(map, Scope::Own, entries, PAGE, &mut self.built)
    }

    /// Builds a map with all entries of another one put into the map under a key; as
    /// [`put`](Self::put).
    pub fn merge<A: Anchor>(
        &mut self,
        map: View<'_, A>,
        key: View<'_, A>,
        entries: View<'_, A>,
    ) -> Option<Links<A>> {
        if entries.bytes.len() > INLINE || !entries.links.is_empty() {
            return None;
        }
        let mut rest = Page::of(entries.bytes)?.entries();
        let entries: SmallVec<[_; 8]> = iter::from_fn(|| rest.next_whole()).collect();
        let page = small(map)?;
        let below = View::new(page.find(key.bytes)?, map.links);
        let links = merge(below, Scope::Whole, &entries, INLINE, &mut self.inner)?;
        let value = View::new(&self.inner, &links);
        let old = page.put_into(key.bytes, value.bytes, &mut self.built);
        let links = links_with(map, Scope::Own, key, value, old);
        (self.built.len() <= PAGE).then_some(links)
    }
}

/// A page whose changed bytes are few as well.
fn small<A: Anchor>(map: View<'_, A>) -> Option<Page<'_>> {
    (map.bytes.len() <= PAGE)
        .then(|| Page::of(map.bytes))
        .flatten()
}

/// Into `out`; `spare` is for what lies on the path.
fn put<A: Anchor>(
    map: View<'_, A>,
    scope: Scope,
    path: &[View<'_, A>],
    value: View<'_, A>,
    inline: usize,
    out: &mut Vec<u8>,
    spare: &mut Vec<u8>,
) -> Option<Links<A>> {
    let page = small(map)?;
    let (key, rest) = path.split_first()?;
    let links;
    let value = if rest.is_empty() {
        value
    } else {
        let below = View::new(page.find(key.bytes)?, map.links);
        links = put(below, Scope::Whole, rest, value, INLINE, spare, out)?;
        View::new(spare, &links)
    };
    if value.bytes.len() > INLINE || key.bytes.len() > INLINE {
        return None;
    }
    let old = page.put_into(key.bytes, value.bytes, out);
    (out.len() <= inline).then(|| links_with(map, scope, *key, value, old))
}

fn merge<A: Anchor>(
    map: View<'_, A>,
    scope: Scope,
    entries: &[Entry<'_>],
    inline: usize,
    out: &mut Vec<u8>,
) -> Option<Links<A>> {
    let page = small(map)?;
    if entries.iter().any(|entry| entry.bytes().len() > INLINE) {
        return None;
    }
    let mut loses_links = false;
    page.merge_into(entries, out, |old| {
        loses_links |= View::new(old, map.links).has_links();
    });
    (out.len() <= inline && !loses_links).then(|| scope.links(map))
}
