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

/// A place in a value, through tuples and maps, as seen from its end: of a tuple that it is the
/// last element of, nothing is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path(u64);

/// The depth down to which places are distinguished.
pub const PATH: usize = 6;

impl Path {
    /// The root of a tuple, with its first element if that is an atom.
    pub fn of_tuple(arity: usize, first: Option<u64>) -> Self {
        Path(1)
            .step(arity)
            .step(first.map_or(0, |word| word as usize))
    }

    /// The root of a map.
    pub fn of_map() -> Self {
        Path(2)
    }

    /// A value that is a tuple or a map; `None` for any other.
    fn of(bytes: &[u8]) -> Option<Self> {
        let mut at = 0;
        match item(bytes, &mut at) {
            Ok(Item::Tuple(arity)) => Some(match item(bytes, &mut at) {
                Ok(Item::Atom(word)) => Path::of_tuple(arity, Some(word)),
                _ => Path::of_tuple(arity, None),
            }),
            Ok(Item::Entries(_) | Item::Map(_)) => Some(Path::of_map()),
            _ => None,
        }
    }

    /// The value itself.
    #[must_use]
    pub fn whole(self) -> Self {
        self.step(5)
    }

    /// In a tuple, with this many elements after it.
    #[must_use]
    pub fn element(self, behind: usize) -> Self {
        match behind {
            0 => self,
            _ => self.step(3).step(behind),
        }
    }

    /// In a map, the value of the entry of this number, from 1.
    #[must_use]
    pub fn value(self, number: usize) -> Self {
        self.step(4).step(number)
    }

