//! Parked terms: packed off the heap of their process, and built again on demand.
//!
//! A *parked term* is a reference for users. A *slot* belongs to one server: it holds the packed
//! form of the server's state and counts what the server has unparked.

use crate::cycles::{self, Node};
use crate::enif::owner::{Owner, Release};
use crate::fold::{Folded, Unfolded, folded};
use crate::lane::{Busy, Lane, NoResult};
use crate::resource::ResourceRef;
use crate::stock::Stock;
use crate::terms::{Anchor, Known, PackError, Source, from_word, unpack, with_content, word};
use crate::{garbage, nif, reaper, reply, resource, share};
use erlmcp_memory_core::awake::{Entry, Ledger};
use erlmcp_memory_core::heap;
use erlmcp_memory_core::packed::{Packed, Target, View};
use erlmcp_memory_core::parts::{Built, Parts, Unfit};
use erlmcp_memory_core::roster::Roster;
use erlmcp_memory_core::starts::Starts;
use erlmcp_memory_core::threads::Tally;
use parking_lot::Mutex;
use rustler::{Encoder, Env, LocalPid, Term, schedule::consume_timeslice};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

/// A term off the heap.
struct Parked {
    packed: Packed<Anchor>,
    /// What the term takes when it is built.
    built: Built,
    /// Bytes of memory, with the block that it lies in.
    heap: usize,
}

/// All parked terms, and what each takes by itself.
static PARKED: Tally = Tally::new();

/// Parked terms: those of users, and the states of servers.
pub fn stock() -> Stock {
    let (parked, folded) = (PARKED.sum(), folded());
    let objects = resource::objects::<Handle>().bytes + resource::objects::<Slot>().bytes;
    Stock {
        count: parked.count + folded.count,
        heap: parked.bytes,
        objects: objects + folded.bytes,
    }
}

impl Parked {
    fn new(packed: Packed<Anchor>, built: Built) -> Self {
        let heap = packed.heap_bytes();
        PARKED.came(heap);
        Parked {
            packed,
            built,
            heap,
        }
    }

    /// The same, to be moved into a block of this size.
    fn in_block(mut self, bytes: usize) -> Self {
        PARKED.add(0, bytes as isize);
        self.heap += bytes;
        self
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        PARKED.went(self.heap);
        let packed = std::mem::replace(&mut self.packed, Packed::from_bytes(&[]));
        let links = packed.links().as_slice();
        let is_short = packed.bytes().len() <= FREED_AT_ONCE
            && links.len() <= LINKS_AT_ONCE
            && links
                .iter()
                .all(|(_, target)| matches!(target, Target::Anchor(Anchor::Share(_))));
        if !is_short {
            reaper::free_value(packed);
        }
    }
}

/// The most bytes that are freed at once.
const FREED_AT_ONCE: usize = 64 << 10;

/// The most links that are dropped at once: what is behind them is freed elsewhere.
const LINKS_AT_ONCE: usize = 32;

/// The resource behind a parked term.
pub struct Handle(Owner<Arc<Kept>>);

resource!(Handle, c"erlmcp_memory_parked");

/// A parked term that values may refer to.
pub struct Kept {
    parked: Parked,
    /// The one reference that stands for it.
    known: Known,
    /// Whether it leads to a pooled state.
    cyclic: bool,
}

impl Kept {
    /// The term.
    pub fn packed(&self) -> &Packed<Anchor> {
        &self.parked.packed
    }

    /// Whether it leads to a pooled state.
    pub fn is_cyclic(&self) -> bool {
        self.cyclic
    }
}

impl Release for Arc<Kept> {
    fn release(self) {
        if self.cyclic {
            cycles::suspect(Node::Parked(self));
        }
    }
}

/// A parked term in a value of this library.
#[derive(Clone)]
pub struct ParkedLink(Owner<Arc<Kept>>);

impl std::fmt::Debug for ParkedLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ParkedLink")
    }
}

impl ParkedLink {
    /// What distinguishes this parked term from all others while it lives.
    pub fn id(&self) -> u64 {
        Arc::as_ptr(&self.0).addr() as u64
    }

    /// The parked term.
    pub fn kept(&self) -> &Arc<Kept> {
        &self.0
    }

    /// A reference to it.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        let new = || Handle(self.0.clone());
        self.0.known.find_or(env, new).to_term(env)
    }
}

