//! The memory behind one buffer: nothing, a pooled block, or a large allocation of its own.

use super::blocks::{BlockLease, BlockPool, LARGEST};
use crate::sync::{AtomicUsize, Ordering};

pub(super) enum Storage<'p> {
    None,
    B1k(BlockLease<'p, 1_024>),
    B4k(BlockLease<'p, 4_096>),
    B16k(BlockLease<'p, 16_384>),
    B64k(BlockLease<'p, LARGEST>),
    Large(Large<'p>),
}

/// The room of the smallest pooled block for `capacity` bytes; `None` where they are too many.
pub(super) fn class(capacity: usize) -> Option<usize> {
    [1_024, 4_096, 16_384, LARGEST]
        .into_iter()
        .find(|&class| capacity <= class)
}

impl<'p> Storage<'p> {
    /// The smallest storage with room for `capacity` bytes, with `bytes` in it.
    pub(super) fn take(blocks: &'p BlockPool, capacity: usize, bytes: &[u8]) -> Self {
        let mut storage = match capacity {
            0..=1_024 => Storage::B1k(blocks.b1k.acquire()),
            1_025..=4_096 => Storage::B4k(blocks.b4k.acquire()),
            4_097..=16_384 => Storage::B16k(blocks.b16k.acquire()),
            16_385..=LARGEST => Storage::B64k(blocks.b64k.acquire()),
            _ => Storage::Large(Large::new(blocks, capacity)),
        };
        storage.extend(bytes);
        storage
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Storage::None => &[],
            Storage::B1k(block) => &block.0,
            Storage::B4k(block) => &block.0,
            Storage::B16k(block) => &block.0,
            Storage::B64k(block) => &block.0,
            Storage::Large(large) => &large.bytes,
        }
    }

    pub(super) fn capacity(&self) -> usize {
        match self {
            Storage::None => 0,
            Storage::B1k(_) => 1_024,
            Storage::B4k(_) => 4_096,
            Storage::B16k(_) => 16_384,
            Storage::B64k(_) => LARGEST,
            Storage::Large(large) => large.capacity,
        }
    }

    /// Appends bytes that there is room for.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        debug_assert!(self.bytes().len() + bytes.len() <= self.capacity());
        self.modify(|vector| vector.extend_from_slice(bytes));
    }

    /// Drops the first `start` bytes and moves the others to the front.
    pub(super) fn compact(&mut self, start: usize) {
        self.modify(|vector| drop(vector.drain(..start)));
    }

    fn modify(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        match self {
            Storage::None => {}
            Storage::B1k(block) => block.modify(|block| change(&mut block.0)),
            Storage::B4k(block) => block.modify(|block| change(&mut block.0)),
            Storage::B16k(block) => block.modify(|block| change(&mut block.0)),
            Storage::B64k(block) => block.modify(|block| change(&mut block.0)),
            Storage::Large(large) => change(&mut large.bytes),
        }
    }
}

/// An allocation that is not pooled, counted while it lives.
pub(super) struct Large<'p> {
    bytes: Vec<u8>,
    capacity: usize,
    counter: &'p AtomicUsize,
}

impl<'p> Large<'p> {
    fn new(blocks: &'p BlockPool, capacity: usize) -> Self {
        blocks.large_bytes.fetch_add(capacity, Ordering::Relaxed);
        Large {
            bytes: Vec::with_capacity(capacity),
            capacity,
            counter: &blocks.large_bytes,
        }
    }
}

impl Drop for Large<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.capacity, Ordering::Relaxed);
    }
}