    fn step(self, number: usize) -> Self {
        let mixed = (self.0 ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Path(mixed ^ mixed >> 32)
    }

    /// A number for it.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Calls `found` with the parts of a value that was taken apart, and where they are, if that can
/// be told. Where it returns `true` of a part that was long, those in that part come next.
pub fn each_outer<A: Anchor>(
    value: &Packed<A>,
    contents: &impl Contents<A>,
    mut found: impl FnMut(Path, &A) -> bool,
) {
    enum In {
        Tuple,
        /// Whether a value comes next.
        Map(bool),
        Other,
    }
    // Where it goes on in values that were left.
    let mut left: SmallVec<[(&Packed<A>, usize); 4]> = SmallVec::new();
    let (mut here, mut at) = (value, 0);
    let mut root = None;
    let mut open: Vec<(In, usize, usize)> = Vec::new();
    // What comes next was counted, as the part that it is.
    let mut is_counted = true;
    loop {
        if at >= here.bytes().len() {
            let Some(outer) = left.pop() else {
                return;
            };
            (here, at) = outer;
            continue;
        }
        let Ok(next) = item(here.bytes(), &mut at) else {
            return;
        };
        if let Item::Run { id, .. } = next {
            let Some(run) = part_of(here.links(), id, contents) else {
                return;
            };
            left.push((here, at));
            (here, at) = (run, 0);
            // The head of the list that it is kept as.
            if item(here.bytes(), &mut at).is_err() {
                return;
            }
            continue;
        }
        if !std::mem::take(&mut is_counted)
            && let Some((kind, left, total)) = open.last_mut()
        {
            *left -= 1;
            if let In::Map(is_value) = kind {
                *is_value = (*total - *left) % 2 == 0;
            }
        }
        if let Item::Part(id) = next
            && let Some(Target::Anchor(anchor)) = here.links().get(id)
        {
            let Some(root) = root else {
                // The value itself.
                if let Some(content) = contents.content(anchor)
                    && let Some(path) = Path::of(content.bytes())
                {
                    found(path.whole(), anchor);
                }
                return;
            };
            let path = (open.len() <= PATH).then(|| {
                open.iter().try_fold(root, |path: Path, open| match *open {
                    (In::Tuple, left, _) => Some(path.element(left)),
                    (In::Map(true), left, total) => Some(path.value((total - left) / 2)),
                    _ => None,
                })
            });
            if let Some(Some(path)) = path
                && found(path, anchor)
                && let Some(content) = contents.content(anchor)
                && has_runs(content)
            {
                left.push((here, at));
                (here, at, is_counted) = (content, 0, true);
                continue;
            }
        }
        let following = match next {
            // Entries without parts.
            Item::Map(_) => 0,
            _ => next.following(),
        };
        if root.is_none() {
            root = Path::of(value.bytes());
            if root.is_none() {
                return;
            }
        }
        if following > 0 {
            let kind = match next {
                Item::Tuple(_) => In::Tuple,
                Item::Entries(_) => In::Map(false),
                _ => In::Other,
            };
            open.push((kind, following, following));
        }
        while let Some((_, 0, _)) = open.last() {
            open.pop();
        }
    }
}

/// Whether a value is a list or a map of which runs are contents.
fn has_runs<A: Anchor>(value: &Packed<A>) -> bool {
    let mut at = 0;
    let bytes = value.bytes();
    matches!(item(bytes, &mut at), Ok(Item::List(_) | Item::Entries(_)))
        && std::iter::from_fn(|| item(bytes, &mut at).ok())
            .any(|next| matches!(next, Item::Run { .. }))
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

/// A binary of at most this size is on the heap of its process.
const HEAP_BINARY: usize = 64;

/// What a value takes when it is built, about, written out in full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Built {
    /// Words on a heap.
    pub words: usize,
    /// Bytes of binaries off the heap.
    pub off_heap: usize,
}

impl Built {
    /// Bytes on the heap and off it.
    pub fn bytes(self) -> usize {
        self.words * size_of::<usize>() + self.off_heap
    }
}

impl std::ops::AddAssign for Built {
    fn add_assign(&mut self, other: Self) {
        self.words += other.words;
        self.off_heap += other.off_heap;
    }
}

/// About the words that a map of so many entries takes on a heap, without these. A small one has its
/// keys in a tuple, a large one is a trie.
pub fn map_words(len: usize) -> usize {
    match len {
        ..=32 => 4 + 2 * len,
        _ => 4 * len,
    }
}

/// What a value takes when it is built. `part` tells what a part takes.
pub fn built<A>(value: &Packed<A>, mut part: impl FnMut(&A) -> Built) -> Built
where
    A: Anchor,
{
    let bytes = value.bytes();
    let (mut built, mut at) = (Built::default(), 0);
    while at < bytes.len() {
        let Ok(next) = item(bytes, &mut at) else {
            break;
        };
        match next {
            Item::Int(value) if (-(1 << 59)..1 << 59).contains(&value) => {}
            Item::Nil | Item::Atom(_) | Item::Pid(_) | Item::Port(_) => {}
            Item::Int(_) | Item::Float(_) => built.words += 2,
            Item::ByteList(list) => built.words += 2 * list.len(),
            Item::List(len) | Item::Improper(len) => built.words += 2 * len,
            Item::Tuple(len) => built.words += 1 + len,
            Item::Fun(free) => built.words += 7 + free,
            Item::Export => built.words += 3,
            Item::Record(len) => built.words += 2 + 2 * len,
            Item::Binary(binary) if binary.len() > HEAP_BINARY => {
                built.words += 8;
                built.off_heap += binary.len();
            }
            Item::Binary(binary) => built.words += 2 + binary.len().div_ceil(size_of::<usize>()),
            Item::Opaque(external) => {
                built.words += 2 + external.len().div_ceil(size_of::<usize>())
            }
            Item::Map(page) => {
                built.words += map_words(page.len());
                at -= page.body().len();
            }
            Item::Entries(len) => built.words += map_words(len),
            Item::Part(id) => {
                if let Some(Target::Anchor(anchor)) = value.links().get(id) {
                    built += part(anchor);
                }
            }
            Item::Run { len, id } => {
                if let Some(Target::Anchor(anchor)) = value.links().get(id) {
                    built += part(anchor);
                    // Without the list that they are kept as.
                    built.words = built.words.saturating_sub(2 * len);
                }
            }
            Item::Reference(_)
            | Item::Foreign { .. }
            | Item::Handle(_)
            | Item::Share(_)
            | Item::Blob(_)
            | Item::Trie(_) => built.words += 5,
        }
    }
    built
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::hash::BuildHasherDefault;
    use std::sync::Arc;

    #[derive(Debug)]
    struct Kept {
        packed: Packed<Arc<Kept>>,
        hash: u64,
        flat: usize,
    }

    type Value = Packed<Arc<Kept>>;

    #[derive(Default)]
    struct Known {
        contents: RefCell<Vec<Arc<Kept>>>,
        /// Hashes of what is common.
        common: RefCell<Vec<u64>>,
    }

    impl Known {
        fn len(&self) -> usize {
            self.contents.borrow().len()
        }
    }

    fn link(kept: &Arc<Kept>) -> (u64, Arc<Kept>) {
        (Arc::as_ptr(kept).addr() as u64, Arc::clone(kept))
    }

    impl Contents<Arc<Kept>> for Known {
        fn find(
            &self,
            hash: u64,
            is_equal: &mut dyn FnMut(&Value) -> bool,
        ) -> Option<(u64, Arc<Kept>)> {
            let known = self.contents.borrow();
            let mut of_hash = known.iter().filter(|kept| kept.hash == hash);
            of_hash.find(|kept| is_equal(&kept.packed)).map(link)
        }

        fn add(&self, hash: u64, flat: usize, packed: Value) -> (u64, Arc<Kept>) {
            let kept = Arc::new(Kept { packed, hash, flat });
            self.contents.borrow_mut().push(Arc::clone(&kept));
            link(&kept)
        }

        fn is_shared(&self, _: u64, own: usize) -> bool {
            own > WHOLE
        }

        fn is_common(&self, hash: u64) -> bool {
            self.common.borrow().contains(&hash)
        }

        fn hash_of(&self, anchor: &Arc<Kept>) -> Option<(u64, usize)> {
            Some((anchor.hash, anchor.flat))
        }

        fn content<'a>(&self, anchor: &'a Arc<Kept>) -> Option<&'a Value> {
            Some(&anchor.packed)
        }
    }

