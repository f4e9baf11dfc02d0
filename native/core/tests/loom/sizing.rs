//! Preparing, trimming, shedding and resizing beside acquisitions and releases. Invariants:
//!
//! * once the bound was lowered and shedding has found nothing more, idle objects are within it,
//!   whatever was released meanwhile, and stay so;
//! * nothing is lost and nothing is freed twice: objects made, minus those freed, are the idle
//!   ones and those on lease;
//! * trimming leaves `pool_size` objects that nobody takes, and takes none that is on lease;
//! * of two bounds that are set at once one holds, and it is the one that the pool tells;
//! * preparing passes neither bound, and what it makes counts as no acquisition.

use crate::object::{Object, at_rest, check, existing, marked, pool, thread, use_once};
use erlmcp_memory_core::pool::Pool;

fn shed(pool: &Pool<Object>) {
    while pool.shed_step(1) > 0 {}
}

#[test]
fn a_release_while_the_bound_is_lowered() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 2, 2);
    }
    check(Some(3), || {
        let lease = marked(&POOL, b"a");
        let other = thread(1, || drop(lease));
        POOL.set_max_pool_size(1);
        shed(&POOL);
        other.join().unwrap();
        at_rest(&POOL, 1);
    });
}

#[test]
fn a_release_while_the_surplus_is_shed_and_trimmed() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 2, 2);
    }
    check(Some(2), || {
        POOL.set_pool_size(0);
        assert_eq!(POOL.trim_step(), 0, "the period starts here");
        let lease = marked(&POOL, b"a");
        let user = thread(1, || drop(lease));
        let trimmer = thread(2, || POOL.trim_step());
        POOL.set_max_pool_size(1);
        shed(&POOL);
        user.join().unwrap();
        trimmer.join().unwrap();
        at_rest(&POOL, 1);
    });
}

#[test]
fn trimming_while_objects_are_taken() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(1, 2, 4);
    }
    check(None, || {
        POOL.set_pool_size(1);
        assert_eq!(POOL.trim_step(), 0, "the period starts here");
        let user = thread(1, || use_once(&POOL, b"a"));
        let freed = POOL.trim_step() as u64;
        user.join().unwrap();
        assert!(freed <= 1, "trimmed below pool_size");
        let made = 2 + POOL.stats().created;
        assert_eq!(existing() as u64, made - freed, "freed and not told");
        at_rest(&POOL, 1);
    });
}

#[test]
fn preparing_while_objects_are_taken() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 0, 2);
    }
    check(Some(3), || {
        POOL.set_pool_size(2);
        let user = thread(1, || use_once(&POOL, b"a"));
        let made = POOL.prepare_step(2);
        user.join().unwrap();
        assert!(made <= 2);
        at_rest(&POOL, 1);
    });
}

#[test]
fn a_bound_that_is_lowered_while_objects_are_prepared() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 0, 2);
    }
    check(Some(3), || {
        POOL.set_pool_size(2);
        let preparer = thread(1, || POOL.prepare_step(2));
        POOL.set_max_pool_size(1);
        shed(&POOL);
        preparer.join().unwrap();
        at_rest(&POOL, 0);
    });
}

#[test]
fn two_bounds_that_are_set_at_once() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 2, 2);
    }
    check(Some(3), || {
        let other = thread(1, || POOL.set_max_pool_size(1));
        POOL.set_max_pool_size(0);
        other.join().unwrap();
        shed(&POOL);
        at_rest(&POOL, 0);
    });
}
