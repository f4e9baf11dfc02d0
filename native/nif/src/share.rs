//! Shared content as resources.
//!
//! Shared content is kept in the packed form, which is how equal content is found. A content that
//! is read often is kept as a term as well, because the VM copies a term faster than one can be
//! built through the NIF interface; its large binaries are those of the packed form.
//!
//! Every read changes the reference count of what large binaries refer to. Each scheduler has its
//! own [`Reader`] of a content, so that readers on different schedulers share nothing.

use crate::cycles::{self, Node};
use crate::lane::{Busy, Lane};
use crate::resource::ResourceRef;
use crate::stock::Stock;
use crate::terms::{
    Anchor, Copied, ENVIRONMENT, Known, PackError, Path, Search, Source, copied, pack_content,
    unpack, word,
};
use crate::{garbage, nif, reaper, reply, resource};
use erlmcp_memory_core::heap;
use erlmcp_memory_core::map;
use erlmcp_memory_core::packed::{Links, Packed, Target, View};
use erlmcp_memory_core::parts::{self, Built, Contents, Path as Place};
use erlmcp_memory_core::shared::{self, Content, Host, Store};
use erlmcp_memory_core::threads::{SHARDS, Tally, thread_shard};
use parking_lot::Mutex;
use rustler::{Encoder, Env, Term};
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::mem::ManuallyDrop;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

/// A content with what this crate keeps beside it.
pub type Shared = shared::Shared<Anchor, Slot>;

/// One of many owners of a content.
pub type Holder = shared::Holder<Anchor, Slot>;

static STORE: LazyLock<Store<Anchor, Slot>> = LazyLock::new(Store::default);

/// What is kept beside a content.
#[derive(Default)]
pub struct Slot {
    /// The one reference that stands for the content.
    known: Known,
    /// The object it refers to, kept while states and contents hold the content, so that reading
    /// the reference out of one of these makes no new object.
    kept: Mutex<Option<ResourceRef<Share>>>,
    /// Whether there is one, to be read without the lock.
    is_kept: AtomicBool,
    /// Whether the content leads to a pooled state.
    cyclic: OnceLock<bool>,
    readers: OnceLock<Box<Readers>>,
    /// Of a content that is part of parked terms.
    part: Part,
}

/// The reader in each shard of threads.
struct Readers([OnceLock<Box<Reader>>; SHARDS]);

/// Readers, and what they take on the library's own heap.
static READERS: Tally = Tally::new();

