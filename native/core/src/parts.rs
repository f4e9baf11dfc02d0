//! Large parts of values as contents of their own, so that two values have equal parts in common.
//!
//! ```text
//!   {state, "id-1", [Tool, Tool, Tool], #{...}}       a value, packed
//!          │
//!          ▼
//!   {state, "id-1", part 7, #{...}}                   what is its own
//!                     └──▶ [part 8, part 9, part 3]   contents, each once for all that have it
//!                              └──▶ Tool
//! ```
//!
//! Which parts of a value become contents is told by the value alone ([`Parts::of`]): so equal
//! values are taken apart alike, whoever made them. They are hashed from below to above, and looked
//! up from above to below ([`Parts::take`]): of a part that is known, nothing inside is looked at
//! but to compare it.
//!
//! A part is compared byte by byte with the content that it is taken for, through the parts inside
//! of it; a hash decides nothing.

use crate::packed::{
    Anchor, Item, Links, Packed, ReadError, Target, View, Writer, item,
};
use smallvec::SmallVec;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

/// The packed bytes of the smallest part. A content takes about 400 bytes beside its own, so a
/// smaller one would have to be found often to pay.
///
/// Of the tools of large public servers (45 tools of 400 to 3,300 bytes, 14 of 750 to 1,450) all
/// are parts. What is smaller is copied with what it lies in.
pub const SMALLEST: usize = 384;

/// Packed bytes up to which a part has no parts itself: what is shared of a large part that differs
/// in one place is all but one such piece. Most tools with their schemas are below.
pub const WHOLE: usize = 4 << 10;

/// A value of fewer packed bytes is not looked through for parts.
pub const SMALL: usize = 512;

/// Values with more parts are taken apart into larger ones: what is so large is mostly data of its
/// own, and shares little.
pub const MANY: usize = 4 << 10;

/// Bytes of the link that stands for a part, about.
const LINK: usize = 10;

/// A part of a value.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: usize,
    end: usize,
    /// Parts inside, at any depth, and this one.
    size: usize,
    hash: u64,
}

/// The parts of a value, the inner ones before what they lie in.
#[derive(Debug)]
pub struct Parts(Vec<Part>);

/// Where contents are kept.
pub trait Contents<A: Anchor> {
    /// Keeps the content that was found: the content of this hash that `is_equal` to what is
    /// looked for; its id and what keeps it.
    fn find(&self, hash: u64, is_equal: &mut dyn FnMut(&Packed<A>) -> bool) -> Option<(u64, A)>;

    /// Makes a content, unless there is an equal one by now.
    fn add(&self, hash: u64, packed: Packed<A>) -> (u64, A);

    /// The content that an anchor keeps.
    fn content<'a>(&self, anchor: &'a A) -> Option<&'a Packed<A>>;
}

/// A value that has been begun, where its parts begin, and what they cover by then.
struct Open {
    start: usize,
    left: usize,
    first: usize,
    covered: usize,
}

impl Parts {
    /// Finds and hashes the parts of a value; none where the bytes do not follow the format.
    pub fn of(bytes: &[u8], hasher: &impl BuildHasher) -> Self {
        if bytes.len() < SMALL {
            return Parts(Vec::new());
        }
        let mut scale = 1;
        loop {
            let Ok(found) = Self::scan(bytes, scale) else {
                return Parts(Vec::new());
            };
            if let Some(mut parts) = found {
                parts.hash(bytes, hasher);
                return parts;
            }
            scale *= 8;
        }
    }

