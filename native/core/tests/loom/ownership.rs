//! Ownership of objects. Invariants:
//!
//! * an object has one owner at a time: whatever a thread does with it is ordered, by a lock,
//!   after all that its last owner did;
//! * an owner finds its object empty, and what it wrote stays as it wrote it until the release;
//! * both hold where idle objects are fewer than threads, on one shard and on several.

use crate::object::{Object, at_rest, check, marked, pool, thread, use_once};
use erlmcp_memory_core::pool::Pool;

#[test]
fn two_threads_that_want_the_one_idle_object_of_one_shard() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(1, 1, 2);
    }
    check(None, || {
        let other = thread(1, || use_once(&POOL, b"a"));
        use_once(&POOL, b"b");
        other.join().unwrap();
        at_rest(&POOL, 2);
    });
}

#[test]
fn a_thread_that_holds_an_object_while_it_acquires_another() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 1, 2);
    }
    check(Some(2), || {
        let other = thread(1, || use_once(&POOL, b"a"));
        let held = marked(&POOL, b"b");
        use_once(&POOL, b"c");
        assert_eq!(held.content(), b"b");
        drop(held);
        other.join().unwrap();
        at_rest(&POOL, 3);
    });
}

#[test]
fn three_threads_that_want_one_object() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 1, 1);
    }
    check(Some(2), || {
        let others = [(1, b"a"), (2, b"b")];
        let others = others.map(|(home, mark)| thread(home, || use_once(&POOL, mark)));
        use_once(&POOL, b"c");
        for other in others {
            other.join().unwrap();
        }
        at_rest(&POOL, 3);
    });
}