impl Default for Readers {
    fn default() -> Self {
        READERS.add(0, heap::block(size_of::<Self>()) as isize);
        Readers(Default::default())
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        READERS.add(0, -(heap::block(size_of::<Self>()) as isize));
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Host for Slot {
    fn unheld(&self, holders: &AtomicUsize) {
        let mut kept = self.kept.lock();
        let object = match holders.load(Ordering::Acquire) {
            0 => kept.take(),
            _ => None,
        };
        self.is_kept.store(kept.is_some(), Ordering::Relaxed);
        // Dropped after the lock: it may be the last owner of the content, and of this slot.
        drop(kept);
        if object.is_some() {
            resource::count_released();
        }
        drop(object);
    }

    fn is_counted(&self) -> bool {
        self.is_cyclic()
    }

    fn heap_bytes(&self) -> usize {
        self.readers().map(Reader::heap_bytes).sum::<usize>() + self.part.heap_bytes()
    }
}

impl Slot {
    fn readers(&self) -> impl Iterator<Item = &Reader> {
        let readers = self.readers.get().into_iter().flat_map(|all| all.0.iter());
        readers.filter_map(|reader| reader.get().map(Box::as_ref))
    }

    /// Whether the content leads to a pooled state.
    pub fn is_cyclic(&self) -> bool {
        self.cyclic.get().copied().unwrap_or(false)
    }
}

/// What is kept of a content that is part of parked terms.
#[derive(Default)]
struct Part {
    /// What the term takes when it is built, as [`packed_built`] writes it; 0 before it was counted.
    built: AtomicU64,
    /// Packed bytes that it has with all its parts in place.
    flat: AtomicUsize,
    /// How often it was read in the packed form.
    reads: AtomicU32,
    /// The shards of threads that want a term made for them.
    wanted: AtomicU32,
    /// The content as a term for each shard of threads, once that pays.
    terms: OnceLock<Box<[OnceLock<Copied>; SHARDS]>>,
    /// What these take of [`FEW_TERMS`].
    few: AtomicUsize,
}

/// Building the term of a part pays after this many reads.
const PART_READS: u32 = 4;

/// The most bytes of a part's term that is made on a normal scheduler.
const MADE_AT_ONCE: usize = 256 << 10;

/// Bytes of the terms that are kept of parts with few owners: such a term takes three times what
/// the packed form does, and a node may have a part for each server.
const FEW_TERMS: usize = 8 << 20;

/// What these take now.
static FEW: AtomicUsize = AtomicUsize::new(0);

impl Part {
    fn terms(&self) -> impl Iterator<Item = &Copied> {
        let terms = self.terms.get().into_iter().flat_map(|all| all.iter());
        terms.filter_map(OnceLock::get)
    }

    fn heap_bytes(&self) -> usize {
        let table = match self.terms.get() {
            Some(_) => heap::block(SHARDS * size_of::<OnceLock<Copied>>()),
            None => 0,
        };
        table + self.terms().map(Copied::bytes).sum::<usize>()
    }

    /// Whether a term may be kept for a part: one that many have, or one of a few others.
    fn is_worth(&self, shared: &Shared, bytes: usize) -> bool {
        if shared.has_many_owners() {
            return true;
        }
        let admitted = FEW.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| {
            (sum + bytes <= FEW_TERMS).then_some(sum + bytes)
        });
        if admitted.is_ok() {
            self.few.fetch_add(bytes, Ordering::Relaxed);
        }
        admitted.is_ok()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        FEW.fetch_sub(*self.few.get_mut(), Ordering::Relaxed);
        if let Some(terms) = self.terms.take()
            && terms
                .iter()
                .filter_map(OnceLock::get)
                .any(|term| term.bytes() > FREED_AT_ONCE)
        {
            reaper::free(terms);
        }
    }
}

impl Slot {
    /// The term of a content that is part of parked terms, if there is one for this thread. If a
    /// parked term is read in a lane, it may be made.
    pub fn part_term(&self, shared: &Shared, lane: Option<Lane>) -> Result<Option<&Copied>, Busy> {
        let part = &self.part;
        let shard = thread_shard();
        if let Some(term) = part.terms.get().and_then(|terms| terms[shard].get()) {
            return Ok(Some(term));
        }
        let Some(lane) = lane else {
            return Ok(None);
        };
        if part.reads.load(Ordering::Relaxed) < PART_READS {
            part.reads.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let bytes = part_built(shared).bytes();
        if !KEPT_AS_TERM.contains(&shared.packed().bytes().len())
            || bytes > MOST_KEPT
            || self.is_cyclic()
        {
            return Ok(None);
        }
        if lane == Lane::Fast && bytes > MADE_AT_ONCE {
            part.wanted.fetch_or(1 << shard, Ordering::Relaxed);
            return Err(Busy);
        }
        let wanted = part.wanted.swap(0, Ordering::Relaxed) | 1 << shard;
        for shard in (0..SHARDS).filter(|shard| wanted & 1 << shard != 0) {
            if !part.is_worth(shared, bytes) {
                part.reads.store(0, Ordering::Relaxed);
                break;
            }
            let view = shared.packed().view();
            if let Some(term) = Copied::whole(view, Source::Owned, bytes / size_of::<usize>()) {
                let _ = part.terms.get_or_init(Box::default)[shard].set(term);
            }
        }
        Ok(part.terms.get().and_then(|terms| terms[shard].get()))
    }
}

/// The most bytes of a term that is kept.
const MOST_KEPT: usize = 16 << 20;

/// What the term of a part takes, in one word that is not 0: words on a heap, and bytes off it in
/// units of 16, as many as there are numbers for.
fn packed_built(built: Built) -> u64 {
    let number = |count: usize| u64::from(u32::try_from(count).unwrap_or(u32::MAX));
    number(built.words.max(1)) << 32 | number(built.off_heap.div_ceil(OFF_HEAP_UNIT))
}

const OFF_HEAP_UNIT: usize = 16;

/// The most packed bytes of a part that is not counted when it is made, but when it is asked for:
/// some 50 microseconds of work.
const COUNTED_LATER: usize = 256 << 10;

/// What the term of a part takes when it is built, about. It is counted when it is first asked for,
/// with a stack of its own: parts may nest.
pub fn part_built(shared: &Shared) -> Built {
    let counted = |shared: &Shared| match shared.host.part.built.load(Ordering::Relaxed) {
        0 => None,
        built => Some(Built {
            words: (built >> 32) as usize,
            off_heap: built as u32 as usize * OFF_HEAP_UNIT,
        }),
    };
    if let Some(built) = counted(shared) {
        return built;
    }
    let mut rest = vec![shared];
    while let Some(next) = rest.last().copied() {
        if counted(next).is_some() {
            rest.pop();
            continue;
        }
        let before = rest.len();
        let links = next.packed().links().iter();
        rest.extend(links.filter_map(|(_, target)| match target {
            Target::Anchor(Anchor::Share(share)) => {
                let inner: &Shared = share.shared();
                counted(inner).is_none().then_some(inner)
            }
            _ => None,
        }));
        if rest.len() == before {
            let built = parts::built(next.packed(), |anchor| match anchor {
                Anchor::Share(share) => counted(share.shared()).unwrap_or_default(),
                _ => Built::default(),
            });
            let built = packed_built(built);
            next.host.part.built.store(built, Ordering::Relaxed);
        }
    }
    counted(shared).unwrap_or_default()
}

/// The store, for values that are taken apart.
pub struct Parts {
    /// The process that parks.
    process: u64,
}

impl Parts {
    /// The store for the calling process.
    pub fn of(env: Env<'_>) -> Self {
        Parts {
            process: word(env.pid().encode(env)),
        }
    }

