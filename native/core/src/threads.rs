//! A small number for each thread, to spread counters and locks over shards.
//!
//! The BEAM runs a fixed set of scheduler threads, so numbers handed out in order of first use
//! give every scheduler a shard of its own as long as there are no more threads than shards.

use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

/// Shards of the structures in this crate that are written by every scheduler.
pub const SHARDS: usize = 16;

/// Defines a function that numbers the threads that call it.
macro_rules! numbering {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[inline]
        pub fn $name() -> usize {
            const UNSET: usize = usize::MAX;
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            thread_local! {
                // Constant and without a destructor: reading it allocates nothing, so an
                // allocator may call this too.
                static NUMBER: Cell<usize> = const { Cell::new(UNSET) };
            }
            NUMBER.with(|number| match number.get() {
                UNSET => {
                    let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
                    number.set(fresh);
                    fresh
                }
                known => known,
            })
        }
    };
}

numbering! {
    /// This thread's number: 0 for the first thread that asks, 1 for the second, and so on.
    thread_number
}

numbering! {
    /// This thread's number among those that acquire or give back pooled objects. Nearly all are
    /// schedulers, so that these get a shard each; [`thread_number`] counts every thread that
    /// ever allocated, and two schedulers would meet in a shard by chance.
    pool_thread_number
}

/// This thread's shard, `0..SHARDS`.
#[inline]
pub fn thread_shard() -> usize {
    thread_number() % SHARDS
}

/// The number of things and their bytes; all threads may change it at once.
pub struct Tally([Slot; SHARDS]);

/// One for each shard of threads, on a cache line of its own. One may go below zero: a thing may
/// go on another thread than the one that made it; the sum is right.
#[repr(align(64))]
struct Slot {
    count: AtomicIsize,
    bytes: AtomicIsize,
}

impl Tally {
    /// Of nothing.
    pub const fn new() -> Self {
        Tally(
            [const {
                Slot {
                    count: AtomicIsize::new(0),
                    bytes: AtomicIsize::new(0),
                }
            }; SHARDS],
        )
    }

    /// Adds to both. Allocates nothing, so an allocator may call this.
    #[inline]
    pub fn add(&self, count: isize, bytes: isize) {
        let slot = &self.0[thread_shard()];
        if count != 0 {
            slot.count.fetch_add(count, Ordering::Relaxed);
        }
        if bytes != 0 {
            slot.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// One more thing, of this many bytes.
    #[inline]
    pub fn came(&self, bytes: usize) {
        self.add(1, bytes as isize);
    }

    /// One thing less. `bytes` are those that it came with.
    #[inline]
    pub fn went(&self, bytes: usize) {
        self.add(-1, -(bytes as isize));
    }

    /// Both, all threads together. Exact at rest; what moves between shards in the meantime may be
    /// seen twice or not at all.
    pub fn sum(&self) -> Usage {
        let sum = |of: fn(&Slot) -> &AtomicIsize| {
            let all = self.0.iter().map(|slot| of(slot).load(Ordering::Relaxed));
            all.fold(0, isize::wrapping_add).max(0) as usize
        };
        Usage {
            count: sum(|slot| &slot.count),
            bytes: sum(|slot| &slot.bytes),
        }
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.sum().fmt(f)
    }
}

/// What a [`Tally`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many things there are.
    pub count: usize,
    /// Their bytes.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_on_one_thread_and_went_on_another_is_gone() {
        static TALLY: Tally = Tally::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|bytes| TALLY.came(bytes)));
            }
        });
        let all = Usage {
            count: 4_000,
            bytes: 4 * 499_500,
        };
        assert_eq!(TALLY.sum(), all);
        (0..1_000).for_each(|bytes| TALLY.went(bytes));
        TALLY.add(0, -500);
        let rest = Usage {
            count: 3_000,
            bytes: 3 * 499_500 - 500,
        };
        assert_eq!(TALLY.sum(), rest);
    }

    #[test]
    fn a_thread_keeps_its_number_and_shares_it_with_no_other() {
        let mine = thread_number();
        assert_eq!(mine, thread_number());
        let other = std::thread::spawn(thread_number).join().unwrap();
        assert_ne!(mine, other);
        let pooling = pool_thread_number();
        assert_eq!(pooling, pool_thread_number());
        let other = std::thread::spawn(pool_thread_number).join().unwrap();
        assert_ne!(pooling, other);
        assert!(thread_shard() < SHARDS);
    }
}
