//! Shared content: equal values once, freed with the last owner.
//!
//! ```text
//!  Store ──weak──▶ Shared ──▶ Content        equal values have one Shared
//!                   ▲    ▲       ▲
//!         the host's     │       readers of the bytes alone
//!         handles      Home, Home ...        one for each thread that owns much
//!                        ▲     ▲
//!                   Holder … Holder          in states and other contents
//! ```
//!
//! [`Store`] is addressed by content: [`Store::intern`] returns the same [`Shared`] for equal
//! packed values. It holds weak references only, and forgets a value when its last owner goes.
//!
//! A hundred thousand states may hold the same content, and each update of a state makes a further
//! owner. One count for all of them would be the limit of every scheduler that moves it. A
//! [`Holder`] is therefore counted in the `Home` of the thread that made it, and cloned into that
//! of the thread that clones it.

use crate::heap;
use crate::map;
use crate::packed::{Anchor, Packed};
use crate::threads::{SHARDS, Tally, Usage, thread_shard};
use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// What the host keeps beside a content, for instance what it needs to find the one reference that
/// stands for it.
pub trait Host: Default + Send + Sync + 'static {
    /// Called when the last [`Holder`] has gone. `holders` is the number of homes, which may be
    /// above zero again.
    fn unheld(&self, holders: &AtomicUsize);

    /// Whether all holders are to be counted in one place, so that their number can be told.
    fn is_counted(&self) -> bool;

    /// Bytes of memory behind it.
    fn heap_bytes(&self) -> usize;
}

/// The value itself.
#[derive(Debug)]
pub struct Content<A: Anchor> {
    packed: ManuallyDrop<Packed<A>>,
    /// Its store's.
    usage: Arc<Tally>,
}

/// Values of more bytes are freed at the host's pace.
const FREED_AT_ONCE: usize = 64 << 10;

impl<A: Anchor> Content<A> {
    fn new(packed: Packed<A>, usage: &Arc<Tally>) -> Self {
        let content = Content {
            packed: ManuallyDrop::new(packed),
            usage: Arc::clone(usage),
        };
        content.usage.came(content.heap_bytes());
        content
    }

    /// The value.
    pub fn packed(&self) -> &Packed<A> {
        &self.packed
    }

    fn heap_bytes(&self) -> usize {
        heap::arc::<Self>() + self.packed.heap_bytes()
    }
}

impl<A: Anchor> Drop for Content<A> {
    fn drop(&mut self) {
        self.usage.went(self.heap_bytes());
        let packed = std::mem::replace(&mut *self.packed, Packed::from_bytes(&[]));
        // What it links to may be the beginning of a long chain.
        if packed.links().is_empty() && packed.bytes().len() <= FREED_AT_ONCE {
            drop(packed);
        } else {
            A::free(packed);
        }
    }
}

/// A value that is stored once, and what its host keeps beside it.
#[derive(Debug)]
pub struct Shared<A: Anchor, H: Host> {
    content: Arc<Content<A>>,
    hash: u64,
    table: Arc<Table<A, H>>,
    /// The home of the first thread that held it.
    first: Mutex<Weak<Home<A, H>>>,
    /// The homes of all threads, once there are many owners.
    homes: OnceLock<Box<Homes<A, H>>>,
    /// Homes that exist.
    held: AtomicUsize,
    /// The host's.
    pub host: H,
}

/// The home in each shard of threads.
type Homes<A, H> = [Mutex<Weak<Home<A, H>>>; SHARDS];

/// Where owners of a content are counted, near the thread that makes most of them.
#[derive(Debug)]
struct Home<A: Anchor, H: Host> {
    shared: Arc<Shared<A, H>>,
    shard: usize,
}

impl<A: Anchor, H: Host> Drop for Home<A, H> {
    fn drop(&mut self) {
        let usage = &self.shared.content.usage;
        usage.add(0, -(heap::arc::<Self>() as isize));
        if self.shared.held.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.host.unheld(&self.shared.held);
        }
    }
}

/// An owner of a content among many.
#[derive(Debug)]
pub struct Holder<A: Anchor, H: Host>(Arc<Home<A, H>>);

/// With fewer owners in a home, further ones are counted there whatever their thread.
const FEW: usize = 8;

