//! Packs terms.

use super::Anchor;
use super::anchor::Keeper;
use super::error::PackError;
use super::external::to_external;
use super::kind::{Kind, MapEntries, kind, list_cell};
use super::mark::{Mark, mark};
use super::opened::{HEAP_BINARY, Inside, Opened, is_small, list_elements, walk};
use super::references::{LocalReferences, may_be_magic};
use super::scratch::{give_scratch, take_scratch};
use super::words::word;
use crate::lane::{Budget, Busy, Lane};
use crate::{buffer, park, pool, share, state};
use erlmcp_memory_core::packed::{
    Links, MAX_BYTES, MAX_DEPTH, MAX_FUNS, MAX_KEYS, MapBuilder, Packed, Scalar, View, Writer,
    pack_atom, pack_int,
};
use erlmcp_memory_core::parts::{self, Built, Path as Place};
use rustler::sys::ErlNifTerm;
use rustler::{Binary, Encoder, Env, OwnedEnv, Term};
use smallvec::SmallVec;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// Why writing ended, in a byte: it is returned for each term.
#[derive(Debug, Clone, Copy)]
enum Refused {
    Busy,
    TooLarge,
    TooManyFuns,
    TooManyKeys,
    Unknown,
}

impl From<Busy> for Refused {
    fn from(Busy: Busy) -> Self {
        Refused::Busy
    }
}

impl From<Refused> for PackError<'_> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Busy => PackError::Busy,
            Refused::TooLarge => PackError::TooLarge,
            Refused::TooManyFuns => PackError::TooManyFuns,
            Refused::TooManyKeys => PackError::TooManyKeys,
            Refused::Unknown => PackError::Unknown,
        }
    }
}

/// Ids of foreign terms: equal ones get equal ids, and no input can be chosen to collide with
/// another.
static FOREIGN_IDS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A term in the packed form.
pub fn pack<'a>(
    term: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Packed<Anchor>, PackError<'a>> {
    let mut packer = Packer::new(opened, lane, Writer::new());
    packer.whole(term)?;
    Ok(packer.finish()?.finish())
}

/// A term in the packed form, with equal bytes for equal terms, as [`pack`] writes keys.
pub fn pack_content<'a>(
    term: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Packed<Anchor>, PackError<'a>> {
    let mut packer = Packer::new(opened, lane, Writer::new());
    packer.open_keys = 1;
    packer.whole(term)?;
    Ok(packer.finish()?.finish())
}

/// The longest binary that is a key without a packer, in bytes.
const SHORT_KEY: usize = 256;

/// Writes the keys of a proper list one after another, and calls `ended` with the end of each,
/// which returns whether another one may come.
pub fn pack_keys<'a>(
    keys: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    mut writer: Writer<Anchor>,
    mut ended: impl FnMut(usize) -> bool,
) -> Result<Writer<Anchor>, PackError<'a>> {
    let mut rest = keys;
    // Most keys are these, and need no packer.
    while let Some((key, tail)) = list_cell(rest) {
        match kind(key) {
            Kind::Atom => writer.atom(word(key)),
            Kind::Int(value) => writer.int(value),
            Kind::Binary => match key.decode::<Binary>() {
                Ok(binary) if binary.len() <= SHORT_KEY => writer.binary(&binary),
                _ => break,
            },
            _ => break,
        }
        if !ended(writer.len()) {
            return Err(PackError::NotAPath);
        }
        rest = tail;
    }
    if rest.is_empty_list() {
        return Ok(writer);
    }
    // One budget for all of the others.
    let mut packer = Packer::new(opened, lane, writer);
    packer.open_keys = 1;
    while let Some((key, tail)) = list_cell(rest) {
        packer.whole(key)?;
        if !ended(packer.writer.len()) {
            return Err(PackError::NotAPath);
        }
        rest = tail;
    }
    if rest.is_empty_list() {
        packer.finish()
    } else {
        Err(PackError::NotAPath)
    }
}

/// What is known of a term that was packed to be parked.
pub struct Counted {
    /// How many of its parts are links.
    pub links: usize,
    /// What it takes when it is built.
    pub built: Built,
}

