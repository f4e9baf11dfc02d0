//! Shared content: equal values once, freed with the last owner.
//!
//! ```text
//!  Store ──weak──▶ Shared ──▶ Content        equal values have one Shared
//!                   ▲    ▲       ▲
//!         the host's     │       who reads bytes in place and needs nothing else
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

use crate::packed::{Anchor, Packed};
use crate::threads::{SHARDS, thread_shard};
use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
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
pub struct Content<A: Anchor>(ManuallyDrop<Packed<A>>);

/// Values of more bytes are freed at the host's pace.
const FREED_AT_ONCE: usize = 64 << 10;

impl<A: Anchor> Content<A> {
    /// The value.
    pub fn packed(&self) -> &Packed<A> {
        &self.0
    }
}

impl<A: Anchor> Drop for Content<A> {
    fn drop(&mut self) {
        let packed = std::mem::replace(&mut *self.0, Packed::from_bytes(&[]));
        // What it links to may be the beginning of a long chain.
        if packed.links().is_empty() && packed.bytes().len() <= FREED_AT_ONCE {
            drop(packed);
        } else {
            A::free(packed);
        }
    }
}

/// A value that is kept once, and what its host keeps beside it.
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

    /// The value, for who needs its bytes and nothing else.
    pub fn content(&self) -> &Arc<Content<A>> {
        &self.content
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
        let homes = self.homes.get_or_init(Box::default);
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

    /// Bytes of memory behind it, without what it shares in turn.
    pub fn heap_bytes(&self) -> usize {
        let homes = match self.homes.get() {
            Some(_) => crate::heap::block(size_of::<Homes<A, H>>()),
            None => 0,
        };
        crate::heap::arc::<Self>()
            + crate::heap::arc::<Content<A>>()
            + self.packed().heap_bytes()
            + homes
            + self.held.load(Ordering::Relaxed) * crate::heap::arc::<Home<A, H>>()
            + self.host.heap_bytes()
            + size_of::<Known<A, H>>()
    }
}

impl<A: Anchor, H: Host> Drop for Shared<A, H> {
    fn drop(&mut self) {
        self.table.forget(self.hash);
    }
}

type Known<A, H> = (u64, Weak<Shared<A, H>>);

type Locked<'a, A, H> = MutexGuard<'a, HashTable<Known<A, H>>>;

#[derive(Debug)]
struct Table<A: Anchor, H: Host>([Mutex<HashTable<Known<A, H>>>; SHARDS]);

impl<A: Anchor, H: Host> Table<A, H> {
    fn shard(&self, hash: u64) -> &Mutex<HashTable<Known<A, H>>> {
        // The tables choose their buckets by the low bits, and tag them by the high ones.
        &self.0[(hash >> 32) as usize % SHARDS]
    }

    /// Forgets the values of this hash that nobody owns.
    fn forget(&self, hash: u64) {
        let mut table = self.shard(hash).lock();
        while let Ok(found) = table.find_entry(hash, |(known, shared)| {
            *known == hash && shared.strong_count() == 0
        }) {
            found.remove();
        }
        // A table that shrank gives its memory back.
        if table.len() < table.capacity() / 8 {
            let len = table.len();
            table.shrink_to(2 * len, |(hash, _)| *hash);
        }
    }
}

/// All shared content of a node.
#[derive(Debug)]
pub struct Store<A: Anchor, H: Host> {
    hasher: foldhash::quality::RandomState,
    table: Arc<Table<A, H>>,
}

