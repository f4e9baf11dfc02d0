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
    /// Bytes of memory behind this target.
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

/// A link: the id in the bytes, and where it leads.
pub type Link<A> = (u64, Target<A>);

/// Links in any order. One takes no memory of its own.
pub(crate) type LinkVec<A> = SmallVec<[Link<A>; 1]>;

/// The links of a value, one an occurrence in its bytes, sorted by id.
///
/// One link, which is what most states have, takes no memory of its own. More are one block that
/// the versions of a value have in common: a version whose links are those of the one before costs
/// no link a count.
#[derive(Debug, Default)]
pub enum Links<A> {
    /// No link.
    #[default]
    None,
    /// One link.
    One(Link<A>),
    /// Two or more, and the bytes of memory behind them: they may be many thousands, and their sum
    /// is asked for whenever a value that has them is freed.
    Many(Arc<[Link<A>]>, usize),
}

impl<A: Anchor> Clone for Links<A> {
    fn clone(&self) -> Self {
        match self {
            Links::None => Links::None,
            Links::One((id, target)) => Links::One((*id, target.clone())),
            Links::Many(links, heap) => Links::Many(Arc::clone(links), *heap),
        }
    }
}

impl<A: Anchor> Links<A> {
    /// Links to these anchors, in any order, each with its id.
    pub fn to_anchors(anchors: impl IntoIterator<Item = (u64, A)>) -> Self {
        let links = anchors.into_iter();
        Self::from_unsorted(
            links
                .map(|(id, anchor)| (id, Target::Anchor(anchor)))
                .collect(),
        )
    }

    /// Links in any order.
    pub(crate) fn from_unsorted(mut links: LinkVec<A>) -> Self {
        match links.len() {
            0 => Links::None,
            1 => links.pop().map_or(Links::None, Links::One),
            _ => {
                links.sort_by_key(|(id, _)| *id);
                let block = 2 * size_of::<usize>() + size_of_val(links.as_slice());
                let behind = links.iter().map(|(_, target)| target.heap_bytes());
                let heap = heap::block(block) + behind.sum::<usize>();
                Links::Many(links.into_vec().into(), heap)
            }
        }
    }

    /// These links and others.
    pub(crate) fn and(self, others: Self) -> Self {
        match (self, others) {
            (Links::None, links) | (links, Links::None) => links,
            (own, others) => {
                let links = own.iter().chain(others.iter()).cloned();
                Self::from_unsorted(links.collect())
            }
        }
    }

    /// Where `id` leads.
    pub fn get(&self, id: u64) -> Option<&Target<A>> {
        let links = self.as_slice();
        match links {
            [(only, target)] => (*only == id).then_some(target),
            _ => {
                let found = links.binary_search_by_key(&id, |(id, _)| *id).ok()?;
                Some(&links[found].1)
            }
        }
    }

    /// All links, sorted by id.
    pub fn as_slice(&self) -> &[Link<A>] {
        match self {
            Links::None => &[],
            Links::One(link) => std::slice::from_ref(link),
            Links::Many(links, _) => links,
        }
    }

    /// How many links there are.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Links::None)
    }

    /// All links.
    pub fn iter(&self) -> impl Iterator<Item = &Link<A>> {
        self.as_slice().iter()
    }

    /// The ids in order: with the bytes, what tells whether two values are equal.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.iter().map(|(id, _)| *id)
    }

    /// Calls `found` with every anchor, those of out-of-line parts included, and its id. With a
    /// stack of its own: parts may nest.
    pub fn each_anchor<'a>(&'a self, found: &mut impl FnMut(u64, &'a A)) {
        let mut rest: Vec<&'a Link<A>> = self.iter().collect();
        while let Some((id, target)) = rest.pop() {
            match target {
                Target::Anchor(anchor) => found(*id, anchor),
                Target::Blob(blob) => rest.extend(blob.links().iter()),
                Target::Trie(node) => node.each_page(&mut |page| rest.extend(page.links().iter())),
            }
        }
    }

    /// Bytes of memory behind the links, out-of-line parts included.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Links::None => 0,
            Links::One((_, target)) => target.heap_bytes(),
            Links::Many(_, heap) => *heap,
        }
    }
}
