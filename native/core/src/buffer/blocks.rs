//! Blocks of memory in size classes, pooled.

use crate::pool::{Lease, Pool, Recycle, Stats};
use crate::sync::{AtomicUsize, Ordering};
use crate::threads::Tally;

/// The sizes of pooled blocks.
pub(super) const B256: usize = 256;
pub(super) const K1: usize = 1 << 10;
pub(super) const K4: usize = 4 << 10;
pub(super) const K16: usize = 16 << 10;
pub(super) const K64: usize = 64 << 10;
pub(super) const K256: usize = 256 << 10;
pub(super) const M1: usize = 1 << 20;

/// The most idle bytes that each size class keeps.
const IDLE_BYTES_PER_CLASS: usize = 4 * 1024 * 1024;

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
    pub(super) b256: Pool<Block<B256>>,
    pub(super) k1: Pool<Block<K1>>,
    pub(super) k4: Pool<Block<K4>>,
    pub(super) k16: Pool<Block<K16>>,
    pub(super) k64: Pool<Block<K64>>,
    pub(super) k256: Pool<Block<K256>>,
    pub(super) m1: Pool<Block<M1>>,
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
            b256: Pool::new(),
            k1: Pool::new(),
            k4: Pool::new(),
            k16: Pool::new(),
            k64: Pool::new(),
            k256: Pool::new(),
            m1: Pool::new(),
            large_bytes: AtomicUsize::new(0),
            buffers: Tally::new(),
        }
    }

    /// From now on blocks that come back are kept for reuse, within a bound.
    pub fn open(&self) {
        open(&self.b256);
        open(&self.k1);
        open(&self.k4);
        open(&self.k16);
        open(&self.k64);
        open(&self.k256);
        open(&self.m1);
    }

    /// Frees what is idle; from now on blocks that come back are freed. Blocks in use stay.
    pub fn close(&self) {
        close(&self.b256);
        close(&self.k1);
        close(&self.k4);
        close(&self.k16);
        close(&self.k64);
        close(&self.k256);
        close(&self.m1);
    }

    /// One step of giving unused blocks back to the system; returns how many were freed.
    pub fn trim_step(&self) -> usize {
        self.b256.trim_step()
            + self.k1.trim_step()
            + self.k4.trim_step()
            + self.k16.trim_step()
            + self.k64.trim_step()
            + self.k256.trim_step()
            + self.m1.trim_step()
    }

    /// The message buffers that there are, those that hold nothing too.
    pub fn buffers(&self) -> usize {
        self.buffers.sum().count
    }

    /// The figures now.
    pub fn stats(&self) -> BlockStats {
        let classes = [
            self.b256.stats(),
            self.k1.stats(),
            self.k4.stats(),
            self.k16.stats(),
            self.k64.stats(),
            self.k256.stats(),
            self.m1.stats(),
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

fn open<const N: usize>(pool: &Pool<Block<N>>) {
    pool.set_max_pool_size(IDLE_BYTES_PER_CLASS / N);
}

fn close<const N: usize>(pool: &Pool<Block<N>>) {
    pool.set_max_pool_size(0);
    while pool.shed_step(usize::MAX) > 0 {}
}
