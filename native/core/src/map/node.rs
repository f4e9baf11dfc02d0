//! The trie of a large map.

use super::{INLINE, MAX_PATH, PAGE};
use crate::heap;
use crate::packed::{Anchor, Item, Link, Links, Packed, Page, Target, View, Writer, item};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

/// Branches choose among this many children, by this many bits of a key's hash.
const FANOUT: usize = 16;
const BITS: u32 = 4;

/// A part of a large map: all keys whose hashes begin with the same bits.
#[derive(Debug)]
pub enum Node<A> {
    /// A packed map.
    Leaf(Packed<A>),
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
    },
}

/// Keys come from outside, so their places must not be foreseeable: SipHash with random keys.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

fn hash(key: &[u8]) -> u64 {
    HASHER.hash_one(key)
}

fn child_index(hash: u64, depth: u32) -> usize {
    (hash >> (depth * BITS)) as usize % FANOUT
}

/// Below this depth the hash has no bits left.
const DEEPEST: u32 = u64::BITS / BITS;

/// A value as it is stored in a map: itself if it has at most `inline` bytes, a link to it if not.
pub(super) fn store<A: Anchor>(value: View<'_, A>, inline: usize) -> Packed<A> {
    store_at(value, inline, 0)
}

/// Maps in maps become tries down to where a path may lead; what nests deeper stays one value, so
/// that a value of any depth needs a bounded stack.
fn store_at<A: Anchor>(value: View<'_, A>, inline: usize, depth: usize) -> Packed<A> {
    if value.bytes.len() <= inline {
        return value.to_packed();
    }
    let target = match Page::of(value.bytes) {
        Some(page) if depth < MAX_PATH => {
            Target::Trie(Node::build_from(page, value.links, depth + 1))
        }
        _ => Target::Blob(Arc::new(value.to_packed())),
    };
    let mut link = Writer::default();
    link.link(target);
    link.finish()
}

/// An entry on its way into a node.
struct Entry<'a, A> {
    hash: u64,
    key: View<'a, A>,
    value: View<'a, A>,
}

impl<'a, A: Anchor> Entry<'a, A> {
    fn new(key: View<'a, A>, value: View<'a, A>) -> Self {
        Entry {
            hash: hash(key.bytes),
            key,
            value,
        }
    }
}

impl<A: Anchor> Node<A> {
    /// A node of all entries of a packed map; large values go out of line.
    fn build_from(page: Page<'_>, links: &Links<A>, depth: usize) -> Arc<Self> {
        // Only what goes out of line is copied: a map may have millions of small entries.
        let stored: Vec<_> = page
            .entries()
            .filter(|(_, value)| value.len() > INLINE)
            .map(|(_, value)| store_at(View::new(value, links), INLINE, depth))
            .collect();
        let mut stored = stored.iter();
        let mut entries = Vec::with_capacity(page.len());
        for (key, value) in page.entries() {
            let value = if value.len() > INLINE {
                stored.next().map_or(View::new(value, links), Packed::view)
            } else {
                View::new(value, links)
            };
            entries.push(Entry::new(View::new(key, links), value));
        }
        Self::build(&mut entries, 0)
    }