/// The link to a parked term, if the term is one.
pub fn link(env: Env<'_>, term: Term<'_>) -> Option<ParkedLink> {
    let Handle(kept) = resource::get::<Handle>(term)?;
    kept.known.set(env, term);
    Some(ParkedLink(kept.clone()))
}

/// What a server keeps of its state off its heap.
#[derive(Default)]
pub struct Slot {
    held: Mutex<Held>,
    entry: Entry,
    /// Whether it is listed in [`ROSTER`].
    is_listed: AtomicBool,
}

/// The state of a server.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    Whole(Box<Parked>),
    Folded(Folded),
}

resource!(Slot, c"erlmcp_memory_slot");

impl Drop for Slot {
    fn drop(&mut self) {
        self.entry.close(&LEDGER);
        STARTS.leave(&self.entry);
        self.unlist();
    }
}

impl Slot {
    /// Its entry in [`ROSTER`] while it lives.
    fn number(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    /// Whether its owner was notified, or is being notified, since it was listed.
    fn unlist(&self) -> bool {
        self.is_listed.load(Ordering::Relaxed)
            && self.is_listed.swap(false, Ordering::Relaxed)
            && !ROSTER.remove(self.number())
    }
}

impl Held {
    /// What the state takes when it is built; `None` without one.
    fn built(&self) -> Option<Built> {
        match self {
            Held::Nothing => None,
            Held::Whole(parked) => Some(parked.built),
            Held::Folded(folded) => Some(folded.built()),
        }
    }

    fn build<'a>(&self, env: Env<'a>, lane: Lane) -> Result<Term<'a>, NoResult> {
        Ok(match self {
            Held::Nothing => return Err(NoResult::BadArg),
            Held::Whole(parked) => build(env, parked.built, parked.packed.view(), lane)?,
            Held::Folded(folded) => folded.with(|value| build(env, folded.built(), value, lane))?,
        })
    }

    fn unfolded(&self) -> Option<Unfolded<'_>> {
        match self {
            Held::Nothing => None,
            Held::Whole(parked) => Unfolded::of(&parked.packed, parked.built),
            Held::Folded(folded) => Some(Unfolded::again(folded)),
        }
    }
}

/// Servers that parked while many were awake: their few bytes lie in the gaps between large states.
static ROSTER: Roster = Roster::new();

/// The fewest awake bytes of a peak after which moving parked servers is worth the work.
const LARGE_PEAK: usize = 32 << 20;

/// The sums of the node.
static LEDGER: Ledger = Ledger::new();

/// The starts of the node.
static STARTS: Starts = Starts::new();

/// Where the clock of [`STARTS`] begins.
static CLOCK: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Tells the VM of the types; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<Handle>(env) && resource::register::<Slot>(env)
}

/// The most bytes that a normal scheduler builds: a millisecond of work if they must be built item
/// by item.
const BUILT_AT_ONCE: usize = 1 << 20;

/// Packs a term.
fn parked<'a>(term: Term<'a>, opened: Term<'a>, lane: Lane) -> Result<Parked, PackError<'a>> {
    match parked_as(term, opened, lane, true)? {
        Ok(parked) => Ok(parked),
        Err(Unfit) => {
            Ok(parked_as(term, opened, lane, false)?.map_err(|Unfit| PackError::Unknown)?)
        }
    }
}

fn parked_as<'a>(
    term: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    guess: bool,
) -> Result<Result<Parked, Unfit>, PackError<'a>> {
    let env = term.get_env();
    with_content(term, opened, lane, guess, |value, counted| {
        let contents = share::Parts::of(env);
        let parts = Parts::of(value, counted.links, &contents, share::Parts::hasher())?;
        let packed = parts.take(value, &contents);
        share::note_parts(&packed, &contents);
        Ok(Parked::new(packed, counted.built))
    })
}

/// A parked term costs its caller one percent of a time slice for this many bytes, which are built
/// and packed in about ten microseconds.
const PERCENT: usize = 16 << 10;

/// Charges the caller for building and packing a term on a normal scheduler. Only after it is
/// parked, so that the caller is not suspended with its state on the heap.
fn pay(env: Env<'_>, built: Built, lane: Lane) {
    let percent = (built.bytes() / PERCENT).min(100);
    if lane == Lane::Fast && percent > 0 {
        consume_timeslice(env, percent as i32);
    }
}