impl<A: Anchor, H: Host> Default for Store<A, H> {
    fn default() -> Self {
        Store {
            hasher: Default::default(),
            table: Arc::new(Table(Default::default())),
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
        let hash = self.hasher.hash_one(packed.bytes());
        self.intern_hashed(hash, packed)
    }

    /// As [`intern`](Self::intern), under a hash that equal values have in common.
    pub fn intern_hashed(&self, hash: u64, packed: Packed<A>) -> Arc<Shared<A, H>> {
        // Dropped after the lock, which their end takes.
        let mut others = Vec::new();
        match self.look_up(hash, &mut others, |known| equal(known.packed(), &packed)) {
            Ok(known) => known,
            Err(mut table) => {
                let shared = Arc::new(Shared {
                    content: Arc::new(Content(ManuallyDrop::new(packed))),
                    hash,
                    table: Arc::clone(&self.table),
                    first: Mutex::default(),
                    homes: OnceLock::new(),
                    held: AtomicUsize::new(0),
                    host: H::default(),
                });
                table.insert_unique(hash, (hash, Arc::downgrade(&shared)), |(hash, _)| *hash);
                drop(table);
                shared
            }
        }
    }

    /// The content of this hash of which `is_equal` says that it is the one.
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
            let table = self.table.shard(hash).lock();
            let mut known = None;
            for (_, shared) in table.iter_hash(hash).filter(|(known, _)| *known == hash) {
                known = shared
                    .upgrade()
                    .filter(|known| !others.iter().any(|other| Arc::ptr_eq(other, known)));
                if known.is_some() {
                    break;
                }
            }
            let Some(known) = known else {
                return Err(table);
            };
            // Compared after the lock, which others wait for: the values may be large.
            drop(table);
            if is_equal(&known) {
                return Ok(known);
            }
            others.push(known);
        }
    }

    /// How many contents there are.
    pub fn len(&self) -> usize {
        self.table.0.iter().map(|table| table.lock().len()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::Writer;

    #[derive(Debug, Default)]
    struct Unheld(AtomicUsize);

    impl Host for Unheld {
        fn unheld(&self, holders: &AtomicUsize) {
            if holders.load(Ordering::Acquire) == 0 {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        fn is_counted(&self) -> bool {
            false
        }

        fn heap_bytes(&self) -> usize {
            0
        }
    }

    type TestStore = Store<Arc<str>, Unheld>;

    fn text(s: &str) -> Packed<Arc<str>> {
        let mut writer = Writer::new();
        writer.binary(s.as_bytes());
        writer.finish()
    }

    #[test]
    fn equal_content_is_kept_once() {
        let store = TestStore::default();
        let a = store.intern(text("tools"));
        let b = store.intern(text("tools"));
        let c = store.intern(text("prompts"));
        assert!(Arc::ptr_eq(&a, &b));
        assert!(!Arc::ptr_eq(&a, &c));
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn the_last_owner_frees_it() {
        let store = TestStore::default();
        let a = store.intern(text("tools"));
        let holder = a.holder();
        let another = holder.clone();
        drop(a);
        drop(holder);
        assert_eq!(store.len(), 1);
        assert_eq!(another.shared().host.0.load(Ordering::Relaxed), 0);
        let a = Arc::clone(another.shared());
        drop(another);
        assert_eq!(a.host.0.load(Ordering::Relaxed), 1);
        drop(a);
        assert!(store.is_empty());
    }

    #[test]
    fn bytes_outlive_the_owners_for_their_readers() {
        let store = TestStore::default();
        let shared = store.intern(text("tools"));
        let content = Arc::clone(shared.content());
        drop(shared);
        assert!(store.is_empty());
        assert_eq!(content.packed().bytes(), text("tools").bytes());
    }

    #[test]
    fn a_share_inside_is_part_of_what_is_compared() {
        let store = TestStore::default();
        let with = |id| {
            let mut writer = Writer::new();
            writer.share(id, Arc::from("inner"));
            writer.finish()
        };
        let a = store.intern(with(1));
        assert!(!Arc::ptr_eq(&a, &store.intern(with(2))));
        assert!(Arc::ptr_eq(&a, &store.intern(with(1))));
    }

    #[test]
    fn threads_that_share_the_same_meet_at_one_content() {
        let store = TestStore::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..2_000 {
                        let value = format!("value {}", round % 7);
                        let content = store.intern(text(&value));
                        assert_eq!(content.packed().bytes(), text(&value).bytes());
                        let again = store.intern(text(&value));
                        assert!(Arc::ptr_eq(&content, &again));
                    }
                });
            }
        });
        assert!(store.is_empty());
    }

    #[test]
    fn owners_on_many_threads_are_counted_apart_and_all() {
        let store = TestStore::default();
        let shared = store.intern(text("tools"));
        let many: Vec<_> = (0..2 * FEW).map(|_| shared.holder()).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mine: Vec<_> = many.iter().map(Clone::clone).collect();
                    let homes: Vec<_> = mine.iter().map(|holder| Arc::as_ptr(&holder.0)).collect();
                    assert_eq!(
                        homes.iter().collect::<std::collections::HashSet<_>>().len(),
                        1
                    );
                    for _ in 0..1_000 {
                        drop(mine.clone());
                    }
                });
            }
        });
        assert_eq!(shared.host.0.load(Ordering::Relaxed), 0);
        assert_eq!(shared.held.load(Ordering::Relaxed), 1);
        drop(many);
        assert_eq!(shared.host.0.load(Ordering::Relaxed), 1);
        drop(shared);
        assert!(store.is_empty());
    }
}