    /// What parts are hashed with.
    pub fn hasher() -> &'static impl BuildHasher {
        STORE.hasher()
    }
}

/// Hashes of terms that were parked lately: one that comes a second time is worth storing as a
/// content.
static WHOLES: [AtomicU64; 4096] = [const { AtomicU64::new(0) }; 4096];

/// The hashes of small values that were parked lately, each with the first process that had it, or
/// 0 if another one had it too.
static COMMON: [Seen; 4096] = [const {
    Seen {
        hash: AtomicU64::new(0),
        process: AtomicU64::new(0),
    }
}; 4096];

struct Seen {
    hash: AtomicU64,
    process: AtomicU64,
}

/// The hashes of the contents that were the last parts of parked terms, by their places there.
static HINTS: [Hint; 1024] = [const {
    Hint {
        path: AtomicU64::new(0),
        hash: AtomicU64::new(0),
    }
}; 1024];

struct Hint {
    path: AtomicU64,
    hash: AtomicU64,
}

impl Hint {
    fn of(path: Place) -> &'static Self {
        &HINTS[(path.number() >> 16) as usize % HINTS.len()]
    }
}

/// Notes where the parts of a parked term are: the next one may have the same there.
pub fn note_parts(packed: &Packed<Anchor>, contents: &Parts) {
    parts::each_outer(packed, contents, |path, anchor| {
        let Anchor::Share(share) = anchor else {
            return false;
        };
        // One that is smaller is a part in some values only.
        if share.shared().host.part.flat.load(Ordering::Relaxed) < parts::SMALLEST {
            return false;
        }
        let hint = Hint::of(path);
        let hash = share.shared().hash();
        let is_new = hint.hash.load(Ordering::Relaxed) != hash
            || hint.path.load(Ordering::Relaxed) != path.number();
        if is_new {
            hint.path.store(path.number(), Ordering::Relaxed);
            hint.hash.store(hash, Ordering::Relaxed);
        }
        is_new
    });
}