/// Builds a parked term, which takes `built`.
fn build<'a>(
    env: Env<'a>,
    built: Built,
    value: View<'_, Anchor>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    if lane == Lane::Fast && built.bytes() > BUILT_AT_ONCE {
        return Err(Busy);
    }
    let source = Source::Parked(lane);
    unpack(env, value, source, Lane::Dirty)
}

nif!(park => sized park(term, opened));
nif!(unpark => unpark(reference));
nif!(slot_park => slot_park(slot, term, opened));
nif!(slot_rest => slot_rest(slot));
nif!(slot_fold => slot_fold(slot));
nif!(slot_list => slot_list(slot));
nif!(slot_unlist => slot_unlist(slot));
nif!(roster_tell => roster_tell(most, message));
nif!(slot_words => slot_words(slot));
nif!(slot_wake => slot_wake(slot));
nif!(slot_peek => slot_peek(slot));
nif!(slot_awake => slot_awake(slot, bytes));
nif!(slot_start => slot_start(slot, limit));
nif!(slot_reserve => slot_reserve(slot, limit));
nif!(slot_enter => slot_enter(slot, places));
nif!(slot_leave => slot_leave(slot));

const NOT_PARKED: &str = "not a parked term, or a reference that went through term_to_binary/1, a \
    file or another node";

fn park<'a>(env: Env<'a>, term: Term<'a>, opened: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    match parked(term, opened, lane) {
        Ok(parked) => {
            let bytes = parked.packed.bytes().len();
            pay(env, parked.built, lane);
            let kept = Kept {
                cyclic: cycles::lead_to_pooled(parked.packed.links()),
                parked: parked.in_block(heap::arc::<Kept>()),
                known: Known::default(),
            };
            let handle = Handle(Owner::new(Arc::new(kept)));
            Ok(garbage::made(env, resource::make(env, handle), bytes))
        }
        Err(error) => reply::not_packed(env, 1, error),
    }
}

fn unpark<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    match resource::get::<Handle>(reference) {
        Some(Handle(kept)) => {
            let parked = &kept.parked;
            let term = build(env, parked.built, parked.packed.view(), lane)?;
            Ok(reply::ok_value(env, term))
        }
        None => Ok(reply::badarg(env, 1, NOT_PARKED)),
    }
}

fn slot(term: Term<'_>) -> Result<&Slot, NoResult> {
    resource::get::<Slot>(term).ok_or(NoResult::BadArg)
}

/// A slot without a term.
#[rustler::nif]
fn slot_new(env: Env<'_>) -> Term<'_> {
    resource::make(env, Slot::default())
}

fn slot_park<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    term: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, NoResult> {
    let slot = slot(reference)?;
    match parked(term, opened, lane) {
        Ok(parked) => {
            let built = parked.built;
            let held = Held::Whole(Box::new(parked.in_block(heap::block(size_of::<Parked>()))));
            let before = std::mem::replace(&mut *lane.lock(&slot.held)?, held);
            pay(env, built, lane);
            // After the lock.
            drop(before);
            slot.entry.set_awake(&LEDGER, 0);
            Ok(reply::ok(env))
        }
        Err(error) => Ok(reply::not_packed(env, 2, error)?),
    }
}

fn slot_rest<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Result<Term<'a>, NoResult> {
    let slot = slot(reference)?;
    slot.entry.set_awake(&LEDGER, 0);
    // Usually it has been built in the meantime.
    let held = lane.lock(&slot.held)?;
    pay(env, held.built().unwrap_or_default(), lane);
    Ok(reply::ok(env))
}

/// About how many words the state takes on a heap when it is built.
fn slot_words<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Result<Term<'a>, NoResult> {
    let held = lane.lock(&slot(reference)?.held)?;
    Ok(held.built().unwrap_or_default().words.encode(env))
}

fn slot_wake<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Result<Term<'a>, NoResult> {
    let slot = slot(reference)?;
    let held = lane.lock(&slot.held)?;
    let term = held.build(env, lane)?;
    let built = held.built().unwrap_or_default();
    slot.entry.set_awake(&LEDGER, built.bytes());
    Ok(term)
}

fn slot_peek<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Result<Term<'a>, NoResult> {
    lane.lock(&slot(reference)?.held)?.build(env, lane)
}

