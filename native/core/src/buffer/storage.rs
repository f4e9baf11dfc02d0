//! The memory behind one buffer: nothing, a pooled block, or a large allocation of its own.

use super::blocks::{Block, BlockPool, Class};
use crate::copy;
use crate::pool::Lease;
use crate::sync::{AtomicUsize, Ordering};

pub(super) enum Storage<'p> {
    None,
    Pooled(Class, Lease<'p, Block>),
    Large(Large<'p>),
}

impl<'p> Storage<'p> {
    /// The smallest storage with room for `capacity` bytes, with `bytes` in it.
    pub(super) fn take(blocks: &'p BlockPool, capacity: usize, bytes: &[u8]) -> Self {
        let mut storage = match Class::of(capacity) {
            Some(class) => Storage::Pooled(class, blocks.acquire(class)),
            None => Storage::Large(Large::new(blocks, capacity)),
        };
        storage.extend(bytes);
        storage
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Storage::None => &[],
            Storage::Pooled(_, block) => &block.0,
            Storage::Large(large) => &large.bytes,
        }
    }

    #[inline]
    pub(super) fn capacity(&self) -> usize {
        match self {
            Storage::None => 0,
            Storage::Pooled(class, _) => class.size(),
            Storage::Large(large) => large.capacity,
        }
    }

    /// Appends bytes; there must be room for them.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        debug_assert!(self.bytes().len() + bytes.len() <= self.capacity());
        self.modify(|vector| copy::append(vector, bytes));
    }

    /// Drops the first `start` bytes and moves the others to the front.
    pub(super) fn compact(&mut self, start: usize) {
        self.modify(|vector| drop(vector.drain(..start)));
    }

    fn modify(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        match self {
            Storage::None => {}
            Storage::Pooled(_, block) => block.modify(|block| change(&mut block.0)),
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