impl<A: Anchor, H: Host> Clone for Holder<A, H> {
    fn clone(&self) -> Self {
        let shard = thread_shard();
        let here = self.0.shard == shard || Arc::strong_count(&self.0) < FEW;
        if here || self.0.shared.host.is_counted() {
            return Holder(Arc::clone(&self.0));
        }
        self.0.shared.holder_in(shard)
    }
}

impl<A: Anchor, H: Host> Holder<A, H> {
    /// What it holds.
    pub fn shared(&self) -> &Arc<Shared<A, H>> {
        &self.0.shared
    }
}

impl<A: Anchor, H: Host> Shared<A, H> {
    /// The value.
    pub fn packed(&self) -> &Packed<A> {
        self.content.packed()
    }

    /// The value, for those that need only its bytes.
    pub fn content(&self) -> &Arc<Content<A>> {
        &self.content
    }

    /// By which the largest are found; `None` of a small one.
    fn rank(&self) -> Option<Ranked> {
        let bytes = self.packed().heap_bytes();
        (bytes >= RANKED).then_some((bytes, self.hash))
    }

    /// The hash that it is kept under.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// A further owner.
    pub fn holder(self: &Arc<Self>) -> Holder<A, H> {
        let shard = thread_shard();
        if self.homes.get().is_none() {
            let mut first = self.first.lock();
            match first.upgrade() {
                None => {
                    let home = self.home(shard);
                    *first = Arc::downgrade(&home);
                    return Holder(home);
                }
                Some(home) => {
                    let here = home.shard == shard || Arc::strong_count(&home) < FEW;
                    if here || self.host.is_counted() {
                        return Holder(home);
                    }
                }
            }
        }
        self.holder_in(shard)
    }

    fn holder_in(self: &Arc<Self>, shard: usize) -> Holder<A, H> {
        let homes = self.homes.get_or_init(|| {
            self.content.usage.add(0, Self::homes_bytes() as isize);
            Box::default()
        });
        let mut slot = homes[shard].lock();
        let home = slot.upgrade().unwrap_or_else(|| {
            let home = self.home(shard);
            *slot = Arc::downgrade(&home);
            home
        });
        Holder(home)
    }

    fn home(self: &Arc<Self>, shard: usize) -> Arc<Home<A, H>> {
        self.held.fetch_add(1, Ordering::AcqRel);
        let bytes = heap::arc::<Home<A, H>>();
        self.content.usage.add(0, bytes as isize);
        Arc::new(Home {
            shared: Arc::clone(self),
            shard,
        })
    }

    /// Whether it has more than a few owners.
    pub fn has_many_owners(&self) -> bool {
        self.homes.get().is_some() || self.first.lock().strong_count() >= FEW
    }

    /// How many own it, where holders are counted in one place ([`Host::is_counted`]).
    pub fn owners(self: &Arc<Self>) -> usize {
        let first = self.first.lock();
        let (homes, holders) = match first.strong_count() {
            0 => (0, 0),
            holders => (1, holders),
        };
        Arc::strong_count(self) - homes + holders
    }

    /// How many values hold it: states and other contents.
    pub fn holders(&self) -> usize {
        let count = |home: &Mutex<Weak<Home<A, H>>>| home.lock().strong_count();
        let homes = self.homes.get().into_iter().flat_map(|homes| homes.iter());
        count(&self.first) + homes.map(count).sum::<usize>()
    }

    /// Bytes of memory behind it, without what it shares in turn.
    pub fn heap_bytes(&self) -> usize {
        let homes = match self.homes.get() {
            Some(_) => Self::homes_bytes(),
            None => 0,
        };
        self.own_bytes()
            + self.content.heap_bytes()
            + homes
            + self.held.load(Ordering::Relaxed) * heap::arc::<Home<A, H>>()
            + self.host.heap_bytes()
    }

    /// What it takes besides its content.
    fn own_bytes(&self) -> usize {
        let rank = self.rank().map_or(0, |_| size_of::<Ranked>());
        heap::arc::<Self>() + size_of::<Known<A, H>>() + rank
    }

    fn homes_bytes() -> usize {
        heap::block(size_of::<Homes<A, H>>())
    }
}

impl<A: Anchor, H: Host> Drop for Shared<A, H> {
    fn drop(&mut self) {
        let mut bytes = self.own_bytes();
        if self.homes.get().is_some() {
            bytes += Self::homes_bytes();
        }
        self.content.usage.add(0, -(bytes as isize));
        self.table.forget(self.hash, self.rank());
    }
}