/// The content that equals a term, if it was the last one in this place and is kept as a term: the
/// VM compares two terms faster than one can be taken apart. `admit` is called first, with the size
/// of that term.
pub fn part_at(
    path: Place,
    term: Term<'_>,
    lane: Lane,
    mut admit: impl FnMut(usize) -> Result<(), Busy>,
) -> Result<Option<ShareLink>, Busy> {
    let hint = Hint::of(path);
    if hint.path.load(Ordering::Relaxed) != path.number() {
        return Ok(None);
    }
    let mut outcome = Ok(());
    let found = STORE.find(hint.hash.load(Ordering::Relaxed), |shared| {
        if outcome.is_err() {
            return false;
        }
        let part = &shared.host;
        let kept =
            admit(part_built(shared).bytes()).and_then(|()| part.part_term(shared, Some(lane)));
        match kept {
            Ok(Some(kept)) => kept.is_identical(term),
            Ok(None) => false,
            Err(Busy) => {
                outcome = Err(Busy);
                false
            }
        }
    });
    outcome?;
    Ok(found.map(|shared| ShareLink::new(&known(shared))))
}

impl Contents<Anchor> for Parts {
    fn find(
        &self,
        hash: u64,
        is_equal: &mut dyn FnMut(&Packed<Anchor>) -> bool,
    ) -> Option<(u64, Anchor)> {
        let link = ShareLink::new(&known(STORE.find(hash, |known| is_equal(known.packed()))?));
        Some((link.id(), Anchor::Share(link)))
    }

    fn add(&self, hash: u64, flat: usize, packed: Packed<Anchor>) -> (u64, Anchor) {
        let shared = known(STORE.intern_hashed(hash, packed));
        shared.host.part.flat.store(flat, Ordering::Relaxed);
        // Who asks later may be on a normal scheduler.
        if flat > COUNTED_LATER {
            part_built(&shared);
        }
        let link = ShareLink::new(&shared);
        (link.id(), Anchor::Share(link))
    }

    fn is_shared(&self, hash: u64, own: usize) -> bool {
        let last = &WHOLES[hash as usize % WHOLES.len()];
        own >= parts::WHOLE || last.swap(hash, Ordering::Relaxed) == hash
    }

    fn is_common(&self, hash: u64) -> bool {
        let seen = &COMMON[hash as usize % COMMON.len()];
        if seen.hash.load(Ordering::Relaxed) != hash {
            seen.hash.store(hash, Ordering::Relaxed);
            seen.process.store(self.process, Ordering::Relaxed);
            return false;
        }
        let is_common = seen.process.load(Ordering::Relaxed) != self.process;
        if is_common {
            seen.process.store(0, Ordering::Relaxed);
        }
        is_common
    }

    fn hash_of(&self, anchor: &Anchor) -> Option<(u64, usize)> {
        let Anchor::Share(share) = anchor else {
            return None;
        };
        let flat = match share.shared().host.part.flat.load(Ordering::Relaxed) {
            // Shared by a call that takes nothing apart.
            0 => share.shared().packed().bytes().len(),
            flat => flat,
        };
        Some((share.shared().hash(), flat))
    }

    fn content<'a>(&self, anchor: &'a Anchor) -> Option<&'a Packed<Anchor>> {
        match anchor {
            Anchor::Share(share) => Some(share.shared().packed()),
            _ => None,
        }
    }
}