    /// `None` where there are too many.
    fn scan(bytes: &[u8], scale: usize) -> Result<Option<Self>, ReadError> {
        let mut parts: Vec<Part> = Vec::new();
        // Bytes that are in parts, less those of the links that stand for these.
        let mut covered = 0;
        let mut open: SmallVec<[Open; 16]> = SmallVec::new();
        let mut at = 0;
        let (smallest, whole) = (SMALLEST * scale, WHOLE * scale);
        loop {
            let start = at;
            let next = item(bytes, &mut at)?;
            let mut following = next.following();
            if let Item::Map(page) = next {
                let is_whole = at - start <= whole && !open.is_empty();
                if !page.is_empty() && !is_whole {
                    at -= page.body().len();
                    following = 2 * page.len();
                }
            }
            if following > 0 {
                open.push(Open {
                    start,
                    left: following,
                    first: parts.len(),
                    covered,
                });
                continue;
            }
            let mut ended = Open {
                start,
                left: 0,
                first: parts.len(),
                covered,
            };
            // This value is ended, and maybe those that it is the last one of.
            loop {
                let Some(outer) = open.last_mut() else {
                    return Ok(Some(Parts(parts)));
                };
                let len = at - ended.start;
                if len >= smallest {
                    let is_part = if len <= whole {
                        parts.truncate(ended.first);
                        true
                    } else {
                        len - (covered - ended.covered) >= smallest
                    };
                    if is_part {
                        if parts.len() == MANY {
                            return Ok(None);
                        }
                        parts.push(Part {
                            start: ended.start,
                            end: at,
                            size: parts.len() - ended.first + 1,
                            hash: 0,
                        });
                        covered = ended.covered + len - LINK;
                    }
                }
                outer.left -= 1;
                if outer.left > 0 {
                    break;
                }
                let Some(outer) = open.pop() else {
                    return Err(ReadError);
                };
                ended = outer;
            }
        }
    }

    fn hash(&mut self, bytes: &[u8], hasher: &impl BuildHasher) {
        for index in 0..self.0.len() {
            let part = self.0[index];
            self.0[index].hash = if part.size == 1 {
                hasher.hash_one(&bytes[part.start..part.end])
            } else {
                let mut state = hasher.build_hasher();
                let mut at = part.start;
                for inner in self.directly_in(index) {
                    let inner = self.0[inner];
                    state.write(&bytes[at..inner.start]);
                    state.write_u64(inner.hash);
                    at = inner.end;
                }
                state.write(&bytes[at..part.end]);
                state.finish()
            };
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The parts that lie directly in a part, from first to last; in the value itself for the
    /// number of all parts.
    fn directly_in(&self, index: usize) -> SmallVec<[usize; 16]> {
        let first = match self.0.get(index) {
            Some(part) => index + 1 - part.size,
            None => 0,
        };
        let mut inside = SmallVec::new();
        let mut end = index;
        while end > first {
            inside.push(end - 1);
            end -= self.0[end - 1].size;
        }
        inside.reverse();
        inside
    }

    /// The value with links in the place of its parts, which are kept as contents.
    pub fn take<A: Anchor>(&self, value: View<'_, A>, contents: &impl Contents<A>) -> Packed<A> {
        let root = self.0.len();
        // What each part became, once that is known.
        let mut made: Vec<Option<(u64, A)>> = vec![None; root];
        let mut steps = vec![(root, false)];
        let whole = 0..value.bytes.len();
        while let Some((index, is_ready)) = steps.pop() {
            let Some(part) = self.0.get(index) else {
                if is_ready {
                    break;
                }
                steps.push((index, true));
                let inside = self.directly_in(index);
                steps.extend(inside.into_iter().rev().map(|inside| (inside, false)));
                continue;
            };
            let range = part.start..part.end;
            if is_ready {
                let packed = self.linked(value, index, range, &mut made);
                made[index] = Some(contents.add(part.hash, packed));
                continue;
            }
            let mut is_equal = |known: &Packed<A>| self.equals(value, index, known, contents);
            made[index] = contents.find(part.hash, &mut is_equal);
            if made[index].is_none() {
                steps.push((index, true));
                let inside = self.directly_in(index);
                steps.extend(inside.into_iter().rev().map(|inside| (inside, false)));
            }
        }
        self.linked(value, root, whole, &mut made)
    }

    /// A part or the value with links to the parts that lie directly in it.
    fn linked<A: Anchor>(
        &self,
        value: View<'_, A>,
        index: usize,
        range: Range<usize>,
        made: &mut [Option<(u64, A)>],
    ) -> Packed<A> {
        let View { bytes, links } = value;
        let mut to = Writer::new();
        let mut at = range.start;
        for inner in self.directly_in(index) {
            let part = self.0[inner];
            // Up to the part, item by item: a map that it lies in is written without its offsets.
            let mut copied = at;
            while at < part.start {
                let start = at;
                let Ok(next) = item(bytes, &mut at) else {
                    break;
                };
                if let Item::Map(page) = next
                    && at > part.start
                {
                    to.items(View::new(&bytes[copied..start], links));
                    to.entries(page.len());
                    at -= page.body().len();
                    copied = at;
                }
            }
            to.items(View::new(&bytes[copied..part.start], links));
            if let Some((id, anchor)) = made[inner].take() {
                to.part(id, anchor);
            }
            at = part.end;
        }
        to.items(View::new(&bytes[at..range.end], links));
        to.finish()
    }

    /// Whether a part is what a content says.
    fn equals<A: Anchor>(
        &self,
        value: View<'_, A>,
        index: usize,
        known: &Packed<A>,
        contents: &impl Contents<A>,
    ) -> bool {
        let bytes = value.bytes;
        let mut rest: SmallVec<[(usize, &Packed<A>); 16]> = SmallVec::new();
        rest.push((index, known));
        while let Some((index, known)) = rest.pop() {
            let part = self.0[index];
            if part.size == 1 {
                if bytes[part.start..part.end] != *known.bytes() {
                    return false;
                }
                continue;
            }
            let (mut at, mut there) = (part.start, 0);
            let mut is_equal = || -> Result<bool, ReadError> {
                for inner in self.directly_in(index) {
                    let part = self.0[inner];
                    while at < part.start {
                        let (start, there_from) = (at, there);
                        match (item(bytes, &mut at)?, item(known.bytes(), &mut there)?) {
                            (Item::Map(own), Item::Entries(count)) if at > part.start => {
                                if own.len() != count {
                                    return Ok(false);
                                }
                                at -= own.body().len();
                            }
                            _ if bytes[start..at] != known.bytes()[there_from..there] => {
                                return Ok(false);
                            }
                            _ => {}
                        }
                    }
                    let Item::Part(id) = item(known.bytes(), &mut there)? else {
                        return Ok(false);
                    };
                    let Some(content) = part_of(known.links(), id, contents) else {
                        return Ok(false);
                    };
                    rest.push((inner, content));
                    at = part.end;
                }
                Ok(bytes[at..part.end] == known.bytes()[there..])
            };
            if is_equal() != Ok(true) {
                return false;
            }
        }
        true
    }
}

fn part_of<'a, A: Anchor>(
    links: &'a Links<A>,
    id: u64,
    contents: &impl Contents<A>,
) -> Option<&'a Packed<A>> {
    match links.get(id)? {
        Target::Anchor(anchor) => contents.content(anchor),
        _ => None,
    }
}