type Known<A, H> = (u64, Weak<Shared<A, H>>);

type Locked<'a, A, H> = MutexGuard<'a, Part<A, H>>;

/// Bytes of a content, and its hash.
type Ranked = (usize, u64);

/// Contents that take fewer bytes are not kept by size: an entry would be a large part of what they
/// take.
const RANKED: usize = 1 << 10;

/// How many of those are looked at if there are not enough larger ones.
const UNRANKED_LOOKED_AT: usize = 1000;

#[derive(Debug)]
struct Table<A: Anchor, H: Host>([Mutex<Part<A, H>>; SHARDS]);

/// The contents of some hashes.
#[derive(Debug)]
struct Part<A: Anchor, H: Host> {
    known: HashTable<Known<A, H>>,
    /// The same by size, but for small ones: the largest are asked for, and there may be too many
    /// to look at all.
    ranks: BTreeSet<Ranked>,
}

impl<A: Anchor, H: Host> Default for Part<A, H> {
    fn default() -> Self {
        Part {
            known: HashTable::new(),
            ranks: BTreeSet::new(),
        }
    }
}

impl<A: Anchor, H: Host> Part<A, H> {
    /// The contents of a hash that have an owner.
    fn of_hash(&self, hash: u64) -> impl Iterator<Item = Arc<Shared<A, H>>> {
        let found = self.known.iter_hash(hash);
        found.filter_map(move |(known, shared)| (*known == hash).then(|| shared.upgrade())?)
    }
}

impl<A: Anchor, H: Host> Table<A, H> {
    fn part(&self, hash: u64) -> &Mutex<Part<A, H>> {
        // The tables choose their buckets by the low bits, and tag them by the high ones.
        &self.0[(hash >> 32) as usize % SHARDS]
    }

    /// Forgets the values of this hash that have no owner.
    fn forget(&self, hash: u64, rank: Option<Ranked>) {
        let mut part = self.part(hash).lock();
        while let Ok(found) = part.known.find_entry(hash, |(known, shared)| {
            *known == hash && shared.strong_count() == 0
        }) {
            found.remove();
        }
        // Not if the same content was stored again in the meantime.
        if let Some(rank) = rank
            && part.known.find(hash, |(known, _)| *known == hash).is_none()
        {
            part.ranks.remove(&rank);
        }
        let table = &mut part.known;
        // A table that shrank gives its memory back.
        if table.len() < table.capacity() / 8 {
            let len = table.len();
            table.shrink_to(2 * len, |(hash, _)| *hash);
        }
    }
}

/// Maps of more packed bytes are kept as tries, so that a content with one value changed costs the
/// path to it. A smaller one is copied in no time, and takes less memory in one piece.
const WHOLE: usize = 16 << 10;

/// All shared content of a node.
#[derive(Debug)]
pub struct Store<A: Anchor, H: Host> {
    hasher: foldhash::quality::RandomState,
    table: Arc<Table<A, H>>,
    usage: Arc<Tally>,
}

impl<A: Anchor, H: Host> Default for Store<A, H> {
    fn default() -> Self {
        Store {
            hasher: Default::default(),
            table: Arc::new(Table(Default::default())),
            usage: Arc::default(),
        }
    }
}

impl<A: Anchor, H: Host> Store<A, H> {
    /// What contents are hashed with.
    pub fn hasher(&self) -> &impl BuildHasher {
        &self.hasher
    }

    /// The content that equals this value: an existing one, or a new one.
    pub fn intern(&self, packed: Packed<A>) -> Arc<Shared<A, H>> {
        let hash = map::digest(packed.view());
        let mut others = Vec::new();
        if let Ok(known) = self.look_up(hash, &mut others, |known| same(known, &packed)) {
            return known;
        }
        // Outside of the lock, which others wait for; and not for what is there.
        let packed = map::in_parts(packed, WHOLE);
        // So that its parts know theirs when one of them changes.
        map::digest(packed.view());
        match self.look_up(hash, &mut others, |known| same(known, &packed)) {
            Ok(known) => known,
            Err(part) => self.insert(hash, packed, part),
        }
    }

