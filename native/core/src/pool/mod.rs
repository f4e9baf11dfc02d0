//! A pool of reusable objects, sharded by thread.
//!
//! # How it works
//!
//! Every thread has a home shard: a mutex over a stack of idle objects. [`Pool::acquire`] takes the
//! newest idle object of the home shard (it is the one most likely still in the cache), else steals
//! one from another shard, else makes one. Giving back pushes onto the home shard, else onto any
//! shard with room, else frees the object. So a thread that acquires and releases in turn touches
//! one lock that no other thread holds.
//!
//! `max_pool_size` is dealt out over the shards as their capacities. The sum of what the shards
//! may hold is therefore exactly `max_pool_size`, and no count shared by all threads is needed to
//! keep the bound.
//!
//! # What holds
//!
//! * An object has one owner: it is moved out of a shard into a [`Lease`] and back by value, so
//!   two owners of one object cannot be written down in safe Rust, and there is no `unsafe` here.
//! * Idle objects never outnumber `max_pool_size` (after [`Pool::set_max_pool_size`] lowered it:
//!   once [`Pool::shed_step`] has returned 0).
//! * At rest the counters are exact: `reused + created` is the number of acquisitions, and
//!   `in_use` is that minus the leases that were dropped. They are kept a shard, under the lock
//!   that the operation holds anyway.
//! * No lock is held while an object is made, emptied or freed.
//!
//! # Giving memory back
//!
//! Each shard remembers its low-water mark: the fewest idle objects it had since the last
//! [`Pool::trim_step`]. Those were not needed in that time by anyone. A step frees half of them,
//! as long as more than `pool_size` stay idle, oldest first: a peak's worth of objects goes away
//! within a few steps, and a pool that breathes keeps what it uses.
//!
//! # Example
//!
//! ```
//! use erlmcp_memory_core::pool::{Pool, Recycle};
//!
//! #[derive(Default)]
//! struct Scratch(Vec<u8>);
//!
//! impl Recycle for Scratch {
//!     fn recycle(&mut self) {
//!         self.0.clear();
//!     }
//!
//!     fn heap_bytes(&self) -> usize {
//!         self.0.capacity()
//!     }
//! }
//!
//! let pool: Pool<Scratch> = Pool::new();
//! pool.set_max_pool_size(10);
//! let mut scratch = pool.acquire();
//! scratch.modify(|scratch| scratch.0.extend_from_slice(b"bytes"));
//! drop(scratch);
//! assert_eq!(pool.stats().available, 1);
//! // The next owner gets the memory, and no bytes of the last one.
//! assert!(pool.acquire().0.is_empty());
//! assert_eq!(pool.stats().reused, 1);
//! ```

mod lease;
mod recycle;
mod shard;
mod sizing;
mod stats;
#[cfg(test)]
mod tests;

pub use lease::Lease;
pub use recycle::Recycle;
pub use stats::Stats;

use crate::sync::{AtomicUsize, Mutex, Ordering, thread_number};
use recycle::footprint;
use shard::Shard;

/// A sharded pool; see the module's documentation.
pub struct Pool<T: Recycle> {
    shards: Box<[Shard<T>]>,
    /// Idle objects that are made in advance and that trimming leaves alone.
    pool_size: AtomicUsize,
    max_pool_size: AtomicUsize,
    /// Held while `max_pool_size` is dealt out: two calls at once would leave each shard with
    /// either one's capacity.
    dealing: Mutex<()>,
}

impl<T: Recycle> Pool<T> {
    /// A pool that keeps nothing: both sizes are 0 until they are set. `shards` is rounded up to
    /// a power of two.
    pub fn with_shards(shards: usize) -> Self {
        let shards = shards.clamp(1, 256).next_power_of_two();
        Pool {
            shards: (0..shards).map(|_| Shard::new()).collect(),
            pool_size: AtomicUsize::new(0),
            max_pool_size: AtomicUsize::new(0),
            dealing: Mutex::new(()),
        }
    }

    /// A pool with shards for this machine: twice as many as it runs threads at once, because
    /// threads are numbered as they come and others than schedulers get numbers too.
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(8, |threads| threads.get());
        Self::with_shards(2 * threads)
    }

    /// An empty object, an idle one if there is one; `created` is called if it had to be made.
    fn take(&self, created: impl FnOnce()) -> Box<T> {
        let home = self.home_index();
        self.take_idle(home).unwrap_or_else(|| {
            created();
            let object = Box::new(T::default());
            let bytes = footprint(&*object);
            let mut shelf = self.shards[home].lock();
            shelf.counts.created += 1;
            shelf.live_bytes += bytes as isize;
            object
        })
    }

    /// Takes the object of a lease that ends.
    fn give_back(&self, mut object: Box<T>) {
        let bytes = footprint(&*object);
        object.recycle();
        let home = self.home_index();
        let rest = {
            let mut shelf = self.shards[home].lock();
            shelf.counts.returned += 1;
            shelf.live_bytes -= bytes as isize;
            shelf.push(object)
        };
        if let Some(object) = rest {
            // Freed here, outside of every lock, where no shard has room.
            if let Some(object) = self.place(home, object) {
                self.shards[home].lock().counts.dropped += 1;
                drop(object);
            }
        }
    }

    /// An idle object, the home shard's or a stolen one; counted where it lay.
    fn take_idle(&self, home: usize) -> Option<Box<T>> {
        self.shards_from(home).find_map(|(index, shard)| {
            // The hint saves the locks of empty shards; the home shard is worth its lock.
            if index != home && shard.len_hint() == 0 {
                return None;
            }
            let mut shelf = shard.lock();
            let (object, bytes) = shelf.pop()?;
            shelf.counts.reused += 1;
            shelf.live_bytes += bytes as isize;
            Some(object)
        })
    }

    /// Puts an idle object onto the first shard with room, or returns it.
    fn place(&self, start: usize, object: Box<T>) -> Option<Box<T>> {
        let mut rest = Some(object);
        for (_, shard) in self.shards_from(start) {
            let Some(object) = rest.take() else { break };
            rest = if shard.has_room_hint() {
                shard.lock().push(object)
            } else {
                Some(object)
            };
        }
        rest
    }

    /// All shards, from `start` round to the one before it.
    fn shards_from(&self, start: usize) -> impl Iterator<Item = (usize, &Shard<T>)> {
        let mask = self.shards.len() - 1;
        (0..self.shards.len()).map(move |step| {
            let index = (start + step) & mask;
            (index, &self.shards[index])
        })
    }

    fn home_index(&self) -> usize {
        thread_number() & (self.shards.len() - 1)
    }

    /// Idle objects that the pool makes in advance.
    pub fn pool_size(&self) -> usize {
        self.pool_size.load(Ordering::Relaxed)
    }

    /// The most idle objects that the pool keeps.
    pub fn max_pool_size(&self) -> usize {
        self.max_pool_size.load(Ordering::Relaxed)
    }
}

impl<T: Recycle> Default for Pool<T> {
    fn default() -> Self {
        Self::new()
    }
}
