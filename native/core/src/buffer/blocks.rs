//! Blocks of memory in size classes, pooled.

use crate::pool::{Lease, Pool, Recycle, Stats};
use crate::sync::{AtomicUsize, Ordering};
use crate::threads::Tally;

/// The sizes of pooled blocks, smallest first. A size more is a number more here.
const SIZES: [usize; 7] = [
    256,
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
];

/// The most idle bytes that each size class keeps.
const IDLE_BYTES_PER_CLASS: usize = 4 * 1024 * 1024;

/// The size class of a pooled block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(usize);

impl Class {
    /// The smallest with room for `capacity` bytes; `None` if none has.
    pub(super) fn of(capacity: usize) -> Option<Self> {
        SIZES.iter().position(|size| capacity <= *size).map(Class)
    }

    /// The bytes that its blocks have room for.
    #[inline]
    pub(super) fn size(self) -> usize {
        SIZES[self.0]
    }
}

/// A block. Its bytes are always initialised ones: it is a vector that never grows over its class.
#[derive(Default)]
pub(super) struct Block(pub(super) Vec<u8>);

impl Recycle for Block {
    fn recycle(&mut self) {
        self.0.clear();
    }

    fn heap_bytes(&self) -> usize {
        crate::heap::block(self.0.capacity())
    }
}

/// The pooled blocks of all message buffers, and the count of what is not pooled.
pub struct BlockPool {
    classes: [Pool<Block>; SIZES.len()],
    /// Bytes of the blocks that are too large to be pooled.
    pub(super) large_bytes: AtomicUsize,
    pub(super) buffers: Tally,
}

/// The figures of a [`BlockPool`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Idle blocks kept for reuse.
    pub idle: u64,
    /// Blocks in use, the large ones not counted.
    pub in_use: u64,
    /// Bytes of idle blocks.
    pub idle_bytes: u64,
    /// Bytes of blocks in use, the large ones included.
    pub live_bytes: u64,
}

impl BlockPool {
    /// Pools for this machine's number of threads. Nothing is made in advance, and nothing is
    /// kept until [`open`](Self::open).
    pub fn new() -> Self {
        BlockPool {
            classes: std::array::from_fn(|_| Pool::new()),
            large_bytes: AtomicUsize::new(0),
            buffers: Tally::new(),
        }
    }

    /// A block of this class, empty, with all its room.
    pub(super) fn acquire(&self, class: Class) -> Lease<'_, Block> {
        let mut block = self.classes[class.0].acquire();
        if block.0.capacity() == 0 {
            block.modify(|block| block.0.reserve_exact(class.size()));
        }
        block
    }

    /// From now on blocks that come back are kept for reuse, within a bound.
    pub fn open(&self) {
        for (pool, size) in self.classes.iter().zip(SIZES) {
            pool.set_max_pool_size(IDLE_BYTES_PER_CLASS / size);
        }
    }

    /// Frees what is idle; from now on blocks that come back are freed. Blocks in use stay.
    pub fn close(&self) {
        for pool in &self.classes {
            pool.set_max_pool_size(0);
            while pool.shed_step(usize::MAX) > 0 {}
        }
    }

    /// One step of giving unused blocks back to the system; returns how many were freed.
    pub fn trim_step(&self) -> usize {
        self.classes.iter().map(Pool::trim_step).sum()
    }

    /// The message buffers that there are, including those that hold nothing.
    pub fn buffers(&self) -> usize {
        self.buffers.sum().count
    }

    /// The figures now.
    pub fn stats(&self) -> BlockStats {
        let classes = self.classes.each_ref().map(Pool::stats);
        let sum = |figure: fn(&Stats) -> u64| classes.iter().map(figure).sum::<u64>();
        BlockStats {
            idle: sum(|class| class.available),
            in_use: sum(|class| class.in_use),
            idle_bytes: sum(|class| class.idle_bytes),
            live_bytes: sum(|class| class.live_bytes)
                + self.large_bytes.load(Ordering::Relaxed) as u64,
        }
    }
}

impl Default for BlockPool {
    fn default() -> Self {
        Self::new()
    }
}
