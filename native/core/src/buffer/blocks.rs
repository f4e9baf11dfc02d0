//! Blocks of memory in size classes, pooled.

use crate::pool::{Lease, Pool, Recycle, Stats};
use crate::sync::{AtomicUsize, Ordering};

/// The largest pooled block.
pub(super) const LARGEST: usize = 65_536;

/// Idle bytes that each size class keeps at the most.
const IDLE_BYTES_PER_CLASS: usize = 8 * 1024 * 1024;

/// A block with room for `N` bytes. Its bytes are always initialised ones: it is a vector that
/// never grows over its first capacity.
pub struct Block<const N: usize>(pub(super) Vec<u8>);

impl<const N: usize> Default for Block<N> {
    fn default() -> Self {
        Block(Vec::with_capacity(N))
    }
}

impl<const N: usize> Recycle for Block<N> {
    fn recycle(&mut self) {
        self.0.clear();
    }

    fn heap_bytes(&self) -> usize {
        crate::heap::block(self.0.capacity())
    }
}

pub(super) type BlockLease<'p, const N: usize> = Lease<'p, Block<N>>;

/// The pooled blocks of all message buffers, and the count of what is not pooled.
pub struct BlockPool {
    pub(super) b1k: Pool<Block<1_024>>,
    pub(super) b4k: Pool<Block<4_096>>,
    pub(super) b16k: Pool<Block<16_384>>,
    pub(super) b64k: Pool<Block<LARGEST>>,
    /// Bytes of the blocks over [`LARGEST`].
    pub(super) large_bytes: AtomicUsize,
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
    /// Pools for this machine's number of threads. Nothing is made ahead of need, and nothing is
    /// kept until [`open`](Self::open).
    pub fn new() -> Self {
        BlockPool {
            b1k: Pool::new(),
            b4k: Pool::new(),
            b16k: Pool::new(),
            b64k: Pool::new(),
            large_bytes: AtomicUsize::new(0),
        }
    }

    /// From now on blocks that come back are kept for reuse, within a bound.
    pub fn open(&self) {
        self.b1k.set_max_pool_size(IDLE_BYTES_PER_CLASS / 1_024);
        self.b4k.set_max_pool_size(IDLE_BYTES_PER_CLASS / 4_096);
        self.b16k.set_max_pool_size(IDLE_BYTES_PER_CLASS / 16_384);
        self.b64k.set_max_pool_size(IDLE_BYTES_PER_CLASS / LARGEST);
    }

    /// Frees what is idle; from now on blocks that come back are freed. Blocks in use stay.
    pub fn close(&self) {
        close(&self.b1k);
        close(&self.b4k);
        close(&self.b16k);
        close(&self.b64k);
    }

    /// One step of giving unused blocks back to the system; returns how many were freed.
    pub fn trim_step(&self) -> usize {
        self.b1k.trim_step() + self.b4k.trim_step() + self.b16k.trim_step() + self.b64k.trim_step()
    }

    /// The figures now.
    pub fn stats(&self) -> BlockStats {
        let classes = [
            self.b1k.stats(),
            self.b4k.stats(),
            self.b16k.stats(),
            self.b64k.stats(),
        ];
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

fn close<const N: usize>(pool: &Pool<Block<N>>) {
    pool.set_max_pool_size(0);
    while pool.shed_step(usize::MAX) > 0 {}
}