/// Calls `with` with the packed form of a term as [`pack_content`] writes it, and with what is known
/// of it: with `guess`, a part that is the same as in the term parked before is a link.
/// A normal scheduler does [`PARKED_AT_ONCE`] times as much here as in other calls.
pub fn with_content<'a, R>(
    term: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    guess: bool,
    with: impl FnOnce(View<'_, Anchor>, Counted) -> R,
) -> Result<R, PackError<'a>> {
    let mut packer = Packer::new(opened, lane, Writer::reusing(take_scratch()));
    packer.budget = Budget::times(lane, PARKED_AT_ONCE);
    packer.open_keys = 1;
    packer.holds = true;
    packer.unmeasured = UNSHARED;
    if guess {
        packer.root = root_of(term);
    }
    packer.whole(term)?;
    let counted = Counted {
        links: packer.guessed,
        built: packer.built,
    };
    let (scratch, kept) = packer.finish()?.into_parts();
    let result = with(View::new(scratch.bytes(), &kept), counted);
    give_scratch(scratch);
    Ok(result)
}

/// The root of the places in a term.
fn root_of(term: Term<'_>) -> Option<Place> {
    match kind(term) {
        Kind::Tuple(elements) => {
            let first = elements.first().and_then(|first| {
                // SAFETY: an element of a tuple belongs to the environment of the tuple.
                let first = unsafe { Term::new(term.get_env(), *first) };
                first.is_atom().then(|| word(first))
            });
            Some(Place::of_tuple(elements.len(), first))
        }
        Kind::Map => Some(Place::of_map()),
        _ => None,
    }
}

/// A state that was unpacked, used and parked in one time slice is on a heap for no longer than
/// that. This many budgets are some 10,000 terms, half a millisecond.
const PARKED_AT_ONCE: usize = 5;

/// Calls `with` with the packed form of a term, which is gone afterwards.
pub fn with_packed<'a, R>(
    term: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    with: impl FnOnce(View<'_, Anchor>) -> R,
) -> Result<R, PackError<'a>> {
    // The most common values of a field, without a writer.
    let mut scalar = Scalar::default();
    let len = match kind(term) {
        Kind::Atom => Some(pack_atom(word(term), &mut scalar)),
        Kind::Int(value) => Some(pack_int(value, &mut scalar)),
        _ => None,
    };
    if let Some(len) = len {
        return Ok(with(View::new(&scalar[..len], &Links::default())));
    }
    let mut packer = Packer::new(opened, lane, Writer::reusing(take_scratch()));
    packer.whole(term)?;
    let (scratch, links) = packer.finish()?.into_parts();
    let result = with(View::new(scratch.bytes(), &links));
    give_scratch(scratch);
    Ok(result)
}

/// Writes a term without parts of this node or of another one, as [`pack`] does.
pub fn pack_flat(
    term: Term<'_>,
    keeper: &mut Keeper,
    writer: &mut Writer<Anchor>,
) -> Result<(), ()> {
    let none = Term::list_new_empty(term.get_env());
    let mut packer = Packer::new(none, Lane::Dirty, std::mem::take(writer));
    std::mem::swap(&mut packer.keeper, keeper);
    let written = match kind(term) {
        // Among the terms without parts, only a bit string is of no other kind.
        Kind::Other => packer.opaque(term).map(|()| true),
        _ => packer.leaf(term),
    };
    std::mem::swap(&mut packer.keeper, keeper);
    *writer = packer.writer;
    match written {
        Ok(true) => Ok(()),
        _ => Err(()),
    }
}

/// Whether 0.0 and -0.0 are the same key, as before OTP 27.
static ZEROS_ARE_EQUAL: LazyLock<bool> = LazyLock::new(|| {
    OwnedEnv::new().run(|env| {
        let (zero, negative) = (0.0f64.encode(env), (-0.0f64).encode(env));
        // SAFETY: the call compares two terms and keeps neither.
        unsafe { rustler::sys::enif_is_identical(zero.as_c_arg(), negative.as_c_arg()) != 0 }
    })
});

/// A float as it is written in a key.
pub fn float_key(float: f64) -> f64 {
    if float == 0.0 && *ZEROS_ARE_EQUAL {
        0.0
    } else {
        float
    }
}

/// A term of more packed bytes is checked for being small and large only because of shared
/// subterms: then its end would be far.
const UNMEASURED: usize = 32 << 20;

/// As [`UNMEASURED`], for a term that is parked: a smaller one is not checked.
const UNSHARED: usize = 1 << 20;

/// How many times larger a parked term may be when it is unparked, because shared subterms are then
/// built more than once.
const GROWTH: usize = 8;