/// What the readers on one scheduler read from.
struct Reader {
    /// What large binaries refer to.
    content: ResourceRef<Kept>,
    /// Bytes that were read in the packed form.
    read: AtomicUsize,
    /// The content as a term, once that pays.
    term: OnceLock<Copied>,
}

/// The packed bytes of a content that may be kept as a term. A smaller one is built in no time; for
/// a larger one, which is seldom read as a whole, the second form would take too much memory.
const KEPT_AS_TERM: RangeInclusive<usize> = 97..=4 << 20;

/// Building the term pays after this many bytes were read, and this many times the content's bytes.
const READ_BYTES: usize = 16 << 10;
const READ_TIMES: usize = 4;

impl Reader {
    fn new(shared: &Shared) -> Box<Self> {
        READERS.came(heap::block(size_of::<Self>()));
        Box::new(Reader {
            content: ResourceRef::new(Kept(Arc::clone(shared.content()))),
            read: AtomicUsize::new(0),
            term: OnceLock::new(),
        })
    }

    /// Whether the term would pay and does not exist.
    fn is_due(&self, shared: &Shared) -> bool {
        let len = len_of(shared.packed().view());
        self.read.load(Ordering::Relaxed) >= READ_BYTES.max(READ_TIMES * len)
            && KEPT_AS_TERM.contains(&len)
            && self.term.get().is_none()
            // A reference in the term would keep a pooled state alive unnoticed.
            && !shared.host.is_cyclic()
    }

    fn make_term(&self, packed: &Packed<Anchor>) {
        // If it is not made after all, it is not tried again for as long.
        self.read.store(0, Ordering::Relaxed);
        if let Some(term) = Copied::of(packed.view(), Source::Shared(&self.content)) {
            // Another thread may have been faster.
            let _ = self.term.set(term);
        }
    }

    fn heap_bytes(&self) -> usize {
        let term = self.term.get().map_or(0, Copied::bytes);
        resource::overhead() + size_of::<Kept>() + heap::block(size_of::<Self>()) + term
    }
}

/// Terms of more bytes are freed by the reaper.
const FREED_AT_ONCE: usize = 64 << 10;

impl Drop for Reader {
    fn drop(&mut self) {
        READERS.went(heap::block(size_of::<Self>()));
        if let Some(term) = self.term.take()
            && term.bytes() > FREED_AT_ONCE
        {
            reaper::free(term);
        }
    }
}

/// The resource behind a share.
pub struct Share(Option<Arc<Shared>>);

resource!(Share, c"erlmcp_memory_share");

/// The content of a share, for the large binaries that were made of it: they keep its bytes and
/// nothing else of the share.
pub struct Kept(#[expect(dead_code, reason = "keeps the bytes")] Arc<Content<Anchor>>);

resource!(Kept, c"erlmcp_memory_shared_content");

/// Tells the VM of the types; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<Share>(env) && resource::register::<Kept>(env)
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take()
            && shared.host.is_cyclic()
        {
            cycles::suspect(Node::Shared(shared));
        }
    }
}

impl Share {
    /// A share of nothing, to see what a reference to a resource looks like.
    pub fn example() -> Self {
        Share(None)
    }
}

/// A content in a value of this library.
#[derive(Debug)]
pub struct ShareLink(ManuallyDrop<Holder>);

impl Clone for ShareLink {
    fn clone(&self) -> Self {
        ShareLink(self.0.clone())
    }
}

impl Drop for ShareLink {
    fn drop(&mut self) {
        // SAFETY: this is the end of the link, so nothing takes its content a second time.
        let holder = unsafe { ManuallyDrop::take(&mut self.0) };
        if holder.shared().host.is_cyclic() {
            // Dropped before what it leaves is looked at.
            let shared = Arc::clone(holder.shared());
            drop(holder);
            cycles::suspect(Node::Shared(shared));
        }
    }
}

