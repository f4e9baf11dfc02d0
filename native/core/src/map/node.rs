//! The trie of a large map.

use crate::packed::{
    Anchor, FANOUT, Item, LinkVec, Links, Node, Packed, Page, Sum, Target, View, Writer, item,
};
use smallvec::SmallVec;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

/// The largest value, in packed bytes, that is stored among the entries of a map.
pub const INLINE: usize = 256;

/// The largest page, in packed bytes, that holds more than one entry.
pub const PAGE: usize = 1024;

/// The longest path of keys, so that following one needs a bounded stack.
pub const MAX_PATH: usize = 64;

/// The bits of a key's hash that choose a child: one of [`FANOUT`].
const BITS: u32 = 4;

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

/// Key and value.
pub(super) type Pair<'a, A> = (View<'a, A>, View<'a, A>);

/// The values of a packed map that lie out of line where they are stored, in order. Only these are
/// copied: a map may have millions of small entries.
pub(super) fn out_of_line<A: Anchor>(
    page: Page<'_>,
    links: &Links<A>,
    depth: usize,
) -> Vec<Packed<A>> {
    page.entries()
        .filter(|(_, value)| value.len() > INLINE)
        .map(|(_, value)| store_at(View::new(value, links), INLINE, depth))
        .collect()
}

/// The entries of a packed map, in order, with what [`out_of_line`] made of its large values.
pub(super) fn pairs<'a, A: Anchor>(
    page: Page<'a>,
    links: &'a Links<A>,
    out_of_line: &'a [Packed<A>],
) -> impl Iterator<Item = Pair<'a, A>> {
    let mut stored = out_of_line.iter();
    page.entries().map(move |(key, value)| {
        let here = View::new(value, links);
        let value = if value.len() > INLINE {
            stored.next().map_or(here, Packed::view)
        } else {
            here
        };
        (View::new(key, links), value)
    })
}

/// A packed map of entries that are sorted by key.
fn pack<'a, A: Anchor>(entries: impl Iterator<Item = Pair<'a, A>> + Clone) -> Packed<A> {
    let parts = entries.clone().map(|(key, value)| (key.bytes, value.bytes));
    let bytes = Page::build(parts);
    let mut links = LinkVec::new();
    for part in entries.flat_map(|(key, value)| [key, value]) {
        if !part.links.is_empty() {
            links.extend(part.own_links());
        }
    }
    Packed::new(bytes, Links::from_unsorted(links))
}

/// An entry on its way into a node.
pub(super) struct Entry<'a, A> {
    hash: u64,
    pair: Pair<'a, A>,
}

impl<'a, A: Anchor> Entry<'a, A> {
    pub(super) fn new(pair: Pair<'a, A>) -> Self {
        Entry {
            hash: hash(pair.0.bytes),
            pair,
        }
    }
}

/// The entries by the child that each belongs to.
fn by_child<'e, 'a, A>(
    entries: &'e mut [Entry<'a, A>],
    depth: u32,
) -> impl Iterator<Item = (usize, &'e mut [Entry<'a, A>])> {
    let index = move |entry: &Entry<'a, A>| child_index(entry.hash, depth);
    entries.sort_unstable_by_key(index);
    entries
        .chunk_by_mut(move |a, b| index(a) == index(b))
        .map(move |group| (index(&group[0]), group))
}

impl<A: Anchor> Node<A> {
    /// A node of all entries of a packed map; large values go out of line.
    fn build_from(page: Page<'_>, links: &Links<A>, depth: usize) -> Arc<Self> {
        let stored = out_of_line(page, links, depth);
        let mut entries: Vec<_> = pairs(page, links, &stored).map(Entry::new).collect();
        Self::build(&mut entries, 0)
    }

