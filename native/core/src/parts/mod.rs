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
//! Which parts of a value become contents follows from the value alone ([`Parts::of`]): so equal
//! values are taken apart in the same way, whichever process made them. They are hashed bottom up,
//! and looked up top down ([`Parts::take`]): of a part that is known, nothing inside is looked at
//! but to compare it.
//!
//! A part is compared byte by byte with the content that it is taken for, through the parts inside
//! of it; a hash decides nothing.
//!
//! Of a long list or map, runs of elements or entries that have parts are contents as well, so that
//! one that differs in one element has all but one run in common. Where a run ends is told by the
//! element that it ends with, so it is the same wherever that stands.
//!
//! Who packs a value may know of a part beforehand which content it is, and write a link in its
//! place. A [`Path`] tells where parts were in values of the same shape ([`each_outer`]), so that
//! it can be guessed which they are.

mod built;
mod path;
#[cfg(test)]
mod tests;

pub use built::{Built, built, map_words};
pub use path::{PATH, Path, each_outer};

use crate::packed::{Anchor, Item, Links, Packed, ReadError, Target, View, Writer, item};
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

/// The packed bytes of the smallest value that becomes a part although it is smaller than
/// [`SMALLEST`], because values of others have it too ([`Contents::is_common`]): what a server says
/// of itself, or a client. A link to it takes about 34 bytes. Only what lies in no other part does,
/// so that contents are taken apart alike at all times.
pub const COMMON: usize = 96;

/// Values with more parts are taken apart into larger ones: what is so large is mostly data of its
/// own, and shares little.
pub const MANY: usize = 4 << 10;

/// About the bytes of the link that stands for a part.
const LINK: usize = 10;

/// The fewest values of a list, or keys and values of a map, of which runs are contents.
const LONG: usize = 16;

/// The fewest parts of a run: what it has beside links is copied where one of its elements differs,
/// and it takes what a content takes.
const FEWEST_IN_RUN: usize = 4;

/// The most parts of a run.
const MOST_IN_RUN: usize = 32;

/// One in this many elements ends a run. A content takes some 400 bytes and each link 34, so of 86
/// tools one that is another costs least with runs of about 8.
const ENDS_RUN: usize = 8;

/// Whether a run ends with a value of this flat size, which is also known of a value that is a link
/// already.
fn ends_run(flat: usize) -> bool {
    (flat.wrapping_mul(0x9e37_79b9) >> 16).is_multiple_of(ENDS_RUN)
}

/// A part of a value.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: usize,
    end: usize,
    /// Parts inside, at any depth, and this one.
    size: usize,
    hash: u64,
    /// Bytes that it has when all is in its place.
    flat: usize,
    /// It was a link already.
    is_link: bool,
    /// The values of a run; 0 for a single value.
    run: usize,
}

/// The parts of a value, inner ones before outer ones.
#[derive(Debug)]
pub struct Parts(Vec<Part>);

/// Small values, from first to last.
type Small = SmallVec<[Range<usize>; 16]>;

/// Leaves out those inside what begins here.
fn outermost(small: &mut Small, start: usize) {
    let inside = small.iter().rev().take_while(|inner| inner.start >= start);
    small.truncate(small.len() - inside.count());
}

/// Where contents are kept.
pub trait Contents<A: Anchor> {
    /// Keeps the content that was found: the content of this hash that `is_equal` to what is
    /// looked for; its id and what keeps it.
    fn find(&self, hash: u64, is_equal: &mut dyn FnMut(&Packed<A>) -> bool) -> Option<(u64, A)>;

    /// Makes a content, which has so many bytes when all is in its place, unless there is an equal
    /// one by now.
    fn add(&self, hash: u64, flat: usize, packed: Packed<A>) -> (u64, A);

    /// Whether a value as a whole is to be a content, of which so many bytes are in no part. Most
    /// are held by one owner alone.
    fn is_shared(&self, hash: u64, own: usize) -> bool;

    /// Whether a small value of this hash was seen in values of others.
    fn is_common(&self, hash: u64) -> bool;

    /// The hash of the content that an anchor keeps, and its bytes when all is in its place.
    fn hash_of(&self, anchor: &A) -> Option<(u64, usize)>;