    /// Gives every value the same hash.
    #[derive(Default)]
    struct Same;

    impl Hasher for Same {
        fn write(&mut self, _: &[u8]) {}
        fn finish(&self) -> u64 {
            7
        }
    }

    type AllSame = BuildHasherDefault<Same>;

    fn value(write: impl FnOnce(&mut Writer<Arc<Kept>>)) -> Value {
        let mut writer = Writer::new();
        write(&mut writer);
        writer.finish()
    }

    /// A map of about this many bytes.
    fn tool(to: &mut Writer<Arc<Kept>>, number: i64, size: usize) {
        let mut map = to.begin_map();
        for key in [b"description".as_slice(), b"name", b"number"] {
            to.binary(key);
            to.end_key(&map);
        }
        assert!(to.end_keys(&map));
        while let Some(index) = to.next_value(&mut map) {
            match index {
                // Of different sizes, as tools are.
                0 => to.binary(&vec![b'x'; size + (number as usize * 37) % 500]),
                1 => to.binary(format!("tool {number}").as_bytes()),
                _ => to.int(number),
            }
        }
    }

    fn state(id: i64, tools: &[i64]) -> Value {
        value(|to| {
            to.tuple(3);
            to.atom(1);
            to.int(id);
            to.list(tools.len());
            for number in tools {
                tool(to, *number, 700);
            }
        })
    }

    fn take(value: &Value, links: usize, known: &Known) -> Result<Value, Unfit> {
        let parts = Parts::of(value.view(), links, known, &AllSame::default())?;
        Ok(parts.take(value.view(), known))
    }

    /// All items of a value, with parts in their places.
    fn items(value: &Value) -> Vec<String> {
        let mut found = Vec::new();
        let mut rest = vec![(value, 0)];
        while let Some((value, mut at)) = rest.pop() {
            while at < value.bytes().len() {
                match item(value.bytes(), &mut at).unwrap() {
                    Item::Map(page) => {
                        found.push(format!("map {}", page.len()));
                        at -= page.body().len();
                    }
                    Item::Entries(len) => found.push(format!("map {len}")),
                    Item::Part(id) => {
                        rest.push((value, at));
                        let Some(Target::Anchor(kept)) = value.links().get(id) else {
                            panic!("a part without a link");
                        };
                        rest.push((&kept.packed, 0));
                        break;
                    }
                    Item::Run { id, len } => {
                        rest.push((value, at));
                        let Some(Target::Anchor(kept)) = value.links().get(id) else {
                            panic!("a run without a link");
                        };
                        let mut behind_head = 0;
                        let head = item(kept.packed.bytes(), &mut behind_head);
                        assert!(matches!(head, Ok(Item::List(own)) if own == len));
                        rest.push((&kept.packed, behind_head));
                        break;
                    }
                    other => found.push(format!("{other:?}")),
                }
            }
        }
        found
    }

