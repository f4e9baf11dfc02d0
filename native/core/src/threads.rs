//! A small number for each thread, to spread counters and locks over shards.
//!
//! The BEAM runs a fixed set of scheduler threads, so numbers handed out in order of first use
//! give every scheduler a shard of its own as long as there are no more threads than shards.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

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

#[cfg(test)]
mod tests {
    use super::*;

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