impl ShareLink {
    /// A further link to a content.
    pub fn new(shared: &Arc<Shared>) -> Self {
        ShareLink(ManuallyDrop::new(shared.holder()))
    }

    /// What distinguishes this content from all others while it lives.
    pub fn id(&self) -> u64 {
        Arc::as_ptr(self.shared()).addr() as u64
    }

    /// The content.
    pub fn shared(&self) -> &Arc<Shared> {
        self.0.shared()
    }

    /// A reference to the content.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        let shared = self.shared();
        if shared.host.is_cyclic() {
            // Not kept: the loss of the last reference must be noticed.
            return reference(env, shared);
        }
        let mut kept = shared.host.kept.lock();
        shared.host.is_kept.store(true, Ordering::Relaxed);
        kept.get_or_insert_with(|| object(env, shared)).to_term(env)
    }
}

/// The link to the content of a share, if the term is one.
pub fn link(term: Term<'_>) -> Option<ShareLink> {
    let shared = shared_of(term)?;
    let link = ShareLink::new(shared);
    if !shared.host.is_cyclic() && !shared.host.is_kept.load(Ordering::Relaxed) {
        let mut kept = shared.host.kept.lock();
        if kept.is_none() {
            *kept = ResourceRef::from_term(term);
        }
        shared.host.is_kept.store(true, Ordering::Relaxed);
    }
    Some(link)
}

/// The bytes of contents that are shared, directly or through another one, each once.
#[derive(Default)]
pub struct SharedBytes {
    seen: HashSet<u64>,
    bytes: usize,
}

impl SharedBytes {
    /// Adds a content and those that it leads to.
    pub fn add(&mut self, share: &ShareLink) {
        if self.seen.insert(share.id()) {
            self.bytes += share.shared().heap_bytes();
            self.add_links(share.shared().packed().links());
        }
    }

    /// Adds the contents that links lead to.
    pub fn add_links(&mut self, links: &Links<Anchor>) {
        // Owned: a state may be cleaned up meanwhile.
        let mut rest = vec![links.clone()];
        while let Some(links) = rest.pop() {
            links.each_anchor(&mut |id, anchor| match anchor {
                Anchor::Share(share) if self.seen.insert(id) => {
                    self.bytes += share.shared().heap_bytes();
                    rest.push(share.shared().packed().links().clone());
                }
                Anchor::State(state) if self.seen.insert(id) => rest.push(state.links()),
                Anchor::Parked(parked) if self.seen.insert(id) => {
                    rest.push(parked.kept().packed().links().clone());
                }
                _ => {}
            });
        }
    }

    /// How many there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Shared contents, with what is kept for their readers.
pub fn stock() -> Stock {
    let contents = STORE.usage();
    let readers = READERS.sum().bytes + copied().count * ENVIRONMENT;
    Stock {
        count: contents.count,
        heap: contents.bytes + readers,
        objects: resource::objects::<Share>().bytes + resource::objects::<Kept>().bytes,
    }
}

/// The largest contents, the largest one first.
pub fn largest(limit: usize) -> Vec<Arc<Shared>> {
    STORE.largest(limit)
}

/// The content that equals a value.
pub fn intern(packed: Packed<Anchor>) -> Arc<Shared> {
    known(STORE.intern(packed))
}

/// A content of the store, with a note whether it leads to a pooled state.
fn known(shared: Arc<Shared>) -> Arc<Shared> {
    shared
        .host
        .cyclic
        .get_or_init(|| cycles::lead_to_pooled(shared.packed().links()));
    shared
}

/// The reference to the content that equals a changed one; only the change is looked at.
fn changed_reference<'a>(
    env: Env<'a>,
    packed: Packed<Anchor>,
    before: &Shared,
    change: &Links<Anchor>,
) -> Term<'a> {
    let shared = STORE.intern(packed);
    let cyclic = || before.host.is_cyclic() || cycles::lead_to_pooled(change);
    shared.host.cyclic.get_or_init(cyclic);
    reference(env, &shared)
}