    fn build(entries: &mut [Entry<'_, A>], depth: u32) -> Arc<Self> {
        let body = entries
            .iter()
            .map(|entry| entry.key.bytes.len() + entry.value.bytes.len())
            .sum();
        let size = Page::size(entries.len(), body);
        if size <= PAGE || entries.len() <= 1 || depth >= DEEPEST {
            entries.sort_unstable_by_key(|entry| entry.key.bytes);
            let parts = entries
                .iter()
                .map(|entry| (entry.key.bytes, entry.value.bytes));
            let bytes = Page::build(parts);
            let links = entries
                .iter()
                .flat_map(|entry| [entry.key, entry.value])
                .flat_map(View::own_links)
                .collect();
            return Arc::new(Node::Leaf(Packed::new(bytes, Links::from_unsorted(links))));
        }
        entries.sort_unstable_by_key(|entry| child_index(entry.hash, depth));
        let mut children = Box::new([const { None }; FANOUT]);
        for group in
            entries.chunk_by_mut(|a, b| child_index(a.hash, depth) == child_index(b.hash, depth))
        {
            let index = child_index(group[0].hash, depth);
            children[index] = Some(Self::build(group, depth + 1));
        }
        Arc::new(Self::branch(children))
    }

    fn branch(children: Box<[Option<Arc<Node<A>>>; FANOUT]>) -> Self {
        let (mut len, mut packed, mut heap) = (0, 0, 0);
        for child in children.iter().flatten() {
            len += child.len();
            packed += child.packed_bytes();
            heap += child.heap_bytes();
        }
        Node::Branch {
            children,
            len,
            packed,
            heap,
        }
    }

    /// The entries below.
    pub fn len(&self) -> usize {
        match self {
            Node::Leaf(page) => Page::of(page.bytes()).map_or(0, |page| page.len()),
            Node::Branch { len, .. } => *len,
        }
    }

    /// Whether there is no entry below.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packed bytes of the entries below, out-of-line values not included.
    pub fn packed_bytes(&self) -> usize {
        match self {
            Node::Leaf(page) => page.bytes().len(),
            Node::Branch { packed, .. } => *packed,
        }
    }

    /// The memory of this node and all below it.
    pub fn heap_bytes(&self) -> usize {
        heap::arc::<Self>()
            + match self {
                Node::Leaf(page) => page.heap_bytes(),
                Node::Branch { heap, .. } => {
                    heap::block(FANOUT * size_of::<Option<Arc<Self>>>()) + heap
                }
            }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<View<'_, A>> {
        let mut rest = hash(key);
        let mut node = self;
        loop {
            match node {
                Node::Leaf(page) => {
                    let value = Page::of(page.bytes())?.find(key)?;
                    return Some(View::new(value, page.links()));
                }
                Node::Branch { children, .. } => {
                    node = children[rest as usize % FANOUT].as_deref()?;
                    rest >>= BITS;
                }
            }
        }
    }

    /// Every page below.
    pub fn each_page<'a>(&'a self, found: &mut impl FnMut(&'a Packed<A>)) {
        match self {
            Node::Leaf(page) => found(page),
            Node::Branch { children, .. } => {
                for child in children.iter().flatten() {
                    child.each_page(found);
                }
            }
        }
    }

    /// Every entry below.
    pub fn for_each<'a>(&'a self, entry: &mut impl FnMut(&'a [u8], View<'a, A>)) {
        match self {
            Node::Leaf(page) => for_each(page.view(), entry),
            Node::Branch { children, .. } => {
                for child in children.iter().flatten() {
                    child.for_each(entry);
                }
            }
        }
    }

    /// This node with an entry more, or another value for a key it has.
    pub(super) fn with(&self, key: View<'_, A>, value: View<'_, A>) -> Arc<Self> {
        self.with_at(hash(key.bytes), 0, key, value)
    }

    fn with_at(&self, hashed: u64, depth: u32, key: View<'_, A>, value: View<'_, A>) -> Arc<Self> {
        match self {
            Node::Leaf(page) => {
                let changed = with_entry(page.view(), Scope::Own, key, value);
                if changed.bytes().len() <= PAGE || depth >= DEEPEST {
                    return Arc::new(Node::Leaf(changed));
                }
                let mut entries: Vec<_> = Page::of(changed.bytes())
                    .into_iter()
                    .flat_map(|page| page.entries())
                    .map(|(key, value)| {
                        let links = changed.links();
                        Entry::new(View::new(key, links), View::new(value, links))
                    })
                    .collect();
                Self::build(&mut entries, depth)
            }
            Node::Branch { children, .. } => {
                let index = child_index(hashed, depth);
                let mut children = children.clone();
                children[index] = Some(match &children[index] {
                    Some(child) => child.with_at(hashed, depth + 1, key, value),
                    None => {
                        let empty = Packed::from_bytes(&Page::build(std::iter::empty()));
                        Arc::new(Node::Leaf(with_entry(empty.view(), Scope::Own, key, value)))
                    }
                });
                Arc::new(Self::branch(children))
            }
        }
    }

    /// This node without a key; nothing if it has no such key.
    pub(super) fn without(&self, key: &[u8]) -> Option<Arc<Self>> {
        self.without_at(hash(key), 0, key)
    }

