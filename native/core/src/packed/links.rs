//! What a packed value owns: its bytes, its links, and what these lead to. A value may have a trie
//! beside it, a trie has values, and both are freed block by block: so all of it is in one file.

use crate::heap;
use smallvec::SmallVec;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A target that the host keeps alive through a packed value. Cloning makes a further owner.
pub trait Anchor: Clone + Debug + Send + Sync + 'static {
    /// Bytes of memory that only this target takes; none for one that others may keep as well.
    fn kept_bytes(&self) -> usize {
        0
    }

    /// The value behind this target, where that is shared content.
    fn shared_content(&self) -> Option<&Packed<Self>> {
        None
    }

    /// Frees what may take long to free, at a pace and on a thread of the host's choice.
    fn free(garbage: Packed<Self>) {
        let mut freeing = Reclaim::new(garbage);
        while freeing.step() {}
    }
}

impl Anchor for std::convert::Infallible {}

impl<T: Debug + Send + Sync + ?Sized + 'static> Anchor for std::sync::Arc<T> {}

/// A value that owns its bytes and its links.
#[derive(Debug)]
pub struct Packed<A> {
    bytes: Box<[u8]>,
    links: Links<A>,
}

impl<A> AsRef<[u8]> for Packed<A> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<A: Anchor> Packed<A> {
    /// A value from its parts, as a [`Writer`](super::Writer) made them.
    pub fn new(bytes: Box<[u8]>, links: Links<A>) -> Self {
        Packed { bytes, links }
    }

    /// A value without links.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Packed {
            bytes: bytes.into(),
            links: Links::default(),
        }
    }

    /// Its bytes and its links.
    pub fn into_parts(self) -> (Box<[u8]>, Links<A>) {
        (self.bytes, self.links)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its links.
    pub fn links(&self) -> &Links<A> {
        &self.links
    }

    /// Bytes of memory behind it, out-of-line parts included.
    pub fn heap_bytes(&self) -> usize {
        crate::heap::block(self.bytes.len()) + self.links.heap_bytes()
    }
}

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

/// A branch has this many children.
pub(crate) const FANOUT: usize = 16;

/// A part of a large map: all keys whose hashes begin with the same bits.
#[derive(Debug)]
pub enum Node<A> {
    /// A packed map.
    Leaf(Packed<A>, Sum),
    /// Children by the next bits of the hash, and sums over them.
    Branch {
        /// The nodes below.
        children: Box<[Option<Arc<Node<A>>>; FANOUT]>,
        /// Entries below.
        len: usize,
        /// Packed bytes of the entries below.
        packed: usize,
        /// Memory bytes of the nodes below.
        heap: usize,
        /// See [`digest`](crate::map::digest()).
        sum: Sum,
    },
}

impl<A: Anchor> Node<A> {
    /// The memory of this node and all below it.
    pub fn heap_bytes(&self) -> usize {
        heap::arc::<Self>()
            + match self {
                Node::Leaf(page, _) => page.heap_bytes(),
                Node::Branch { heap, .. } => {
                    heap::block(FANOUT * size_of::<Option<Arc<Self>>>()) + heap
                }
            }
    }

    /// Every page below.
    pub fn each_page<'a>(&'a self, found: &mut impl FnMut(&'a Packed<A>)) {
        match self {
            Node::Leaf(page, _) => found(page),
            Node::Branch { children, .. } => {
                for child in children.iter().flatten() {
                    child.each_page(found);
                }
            }
        }
    }
}

/// The sum of a node, once it was asked for; until then zero.
#[derive(Debug, Default)]
pub struct Sum(AtomicU64);

impl Sum {
    pub(crate) fn get(&self) -> Option<u64> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            sum => Some(sum),
        }
    }

    pub(crate) fn set(&self, sum: u64) {
        self.0.store(sum, Ordering::Relaxed);
    }
}

/// A value that is being freed. Dropping it would free what it links to, and what that links to, all
/// at once, which may take long: this takes a value apart, one block a step, so that the caller can
/// pause.
#[derive(Debug)]
pub struct Reclaim<A: Anchor> {
    parts: Vec<Part<A>>,
    /// Put in the place of what is taken out of a block that cannot be taken apart.
    empty: Arc<Packed<A>>,
}

#[derive(Debug)]
enum Part<A> {
    Packed(Packed<A>),
    /// Links, with the number of those that are left.
    Links(Arc<[Link<A>]>, usize),
    Target(Target<A>),
}

impl<A: Anchor> Reclaim<A> {
    /// Begins to free a value.
    pub fn new(garbage: Packed<A>) -> Self {
        Reclaim {
            parts: vec![Part::Packed(garbage)],
            empty: Arc::new(Packed::from_bytes(&[])),
        }
    }

    /// Adds a value to be freed.
    pub fn push(&mut self, garbage: Packed<A>) {
        self.parts.push(Part::Packed(garbage));
    }

    /// Frees one block; `false` when nothing was left.
    pub fn step(&mut self) -> bool {
        match self.parts.pop() {
            None => return false,
            Some(Part::Packed(packed)) => self.packed(packed),
            Some(Part::Links(links, left)) => self.links(links, left),
            Some(Part::Target(target)) => self.target(target),
        }
        true
    }

    fn packed(&mut self, packed: Packed<A>) {
        match packed.into_parts().1 {
            Links::None => {}
            Links::One((_, target)) => self.parts.push(Part::Target(target)),
            Links::Many(links, _) => {
                let left = links.len();
                self.parts.push(Part::Links(links, left));
            }
        }
    }

    fn links(&mut self, mut links: Arc<[Link<A>]>, left: usize) {
        // Another version may have them in common; then that one frees them.
        if let Some(own) = Arc::get_mut(&mut links)
            && let Some(left) = left.checked_sub(1)
        {
            let empty = Target::Blob(Arc::clone(&self.empty));
            let target = std::mem::replace(&mut own[left].1, empty);
            self.parts.push(Part::Links(links, left));
            self.parts.push(Part::Target(target));
        }
    }

    fn target(&mut self, target: Target<A>) {
        match target {
            Target::Anchor(anchor) => drop(anchor),
            Target::Blob(blob) => self.parts.extend(Arc::into_inner(blob).map(Part::Packed)),
            Target::Trie(node) => match Arc::into_inner(node) {
                None => {}
                Some(Node::Leaf(page, _)) => self.packed(page),
                Some(Node::Branch { children, .. }) => {
                    let children = children.into_iter().flatten();
                    self.parts
                        .extend(children.map(Target::Trie).map(Part::Target));
                }
            },
        }
    }
}