/// About the packed bytes of a value, also if it is a map out of line.
fn len_of(value: View<'_, Anchor>) -> usize {
    match value.target() {
        Some(Target::Trie(node)) => node.heap_bytes(),
        _ => value.bytes.len(),
    }
}

/// Calls `with` with what is behind the reference of a share, and what it may be read from.
pub fn with_content<R>(
    term: Term<'_>,
    with: impl FnOnce(View<'_, Anchor>, Source<'_>) -> R,
) -> Option<R> {
    let shared = shared_of(term)?;
    let source = Source::Shared(&reader(shared).content);
    Some(with(shared.packed().view(), source))
}

/// The reference to a content.
fn reference<'a>(env: Env<'a>, shared: &Arc<Shared>) -> Term<'a> {
    object(env, shared).to_term(env)
}

/// The object that stands for a content.
fn object(env: Env<'_>, shared: &Arc<Shared>) -> ResourceRef<Share> {
    let new = || Share(Some(Arc::clone(shared)));
    shared.host.known.find_or(env, new)
}

/// The content behind a reference.
fn shared_of(term: Term<'_>) -> Option<&Arc<Shared>> {
    resource::get::<Share>(term)?.0.as_ref()
}

fn reader(shared: &Shared) -> &Reader {
    let readers = shared.host.readers.get_or_init(Box::default);
    readers.0[thread_shard()].get_or_init(|| Reader::new(shared))
}

/// The most packed bytes whose term is built on a normal scheduler.
const BUILT_AT_ONCE: usize = 4 << 10;

/// What a list of keys leads to, as a term.
fn find_in<'a>(
    shared: &Shared,
    keys: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Option<Term<'a>>, PackError<'a>> {
    let packed = shared.packed();
    let own = reader(shared);
    if own.is_due(shared) {
        if lane == Lane::Fast && len_of(packed.view()) > BUILT_AT_ONCE {
            return Err(PackError::Busy);
        }
        own.make_term(packed);
    }
    if lane == Lane::Dirty {
        // Fast-lane calls that could not build it came here.
        let due = shared.host.readers().filter(|other| other.is_due(shared));
        due.for_each(|other| other.make_term(packed));
    }
    match own.term.get().map(|term| term.find(keys, lane)) {
        Some(Search::Found(value)) => return Ok(Some(value)),
        Some(Search::Nothing) => return Ok(None),
        Some(Search::Busy) => return Err(PackError::Busy),
        // Found by its packed form, which can be of any size.
        Some(Search::NotHere) | None => {}
    }
    let path = Path::keys(keys, opened, lane)?;
    let Some(found) = path.with(|keys| packed.view().find(keys)) else {
        return Ok(None);
    };
    let value = unpack(keys.get_env(), found, Source::Shared(&own.content), lane)?;
    own.read.fetch_add(len_of(found), Ordering::Relaxed);
    Ok(Some(value))
}

nif!(share => sized share_new(term, opened));
nif!(read => share_get(reference));
nif!(find => share_find(reference, path, opened));
nif!(change => sized share_update(reference, path, value, opened));
nif!(remove => share_remove(reference, path, opened));
nif!(is_share => short share_is(term));

/// The most packed bytes of a content that is shared on a normal scheduler.
const SHARED_AT_ONCE: usize = 32 << 10;

fn share<'a>(env: Env<'a>, term: Term<'a>, opened: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    match pack_content(term, opened, lane) {
        Ok(packed) if lane == Lane::Fast && packed.bytes().len() > SHARED_AT_ONCE => Err(Busy),
        Ok(packed) => {
            let bytes = packed.bytes().len();
            Ok(garbage::made(env, reference(env, &intern(packed)), bytes))
        }
        Err(error) => reply::not_packed(env, 1, error),
    }
}

pub const NO_SHARE: &str = "not a reference to shared content, or one that went through \
    term_to_binary/1, a file or another node";