    #[test]
    fn equal_parts_of_two_values_are_one_content() {
        let known = Known::default();
        let tools: Vec<i64> = (1..40).collect();
        let first = take(&state(1, &tools), 0, &known).unwrap();
        let contents = known.len();
        // The tools, the list, and runs of it.
        assert!((42..=48).contains(&contents), "{contents}");
        assert_eq!(first.links().len(), 1);
        let second = take(&state(2, &tools), 0, &known).unwrap();
        assert_eq!(known.len(), contents);
        assert_eq!(items(&first), items(&state(1, &tools)));
        assert_eq!(items(&second), items(&state(2, &tools)));
    }

    #[test]
    fn a_value_that_differs_in_one_part_has_the_others_in_common() {
        let known = Known::default();
        let mut tools: Vec<i64> = (1..40).collect();
        let _first = take(&state(1, &tools), 0, &known).unwrap();
        let contents = known.len();
        let long = |known: &Known| {
            let lens = known.contents.borrow();
            lens[contents..]
                .iter()
                .map(|kept| kept.packed.bytes().len())
                .sum::<usize>()
        };
        for change in 0..3 {
            let before = known.len();
            match change {
                0 => tools[17] = 1000,
                1 => tools.insert(3, 1001),
                _ => drop(tools.remove(30)),
            }
            let other = take(&state(1, &tools), 0, &known).unwrap();
            // The tool, the list, and one run or two.
            assert!((2..=4).contains(&(known.len() - before)), "{change}");
            assert_eq!(items(&other), items(&state(1, &tools)));
        }
        // Three tools, and little else.
        assert!(long(&known) < 3 * 2500 + 1500, "{}", long(&known));
    }

    #[test]
    fn a_map_that_differs_in_one_entry_has_the_others_in_common() {
        let known = Known::default();
        let map = |keys: &[i64]| {
            value(|to| {
                let mut map = to.begin_map();
                for key in keys {
                    to.int(*key);
                    to.end_key(&map);
                }
                assert!(to.end_keys(&map));
                while let Some(index) = to.next_value(&mut map) {
                    tool(to, keys[index], 700);
                }
            })
        };
        let mut keys: Vec<i64> = (1..90).collect();
        let first = take(&map(&keys), 0, &known).unwrap();
        assert!(first.links().len() < 20);
        for key in [1000, 1001] {
            let before = known.len();
            keys.push(key);
            let other = take(&map(&keys), 0, &known).unwrap();
            assert_eq!(items(&other), items(&map(&keys)));
            // Without a run or with one. The map itself has one owner, and is no content.
            assert!((1..=2).contains(&(known.len() - before)));
            keys.pop();
        }
        // In another order: the same.
        keys.reverse();
        let before = known.len();
        let other = take(&map(&keys), 0, &known).unwrap();
        assert_eq!((other.bytes(), known.len()), (first.bytes(), before));
    }

    #[test]
    fn a_link_in_the_place_of_a_part_gives_the_same() {
        let known = Known::default();
        let tools: Vec<i64> = (1..40).collect();
        let flat = state(1, &tools);
        let first = take(&flat, 0, &known).unwrap();
        let (id, target) = first.links().iter().next().unwrap();
        let Target::Anchor(kept) = target else {
            panic!("a part is an anchor");
        };
        let linked = value(|to| {
            to.tuple(3);
            to.atom(1);
            to.int(1);
            to.part(*id, Arc::clone(kept));
        });
        let contents = known.len();
        let second = take(&linked, 1, &known).unwrap();
        assert_eq!(second.bytes(), first.bytes());
        assert_eq!(known.len(), contents);
        // In a map, whose offsets are others then.
        let in_map = |write: &dyn Fn(&mut Writer<Arc<Kept>>)| {
            value(|to| {
                let mut map = to.begin_map();
                for key in 1..9 {
                    to.int(key);
                    to.end_key(&map);
                }
                assert!(to.end_keys(&map));
                while let Some(index) = to.next_value(&mut map) {
                    match index {
                        3 => write(to),
                        other => tool(to, other as i64, 4000),
                    }
                }
            })
        };
        let whole = in_map(&|to| {
            to.list(tools.len());
            tools.iter().for_each(|number| tool(to, *number, 700));
        });
        let first = take(&whole, 0, &known).unwrap();
        let contents = known.len();
        let linked = in_map(&|to| to.part(*id, Arc::clone(kept)));
        let second = take(&linked, 1, &known).unwrap();
        assert_eq!(second.bytes(), first.bytes());
        assert_eq!(known.len(), contents);
        assert_eq!(items(&second), items(&whole));
    }