/// Words that a binary off the heap takes there, and about those of a term without parts that is
/// not stored in a word.
const OFF_HEAP: usize = 8;
const SMALL_TERM: usize = 4;

/// The least bytes of a binary in a parked term that is held instead of copied.
const HELD: usize = 64 << 10;

/// Where the packer continues. Nesting uses no stack of the thread.
enum Frame<'a> {
    /// The rest of a list.
    Rest(Term<'a>),
    /// The rest of a tuple.
    Elements(Env<'a>, &'a [ErlNifTerm]),
    /// The keys of a map. Its values begin at the given one.
    Keys(Box<Keys<'a>>),
    /// The values of a map.
    Values(MapBuilder, usize),
    /// Everything that a fun closes over was written.
    EndFun,
}

struct Keys<'a> {
    map: MapBuilder,
    entries: MapEntries<'a>,
    first: usize,
}

struct Packer<'a> {
    lane: Lane,
    budget: Budget,
    writer: Writer<Anchor>,
    references: Option<LocalReferences>,
    keeper: Keeper,
    opened: Opened<'a>,
    closed: Vec<Term<'a>>,
    met: HashSet<u64>,
    frames: SmallVec<[Frame<'a>; 4]>,
    /// The values of the maps that are open, the innermost one's last.
    values: SmallVec<[Term<'a>; 8]>,
    /// Keys that are being written, one inside another.
    open_keys: usize,
    /// Funs whose closed-over values are being written.
    open_funs: usize,
    /// Large binaries are held, not copied.
    holds: bool,
    /// Bytes after which the term is checked for being small and large only because of shared
    /// subterms.
    unmeasured: usize,
    /// Where the term begins, if parts of it are guessed.
    root: Option<Place>,
    /// Parts that were guessed.
    guessed: usize,
    /// What was written so far takes this when it is built.
    built: Built,
}

impl<'a> Packer<'a> {
    fn new(opened: Term<'a>, lane: Lane, writer: Writer<Anchor>) -> Self {
        Packer {
            lane,
            budget: Budget::new(lane),
            writer,
            references: None,
            keeper: Keeper::default(),
            opened: Opened::new(opened, lane),
            closed: Vec::new(),
            met: HashSet::new(),
            frames: SmallVec::new(),
            values: SmallVec::new(),
            open_keys: 0,
            open_funs: 0,
            holds: false,
            unmeasured: UNMEASURED,
            root: None,
            guessed: 0,
            built: Built::default(),
        }
    }

    /// The place of the next value, if it can be told.
    fn place(&self) -> Option<Place> {
        if self.open_keys != 1 || self.frames.len() > parts::PATH {
            return None;
        }
        self.frames
            .iter()
            .try_fold(self.root?, |place, frame| match frame {
                Frame::Elements(_, behind) => Some(place.element(behind.len())),
                Frame::Values(map, _) => Some(place.value(map.number())),
                _ => None,
            })
    }

    /// Writes the link to the content that equals a term, if that can be guessed.
    fn guess(&mut self, term: Term<'a>) -> Result<bool, Refused> {
        match self.place() {
            Some(place) => self.guess_at(place, term),
            None => Ok(false),
        }
    }

    fn guess_at(&mut self, place: Place, term: Term<'a>) -> Result<bool, Refused> {
        let admit = |bytes| self.budget.spend(bytes / size_of::<ErlNifTerm>());
        match share::part_at(place, term, self.lane, admit)? {
            Some(link) => {
                self.built += share::part_built(link.shared());
                self.writer.part(link.id(), Anchor::Share(link));
                self.guessed += 1;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// What was written, unless something must be opened first.
    fn finish(&mut self) -> Result<Writer<Anchor>, PackError<'a>> {
        if self.closed.is_empty() {
            Ok(std::mem::take(&mut self.writer))
        } else {
            Err(PackError::Closed(std::mem::take(&mut self.closed)))
        }
    }

    fn whole(&mut self, term: Term<'a>) -> Result<(), PackError<'a>> {
        if self.leaf(term)? {
            return Ok(());
        }
        let root = self.root.take();
        if let Some(root) = root
            && self.guess_at(root.whole(), term)?
        {
            return Ok(());
        }
        let mut next = self.compound(term)?;
        self.root = root;
        let mut is_measured = false;
        loop {
            if self.frames.len() > MAX_DEPTH {
                return Err(PackError::TooDeep);
            }
            // Also of a term that was written in one step.
            if self.writer.len() > self.unmeasured && !is_measured {
                is_measured = true;
                let seen = walk([term], self.lane, &mut self.opened)?;
                if self.holds && seen.size.bytes() > GROWTH * seen.distinct + self.unmeasured {
                    return Err(PackError::TooShared);
                }
            }
            next = match next {
                Some(term) => self.compound(term)?,
                None => match self.frames.pop() {
                    Some(frame) => self.resume(frame)?,
                    None => return Ok(()),
                },
            };
        }
    }

    /// Continues with what was left; see [`compound`](Self::compound).
    fn resume(&mut self, frame: Frame<'a>) -> Result<Option<Term<'a>>, Refused> {
        match frame {
            Frame::Rest(rest) => self.rest(rest),
            Frame::Elements(env, elements) => self.elements(env, elements),
            Frame::Keys(keys) => {
                self.writer.end_key(&keys.map);
                self.keys(*keys)
            }
            Frame::Values(map, first) => self.values(map, first),
            Frame::EndFun => {
                self.open_funs -= 1;
                Ok(None)
            }
        }
    }

    fn rest(&mut self, mut rest: Term<'a>) -> Result<Option<Term<'a>>, Refused> {
        while let Some((head, tail)) = list_cell(rest) {
            rest = tail;
            if !self.leaf(head)? {
                // The end of a proper list needs no visit.
                if !rest.is_empty_list() {
                    self.frames.push(Frame::Rest(rest));
                }
                return Ok(Some(head));
            }
        }
        let is_done = rest.is_empty_list() || self.leaf(rest)?;
        Ok((!is_done).then_some(rest))
    }

    fn elements(
        &mut self,
        env: Env<'a>,
        mut elements: &'a [ErlNifTerm],
    ) -> Result<Option<Term<'a>>, Refused> {
        while let Some((element, rest)) = elements.split_first() {
            elements = rest;
            // SAFETY: an element of a tuple belongs to the environment of the tuple.
            let element = unsafe { Term::new(env, *element) };
            if !self.leaf(element)? {
                if !elements.is_empty() {
                    self.frames.push(Frame::Elements(env, elements));
                }
                return Ok(Some(element));
            }
        }
        Ok(None)
    }

    fn values(&mut self, mut map: MapBuilder, first: usize) -> Result<Option<Term<'a>>, Refused> {
        while let Some(index) = self.writer.next_value(&mut map) {
            let value = self.values[first + index];
            if !self.leaf(value)? {
                self.frames.push(Frame::Values(map, first));
                return Ok(Some(value));
            }
        }
        self.values.truncate(first);
        Ok(None)
    }

    /// Writes a term without parts; `false` if it has parts.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn leaf(&mut self, term: Term<'a>) -> Result<bool, Refused> {
        self.budget.spend(0)?;
        if self.writer.len() > MAX_BYTES {
            return Err(Refused::TooLarge);
        }
        match mark(term) {
            Mark::Cell => return Ok(false),
            Mark::Boxed => {
                // One call tells whether it is a binary, and where its bytes are.
                if let Ok(binary) = term.decode::<Binary>() {
                    self.binary(term, &binary)?;
                    return Ok(true);
                }
            }
            _ => {}
        }
        self.other_leaf(term)
    }

    fn other_leaf(&mut self, term: Term<'a>) -> Result<bool, Refused> {
        let kind = kind(term);
        self.built.words += match kind {
            Kind::Atom | Kind::Nil | Kind::Pid | Kind::Port => 0,
            Kind::Int(value) if is_small(value) => 0,
            // Counted where they are begun.
            Kind::Cell(..) | Kind::Tuple(_) | Kind::Map | Kind::Fun | Kind::Other => 0,
            _ => SMALL_TERM,
        };
        match kind {
            Kind::Atom => self.writer.atom(word(term)),
            Kind::Int(value) => self.writer.int(value),
            Kind::Float(value) if self.open_keys > 0 => self.writer.float(float_key(value)),
            Kind::Float(value) => self.writer.float(value),
            Kind::Nil => self.writer.nil(),
            // Not `decode_as_binary`, which takes an iolist, too.
            Kind::Binary => match term.decode::<Binary>() {
                Ok(binary) => self.binary(term, &binary)?,
                Err(_) => return Err(Refused::Unknown),
            },
            Kind::Pid => self.writer.pid(word(term)),
            Kind::Port => self.writer.port(word(term)),
            Kind::Remote | Kind::Big => self.opaque(term)?,
            Kind::Ref => self.reference(term)?,
            Kind::Other if matches!(self.opened.get(term)?, Some(Inside::Bits)) => {
                self.opaque(term)?;
            }
            Kind::Cell(..) | Kind::Tuple(_) | Kind::Map | Kind::Fun | Kind::Other => {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes a binary.
    #[inline]
    fn binary(&mut self, term: Term<'a>, binary: &[u8]) -> Result<(), Refused> {
        if self.holds && binary.len() >= HELD {
            return self.held(term, binary);
        }
        self.copy(binary.len())?;
        self.writer.binary(binary);
        if binary.len() > HEAP_BINARY {
            self.built.words += OFF_HEAP;
            self.built.off_heap += binary.len();
        } else {
            self.built.words += 2 + binary.len().div_ceil(size_of::<ErlNifTerm>());
        }
        Ok(())
    }

    /// Begins a term that has parts. Returns the part that is to begin next; `None` where what was
    /// left last, if anything, is to be continued.
    fn compound(&mut self, term: Term<'a>) -> Result<Option<Term<'a>>, Refused> {
        if self.root.is_some() && self.guess(term)? {
            return Ok(None);
        }
        match kind(term) {
            Kind::Cell(..) => self.list(term),
            Kind::Tuple(elements) => {
                self.writer.tuple(elements.len());
                self.built.words += 1 + elements.len();
                self.elements(term.get_env(), elements)
            }
            Kind::Map => {
                self.open_keys += 1;
                if self.open_keys > MAX_KEYS {
                    return Err(Refused::TooManyKeys);
                }
                self.keys(Keys {
                    map: self.writer.begin_map(),
                    entries: MapEntries::of(term),
                    first: self.values.len(),
                })
            }
            _ => self.opened(term),
        }
    }

    /// Continues with the keys of a map, which nearly always have no parts.
    fn keys(&mut self, mut keys: Keys<'a>) -> Result<Option<Term<'a>>, Refused> {
        while let Some((key, value)) = keys.entries.next() {
            self.values.push(value);
            if !self.leaf(key)? {
                self.frames.push(Frame::Keys(Box::new(keys)));
                return Ok(Some(key));
            }
            self.writer.end_key(&keys.map);
        }
        self.open_keys -= 1;
        self.built.words += parts::map_words(self.values.len() - keys.first);
        // The keys of a map differ, and so do their packed forms, unless one of them is still
        // closed.
        let distinct = self.writer.end_keys(&keys.map);
        debug_assert!(distinct || !self.closed.is_empty());
        self.values(keys.map, keys.first)
    }

    /// Checks that this many bytes may be copied.
    fn copy(&mut self, bytes: usize) -> Result<(), Refused> {
        self.budget.spend(bytes)?;
        if self.writer.len().saturating_add(bytes) > MAX_BYTES {
            return Err(Refused::TooLarge);
        }
        Ok(())
    }

    fn list(&mut self, list: Term<'a>) -> Result<Option<Term<'a>>, Refused> {
        let (mut len, mut bytes, mut rest) = (0, true, list);
        while let Some((head, tail)) = list_cell(rest) {
            self.budget.spend(0)?;
            bytes = bytes && byte(head).is_some();
            len += 1;
            rest = tail;
        }
        self.built.words += 2 * len;
        let proper = rest.is_empty_list();
        if proper && bytes {
            self.copy(len)?;
            let mut rest = list;
            let elements = (0..len).map(|_| {
                let (head, tail) = list_cell(rest).unwrap_or((rest, rest));
                rest = tail;
                byte(head).unwrap_or(0)
            });
            self.writer.byte_list(elements);
            return Ok(None);
        }
        if proper {
            self.writer.list(len);
        } else {
            self.writer.improper(len);
        }
        self.rest(list)
    }

    /// A term without parts that only the VM understands and that nothing needs to keep alive.
    fn opaque(&mut self, term: Term<'_>) -> Result<(), Refused> {
        // Its size cannot be found out first.
        if self.lane == Lane::Fast {
            return Err(Refused::Busy);
        }
        let external = to_external(term);
        self.copy(external.len())?;
        self.writer.opaque(&external);
        Ok(())
    }

    /// A binary that the VM keeps; equal only to the very same one. A part of a much larger one is
    /// copied: it would keep all of that alive.
    fn held(&mut self, term: Term<'a>, binary: &[u8]) -> Result<(), Refused> {
        match self.opened.get(term)? {
            Some(Inside::Held) => {
                let mut numbers = [0; 16];
                numbers[..8].copy_from_slice(&binary.as_ptr().addr().to_le_bytes());
                numbers[8..].copy_from_slice(&binary.len().to_le_bytes());
                let id = FOREIGN_IDS.hash_one(numbers);
                let anchor = Anchor::Foreign(self.keeper.keep(term));
                self.writer.foreign(id, &numbers, anchor);
            }
            Some(_) => {
                self.copy(binary.len())?;
                self.writer.binary(binary);
            }
            None => {
                if self.met.insert(word(term)) {
                    self.closed.push(term);
                }
                self.writer.nil();
            }
        }
        Ok(())
    }

    fn reference(&mut self, term: Term<'a>) -> Result<(), Refused> {
        let env = term.get_env();
        if let Some(share) = share::link(term) {
            self.writer.share(share.id(), Anchor::Share(share));
            return Ok(());
        }
        if let Some(state) = state::link(env, term, self.lane)? {
            self.writer.handle(state.id(), Anchor::State(state));
            return Ok(());
        }
        if let Some(pooled) = pool::link(env, term, self.lane)? {
            self.writer.handle(pooled.id(), Anchor::Pooled(pooled));
            return Ok(());
        }
        if let Some(parked) = park::link(env, term) {
            self.writer.handle(parked.id(), Anchor::Parked(parked));
            return Ok(());
        }
        if let Some(buffer) = buffer::link(term) {
            self.writer.handle(buffer.id(), Anchor::Buffer(buffer));
            return Ok(());
        }
        let external = to_external(term);
        let local = self
            .references
            .get_or_insert_with(|| LocalReferences::new(env));
        match local.numbers(&external) {
            None => self.writer.opaque(&external),
            Some(numbers) if !may_be_magic(numbers) => self.writer.reference(numbers),
            Some(numbers) => {
                let id = FOREIGN_IDS.hash_one(numbers);
                let anchor = Anchor::Foreign(self.keeper.keep(term));
                self.writer.foreign(id, numbers, anchor);
            }
        }
        Ok(())
    }

    /// A fun or a native record.
    fn opened(&mut self, term: Term<'a>) -> Result<Option<Term<'a>>, Refused> {
        match self.opened.get(term)? {
            Some(Inside::Export(parts)) => {
                self.writer.export();
                self.head(&parts)?;
                Ok(None)
            }
            Some(Inside::Fun(head, free)) => {
                let len = free.list_length().map_err(|_| Refused::Unknown)?;
                self.writer.fun(len);
                self.built.words += 7 + len;
                self.head(&head)?;
                self.open_funs += 1;
                if self.open_funs > MAX_FUNS {
                    return Err(Refused::TooManyFuns);
                }
                self.frames.push(Frame::EndFun);
                self.rest(free)
            }
            Some(Inside::Record(head, names, values)) => {
                let names = list_elements(names).ok_or(Refused::Unknown)?;
                let len = values.list_length().map_err(|_| Refused::Unknown)?;
                self.writer.record(len);
                self.built.words += 2 + 2 * len;
                self.head(&head)?;
                for name in names {
                    self.head(&[name])?;
                }
                self.rest(values)
            }
            Some(Inside::Bits | Inside::Held | Inside::Unknown) => Err(Refused::Unknown),
            None => {
                if self.met.insert(word(term)) {
                    self.closed.push(term);
                }
                self.writer.nil();
                Ok(None)
            }
        }
    }

    /// What comes before the parts of a fun or a record: terms without parts.
    fn head(&mut self, terms: &[Term<'a>]) -> Result<(), Refused> {
        for term in terms {
            if !self.leaf(*term)? {
                return Err(Refused::Unknown);
            }
        }
        Ok(())
    }
}

/// An integer from 0 to 255. (rustler's decoder of `u8` takes any integer, modulo 256.)
fn byte(term: Term<'_>) -> Option<u8> {
    let int = match mark(term) {
        Mark::Int(int) => int,
        Mark::Unknown => term.decode().ok()?,
        _ => return None,
    };
    u8::try_from(int).ok()
}