fn read<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let none = Term::list_new_empty(env);
    find(env, reference, none, none, lane)
}

/// Calls `with` with the content behind a reference.
fn with_shared<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    with: impl FnOnce(&Arc<Shared>) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    match shared_of(reference) {
        Some(shared) => with(shared),
        None => Ok(reply::badarg(env, 1, NO_SHARE)),
    }
}

/// What is returned for a path that could not be packed.
pub fn no_path<'a>(env: Env<'a>, error: PackError<'a>) -> Result<Term<'a>, Busy> {
    match error {
        PackError::NotAPath => Ok(reply::badarg(env, 2, "not a list of at most 64 keys")),
        error => reply::not_packed(env, 2, error),
    }
}

fn find<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    path: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    with_shared(env, reference, |shared| {
        match find_in(shared, path, opened, lane) {
            Ok(Some(value)) => Ok(reply::ok_value(env, value)),
            Ok(None) => Ok(reply::none(env)),
            Err(error) => no_path(env, error),
        }
    })
}

/// The most bytes of a content that is changed on a normal scheduler: it may have to be compared
/// with an equal one.
const CHANGED_AT_ONCE: usize = 256 << 10;

/// Calls `with` with the content behind a reference that is to be changed, and the keys of a path.
fn at_path<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    path: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    with: impl FnOnce(&Shared, &[View<'_, Anchor>]) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    with_shared(env, reference, |shared| {
        let packed = shared.packed();
        let in_one_piece = packed.bytes().len() > SHARED_AT_ONCE;
        if lane == Lane::Fast && (in_one_piece || len_of(packed.view()) > CHANGED_AT_ONCE) {
            return Err(Busy);
        }
        match Path::keys(path, opened, lane) {
            Ok(path) => path.with(|path| with(shared, path)),
            Err(error) => no_path(env, error),
        }
    })
}

fn change<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    path: Term<'a>,
    value: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    at_path(env, reference, path, opened, lane, |shared, path| {
        let value = match pack_content(value, opened, lane) {
            Ok(value) => value,
            Err(error) => return reply::not_packed(env, 3, error),
        };
        let bytes = value.bytes().len();
        if lane == Lane::Fast && bytes > SHARED_AT_ONCE {
            return Err(Busy);
        }
        let links = value.links().clone();
        let changed = match path {
            [] => Ok(value),
            // No value counts as missing.
            _ => map::put(shared.packed().view(), path, value.view(), &[]),
        };
        Ok(match changed {
            Ok(changed) => {
                let changed = changed_reference(env, changed, shared, &links);
                garbage::made(env, changed, bytes)
            }
            Err(_) => into_share(env, shared.packed().view(), path).unwrap_or_else(|| {
                reply::badarg(env, 2, "the path leads through a value that is not a map")
            }),
        })
    })
}

fn remove<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    path: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    at_path(env, reference, path, opened, lane, |shared, path| {
        let packed = shared.packed();
        Ok(match map::remove(packed.view(), path) {
            Some(changed) => changed_reference(env, changed, shared, &Links::None),
            None => into_share(env, packed.view(), path).unwrap_or(reference),
        })
    })
}

/// Where the path of a change leads into shared content: after how many keys, and into which.
pub fn into_share<'a>(
    env: Env<'a>,
    root: View<'_, Anchor>,
    path: &[View<'_, Anchor>],
) -> Option<Term<'a>> {
    (0..path.len()).find_map(|keys| match root.find(&path[..keys])?.target() {
        Some(Target::Anchor(Anchor::Share(share))) => {
            Some(reply::shared(env, keys, share.to_term(env)))
        }
        _ => None,
    })
}

/// Whether the term is a reference to shared content.
pub fn is(term: Term<'_>) -> bool {
    resource::get::<Share>(term).is_some()
}

fn is_share<'a>(env: Env<'a>, term: Term<'a>) -> Term<'a> {
    is(term).encode(env)
}
