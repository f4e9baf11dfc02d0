//! The memory behind one buffer: nothing, a pooled block, or a large allocation of its own.

use super::blocks::{B256, BlockLease, BlockPool, K1, K4, K16, K64, K256, M1};
use crate::copy;
use crate::sync::{AtomicUsize, Ordering};

pub(super) enum Storage<'p> {
    None,
    B256(BlockLease<'p, B256>),
    K1(BlockLease<'p, K1>),
    K4(BlockLease<'p, K4>),
    K16(BlockLease<'p, K16>),
    K64(BlockLease<'p, K64>),
    K256(BlockLease<'p, K256>),
    M1(BlockLease<'p, M1>),
    Large(Large<'p>),
}

/// The room of the smallest pooled block for `capacity` bytes; `None` where they are too many.
pub(super) fn class(capacity: usize) -> Option<usize> {
    [B256, K1, K4, K16, K64, K256, M1]
        .into_iter()
        .find(|&class| capacity <= class)
}

impl<'p> Storage<'p> {
    /// The smallest storage with room for `capacity` bytes, with `bytes` in it.
    pub(super) fn take(blocks: &'p BlockPool, capacity: usize, bytes: &[u8]) -> Self {
        let mut storage = match class(capacity) {
            Some(B256) => Storage::B256(blocks.b256.acquire()),
            Some(K1) => Storage::K1(blocks.k1.acquire()),
            Some(K4) => Storage::K4(blocks.k4.acquire()),
            Some(K16) => Storage::K16(blocks.k16.acquire()),
            Some(K64) => Storage::K64(blocks.k64.acquire()),
            Some(K256) => Storage::K256(blocks.k256.acquire()),
            Some(M1) => Storage::M1(blocks.m1.acquire()),
            _ => Storage::Large(Large::new(blocks, capacity)),
        };
        storage.extend(bytes);
        storage
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Storage::None => &[],
            Storage::B256(block) => &block.0,
            Storage::K1(block) => &block.0,
            Storage::K4(block) => &block.0,
            Storage::K16(block) => &block.0,
            Storage::K64(block) => &block.0,
            Storage::K256(block) => &block.0,
            Storage::M1(block) => &block.0,
            Storage::Large(large) => &large.bytes,
        }
    }

    #[inline]
    pub(super) fn capacity(&self) -> usize {
        match self {
            Storage::None => 0,
            Storage::B256(_) => B256,
            Storage::K1(_) => K1,
            Storage::K4(_) => K4,
            Storage::K16(_) => K16,
            Storage::K64(_) => K64,
            Storage::K256(_) => K256,
            Storage::M1(_) => M1,
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
            Storage::B256(block) => block.modify_within(|block| change(&mut block.0)),
            Storage::K1(block) => block.modify_within(|block| change(&mut block.0)),
            Storage::K4(block) => block.modify_within(|block| change(&mut block.0)),
            Storage::K16(block) => block.modify_within(|block| change(&mut block.0)),
            Storage::K64(block) => block.modify_within(|block| change(&mut block.0)),
            Storage::K256(block) => block.modify_within(|block| change(&mut block.0)),
            Storage::M1(block) => block.modify_within(|block| change(&mut block.0)),
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