    /// The content that an anchor keeps.
    fn content<'a>(&self, anchor: &'a A) -> Option<&'a Packed<A>>;
}

/// A value cannot be taken apart as it was written: a link stands for what is too small to be a
/// part there, or the bytes do not follow the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfit;

impl From<ReadError> for Unfit {
    fn from(_: ReadError) -> Self {
        Unfit
    }
}

/// A value that has been begun, where its parts begin, and what they cover by then. `place` is
/// where it starts when all is in its place.
struct Open {
    start: usize,
    place: usize,
    left: usize,
    first: usize,
    covered: usize,
    /// Of a list or a map, the run that was begun.
    run: Option<Run>,
    has_runs: bool,
}

/// Values of a list, or entries of a map, one behind the other.
struct Run {
    start: usize,
    place: usize,
    first: usize,
    covered: usize,
    values: usize,
    /// Those that are parts.
    parts: usize,
    is_map: bool,
}

impl Run {
    /// A run without values.
    fn begin(start: usize, place: usize, first: usize, covered: usize, is_map: bool) -> Self {
        Run {
            start,
            place,
            first,
            covered,
            values: 0,
            parts: 0,
            is_map,
        }
    }
}

impl Parts {
    /// Finds and hashes the parts of a value, in which `links` parts are links already.
    pub fn of<A: Anchor>(
        value: View<'_, A>,
        links: usize,
        contents: &impl Contents<A>,
        hasher: &impl BuildHasher,
    ) -> Result<Self, Unfit> {
        if value.bytes.len() < SMALL && links == 0 {
            return Ok(Parts(Vec::new()));
        }
        let mut scale = 1;
        loop {
            if let Some((mut parts, small)) = Self::scan(value, links > 0, contents, scale)? {
                parts.hash(value.bytes, hasher);
                if !parts.keep_whole(value.bytes.len(), contents) {
                    parts.add_common(value.bytes, small, contents, hasher);
                }
                return Ok(parts);
            }
            scale *= 8;
        }
    }

