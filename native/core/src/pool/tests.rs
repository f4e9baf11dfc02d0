//! Invariants that are checked here:
//!
//! * reused + created = acquisitions; in_use = acquisitions - ended leases; a sequence of
//!   operations on one thread gives exactly the figures of a four-line model;
//! * idle objects never outnumber max_pool_size, and exactly that many are kept when more come;
//! * idle and live bytes are the sums over the objects;
//! * no two leases on any threads ever see one object, and none sees its last owner's data;
//! * trimming frees only what stayed unused, never below pool_size, and gets there in the end.

use super::{Lease, Pool, Recycle};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Default)]
struct Thing {
    content: Vec<u8>,
    owned: AtomicBool,
}

const KEPT: usize = 64;

impl Recycle for Thing {
    fn prepared() -> Self {
        Thing {
            content: Vec::with_capacity(KEPT),
            owned: AtomicBool::new(false),
        }
    }

    fn recycle(&mut self) {
        self.content.clear();
        self.content.shrink_to(KEPT);
        self.owned = AtomicBool::new(false);
    }

    fn heap_bytes(&self) -> usize {
        self.content.capacity()
    }
}

fn pool(shards: usize, pool_size: usize, max: usize) -> Pool<Thing> {
    let pool = Pool::with_shards(shards);
    pool.set_pool_size(pool_size);
    pool.set_max_pool_size(max);
    while pool.prepare_step(100) > 0 {}
    pool
}

#[test]
fn exactly_the_maximum_is_kept_idle() {
    for shards in [1, 2, 4, 16, 32] {
        let pool = pool(shards, 0, 10);
        let leases: Vec<_> = (0..20).map(|_| pool.acquire()).collect();
        assert_eq!(pool.stats().in_use, 20);
        drop(leases);
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.available), (0, 10));
        let leases: Vec<_> = (0..20).map(|_| pool.acquire()).collect();
        assert_eq!((pool.stats().reused, pool.stats().created), (10, 30));
        drop(leases);
    }
}

#[test]
fn prepared_objects_count_as_reused() {
    let pool = pool(8, 100, 1000);
    assert_eq!(pool.stats().available, 100);
    assert_eq!(pool.stats().created, 0);
    assert_eq!(pool.stats().reuse_ratio(), 100.0);
    let leases: Vec<_> = (0..100).map(|_| pool.acquire()).collect();
    assert_eq!((pool.stats().reused, pool.stats().created), (100, 0));
    let more = pool.acquire();
    assert_eq!(pool.stats().created, 1);
    assert_eq!(pool.stats().total_allocated(), 101);
    drop((leases, more));
    assert_eq!(pool.stats().total_allocated(), 101);
}

#[test]
fn prepared_objects_have_room_and_it_is_counted() {
    let pool = pool(4, 10, 10);
    let object = crate::heap::block(size_of::<Thing>()) as u64;
    assert_eq!(pool.stats().idle_bytes, 10 * (object + KEPT as u64));
    let mut prepared = pool.acquire();
    prepared.modify(|thing| thing.content.extend([7; KEPT]));
    assert_eq!(prepared.content.capacity(), KEPT, "it had to grow");
    assert_eq!(pool.stats().live_bytes, object + KEPT as u64);
    // One that was not prepared begins empty.
    let rest: Vec<_> = (0..9).map(|_| pool.acquire()).collect();
    assert_eq!(pool.acquire().content.capacity(), 0);
    drop(rest);
}

#[test]
fn preparing_never_passes_the_maximum_and_comes_in_steps() {
    let pool = Pool::<Thing>::with_shards(4);
    pool.set_max_pool_size(50);
    pool.set_pool_size(80);
    assert_eq!(pool.prepare_step(30), 30);
    assert_eq!(pool.prepare_step(30), 20);
    assert_eq!(pool.prepare_step(30), 0);
    assert_eq!(pool.stats().available, 50);
}

#[test]
fn lowering_the_maximum_frees_the_surplus_and_no_more() {
    let pool = pool(4, 1000, 1000);
    pool.set_max_pool_size(10);
    let mut steps = 0;
    while pool.shed_step(100) > 0 {
        steps += 1;
    }
    assert!(steps >= 10, "one step took more than its limit");
    assert_eq!(pool.stats().available, 10);
    // Ten idle objects on one shard only: they move to the others' room, none is freed.
    let pool = pool_with_all_on_one_shard();
    pool.set_max_pool_size(10);
    while pool.shed_step(100) > 0 {}
    assert_eq!(pool.stats().available, 10);
}

fn pool_with_all_on_one_shard() -> Pool<Thing> {
    let pool = pool(4, 0, 400);
    let leases: Vec<_> = (0..10).map(|_| pool.acquire()).collect();
    drop(leases);
    assert_eq!(pool.stats().available, 10);
    pool
}

#[test]
fn raising_the_maximum_makes_room() {
    let pool = pool(4, 0, 4);
    let leases: Vec<_> = (0..50).map(|_| pool.acquire()).collect();
    pool.set_max_pool_size(40);
    drop(leases);
    assert_eq!(pool.stats().available, 40);
}

#[test]
fn trimming_spares_what_is_used_and_ends_at_pool_size() {
    let pool = pool(4, 100, 10_000);
    let peak: Vec<_> = (0..5000).map(|_| pool.acquire()).collect();
    drop(peak);
    pool.trim_step();
    // 3000 of the 5000 are needed in every period: at most 2000 may go.
    for _ in 0..50 {
        drop((0..3000).map(|_| pool.acquire()).collect::<Vec<_>>());
        pool.trim_step();
    }
    assert_eq!(pool.stats().available, 3000);
    // Nobody needs any: half of the rest a step, down to pool_size.
    assert_eq!(pool.trim_step(), 1450);
    let steps = (0..50).take_while(|_| pool.trim_step() > 0).count();
    assert!(steps < 20);
    assert_eq!(pool.stats().available, 100);
    assert_eq!(pool.trim_step(), 0);
}

