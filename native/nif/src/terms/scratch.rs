//! Memory that each thread works in, so that a small value is packed and a small map is built without
//! taking any.

use erlmcp_memory_core::map::Room;
use erlmcp_memory_core::packed::Scratch;
use std::cell::{Cell, RefCell};

/// The capacity that the scratch memory of a thread keeps.
const SCRATCH_KEPT: usize = 4 << 10;

thread_local! {
    /// What small values are packed into on their way into a state.
    static SCRATCH: Cell<Scratch> = Cell::default();
    /// What small maps are built in.
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Memory to pack a small value into, of the one before.
pub fn take_scratch() -> Scratch {
    SCRATCH.take()
}

/// For the next one.
pub fn give_scratch(scratch: Scratch) {
    if scratch.capacity() <= SCRATCH_KEPT {
        SCRATCH.set(scratch);
    }
}

/// Calls `with` with memory that small maps are built in. It must not do so again.
pub fn with_room<R>(with: impl FnOnce(&mut Room) -> R) -> R {
    ROOM.with_borrow_mut(with)
}