    /// The parts without their hashes, and the small values in none of them, none of which lies in
    /// another; `None` where there are too many parts.
    fn scan<A: Anchor>(
        value: View<'_, A>,
        has_links: bool,
        contents: &impl Contents<A>,
        scale: usize,
    ) -> Result<Option<(Self, Small)>, Unfit> {
        let bytes = value.bytes;
        let mut parts: Vec<Part> = Vec::new();
        let mut small = Small::new();
        // Bytes that are in parts, less those of the links that stand for these.
        let mut covered = 0;
        // Bytes that links stand for, less their own.
        let mut behind = 0;
        let mut open: SmallVec<[Open; 16]> = SmallVec::new();
        let mut at = 0;
        let (smallest, whole) = (SMALLEST * scale, WHOLE * scale);
        loop {
            let start = at;
            let place = start + behind;
            let next = item(bytes, &mut at)?;
            let mut following = next.following();
            let mut known = None;
            match next {
                Item::Map(page) => {
                    // Nothing in it is a part, unless it is a link.
                    let is_whole = at - start <= whole && !has_links && !open.is_empty();
                    if !page.is_empty() && !is_whole {
                        at -= page.body().len();
                        following = 2 * page.len();
                    }
                }
                Item::Part(id) => {
                    let Some(Target::Anchor(anchor)) = value.links.get(id) else {
                        return Err(Unfit);
                    };
                    let (hash, flat) = contents.hash_of(anchor).ok_or(Unfit)?;
                    behind += flat - (at - start);
                    known = Some(hash);
                }
                _ => {}
            }
            let mut ended = Open {
                start,
                place,
                left: following,
                first: parts.len(),
                covered,
                run: None,
                has_runs: false,
            };
            if following > 0 {
                let is_map = matches!(next, Item::Map(_));
                if following >= LONG && (is_map || matches!(next, Item::List(_))) {
                    ended.run = Some(Run::begin(at, at + behind, parts.len(), covered, is_map));
                }
                open.push(ended);
                continue;
            }
            // This value is ended, and maybe those that it is the last one of.
            loop {
                let len = at + behind - ended.place;
                let Some(outer) = open.last_mut() else {
                    if known.is_some() || len - covered >= smallest {
                        parts.push(Part {
                            start: 0,
                            end: at,
                            size: parts.len() + 1,
                            hash: known.unwrap_or(0),
                            flat: len,
                            is_link: known.is_some(),
                            run: 0,
                        });
                    }
                    return Ok(Some((Parts(parts), small)));
                };
                if (COMMON..smallest).contains(&len) {
                    outermost(&mut small, ended.start);
                    small.push(ended.start..at);
                }
                if len >= smallest {
                    let is_part = if len <= whole {
                        if parts[ended.first..].iter().any(|part| part.is_link) {
                            return Err(Unfit);
                        }
                        parts.truncate(ended.first);
                        true
                    } else {
                        // All that holds its runs together is what others have, too.
                        ended.has_runs || len - (covered - ended.covered) >= smallest
                    };
                    if is_part {
                        if parts.len() == MANY {
                            return Ok(None);
                        }
                        outermost(&mut small, ended.start);
                        parts.push(Part {
                            start: ended.start,
                            end: at,
                            size: parts.len() - ended.first + 1,
                            hash: known.unwrap_or(0),
                            flat: len,
                            is_link: known.is_some(),
                            run: 0,
                        });
                        covered = ended.covered + len - LINK;
                    }
                }
                if known.take().is_some() && parts.last().is_none_or(|part| !part.is_link) {
                    return Err(Unfit);
                }
                outer.left -= 1;
                if let Some(run) = &mut outer.run {
                    run.values += 1;
                    let is_part = parts.last().is_some_and(|part| part.end == at);
                    run.parts += usize::from(is_part);
                    let is_whole = !run.is_map || run.values.is_multiple_of(2);
                    if is_whole
                        && run.parts >= FEWEST_IN_RUN
                        && (ends_run(len) || run.parts >= MOST_IN_RUN)
                    {
                        if parts.len() == MANY {
                            return Ok(None);
                        }
                        outermost(&mut small, run.start);
                        let flat = at + behind - run.place;
                        parts.push(Part {
                            start: run.start,
                            end: at,
                            size: parts.len() - run.first + 1,
                            hash: 0,
                            flat,
                            is_link: false,
                            run: run.values,
                        });
                        covered = run.covered + flat - LINK;
                        outer.has_runs = true;
                        *run = Run::begin(at, at + behind, parts.len(), covered, run.is_map);
                    }
                }
                if outer.left > 0 {
                    break;
                }
                ended = open.pop().ok_or(Unfit)?;
            }
        }
    }

    /// Leaves the value itself out of the parts, unless it is one that others have as well; then
    /// returns `true`.
    fn keep_whole<A: Anchor>(&mut self, len: usize, contents: &impl Contents<A>) -> bool {
        let Some(whole) = self
            .0
            .last()
            .filter(|part| part.start == 0 && part.end == len)
        else {
            return false;
        };
        let inner = self.0[..self.0.len() - 1].iter().map(|part| part.flat);
        let own = whole.flat.saturating_sub(inner.sum());
        if !whole.is_link && !contents.is_shared(whole.hash, own) {
            self.0.pop();
            return false;
        }
        true
    }

    /// Makes parts of the small values that are common.
    fn add_common<A: Anchor>(
        &mut self,
        bytes: &[u8],
        small: Small,
        contents: &impl Contents<A>,
        hasher: &impl BuildHasher,
    ) {
        let common = small.into_iter().filter_map(|Range { start, end }| {
            let hash = hasher.hash_one(&bytes[start..end]);
            contents.is_common(hash).then_some(Part {
                start,
                end,
                size: 1,
                hash,
                flat: end - start,
                is_link: false,
                run: 0,
            })
        });
        let mut common = common.peekable();
        if common.peek().is_none() {
            return;
        }
        let mut all = Vec::with_capacity(self.0.len() + 8);
        for last in self.directly_in(self.0.len()) {
            let part = self.0[last];
            while let Some(before) = common.next_if(|before| before.start < part.start) {
                all.push(before);
            }
            all.extend_from_slice(&self.0[last + 1 - part.size..=last]);
        }
        all.extend(common);
        self.0 = all;
    }

