//! Preparing, trimming and resizing: what happens off the hot path, in bounded steps.

use super::{Pool, Recycle};
use crate::sync::Ordering;

/// Objects moved under one lock: the lock is free again after microseconds.
const CHUNK: usize = 256;

/// The most objects that one trimming step frees.
const TRIM_STEP: usize = 65_536;

impl<T: Recycle> Pool<T> {
    /// Sets how many idle objects [`prepare_step`](Self::prepare_step) makes and trimming leaves
    /// alone.
    pub fn set_pool_size(&self, pool_size: usize) {
        self.pool_size.store(pool_size, Ordering::Relaxed);
    }

    /// Sets how many idle objects are kept at most. Objects that come back from now on meet
    /// the new bound; what is idle over it is freed by [`shed_step`](Self::shed_step).
    pub fn set_max_pool_size(&self, max_pool_size: usize) {
        let _dealing = self.dealing.lock();
        self.max_pool_size.store(max_pool_size, Ordering::Relaxed);
        let shards = self.shards.len();
        for (index, shard) in self.shards.iter().enumerate() {
            let extra = usize::from(index < max_pool_size % shards);
            shard.lock().capacity = max_pool_size / shards + extra;
        }
    }

    /// Makes up to `limit` idle objects where fewer than `pool_size` are idle. Returns how many
    /// it made: 0 when nothing is missing.
    pub fn prepare_step(&self, limit: usize) -> usize {
        let target = self.pool_size().min(self.max_pool_size());
        let missing = target.saturating_sub(self.available());
        let wanted = missing.min(limit);
        for made in 0..wanted {
            // Dealt round, so that every thread finds some at home.
            if self.place(made, Box::new(T::prepared())).is_some() {
                return made;
            }
        }
        wanted
    }

    /// Frees up to `limit` idle objects that stand over `max_pool_size`. Returns how many it took
    /// off their shards: 0 when the bound is met. Objects of a shard over its capacity move to
    /// one with room before any is freed.
    pub fn shed_step(&self, limit: usize) -> usize {
        let mut moved = 0;
        for (index, shard) in self.shards.iter().enumerate() {
            while moved < limit {
                let surplus = {
                    let mut shelf = shard.lock();
                    let over = shelf.len().saturating_sub(shelf.capacity);
                    shelf.take_oldest(over.min(CHUNK).min(limit - moved))
                };
                if surplus.is_empty() {
                    break;
                }
                moved += surplus.len();
                for object in surplus {
                    drop(self.place(index, object));
                }
            }
        }
        moved
    }

    /// Frees half of the idle objects that were not needed since the last call, as long as more
    /// than `pool_size` stay. Returns how many were freed.
    pub fn trim_step(&self) -> usize {
        let unused: Vec<usize> = self
            .shards
            .iter()
            .map(|shard| shard.lock().start_period())
            .collect();
        let excess = self.available().saturating_sub(self.pool_size());
        let over = excess.min(unused.iter().sum());
        let mut left = over.div_ceil(2).min(TRIM_STEP);
        let mut freed = 0;
        for (shard, unused) in self.shards.iter().zip(unused) {
            let mut here = unused.min(left);
            while here > 0 {
                let old = {
                    let mut shelf = shard.lock();
                    let old = shelf.take_oldest(here.min(CHUNK));
                    shelf.counts.dropped += old.len() as u64;
                    old
                };
                if old.is_empty() {
                    break;
                }
                here -= old.len();
                left -= old.len();
                freed += old.len();
            }
        }
        freed
    }

    /// Idle objects, without a lock: exact at rest.
    pub fn available(&self) -> usize {
        self.shards.iter().map(|shard| shard.len_hint()).sum()
    }

    /// A leased object grew or shrank.
    pub(super) fn resized(&self, bytes: isize) {
        self.shards[self.home_index()].lock().live_bytes += bytes;
    }
}
