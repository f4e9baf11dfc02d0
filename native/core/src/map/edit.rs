//! Changing what a path of keys leads to.

use super::node::{Entry, Pair, Scope, out_of_line, pairs, store, with_entries, without_entry};
use super::node::{INLINE, MAX_PATH, PAGE};
use crate::packed::{Anchor, Links, Node, Packed, Page, Target, View, Writer};
use smallvec::SmallVec;
use std::sync::Arc;

/// Why a path could not be followed to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EditError {
    /// A value on the way, under the key of this index, is not a map.
    NotAMap(usize),
    /// The path has no key, or more than [`MAX_PATH`].
    PathLength,
}

/// The number of entries of a value that is a map.
pub(super) fn len<A: Anchor>(map: View<'_, A>) -> Option<usize> {
    if let Some(page) = Page::of(map.bytes) {
        return Some(page.len());
    }
    match map.target() {
        Some(Target::Trie(node)) => Some(node.len()),
        _ => None,
    }
}

/// A map without entries.
pub(super) fn empty_map<A: Anchor>() -> Packed<A> {
    Packed::new(Page::build(std::iter::empty()), Links::None)
}

fn trie<A: Anchor>(node: Arc<Node<A>>) -> Packed<A> {
    let mut link = Writer::default();
    link.link(Target::Trie(node));
    link.finish()
}

/// A map with entries more or others, sorted by key and none twice, as a map stores it with at most
/// `inline` bytes in line.
fn insert<'a, A: Anchor>(
    map: View<'a, A>,
    scope: Scope,
    entries: &[Pair<'a, A>],
    inline: usize,
) -> Packed<A> {
    let target = match Page::of(map.bytes) {
        Some(_) => None,
        None => map.target(),
    };
    match target {
        Some(Target::Trie(node)) => {
            let mut entries: SmallVec<[_; 2]> = entries.iter().copied().map(Entry::new).collect();
            trie(node.with(&mut entries))
        }
        _ => {
            let changed = with_entries(map, scope, entries);
            if changed.bytes().len() <= inline {
                changed
            } else {
                store(changed.view(), inline)
            }
        }
    }
}

/// A map without a key; `None` if it has no such key. A trie that became small enough is stored in
/// line again.
fn remove<A: Anchor>(
    map: View<'_, A>,
    scope: Scope,
    key: &[u8],
    inline: usize,
) -> Option<Packed<A>> {
    match map.target() {
        Some(Target::Trie(node)) => {
            let node = node.without(key)?;
            if node.packed_bytes() <= inline / 2 {
                return Some(node.join());
            }
            Some(trie(node))
        }
        _ => without_entry(map, scope, key),
    }
}

fn put<A: Anchor>(
    map: View<'_, A>,
    scope: Scope,
    path: &[View<'_, A>],
    value: View<'_, A>,
    absent: &[u8],
    inline: usize,
) -> Result<Packed<A>, usize> {
    let (key, rest) = match path {
        [] => return Ok(store(value, inline)),
        [key, rest @ ..] => (key, rest),
    };
    if rest.is_empty() && value.bytes.len() <= INLINE {
        return Ok(insert(map, scope, &[(*key, value)], inline));
    }
    let child = if rest.is_empty() {
        store(value, INLINE)
    } else {
        let empty;
        let below = match map.find(&[key.bytes]) {
            Some(below) if below.bytes != absent => {
                len(below).ok_or(0usize)?;
                below
            }
            _ => {
                empty = empty_map();
                empty.view()
            }
        };
        put(below, Scope::Whole, rest, value, absent, INLINE).map_err(|depth| depth + 1)?
    };
    Ok(insert(map, scope, &[(*key, child.view())], inline))
}

fn delete<A: Anchor>(
    map: View<'_, A>,
    scope: Scope,
    path: &[View<'_, A>],
    inline: usize,
) -> Option<Packed<A>> {
    match path {
        [] => None,
        [key] => remove(map, scope, key.bytes, inline),
        [key, rest @ ..] => {
            let below = map.find(&[key.bytes])?;
            len(below)?;
            let changed = delete(below, Scope::Whole, rest, INLINE)?;
            Some(insert(map, scope, &[(*key, changed.view())], inline))
        }
    }
}

/// An independent map with a new value under a path.
pub(super) fn put_path<A: Anchor>(
    map: View<'_, A>,
    path: &[View<'_, A>],
    value: View<'_, A>,
    absent: &[u8],
) -> Result<Packed<A>, EditError> {
    if path.is_empty() || path.len() > MAX_PATH {
        return Err(EditError::PathLength);
    }
    put(map, Scope::Own, path, value, absent, PAGE).map_err(EditError::NotAMap)
}

/// An independent map without what a path leads to.
pub(super) fn delete_path<A: Anchor>(map: View<'_, A>, path: &[View<'_, A>]) -> Option<Packed<A>> {
    delete(map, Scope::Own, path, PAGE)
}

/// An independent map with all entries of the packed map `entries` put into the map under a path.
pub(super) fn merge_path<A: Anchor>(
    map: View<'_, A>,
    path: &[View<'_, A>],
    entries: View<'_, A>,
    absent: &[u8],
) -> Result<Packed<A>, EditError> {
    let below = match map.find(path) {
        Some(below) if below.bytes != absent => below,
        _ => return put_path(map, path, entries, absent),
    };
    match len(below) {
        None => return Err(EditError::NotAMap(path.len().saturating_sub(1))),
        Some(0) if !path.is_empty() => return put_path(map, path, entries, absent),
        Some(_) => {}
    }
    if path.is_empty() {
        return Ok(merge_into(below, entries, PAGE));
    }
    put_path(map, path, merge_into(below, entries, INLINE).view(), absent)
}

/// An independent map with those entries of the packed map `entries` put in whose key is `taken`.
/// The map under `merged` is put into the one that is there.
pub(super) fn put_all<A: Anchor>(
    map: View<'_, A>,
    entries: View<'_, A>,
    taken: impl Fn(&[u8]) -> bool,
    merged: &[u8],
) -> Packed<A> {
    let Some(page) = Page::of(entries.bytes) else {
        return map.to_packed();
    };
    let below = page.find(merged).and_then(|new| {
        let below = map.find(&[merged])?;
        let new = View::new(new, entries.links);
        len(below).map(|_| merge_into(below, new, INLINE))
    });
    let stored = out_of_line(page, entries.links, 0);
    let entries: SmallVec<[_; 8]> = pairs(page, entries.links, &stored)
        .filter(|(key, _)| taken(key.bytes))
        .map(|(key, value)| match &below {
            Some(below) if key.bytes == merged => (key, below.view()),
            _ => (key, value),
        })
        .collect();
    match entries.as_slice() {
        [] => map.to_packed(),
        entries => insert(map, Scope::Own, entries, PAGE),
    }
}

/// A map with all entries of a packed map put in, in one pass over both.
pub(super) fn merge_into<A: Anchor>(
    map: View<'_, A>,
    entries: View<'_, A>,
    inline: usize,
) -> Packed<A> {
    match Page::of(entries.bytes) {
        Some(page) if !page.is_empty() => {
            let stored = out_of_line(page, entries.links, 0);
            let entries: SmallVec<[_; 4]> = pairs(page, entries.links, &stored).collect();
            insert(map, Scope::Whole, &entries, inline)
        }
        _ => map.to_packed(),
    }
}
