//! Message blocks that are read by another thread than the one that filled them. Invariants:
//!
//! * the bytes of a block that was handed on never change until its reader gives it back;
//! * a block that a reader gave back is reused for other bytes only after the reader's last look,
//!   in an order that a lock makes.

use crate::object::{Object, at_rest, check, marked, pool, thread, use_once};
use erlmcp_memory_core::pool::Pool;

#[test]
fn a_block_is_read_while_its_filler_fills_others() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(1, 1, 2);
    }
    check(None, || {
        let block = marked(&POOL, b"message");
        let reader = thread(1, || {
            assert_eq!(block.content(), b"message");
            drop(block);
        });
        use_once(&POOL, b"another");
        use_once(&POOL, b"a third");
        reader.join().unwrap();
        at_rest(&POOL, 3);
    });
}

#[test]
fn two_readers_give_blocks_back_to_one_filler() {
    loom::lazy_static! {
        static ref POOL: Pool<Object> = pool(2, 0, 2);
    }
    check(Some(3), || {
        let readers = [(1, b"a"), (2, b"b")].map(|(home, bytes)| {
            let block = marked(&POOL, bytes);
            thread(home, move || {
                assert_eq!(block.content(), bytes);
                drop(block);
            })
        });
        use_once(&POOL, b"c");
        for reader in readers {
            reader.join().unwrap();
        }
        at_rest(&POOL, 3);
    });
}
