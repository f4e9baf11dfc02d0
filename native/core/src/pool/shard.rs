//! One shard: a stack of idle objects under a lock, and its counters.

use super::recycle::{Recycle, footprint};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};
use std::ops::{Deref, DerefMut};

/// Operations that this shard served.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    /// Acquisitions served by an idle object.
    pub(super) reused: u64,
    /// Acquisitions that had to make an object.
    pub(super) created: u64,
    /// Leases that ended.
    pub(super) returned: u64,
    /// Idle objects that were freed for want of room, or of use.
    pub(super) dropped: u64,
}

/// What the lock protects.
pub(super) struct Shelf<T> {
    idle: Vec<Box<T>>,
    /// This shard's part of `max_pool_size`.
    pub(super) capacity: usize,
    /// The fewest idle objects since the last trimming step.
    low_water: usize,
    /// Bytes of the idle objects, their boxes included.
    pub(super) idle_bytes: usize,
    /// This shard's part of the bytes of the objects on lease. Below zero where objects come back
    /// to another shard than the one they left; only the sum over all shards means something.
    pub(super) live_bytes: isize,
    pub(super) counts: Counts,
}

/// Aligned so that two threads' shards never share a cache line (nor the pair of lines that some
/// processors fetch at once). One array holds all shards, so the padding is paid once a shard.
#[repr(align(128))]
pub(super) struct Shard<T> {
    shelf: Mutex<Shelf<T>>,
    /// Copies of the shelf's length and capacity, for a look without the lock. Written under the
    /// lock; a reader may see an older value.
    len: AtomicUsize,
    capacity: AtomicUsize,
}

impl<T: Recycle> Shard<T> {
    pub(super) fn new() -> Self {
        Shard {
            shelf: Mutex::new(Shelf {
                idle: Vec::new(),
                capacity: 0,
                low_water: 0,
                idle_bytes: 0,
                live_bytes: 0,
                counts: Counts::default(),
            }),
            len: AtomicUsize::new(0),
            capacity: AtomicUsize::new(0),
        }
    }

    pub(super) fn lock(&self) -> Locked<'_, T> {
        Locked {
            shelf: self.shelf.lock(),
            shard: self,
        }
    }

    pub(super) fn len_hint(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn has_room_hint(&self) -> bool {
        self.len_hint() < self.capacity.load(Ordering::Relaxed)
    }
}

/// A locked shelf; the hints are brought up to date before the lock is left.
pub(super) struct Locked<'s, T> {
    shelf: MutexGuard<'s, Shelf<T>>,
    shard: &'s Shard<T>,
}

impl<T> Deref for Locked<'_, T> {
    type Target = Shelf<T>;

    fn deref(&self) -> &Shelf<T> {
        &self.shelf
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut Shelf<T> {
        &mut self.shelf
    }
}

impl<T> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        self.shard
            .len
            .store(self.shelf.idle.len(), Ordering::Relaxed);
        self.shard
            .capacity
            .store(self.shelf.capacity, Ordering::Relaxed);
    }
}

impl<T: Recycle> Shelf<T> {
    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }

    /// The newest idle object, and its bytes.
    pub(super) fn pop(&mut self) -> Option<(Box<T>, usize)> {
        let object = self.idle.pop()?;
        self.low_water = self.low_water.min(self.idle.len());
        let bytes = footprint(&*object);
        self.idle_bytes -= bytes;
        Some((object, bytes))
    }

    /// Keeps the object, or returns it where the shelf is full.
    pub(super) fn push(&mut self, object: Box<T>) -> Option<Box<T>> {
        if self.idle.len() >= self.capacity {
            return Some(object);
        }
        self.idle_bytes += footprint(&*object);
        self.idle.push(object);
        None
    }

    /// Objects that were not needed since the last trimming step. Starts the next period.
    pub(super) fn start_period(&mut self) -> usize {
        std::mem::replace(&mut self.low_water, self.idle.len())
    }

    /// Takes up to `count` objects out, the oldest first.
    pub(super) fn take_oldest(&mut self, count: usize) -> Vec<Box<T>> {
        let count = count.min(self.idle.len());
        let taken: Vec<_> = self.idle.drain(..count).collect();
        self.idle_bytes -= taken
            .iter()
            .map(|object| footprint(&**object))
            .sum::<usize>();
        self.low_water = self.low_water.min(self.idle.len());
        // The stack's own memory follows, with room to breathe.
        if self.idle.capacity() > 4 * self.idle.len().max(64) {
            self.idle.shrink_to(2 * self.idle.len());
        }
        taken
    }
}
