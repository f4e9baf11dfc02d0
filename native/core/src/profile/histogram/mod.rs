//! Histograms of durations that every scheduler can write to at once.
//!
//! A high dynamic range histogram (Gil Tene's HdrHistogram, through the crate `hdrhistogram`)
//! with two significant digits: a percentile is at most 1 % above the true value, whatever the
//! scale, from a nanosecond to 18 minutes. Writers are spread over [`SHARDS`] mutexes by thread,
//! so two schedulers meet on one lock only when there are more of them than shards. A reader
//! merges the shards. A shard takes its 35 KB when a thread first writes to it.

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::threads::{SHARDS, thread_shard};

/// Durations above this many nanoseconds (about 18 minutes) share the topmost bucket; the
/// minimum, maximum and mean stay exact.
pub const MAX_NANOS: u64 = 1 << 40;

const SIGNIFICANT_DIGITS: u8 = 2;

/// A histogram of nanoseconds for many writers.
pub struct LatencyHistogram {
    shards: [Shard; SHARDS],
}

/// Upper bounds of buckets, in nanoseconds: 10 microseconds to a second.
pub const BOUNDS: [u64; BUCKETS - 1] = {
    const MICROSECOND: u64 = 1_000;
    const MILLISECOND: u64 = 1_000 * MICROSECOND;
    [
        10 * MICROSECOND,
        20 * MICROSECOND,
        50 * MICROSECOND,
        100 * MICROSECOND,
        200 * MICROSECOND,
        500 * MICROSECOND,
        MILLISECOND,
        2 * MILLISECOND,
        5 * MILLISECOND,
        10 * MILLISECOND,
        20 * MILLISECOND,
        50 * MILLISECOND,
        100 * MILLISECOND,
        200 * MILLISECOND,
        500 * MILLISECOND,
        1_000 * MILLISECOND,
    ]
};

/// Buckets: one for each of the [`BOUNDS`], and one for what is longer.
pub const BUCKETS: usize = 17;

/// Durations in a few buckets, which are read in no time.
pub struct Buckets([BucketShard; SHARDS]);

#[repr(align(64))]
struct BucketShard {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

/// What [`Buckets`] held when they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketCounts {
    /// Durations of at most the bound and more than the one before.
    pub counts: [u64; BUCKETS],
    /// All durations together, in nanoseconds.
    pub sum: u64,
}

impl Buckets {
    /// Empty ones.
    pub const fn new() -> Self {
        Buckets(
            [const {
                BucketShard {
                    counts: [const { AtomicU64::new(0) }; BUCKETS],
                    sum: AtomicU64::new(0),
                }
            }; SHARDS],
        )
    }

    /// Counts one duration.
    pub fn record(&self, nanos: u64) {
        let shard = &self.0[thread_shard()];
        let bucket = BOUNDS.partition_point(|&bound| bound < nanos);
        shard.counts[bucket].fetch_add(1, Ordering::Relaxed);
        shard.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for shard in &self.0 {
            let all = shard.counts.iter().chain([&shard.sum]);
            all.for_each(|value| value.store(0, Ordering::Relaxed));
        }
    }

    /// What was recorded so far, all shards together.
    pub fn read(&self) -> BucketCounts {
        let mut read = BucketCounts::default();
        for shard in &self.0 {
            for (count, more) in read.counts.iter_mut().zip(&shard.counts) {
                *count += more.load(Ordering::Relaxed);
            }
            read.sum = read.sum.wrapping_add(shard.sum.load(Ordering::Relaxed));
        }
        read
    }
}

impl Default for Buckets {
    fn default() -> Self {
        Self::new()
    }
}

/// Padded rather than aligned to a cache line: over-aligned types waste memory in the VM's
/// allocators, and the padding alone keeps two locks off one line.
struct Shard {
    counts: Mutex<Option<Box<Counts>>>,
    _padding: [u8; 48],
}

struct Counts {
    buckets: Histogram<u64>,
    minimum: u64,
    maximum: u64,
    sum: u128,
}

impl Counts {
    fn new() -> Self {
        Counts {
            // The bounds are constants; that they are valid ones is tested below.
            buckets: Histogram::new_with_bounds(1, MAX_NANOS, SIGNIFICANT_DIGITS)
                .expect("constant histogram bounds are valid"),
            minimum: u64::MAX,
            maximum: 0,
            sum: 0,
        }
    }

    fn record(&mut self, nanos: u64) {
        self.buckets.saturating_record(nanos);
        self.minimum = self.minimum.min(nanos);
        self.maximum = self.maximum.max(nanos);
        self.sum += u128::from(nanos);
    }

    fn add(&mut self, other: &Counts) {
        // Equal bounds: an addition can not fail.
        let added = self.buckets.add(&other.buckets);
        debug_assert!(added.is_ok());
        self.minimum = self.minimum.min(other.minimum);
        self.maximum = self.maximum.max(other.maximum);
        self.sum += other.sum;
    }
}

impl LatencyHistogram {
    /// An empty histogram; allocates nothing yet.
    pub const fn new() -> Self {
        LatencyHistogram {
            shards: [const {
                Shard {
                    counts: Mutex::new(None),
                    _padding: [0; 48],
                }
            }; SHARDS],
        }
    }

    /// Counts one duration.
    pub fn record(&self, nanos: u64) {
        self.shards[thread_shard()]
            .counts
            .lock()
            .get_or_insert_with(|| Box::new(Counts::new()))
            .record(nanos);
    }

    /// Forgets everything and gives the memory of the buckets back.
    pub fn clear(&self) {
        for shard in &self.shards {
            // Freed after the lock is released.
            let old = shard.counts.lock().take();
            drop(old);
        }
    }

    /// What was recorded so far, all shards together. Durations recorded while this runs may be
    /// in or not.
    pub fn read(&self) -> Distribution {
        let mut merged = Counts::new();
        for shard in &self.shards {
            if let Some(counts) = shard.counts.lock().as_deref() {
                merged.add(counts);
            }
        }
        Distribution(merged)
    }
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

/// What a [`LatencyHistogram`] held when it was read. Nanoseconds; 0 everywhere when nothing
/// was recorded.
pub struct Distribution(Counts);

impl Distribution {
    /// How many durations were recorded.
    pub fn count(&self) -> u64 {
        self.0.buckets.len()
    }

    /// The shortest one, exactly.
    pub fn min(&self) -> u64 {
        if self.count() == 0 { 0 } else { self.0.minimum }
    }

    /// The longest one, exactly.
    pub fn max(&self) -> u64 {
        self.0.maximum
    }

    /// The mean, exactly.
    pub fn mean(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.0.sum as f64 / count as f64,
        }
    }

    /// The duration that `percent` of 100 of the recorded ones do not exceed, at most 1 % too
    /// high. Percentages outside of 0..=100 are taken as the nearer end.
    pub fn percentile(&self, percent: f64) -> u64 {
        if self.count() == 0 {
            return 0;
        }
        let quantile = if percent.is_nan() {
            0.0
        } else {
            (percent / 100.0).clamp(0.0, 1.0)
        };
        self.0
            .buckets
            .value_at_quantile(quantile)
            .clamp(self.0.minimum, self.0.maximum)
    }
}

#[cfg(test)]
mod tests;