    /// As [`intern`](Self::intern), under a hash that equal values have in common, for a value that
    /// is kept as it is.
    pub fn intern_hashed(&self, hash: u64, packed: Packed<A>) -> Arc<Shared<A, H>> {
        // Dropped after the lock, which their end takes.
        let mut others = Vec::new();
        match self.look_up(hash, &mut others, |known| equal(known.packed(), &packed)) {
            Ok(known) => known,
            Err(part) => self.insert(hash, packed, part),
        }
    }

    fn insert(
        &self,
        hash: u64,
        packed: Packed<A>,
        mut part: Locked<'_, A, H>,
    ) -> Arc<Shared<A, H>> {
        let shared = Arc::new(Shared {
            content: Arc::new(Content::new(packed, &self.usage)),
            hash,
            table: Arc::clone(&self.table),
            first: Mutex::default(),
            homes: OnceLock::new(),
            held: AtomicUsize::new(0),
            host: H::default(),
        });
        self.usage.add(0, shared.own_bytes() as isize);
        let weak = Arc::downgrade(&shared);
        part.known
            .insert_unique(hash, (hash, weak), |(hash, _)| *hash);
        part.ranks.extend(shared.rank());
        shared
    }

    /// The content of this hash for which `is_equal` returns true.
    pub fn find(
        &self,
        hash: u64,
        is_equal: impl FnMut(&Arc<Shared<A, H>>) -> bool,
    ) -> Option<Arc<Shared<A, H>>> {
        let mut others = Vec::new();
        self.look_up(hash, &mut others, is_equal).ok()
    }

    /// A content, or the lock under which there is none. `others` gets those of this hash that were
    /// found to differ.
    fn look_up(
        &self,
        hash: u64,
        others: &mut Vec<Arc<Shared<A, H>>>,
        mut is_equal: impl FnMut(&Arc<Shared<A, H>>) -> bool,
    ) -> Result<Arc<Shared<A, H>>, Locked<'_, A, H>> {
        loop {
            let part = self.table.part(hash).lock();
            let known = part
                .of_hash(hash)
                .find(|known| !others.iter().any(|other| Arc::ptr_eq(other, known)));
            let Some(known) = known else {
                return Err(part);
            };
            // Compared after the lock, which others wait for: the values may be large.
            drop(part);
            if is_equal(&known) {
                return Ok(known);
            }
            others.push(known);
        }
    }

    /// How many contents there are, those that only readers of their bytes keep among them, and
    /// what they take, without what their hosts keep beside them.
    pub fn usage(&self) -> Usage {
        self.usage.sum()
    }

    /// The largest contents, the largest one first, where there are as many of at least
    /// 1 KiB; else those and the largest of some others. The time does not depend on
    /// how many others there are.
    pub fn largest(&self, limit: usize) -> Vec<Arc<Shared<A, H>>> {
        let mut found: Vec<_> = Vec::new();
        for part in &self.table.0 {
            let part = part.lock();
            let ranks = part.ranks.iter().rev().take(limit);
            found.extend(ranks.flat_map(|(_, hash)| part.of_hash(*hash)));
        }
        if found.len() < limit {
            for part in &self.table.0 {
                let part = part.lock();
                let some = part.known.iter().take(UNRANKED_LOOKED_AT / SHARDS);
                found.extend(some.filter_map(|(_, shared)| shared.upgrade()));
            }
        }
        // Dropped behind the locks: the last owner of one takes the lock that it is known under.
        found.sort_by_key(|shared| std::cmp::Reverse((shared.packed().heap_bytes(), shared.hash)));
        found.dedup_by(|a, b| Arc::ptr_eq(a, b));
        found.truncate(limit);
        found
    }

    /// How many contents there are.
    pub fn len(&self) -> usize {
        self.table
            .0
            .iter()
            .map(|part| part.lock().known.len())
            .sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Packed bytes are canonical, so equal bytes and equal link ids mean equal terms.
fn equal<A: Anchor>(a: &Packed<A>, b: &Packed<A>) -> bool {
    a.bytes() == b.bytes() && a.links().ids().eq(b.links().ids())
}

/// Whether a content equals a value, in whatever form the two are stored.
fn same<A: Anchor, H: Host>(known: &Shared<A, H>, packed: &Packed<A>) -> bool {
    map::equal(known.packed().view(), packed.view())
}

#[cfg(test)]
mod tests;