/// A binary of at most this size lies on the heap of its process.
const HEAP_BINARY: usize = 64;

/// About the bytes that a value takes on a heap and in binaries off it, written out in full.
/// `part` tells what a part takes.
pub fn built_bytes<A>(value: &Packed<A>, mut part: impl FnMut(&A) -> usize) -> usize
where
    A: Anchor,
{
    let bytes = value.bytes();
    let (mut words, mut others, mut at) = (0usize, 0usize, 0);
    while at < bytes.len() {
        let Ok(next) = item(bytes, &mut at) else {
            break;
        };
        match next {
            Item::Int(value) if (-(1 << 59)..1 << 59).contains(&value) => {}
            Item::Nil | Item::Atom(_) | Item::Pid(_) | Item::Port(_) => {}
            Item::Int(_) | Item::Float(_) => words += 2,
            Item::ByteList(list) => words += 2 * list.len(),
            Item::List(len) | Item::Improper(len) => words += 2 * len,
            Item::Tuple(len) => words += 1 + len,
            Item::Fun(free) => words += 7 + free,
            Item::Export => words += 3,
            Item::Record(len) => words += 2 + 2 * len,
            Item::Binary(binary) if binary.len() > HEAP_BINARY => {
                words += 8;
                others += binary.len();
            }
            Item::Binary(binary) => words += 2 + binary.len().div_ceil(size_of::<usize>()),
            Item::Opaque(external) => words += 2 + external.len().div_ceil(size_of::<usize>()),
            Item::Map(page) => {
                // A small map has its keys in a tuple, a large one is a trie.
                words += 5 + 2 * page.len();
                at -= page.body().len();
            }
            Item::Entries(len) => words += 5 + 2 * len,
            Item::Part(id) => {
                if let Some(Target::Anchor(anchor)) = value.links().get(id) {
                    others += part(anchor);
                }
            }
            Item::Reference(_)
            | Item::Foreign { .. }
            | Item::Handle(_)
            | Item::Share(_)
            | Item::Blob(_)
            | Item::Trie(_) => words += 5,
        }
    }
    words * size_of::<usize>() + others
}
