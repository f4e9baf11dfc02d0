//! A map with one owner, changed in place.

use super::edit::merge_into;
use super::node::{PAGE, store};
use crate::heap;
use crate::packed::{Anchor, Links, Page, View};

/// A map that is emptied and filled again by one owner after the other, and keeps the memory of a
/// small content meanwhile. [`Map`](super::Map) is for many versions of one content.
#[derive(Debug)]
pub struct MapBuf<A> {
    /// As in a [`Map`](super::Map): a packed map, or a link to a trie. No bytes: an empty map.
    bytes: Vec<u8>,
    links: Links<A>,
}

impl<A> Default for MapBuf<A> {
    fn default() -> Self {
        MapBuf {
            bytes: Vec::new(),
            links: Links::default(),
        }
    }
}

impl<A: Anchor> MapBuf<A> {
    /// An empty map with room for this many bytes of entries without links.
    pub fn with_capacity(bytes: usize) -> Self {
        MapBuf {
            bytes: Vec::with_capacity(bytes),
            links: Links::default(),
        }
    }

    /// Puts the entries of a packed map in; those of keys that were there are replaced. Another
    /// value changes nothing. What the content linked to before is returned, because freeing what
    /// is no longer part of it may take long.
    pub fn merge(&mut self, entries: View<'_, A>) -> Links<A> {
        match Page::of(entries.bytes) {
            None => Links::default(),
            Some(page) if page.is_empty() => Links::default(),
            Some(_) if self.bytes.is_empty() && entries.bytes.len() <= PAGE => {
                self.set(entries.bytes, Links::from_unsorted(entries.own_links()))
            }
            Some(_) => {
                let merged = match self.view() {
                    Some(map) => merge_into(map, entries, PAGE),
                    None => store(entries, PAGE),
                };
                let (bytes, links) = merged.into_parts();
                self.set(&bytes, links)
            }
        }
    }

    fn set(&mut self, bytes: &[u8], links: Links<A>) -> Links<A> {
        self.bytes.clear();
        // Not the double of it, as vectors grow by themselves: a state is seldom added to.
        self.bytes.reserve_exact(bytes.len());
        self.bytes.extend_from_slice(bytes);
        std::mem::replace(&mut self.links, links)
    }

    /// The map; nothing for an empty one.
    pub fn view(&self) -> Option<View<'_, A>> {
        (!self.bytes.is_empty()).then(|| View::new(&self.bytes, &self.links))
    }

    /// What the map links to.
    pub fn links(&self) -> &Links<A> {
        &self.links
    }

    /// Empties the map; keeps the memory of at most `kept` bytes. What the content linked to is
    /// returned, because freeing it may take long.
    pub fn clear(&mut self, kept: usize) -> Links<A> {
        if self.bytes.capacity() > kept {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
        std::mem::take(&mut self.links)
    }

    /// Bytes of memory behind the map.
    pub fn heap_bytes(&self) -> usize {
        heap::block(self.bytes.capacity()) + self.links.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::{Packed, Writer};
    use std::convert::Infallible;

    fn entries(from: i64, to: i64, value: i64) -> Packed<Infallible> {
        let mut writer = Writer::new();
        let mut map = writer.begin_map();
        for key in from..to {
            writer.int(key);
            writer.end_key(&map);
        }
        assert!(writer.end_keys(&map));
        while writer.next_value(&mut map).is_some() {
            writer.int(value);
        }
        writer.finish()
    }

    fn content(map: &MapBuf<Infallible>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        if let Some(view) = map.view() {
            super::super::for_each_of(view, |key, value| {
                found.push((key.to_vec(), value.bytes.to_vec()));
            });
        }
        found.sort();
        found
    }

    #[test]
    fn merging_is_what_a_new_map_of_both_is() {
        for (first, second) in [(0, 3), (3, 0), (3, 5), (3, 900), (900, 3), (900, 1200)] {
            let mut map = MapBuf::default();
            map.merge(entries(0, first, 1).view());
            map.merge(entries(0, second, 2).view());
            let mut whole = MapBuf::default();
            whole.merge(
                entries(
                    first.min(second),
                    first.max(second),
                    i64::from(first < second) + 1,
                )
                .view(),
            );
            whole.merge(entries(0, second, 2).view());
            whole.merge(entries(second, first.max(second), 1).view());
            assert_eq!(content(&map), content(&whole), "{first} {second}");
        }
    }

    #[test]
    fn a_cleared_map_is_empty_and_keeps_a_bounded_memory() {
        let mut map = MapBuf::default();
        assert_eq!(map.heap_bytes(), 0);
        map.merge(entries(0, 10, 1).view());
        let small = map.heap_bytes();
        map.clear(256);
        assert!(map.view().is_none());
        assert_eq!(map.heap_bytes(), small);
        map.merge(entries(0, 100, 1).view());
        assert!(map.heap_bytes() > 256);
        map.clear(256);
        assert_eq!(map.heap_bytes(), 0);
        map.merge(entries(0, 20_000, 1).view());
        assert!(map.heap_bytes() > 20_000);
        drop(map.clear(256));
        assert!(map.heap_bytes() <= heap::block(256));
        assert_eq!(content(&map), []);
    }
}
