//! The links of a packed value, sorted by id.

use super::{Anchor, Packed};
use crate::heap;
use crate::map::Node;
use smallvec::SmallVec;
use std::sync::Arc;

/// What a link leads to.
#[derive(Debug)]
pub enum Target<A> {
    /// Something that the host keeps.
    Anchor(A),
    /// A value out of line.
    Blob(Arc<Packed<A>>),
    /// A map out of line.
    Trie(Arc<Node<A>>),
}

impl<A: Anchor> Target<A> {
    /// Bytes of memory that this target stands for.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Target::Anchor(anchor) => anchor.kept_bytes(),
            Target::Blob(blob) => heap::arc::<Packed<A>>() + blob.heap_bytes(),
            Target::Trie(node) => node.heap_bytes(),
        }
    }
}

impl<A: Anchor> Clone for Target<A> {
    fn clone(&self) -> Self {
        match self {
            Target::Anchor(anchor) => Target::Anchor(anchor.clone()),
            Target::Blob(blob) => Target::Blob(Arc::clone(blob)),
            Target::Trie(node) => Target::Trie(Arc::clone(node)),
        }
    }
}

/// A link: the id that stands in the bytes, and where it leads.
pub type Link<A> = (u64, Target<A>);

/// Links in any order. One is what most states have, and takes no memory of its own.
pub(crate) type LinkVec<A> = SmallVec<[Link<A>; 1]>;

/// The links of a value, one an occurrence in its bytes, sorted by id.
#[derive(Debug)]
pub struct Links<A>(LinkVec<A>);

impl<A> Default for Links<A> {
    fn default() -> Self {
        Links(SmallVec::new())
    }
}

impl<A: Anchor> Clone for Links<A> {
    fn clone(&self) -> Self {
        Links(self.0.clone())
    }
}

impl<A: Anchor> Links<A> {
    /// Links in any order.
    pub(crate) fn from_unsorted(mut links: LinkVec<A>) -> Self {
        if links.len() > 1 {
            links.sort_by_key(|(id, _)| *id);
        }
        links.shrink_to_fit();
        Links(links)
    }

    /// Where `id` leads.
    pub fn get(&self, id: u64) -> Option<&Target<A>> {
        let found = match &*self.0 {
            [(only, target)] if *only == id => return Some(target),
            [] => return None,
            links => links.binary_search_by_key(&id, |(id, _)| *id).ok()?,
        };
        Some(&self.0[found].1)
    }

    /// How many links there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All links.
    pub fn iter(&self) -> impl Iterator<Item = &Link<A>> {
        self.0.iter()
    }

    /// The ids in order: with the bytes, what tells whether two values are equal.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|(id, _)| *id)
    }

    /// Bytes of memory behind the links, out-of-line parts included.
    pub fn heap_bytes(&self) -> usize {
        let spilled = if self.0.spilled() {
            heap::block(self.0.capacity() * size_of::<Link<A>>())
        } else {
            0
        };
        spilled + self.0.iter().map(|(_, t)| t.heap_bytes()).sum::<usize>()
    }
}
