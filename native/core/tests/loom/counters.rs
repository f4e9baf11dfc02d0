//! The pool's figures. Invariants:
//!
//! * at rest `reused + created` is the number of acquisitions, nothing is in use, live bytes are
//!   0, idle bytes are the sum over the idle objects, and these are at most `max_pool_size`;
//! * that holds where objects are stolen from and released to other shards than their own, and
//!   where they grow on lease;
//! * at any moment `in_use` is at most the acquisitions so far, so the subtraction behind it never
//!   goes below zero, also while a lease moves through several shards.

use crate::object::{Object, at_rest, check, marked, pool, thread, use_once};
use erlmcp_memory_core::pool::Pool;

#[test]
fn a_thread_steals_from_the_shard_that_another_uses() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 0, 4);
    }
    check(None, || {
        // Two idle objects, both at home 0.
        drop([POOL.acquire(), POOL.acquire()]);
        let thief = thread(1, || use_once(&POOL, b"thief"));
        use_once(&POOL, b"owner");
        thief.join().unwrap();
        at_rest(&POOL, 4);
    });
}

#[test]
fn objects_that_are_released_by_another_thread() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 0, 1);
    }
    check(None, || {
        let (mine, theirs) = (marked(&POOL, b"grown"), marked(&POOL, b"as well"));
        let other = thread(1, || drop(theirs));
        drop(mine);
        use_once(&POOL, b"again");
        other.join().unwrap();
        at_rest(&POOL, 3);
    });
}

#[test]
fn figures_that_are_read_while_leases_come_and_go() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 1, 2);
    }
    check(Some(3), || {
        let reader = thread(2, || {
            let stats = POOL.stats();
            assert!(stats.in_use <= stats.reused + stats.created, "below zero");
            assert!(stats.reused + stats.created <= 3);
        });
        // Acquired at one shard and released at the other.
        let moved = thread(1, || drop(POOL.acquire()));
        drop(POOL.acquire());
        drop(POOL.acquire());
        reader.join().unwrap();
        moved.join().unwrap();
        at_rest(&POOL, 3);
    });
}