fn slot_fold<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Result<Term<'a>, NoResult> {
    let slot = slot(reference)?;
    let mut held = lane.lock(&slot.held)?;
    let Some(unfolded) = held.unfolded() else {
        return match *held {
            Held::Nothing => Err(NoResult::BadArg),
            _ => Ok(reference),
        };
    };
    let size = unfolded.size();
    let fold = |tail| Slot {
        // SAFETY: `size` bytes are allocated below, and they live as long as the slot, which
        // alone uses them.
        held: Mutex::new(Held::Folded(unsafe { unfolded.fold(tail) })),
        entry: Entry::default(),
        is_listed: AtomicBool::default(),
    };
    let folded = ResourceRef::with_tail(fold, size);
    let before = std::mem::take(&mut *held);
    drop(held);
    drop(before);
    slot.unlist();
    Ok(folded.to_term(env))
}

fn slot_list<'a>(env: Env<'a>, reference: Term<'a>, _lane: Lane) -> Result<Term<'a>, NoResult> {
    let slot = slot(reference)?;
    let is_worth = LEDGER.peak() >= LARGE_PEAK;
    if is_worth {
        slot.is_listed.store(true, Ordering::Relaxed);
        ROSTER.add(slot.number(), word(env.pid().encode(env)));
    }
    Ok(is_worth.encode(env))
}

fn slot_unlist<'a>(env: Env<'a>, reference: Term<'a>, _lane: Lane) -> Result<Term<'a>, NoResult> {
    Ok(slot(reference)?.unlist().encode(env))
}

/// The number of servers that wait to be notified.
#[rustler::nif]
fn roster() -> usize {
    ROSTER.len()
}

/// Whether awake bytes have fallen to a small part of their peak.
#[rustler::nif]
fn is_peak_over() -> bool {
    LEDGER.is_over()
}

/// Begins the next peak.
#[rustler::nif]
fn next_peak(env: Env<'_>) -> Term<'_> {
    LEDGER.next_peak();
    reply::ok(env)
}

/// Sends the message to at most this many servers, and returns how many are left.
fn roster_tell<'a>(
    env: Env<'a>,
    most: Term<'a>,
    message: Term<'a>,
    _lane: Lane,
) -> Result<Term<'a>, NoResult> {
    ROSTER.take(most.decode()?, |who| {
        // SAFETY: the word is a process's of this node.
        let server = unsafe { from_word(env, who) };
        if let Ok(pid) = server.decode::<LocalPid>() {
            // A server that has ended need not be notified.
            let _ = env.send(&pid, message);
        }
    });
    Ok(ROSTER.len().encode(env))
}

fn slot_awake<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    bytes: Term<'a>,
    _lane: Lane,
) -> Result<Term<'a>, NoResult> {
    let total = slot(reference)?.entry.set_awake(&LEDGER, bytes.decode()?);
    Ok(total.encode(env))
}

fn slot_start<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    limit: Term<'a>,
    _lane: Lane,
) -> Result<Term<'a>, NoResult> {
    let entry = &slot(reference)?.entry;
    let now = CLOCK.elapsed().as_millis() as u64;
    Ok(
        match STARTS.admit(entry, &LEDGER, bytes_or_none(limit), now) {
            Some(bytes) => (true, bytes).encode(env),
            None => (false, STARTS.pause()).encode(env),
        },
    )
}

/// Records that a server has started, and how many bytes it has awake.
#[rustler::nif]
fn started(env: Env<'_>, bytes: usize) -> Term<'_> {
    STARTS.grew_to(bytes);
    reply::ok(env)
}

/// A limit that is not a 64-bit integer means no limit.
fn bytes_or_none(limit: Term<'_>) -> usize {
    limit.decode().unwrap_or(usize::MAX)
}

fn slot_reserve<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    limit: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, NoResult> {
    let slot = slot(reference)?;
    let built = lane.lock(&slot.held)?.built().unwrap_or_default();
    let limit = bytes_or_none(limit);
    let is_reserved = slot.entry.reserve(&LEDGER, built.bytes(), limit);
    Ok(is_reserved.encode(env))
}

fn slot_enter<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    places: Term<'a>,
    _lane: Lane,
) -> Result<Term<'a>, NoResult> {
    let entry = &slot(reference)?.entry;
    Ok(entry.enter(&LEDGER, places.decode()?).encode(env))
}

fn slot_leave<'a>(env: Env<'a>, reference: Term<'a>, _lane: Lane) -> Result<Term<'a>, NoResult> {
    slot(reference)?.entry.leave(&LEDGER);
    Ok(reply::ok(env))
}

/// Bytes that all servers have unparked.
#[rustler::nif]
fn awake_bytes() -> usize {
    LEDGER.awake()
}