    fn build(entries: &mut [Entry<'_, A>], depth: u32) -> Arc<Self> {
        let body = entries
            .iter()
            .map(|Entry { pair, .. }| pair.0.bytes.len() + pair.1.bytes.len())
            .sum();
        let size = Page::size(entries.len(), body);
        if size <= PAGE || entries.len() <= 1 || depth >= DEEPEST {
            entries.sort_unstable_by_key(|entry| entry.pair.0.bytes);
            return Arc::new(Node::leaf(pack(entries.iter().map(|entry| entry.pair))));
        }
        let mut children = Box::new([const { None }; FANOUT]);
        for (index, group) in by_child(entries, depth) {
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
            sum: Sum::default(),
        }
    }

    fn leaf(page: Packed<A>) -> Self {
        Node::Leaf(page, Sum::default())
    }

    /// Where its sum is kept.
    pub(super) fn sum(&self) -> &Sum {
        match self {
            Node::Leaf(_, sum) | Node::Branch { sum, .. } => sum,
        }
    }

    /// The entries below.
    pub fn len(&self) -> usize {
        match self {
            Node::Leaf(page, _) => Page::of(page.bytes()).map_or(0, |page| page.len()),
            Node::Branch { len, .. } => *len,
        }
    }

    /// Whether there are no entries below.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packed bytes of the entries below, out-of-line values not included.
    pub fn packed_bytes(&self) -> usize {
        match self {
            Node::Leaf(page, _) => page.bytes().len(),
            Node::Branch { packed, .. } => *packed,
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<View<'_, A>> {
        let mut rest = hash(key);
        let mut node = self;
        loop {
            match node {
                Node::Leaf(page, _) => {
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

    /// Every entry below.
    pub fn for_each<'a>(&'a self, entry: &mut impl FnMut(&'a [u8], View<'a, A>)) {
        match self {
            Node::Leaf(page, _) => for_each(page.view(), entry),
            Node::Branch { children, .. } => {
                for child in children.iter().flatten() {
                    child.for_each(entry);
                }
            }
        }
    }

    /// The entries below after those that are to be left out, of which the number is counted down;
    /// `false` once `entry` returned it.
    fn each_from<'a>(
        &'a self,
        left_out: &mut usize,
        entry: &mut impl FnMut(&'a [u8], View<'a, A>) -> bool,
    ) -> bool {
        if let Some(left) = left_out.checked_sub(self.len()) {
            *left_out = left;
            return true;
        }
        match self {
            Node::Leaf(page, _) => {
                let from = std::mem::take(left_out);
                Page::of(page.bytes()).is_none_or(|inside| {
                    inside
                        .entries_from(from)
                        .all(|(key, value)| entry(key, View::new(value, page.links())))
                })
            }
            Node::Branch { children, .. } => children
                .iter()
                .flatten()
                .all(|child| child.each_from(left_out, entry)),
        }
    }

    /// This node with entries more, or other values for keys it has. No key may come twice. Every
    /// node on the way to any of them is written once.
    pub(super) fn with(&self, entries: &mut [Entry<'_, A>]) -> Arc<Self> {
        self.with_at(entries, 0)
    }

    fn with_at(&self, entries: &mut [Entry<'_, A>], depth: u32) -> Arc<Self> {
        match self {
            Node::Leaf(page, _) => {
                entries.sort_unstable_by_key(|entry| entry.pair.0.bytes);
                let new: SmallVec<[_; 2]> = entries.iter().map(|entry| entry.pair).collect();
                let changed = with_entries(page.view(), Scope::Own, &new);
                if changed.bytes().len() <= PAGE || depth >= DEEPEST {
                    return Arc::new(Node::leaf(changed));
                }
                let mut entries: Vec<_> = Page::of(changed.bytes())
                    .into_iter()
                    .flat_map(|page| pairs(page, changed.links(), &[]))
                    .map(Entry::new)
                    .collect();
                Self::build(&mut entries, depth)
            }
            Node::Branch { children, .. } => {
                let mut children = children.clone();
                for (index, group) in by_child(entries, depth) {
                    children[index] = Some(match &children[index] {
                        Some(child) => child.with_at(group, depth + 1),
                        None => Self::build(group, depth + 1),
                    });
                }
                Arc::new(Self::branch(children))
            }
        }
    }

    /// This node without a key; `None` if it has no such key.
    pub(super) fn without(&self, key: &[u8]) -> Option<Arc<Self>> {
        self.without_at(hash(key), 0, key)
    }

    fn without_at(&self, hashed: u64, depth: u32, key: &[u8]) -> Option<Arc<Self>> {
        match self {
            Node::Leaf(page, _) => {
                let changed = without_entry(page.view(), Scope::Own, key)?;
                Some(Arc::new(Node::leaf(changed)))
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
                    return Some(Arc::new(Node::leaf(branch.join())));
                }
                Some(Arc::new(branch))
            }
        }
    }

    /// All entries below as one packed map.
    pub(super) fn join(&self) -> Packed<A> {
        let mut entries = Vec::with_capacity(self.len());
        self.for_each(&mut |key, value: View<'_, A>| {
            entries.push((View::new(key, value.links), value));
        });
        entries.sort_unstable_by_key(|(key, _)| key.bytes);
        pack(entries.into_iter())
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

/// The entries of a value that is a map, from this index on, until `entry` returns
/// `false`.
pub(super) fn each_from<'a, A: Anchor>(
    map: View<'a, A>,
    from: usize,
    entry: &mut impl FnMut(&'a [u8], View<'a, A>) -> bool,
) {
    match item(map.bytes, &mut 0) {
        Ok(Item::Map(page)) => {
            page.entries_from(from)
                .all(|(key, value)| entry(key, View::new(value, map.links)));
        }
        Ok(Item::Trie(_)) => {
            if let Some(Target::Trie(node)) = map.target() {
                node.each_from(&mut { from }, entry);
            }
        }
        _ => {}
    }
}

/// Whose links a view of a map has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The map's own: it is not part of another value.
    Own,
    /// Those of the value that it is a part of.
    Whole,
}

impl Scope {
    /// The links of a map.
    fn links<A: Anchor>(self, map: View<'_, A>) -> Links<A> {
        match self {
            Scope::Own => map.links.clone(),
            Scope::Whole => own_links(map),
        }
    }
}

/// The links that occur in a part of a value.
fn own_links<A: Anchor>(part: View<'_, A>) -> Links<A> {
    match part.links {
        _ if !part.has_links() => Links::None,
        Links::One(_) => part.links.clone(),
        _ => Links::from_unsorted(part.own_links()),
    }
}

/// A packed map with an entry more, or another value for a key it has.
fn with_entry<A: Anchor>(
    map: View<'_, A>,
    scope: Scope,
    key: View<'_, A>,
    value: View<'_, A>,
) -> Packed<A> {
    let Some(page) = Page::of(map.bytes) else {
        return map.to_packed();
    };
    let bytes = page.with(key.bytes, value.bytes);
    if [map, key, value].iter().all(|view| view.links.is_empty()) {
        return Packed::new(bytes, Links::None);
    }
    let old = page.find(key.bytes);
    let old_has_links = old.is_some_and(|old| View::new(old, map.links).has_links());
    let new_key_has_links = old.is_none() && key.has_links();
    if !old_has_links && !new_key_has_links && !value.has_links() {
        // The links of the whole are those it had.
        return Packed::new(bytes, scope.links(map));
    }
    // Without those of the value that goes.
    let kept = match map.links {
        Links::One(_) if old_has_links => Links::None,
        _ if !old_has_links => scope.links(map),
        _ => {
            let mut links = map.own_links();
            if let Some(old) = old {
                cut(&mut links, View::new(old, map.links));
            }
            Links::from_unsorted(links)
        }
    };
    let mut links = kept.and(own_links(value));
    if new_key_has_links {
        links = links.and(own_links(key));
    }
    Packed::new(bytes, links)
}

/// Up to this many entries are put into a page faster one by one than in a pass over all of it.
const ONE_BY_ONE: usize = 4;

/// A packed map with entries more, or other values for keys it has. They must be sorted by key, and
/// no key may come twice.
pub(super) fn with_entries<'a, A: Anchor>(
    map: View<'a, A>,
    scope: Scope,
    entries: &[Pair<'a, A>],
) -> Packed<A> {
    if let [(key, value), rest @ ..] = entries
        && rest.len() < ONE_BY_ONE
    {
        let first = with_entry(map, scope, *key, *value);
        return rest.iter().fold(first, |changed, (key, value)| {
            with_entry(changed.view(), Scope::Own, *key, *value)
        });
    }
    let Some(page) = Page::of(map.bytes) else {
        return map.to_packed();
    };
    let mut merged = Vec::with_capacity(page.len() + entries.len());
    let mut new = entries.iter().copied().peekable();
    for (key, value) in pairs(page, map.links, &[]) {
        while let Some(pair) = new.next_if(|(other, _)| other.bytes < key.bytes) {
            merged.push(pair);
        }
        let replaced = new.next_if(|(other, _)| other.bytes == key.bytes);
        merged.push((key, replaced.map_or(value, |(_, value)| value)));
    }
    merged.extend(new);
    pack(merged.into_iter())
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
fn cut<A: Anchor>(links: &mut LinkVec<A>, part: View<'_, A>) {
    let mut ids: Vec<_> = part.own_links().into_iter().map(|(id, _)| id).collect();
    if ids.is_empty() {
        return;
    }
    links.sort_by_key(|(id, _)| *id);
    ids.sort_unstable();
    let mut ids = ids.into_iter().peekable();
    links.retain(|(id, _)| ids.next_if_eq(id).is_none());
}
