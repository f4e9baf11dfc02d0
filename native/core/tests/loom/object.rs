//! What the models pool, and how they run.

use erlmcp_memory_core::pool::{Lease, Pool, Recycle};
use loom::cell::UnsafeCell;
use loom::thread::JoinHandle;
use std::sync::Arc;

/// Runs a model in every order. `preemptions` bounds how often a thread is interrupted where it
/// could have gone on: most bugs need one or two.
pub fn check(preemptions: Option<usize>, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}

/// A thread whose home shard is `home`. The model's first thread has 0.
pub fn thread<R: Send + 'static>(
    home: usize,
    work: impl FnOnce() -> R + Send + 'static,
) -> JoinHandle<R> {
    let named = loom::thread::Builder::new().name(home.to_string());
    named.spawn(work).expect("loom starts a thread")
}

/// A pool of `shards`, with as many idle objects as `pool_size`.
pub fn pool(shards: usize, pool_size: usize, max: usize) -> Pool<Object> {
    let pool = Pool::with_shards(shards);
    pool.set_pool_size(pool_size);
    pool.set_max_pool_size(max);
    assert_eq!(pool.prepare_step(pool_size), pool_size);
    pool
}

loom::lazy_static! {
    /// Every object of this execution holds it. Not loom's `Arc`: counting is no part of what is
    /// modelled.
    static ref EXISTENCE: Arc<()> = Arc::default();
}

/// Objects of this execution that exist.
pub fn existing() -> usize {
    Arc::strong_count(&EXISTENCE) - 1
}

/// An object that notices a second owner, and what the last one left in it.
pub struct Object {
    /// Loom compares each access with all others: one that no lock orders after the last one is a
    /// data race.
    access: UnsafeCell<()>,
    content: Vec<u8>,
    _existence: Arc<()>,
}

impl Default for Object {
    fn default() -> Self {
        Object {
            access: UnsafeCell::new(()),
            content: Vec::new(),
            _existence: Arc::clone(&EXISTENCE),
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // A model that failed frees its pool when loom is no longer there to ask.
        if !std::thread::panicking() {
            self.access.with_mut(|_| ());
        }
    }
}

impl Recycle for Object {
    fn recycle(&mut self) {
        self.access.with_mut(|_| ());
        self.content.clear();
    }

    fn heap_bytes(&self) -> usize {
        self.content.capacity()
    }
}

impl Object {
    pub fn content(&self) -> &[u8] {
        self.access.with(|_| ());
        &self.content
    }

    fn write(&mut self, content: &[u8]) {
        self.access.with_mut(|_| ());
        self.content.clear();
        self.content.extend_from_slice(content);
    }
}

/// An object of the caller's own, checked to be empty, with `mark` in it.
pub fn marked<'p>(pool: &'p Pool<Object>, mark: &[u8]) -> Lease<'p, Object> {
    let mut lease = pool.acquire();
    assert!(lease.content().is_empty(), "another owner's data");
    lease.modify(|object| object.write(mark));
    lease
}

/// Acquires, marks, checks and releases.
pub fn use_once(pool: &Pool<Object>, mark: &[u8]) {
    let lease = marked(pool, mark);
    assert_eq!(lease.content(), mark, "a second owner wrote");
}

/// What holds whenever all leases have ended, after any number of `acquisitions`.
pub fn at_rest(pool: &Pool<Object>, acquisitions: u64) {
    // First: whoever locks a shard brings its hint up to date.
    let hinted = pool.available() as u64;
    let stats = pool.stats();
    assert_eq!(stats.reused + stats.created, acquisitions);
    assert_eq!(stats.in_use, 0);
    assert_eq!(stats.live_bytes, 0);
    assert_eq!(stats.available, hinted, "a stale hint");
    let max = pool.max_pool_size() as u64;
    assert!(stats.available <= max, "over the bound");
    assert_eq!(stats.available, existing() as u64, "lost, or kept twice");
    let idle: Vec<_> = (0..stats.available).map(|_| pool.acquire()).collect();
    assert_eq!(pool.stats().created, stats.created);
    let bytes: usize = idle.iter().map(Lease::bytes).sum();
    assert_eq!(stats.idle_bytes, bytes as u64);
}