    #[test]
    fn a_link_to_what_is_no_part_there_is_not_taken() {
        let known = Known::default();
        let large = value(|to| {
            to.tuple(9);
            (0..9).for_each(|number| tool(to, number, 700));
        });
        let taken = take(&large, 0, &known).unwrap();
        let (id, target) = taken.links().iter().next().unwrap();
        let Target::Anchor(kept) = target else {
            panic!("a part is an anchor");
        };
        // A tuple that is small enough to be a part as a whole.
        let small = value(|to| {
            to.tuple(2);
            to.tuple(2);
            to.part(*id, Arc::clone(kept));
            to.int(1);
            tool(to, 1, 700);
        });
        assert_eq!(take(&small, 1, &known).map(|_| ()), Err(Unfit));
    }

    #[test]
    fn a_small_value_is_a_content_where_others_have_it() {
        let known = Known::default();
        let state = |id: i64| {
            value(|to| {
                to.tuple(5);
                to.int(id);
                // In a list that is small itself.
                to.list(2);
                to.binary(&[1; 100]);
                to.int(1);
                tool(to, 1, 700);
                to.binary(&[2; 100]);
                to.binary(&[3; COMMON / 2]);
            })
        };
        let own = take(&state(1), 0, &known).unwrap();
        assert_eq!((own.links().len(), known.len()), (1, 1));
        let hash = AllSame::default().hash_one(1);
        known.common.borrow_mut().push(hash);
        let common = take(&state(2), 0, &known).unwrap();
        assert_eq!((common.links().len(), known.len()), (3, 3));
        let other = take(&state(3), 0, &known).unwrap();
        assert_eq!((other.links().len(), known.len()), (3, 3));
        for (id, taken) in [(1, own), (2, common), (3, other)] {
            assert_eq!(items(&taken), items(&state(id)));
        }
    }

    #[test]
    fn values_with_the_same_hash_are_told_apart() {
        let known = Known::default();
        let all: Vec<_> = (0..9)
            .map(|number| state(number, &[number, 5, 6, 7, number + 1, 8, 9]))
            .map(|value| (items(&value), take(&value, 0, &known).unwrap()))
            .collect();
        for (expected, taken) in all {
            assert_eq!(items(&taken), expected);
        }
    }

    #[test]
    fn deep_nesting_takes_no_stack_and_few_parts() {
        let levels = if cfg!(miri) { 2_000 } else { 200_000 };
        let known = Known::default();
        let deep = value(|to| {
            for level in 0..levels {
                to.list(2);
                to.int(level);
            }
            tool(to, 1, 700);
        });
        let taken = take(&deep, 0, &known).unwrap();
        assert!(known.len() < levels as usize / 50);
        assert!(items(&taken) == items(&deep));
        // From above to below, as a host does it.
        let mut rest: Vec<_> = known.contents.take();
        while let Some(kept) = rest.pop() {
            drop(kept);
        }
    }

    #[test]
    fn a_value_of_many_parts_is_taken_apart_into_larger_ones() {
        let known = Known::default();
        let tools: Vec<i64> = (0..2 * MANY as i64).collect();
        let many = state(1, &tools);
        let taken = take(&many, 0, &known).unwrap();
        assert!(known.len() <= MANY);
        assert!(items(&taken) == items(&many));
    }

    #[test]
    fn a_small_value_is_left_as_it_is() {
        let known = Known::default();
        let small = value(|to| tool(to, 1, SMALLEST / 2));
        assert_eq!(take(&small, 0, &known).unwrap().bytes(), small.bytes());
        assert_eq!(known.len(), 0);
    }

    #[test]
    fn places_are_told_as_they_are_counted_on_the_way() {
        let known = Known::default();
        let mut places = Vec::new();
        let taken = take(&state(1, &(1..40).collect::<Vec<_>>()), 0, &known).unwrap();
        each_outer(&taken, &known, |path, _| {
            places.push(path);
            false
        });
        assert_eq!(places, [Path::of_tuple(3, Some(1)).element(0)]);
    }
}
