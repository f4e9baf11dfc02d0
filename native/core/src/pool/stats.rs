//! The pool's figures.

use super::{Pool, Recycle};

/// A pool's figures: exact at rest. Under load `in_use` is never below zero, and counts, besides
/// the leases that are out, those that came and went while the figures were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Objects out on a lease.
    pub in_use: u64,
    /// Idle objects.
    pub available: u64,
    /// Acquisitions served by an idle object.
    pub reused: u64,
    /// Acquisitions that had to make an object.
    pub created: u64,
    /// Objects that came back and were not kept, or not for long: those over `max_pool_size`, and
    /// those that trimming freed.
    pub dropped: u64,
    /// Bytes of the idle objects.
    pub idle_bytes: u64,
    /// Bytes of the objects on lease.
    pub live_bytes: u64,
}

impl Stats {
    /// Objects that exist.
    pub fn total_allocated(&self) -> u64 {
        self.in_use + self.available
    }

    /// Per cent of the acquisitions that an idle object served; 100.0 before the first.
    pub fn reuse_ratio(&self) -> f64 {
        match self.reused + self.created {
            0 => 100.0,
            acquisitions => 100.0 * self.reused as f64 / acquisitions as f64,
        }
    }
}

impl<T: Recycle> Pool<T> {
    /// The figures now.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        // Returns are read before acquisitions: a lease that ends in between is then seen as
        // still out, never as returned without having been taken.
        let mut returned = 0;
        for shard in &self.shards {
            returned += shard.lock().counts.returned;
        }
        let mut live_bytes = 0;
        for shard in &self.shards {
            let shelf = shard.lock();
            stats.available += shelf.len() as u64;
            stats.reused += shelf.counts.reused;
            stats.created += shelf.counts.created;
            stats.dropped += shelf.counts.dropped;
            stats.idle_bytes += shelf.idle_bytes as u64;
            live_bytes += shelf.live_bytes;
        }
        stats.in_use = stats.reused + stats.created - returned;
        stats.live_bytes = live_bytes.max(0) as u64;
        stats
    }
}