#[test]
fn content_is_gone_and_capacity_is_bounded_after_a_release() {
    let pool = pool(1, 0, 10);
    let mut lease = pool.acquire();
    let empty = lease.bytes();
    lease.modify(|thing| thing.content.resize(1_000_000, 7));
    assert!(pool.stats().live_bytes >= 1_000_000);
    drop(lease);
    let stats = pool.stats();
    assert_eq!(stats.live_bytes, 0);
    assert!(stats.idle_bytes as usize <= empty + KEPT);
    assert!(pool.acquire().content.is_empty());
}

#[derive(Clone, Debug)]
enum Op {
    Acquire,
    Release(usize),
    Grow(usize, usize),
    PoolSize(usize),
    MaxPoolSize(usize),
    Trim,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => Just(Op::Acquire),
        5 => any::<usize>().prop_map(Op::Release),
        2 => (any::<usize>(), 0usize..500).prop_map(|(lease, size)| Op::Grow(lease, size)),
        1 => (0usize..30).prop_map(Op::PoolSize),
        1 => (0usize..40).prop_map(Op::MaxPoolSize),
        1 => Just(Op::Trim),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_model(shards in 1usize..9, ops in prop::collection::vec(op(), 0..300)) {
        let pool = pool(shards, 0, 20);
        let (mut available, mut reused, mut created) = (0, 0, 0);
        let (mut pool_size, mut max) = (0, 20);
        let mut leases: Vec<Lease<'_, Thing>> = Vec::new();
        for op in ops {
            match op {
                Op::Acquire => {
                    let lease = pool.acquire();
                    prop_assert!(lease.content.is_empty());
                    leases.push(lease);
                    if available > 0 { available -= 1; reused += 1 } else { created += 1 }
                }
                Op::Release(lease) if !leases.is_empty() => {
                    drop(leases.swap_remove(lease % leases.len()));
                    available = (available + 1).min(max.max(available));
                }
                Op::Grow(lease, size) if !leases.is_empty() => {
                    let lease = lease % leases.len();
                    leases[lease].modify(|thing| thing.content.resize(size, 1));
                }
                Op::PoolSize(size) => {
                    pool_size = size;
                    pool.set_pool_size(size);
                    while pool.prepare_step(7) > 0 {}
                    available = available.max(pool_size.min(max));
                }
                Op::MaxPoolSize(size) => {
                    max = size;
                    pool.set_max_pool_size(size);
                    while pool.shed_step(7) > 0 {}
                    available = available.min(max);
                }
                Op::Trim => {
                    let freed = pool.trim_step();
                    prop_assert!(freed <= available.saturating_sub(pool_size).div_ceil(2));
                    available -= freed;
                }
                Op::Release(_) | Op::Grow(..) => {}
            }
            let stats = pool.stats();
            prop_assert_eq!(stats.in_use, leases.len() as u64);
            prop_assert_eq!(stats.available, available as u64);
            prop_assert_eq!(pool.available(), available);
            prop_assert_eq!((stats.reused, stats.created), (reused, created));
            let live: usize = leases.iter().map(Lease::bytes).sum();
            prop_assert_eq!(stats.live_bytes, live as u64);
            let each = crate::heap::block(size_of::<Thing>()) + KEPT;
            prop_assert!(stats.idle_bytes as usize <= available * each);
            prop_assert!(stats.idle_bytes as usize >= available * size_of::<Thing>());
        }
    }
}

#[test]
fn threads_never_share_an_object() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 20_000;
    let pool = pool(4, 50, 100);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Resizing and trimming all the while.
        scope.spawn(|| {
            let mut size = 0;
            while !done.load(Ordering::Relaxed) {
                size = (size + 37) % 100;
                pool.set_max_pool_size(size);
                while pool.shed_step(16) > 0 {}
                pool.set_pool_size(size / 2);
                pool.prepare_step(16);
                pool.trim_step();
                let stats = pool.stats();
                // Not the leases of one moment: some come and go while the figures are read.
                assert!(stats.in_use <= stats.reused + stats.created);
                std::thread::yield_now();
            }
        });
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let pool = &pool;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for round in 0..ROUNDS {
                        let mut lease = pool.acquire();
                        assert!(!lease.owned.swap(true, Ordering::SeqCst), "two owners");
                        assert!(lease.content.is_empty(), "another owner's data");
                        lease.modify(|thing| {
                            thing.content.extend_from_slice(&thread.to_ne_bytes());
                            thing.content.extend_from_slice(&round.to_ne_bytes());
                        });
                        held.push((round, lease));
                        if held.len() == 4 {
                            let (round, lease) = held.swap_remove(round % 4);
                            let mut marker = thread.to_ne_bytes().to_vec();
                            marker.extend_from_slice(&round.to_ne_bytes());
                            assert_eq!(lease.content, marker);
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        // Before anything is asserted: a failure must not leave the other thread running.
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "a worker failed");
    });
    pool.set_max_pool_size(30);
    while pool.shed_step(1000) > 0 {}
    let stats = pool.stats();
    assert_eq!(stats.in_use, 0);
    assert_eq!(stats.live_bytes, 0);
    assert_eq!(stats.reused + stats.created, (THREADS * ROUNDS) as u64);
    assert!(stats.available <= 30);
}