    fn without_at(&self, hashed: u64, depth: u32, key: &[u8]) -> Option<Arc<Self>> {
        match self {
            Node::Leaf(page) => {
                let changed = without_entry(page.view(), Scope::Own, key)?;
                Some(Arc::new(Node::Leaf(changed)))
            }
            Node::Branch { children, .. } => {
                let index = child_index(hashed, depth);
                let child = children[index]
                    .as_ref()?
                    .without_at(hashed, depth + 1, key)?;
                let mut children = children.clone();
                children[index] = (!child.is_empty()).then_some(child);
                let branch = Self::branch(children);
                // Half a page, so that a key put in and taken out in turn does not split and
                // join each time.
                if branch.packed_bytes() <= PAGE / 2 {
                    return Some(Arc::new(Node::Leaf(branch.join())));
                }
                Some(Arc::new(branch))
            }
        }
    }

    /// All entries below as one packed map.
    pub(super) fn join(&self) -> Packed<A> {
        let mut entries = Vec::with_capacity(self.len());
        let mut links = Vec::new();
        self.for_each(&mut |key, value: View<'_, A>| {
            links.extend(View::new(key, value.links).own_links());
            links.extend(value.own_links());
            entries.push((key, value.bytes));
        });
        entries.sort_unstable_by_key(|(key, _)| *key);
        Packed::new(
            Page::build(entries.into_iter()),
            Links::from_unsorted(links),
        )
    }
}

/// Every entry of a value that is a map; nothing of another.
pub(super) fn for_each<'a, A: Anchor>(
    map: View<'a, A>,
    entry: &mut impl FnMut(&'a [u8], View<'a, A>),
) {
    match item(map.bytes, &mut 0) {
        Ok(Item::Map(page)) => {
            for (key, value) in page.entries() {
                entry(key, View::new(value, map.links));
            }
        }
        Ok(Item::Trie(_)) => {
            if let Some(Target::Trie(node)) = map.target() {
                node.for_each(entry);
            }
        }
        _ => {}
    }
}

/// Whose links a view of a map has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The map's own: it is no part of another value.
    Own,
    /// Those of the value that it is a part of.
    Whole,
}

impl Scope {
    /// The links of a map.
    fn links<A: Anchor>(self, map: View<'_, A>) -> Links<A> {
        match self {
            Scope::Own => map.links.clone(),
            Scope::Whole if map.has_links() => Links::from_unsorted(map.own_links()),
            Scope::Whole => Links::None,
        }
    }
}

/// A packed map with an entry more, or another value for a key it has.
pub(super) fn with_entry<A: Anchor>(
    map: View<'_, A>,
    scope: Scope,
    key: View<'_, A>,
    value: View<'_, A>,
) -> Packed<A> {
    let Some(page) = Page::of(map.bytes) else {
        return map.to_packed();
    };
    let bytes = page.with(key.bytes, value.bytes);
    let old = page.find(key.bytes);
    let old_has_links = old.is_some_and(|old| View::new(old, map.links).has_links());
    let key_is_new = old.is_none() && key.has_links();
    if !old_has_links && !key_is_new && !value.has_links() {
        return Packed::new(bytes, scope.links(map));
    }
    let mut links: Vec<Link<A>> = map.own_links();
    if let Some(old) = old {
        cut(&mut links, View::new(old, map.links));
    } else {
        links.extend(key.own_links());
    }
    links.extend(value.own_links());
    Packed::new(bytes, Links::from_unsorted(links))
}

/// A packed map without a key; `None` if it has no such key.
pub(super) fn without_entry<A: Anchor>(
    map: View<'_, A>,
    scope: Scope,
    key: &[u8],
) -> Option<Packed<A>> {
    let page = Page::of(map.bytes)?;
    let bytes = page.without(key)?;
    let (key, value) = (
        View::new(key, map.links),
        View::new(page.find(key)?, map.links),
    );
    if !key.has_links() && !value.has_links() {
        return Some(Packed::new(bytes, scope.links(map)));
    }
    let mut links = map.own_links();
    cut(&mut links, key);
    cut(&mut links, value);
    Some(Packed::new(bytes, Links::from_unsorted(links)))
}

/// Takes the links of a part out of the links of the whole.
fn cut<A: Anchor>(links: &mut Vec<Link<A>>, part: View<'_, A>) {
    let mut ids: Vec<_> = part.own_links().into_iter().map(|(id, _)| id).collect();
    if ids.is_empty() {
        return;
    }
    links.sort_by_key(|(id, _)| *id);
    ids.sort_unstable();
    let mut ids = ids.into_iter().peekable();
    links.retain(|(id, _)| ids.next_if_eq(id).is_none());
}