    fn hash(&mut self, bytes: &[u8], hasher: &impl BuildHasher) {
        for index in 0..self.0.len() {
            let part = self.0[index];
            if part.is_link {
                continue;
            }
            self.0[index].hash = if part.size == 1 {
                hasher.hash_one(&bytes[part.start..part.end])
            } else {
                let mut state = hasher.build_hasher();
                if part.run > 0 {
                    state.write_usize(part.run);
                }
                let end = self.each_piece(bytes, index, part.start, |piece| match piece {
                    Piece::Items(items) => state.write(&bytes[items]),
                    Piece::Entries(count) => state.write_usize(count),
                    Piece::Part(inner) => state.write_u64(self.0[inner].hash),
                });
                state.write(&bytes[end..part.end]);
                state.finish()
            };
        }
    }

    /// What stands before and between the parts that lie directly in a part, and these; returns
    /// where the last one ends. Of maps that they lie in, only the number of entries: their offsets
    /// depend on what is in its place.
    fn each_piece(
        &self,
        bytes: &[u8],
        index: usize,
        start: usize,
        mut piece: impl FnMut(Piece),
    ) -> usize {
        let mut at = start;
        for inner in self.directly_in(index) {
            let part = self.0[inner];
            let mut copied = at;
            while at < part.start {
                let start = at;
                let Ok(next) = item(bytes, &mut at) else {
                    break;
                };
                if let Item::Map(page) = next
                    && at > part.start
                {
                    piece(Piece::Items(copied..start));
                    piece(Piece::Entries(page.len()));
                    at -= page.body().len();
                    copied = at;
                }
            }
            piece(Piece::Items(copied..part.start));
            piece(Piece::Part(inner));
            at = part.end;
        }
        at
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
            if part.is_link {
                made[index] = link_in(value, part.start);
                continue;
            }
            if is_ready {
                let packed = self.linked(value, index, range, &mut made);
                made[index] = Some(contents.add(part.hash, part.flat, packed));
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
        if let Some(Part { size: 1, .. }) = self.0.get(index) {
            return View::new(&bytes[range], links).to_packed();
        }
        let mut to = Writer::new();
        if let Some(Part { run: 1.., .. }) = self.0.get(index) {
            to.list(self.0[index].run);
        }
        let end = self.each_piece(bytes, index, range.start, |piece| match piece {
            Piece::Items(items) => to.items(View::new(&bytes[items], links)),
            Piece::Entries(count) => to.entries(count),
            Piece::Part(inner) => {
                if let Some((id, anchor)) = made[inner].take() {
                    match self.0[inner].run {
                        0 => to.part(id, anchor),
                        run => to.run(run, id, anchor),
                    }
                }
            }
        });
        to.items(View::new(&bytes[end..range.end], links));
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
                // Not taken apart, and so no link.
                if bytes[part.start..part.end] != *known.bytes() {
                    return false;
                }
                continue;
            }
            let (mut at, mut there) = (part.start, 0);
            let mut is_equal = || -> Result<bool, ReadError> {
                if part.run > 0
                    && !matches!(item(known.bytes(), &mut there)?, Item::List(len) if len == part.run)
                {
                    return Ok(false);
                }
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
                    let id = match item(known.bytes(), &mut there)? {
                        Item::Part(id) if part.run == 0 => id,
                        Item::Run { len, id } if len == part.run => id,
                        _ => return Ok(false),
                    };
                    if part.is_link {
                        let own = item(bytes, &mut { part.start })?;
                        if !matches!(own, Item::Part(own) if own == id) {
                            return Ok(false);
                        }
                        at = part.end;
                        continue;
                    }
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

/// What a part is put together of.
enum Piece {
    /// Items, as they stand there.
    Items(Range<usize>),
    /// The head of a map of this many entries.
    Entries(usize),
    /// A part.
    Part(usize),
}

/// The link in that place of a value.
fn link_in<A: Anchor>(value: View<'_, A>, mut at: usize) -> Option<(u64, A)> {
    let Ok(Item::Part(id)) = item(value.bytes, &mut at) else {
        return None;
    };
    match value.links.get(id)? {
        Target::Anchor(anchor) => Some((id, anchor.clone())),
        _ => None,
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
