//! The samples of a profiling session: a ring that keeps the newest ones, and the recording that
//! puts it together with its baseline and its times.

use crate::profile::heat::Heat;
use crate::profile::histogram::BucketCounts;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Samples a ring keeps at most, whatever it is asked for: a million of them are 112 MB, and
/// at the default interval eight weeks.
pub const MAX_KEEP: usize = 1_000_000;

/// Samples are held in pieces of this many: growing by a piece never copies what is there.
const CHUNK: usize = 1024;

/// One measurement of the node. Bytes unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// When it was taken, in milliseconds since the epoch.
    pub timestamp: i64,
    /// Processes alive.
    pub process_count: u64,
    /// All memory of the VM.
    pub total_memory: u64,
    /// Of processes.
    pub process_memory: u64,
    /// Of reference-counted binaries.
    pub binary_memory: u64,
    /// Of ETS tables.
    pub ets_memory: u64,
    /// Of atoms.
    pub atom_memory: u64,
    /// Collections since the node started.
    pub gc_collections: u64,
    /// Bytes they reclaimed.
    pub gc_reclaimed: u64,
    /// The longest pause since the sample before, in milliseconds.
    pub gc_pause_max: f64,
    /// Bytes of native code.
    pub native_memory: u64,
    /// Resident set size.
    pub resident_memory: u64,
    /// What the clock of `timestamp` is ahead of the monotonic one, in milliseconds.
    pub time_offset: i64,
    /// Connections: states of all kinds.
    pub connections: u64,
}

impl Sample {
    /// When it was taken, in milliseconds of a clock that is never stepped.
    pub fn monotonic_ms(&self) -> f64 {
        self.timestamp.saturating_sub(self.time_offset) as f64
    }
}

/// Keeps the newest `keep` items; takes memory as it fills, not ahead.
pub struct Ring<T> {
    keep: usize,
    chunks: VecDeque<Vec<T>>,
    /// Items of the first chunk that have already been given up.
    skipped: usize,
    len: usize,
    pushed: u64,
}

impl<T: Copy> Ring<T> {
    /// An empty ring for `keep` items, at least 1 and at most [`MAX_KEEP`].
    pub fn new(keep: usize) -> Self {
        Ring {
            keep: keep.clamp(1, MAX_KEEP),
            chunks: VecDeque::new(),
            skipped: 0,
            len: 0,
            pushed: 0,
        }
    }

    /// Adds an item, in place of the oldest one when the ring is full.
    pub fn push(&mut self, item: T) {
        if self.len == self.keep {
            self.skipped += 1;
            self.len -= 1;
        }
        let chunk = CHUNK.min(self.keep);
        let spent = if self.skipped == chunk {
            self.skipped = 0;
            self.chunks.pop_front()
        } else {
            None
        };
        if self.chunks.back().is_none_or(|last| last.len() == chunk) {
            let mut fresh = spent.unwrap_or_else(|| Vec::with_capacity(chunk));
            fresh.clear();
            self.chunks.push_back(fresh);
        }
        if let Some(last) = self.chunks.back_mut() {
            last.push(item);
            self.len += 1;
            self.pushed += 1;
        }
    }

    /// Bytes of memory behind it.
    pub fn heap_bytes(&self) -> usize {
        let chunk = crate::heap::block(CHUNK.min(self.keep) * size_of::<T>());
        let index = crate::heap::block(self.chunks.capacity() * size_of::<Vec<T>>());
        self.chunks.len() * chunk + index
    }

    /// Items held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Items pushed since the beginning, the ones given up too.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// The newest item.
    pub fn last(&self) -> Option<T> {
        self.chunks.back().and_then(|chunk| chunk.last()).copied()
    }

    /// Appends up to `limit` items to `out`, oldest first, from the item number `from` on (the
    /// first one ever pushed is number 0; items given up are passed over). Answers the number to go
    /// on from. So a long read can be done in steps, with the lock released in between.
    pub fn read(&self, from: u64, limit: usize, out: &mut Vec<T>) -> u64 {
        let oldest = self.pushed - self.len as u64;
        let start = from.clamp(oldest, self.pushed);
        let count = limit.min((self.pushed - start) as usize);
        let chunk = CHUNK.min(self.keep);
        let mut at = self.skipped + (start - oldest) as usize;
        let end = at + count;
        while at < end {
            let Some(items) = self.chunks.get(at / chunk) else {
                break;
            };
            let upto = (end - at + at % chunk).min(chunk);
            out.extend_from_slice(&items[at % chunk..upto]);
            at += upto - at % chunk;
        }
        start + count as u64
    }
}

/// The samples of one session.
pub struct Recording {
    ring: Ring<Sample>,
    heat: Heat,
    baseline: Option<Sample>,
    began: Instant,
    ended: Option<Instant>,
}

impl Recording {
    /// Begins now.
    pub fn new(keep: usize) -> Self {
        Recording {
            ring: Ring::new(keep),
            heat: Heat::new(),
            baseline: None,
            began: Instant::now(),
            ended: None,
        }
    }

    /// Adds a sample; the first one is the baseline too, and stays that when the ring gives it
    /// up. `pauses` are all until then, where they are measured. Refused (false) once the recording
    /// has ended.
    pub fn push(&mut self, sample: Sample, pauses: Option<BucketCounts>) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.baseline.get_or_insert(sample);
        self.ring.push(sample);
        if let Some(pauses) = pauses {
            self.heat.push(sample.monotonic_ms(), pauses);
        }
        true
    }

    /// Pauses by time and length.
    pub fn heat(&self) -> &Heat {
        &self.heat
    }

    /// Bytes of memory behind it.
    pub fn heap_bytes(&self) -> usize {
        self.ring.heap_bytes() + self.heat.heap_bytes()
    }

    /// Ends now, unless it has ended before.
    pub fn end(&mut self) {
        self.ended.get_or_insert_with(Instant::now);
    }

    /// Whether it continues.
    pub fn is_running(&self) -> bool {
        self.ended.is_none()
    }

    /// The first sample.
    pub fn baseline(&self) -> Option<Sample> {
        self.baseline
    }

    /// The samples.
    pub fn ring(&self) -> &Ring<Sample> {
        &self.ring
    }

    /// From the beginning to the end, or to now.
    pub fn duration(&self) -> Duration {
        self.ended
            .unwrap_or_else(Instant::now)
            .saturating_duration_since(self.began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all<T: Copy>(ring: &Ring<T>) -> Vec<T> {
        let mut out = Vec::new();
        ring.read(0, usize::MAX, &mut out);
        out
    }

    #[test]
    fn a_huge_ring_takes_memory_only_as_it_fills() {
        let mut ring = Ring::new(usize::MAX);
        assert_eq!(ring.keep, MAX_KEEP);
        assert_eq!(ring.chunks.capacity(), 0);
        ring.push(1u8);
        assert_eq!(ring.chunks.len(), 1);
        assert_eq!(ring.last(), Some(1));
    }

    #[test]
    fn a_full_ring_stops_growing() {
        let mut ring = Ring::new(3_000);
        for item in 0..100_000u32 {
            ring.push(item);
        }
        assert_eq!(ring.len(), 3_000);
        assert_eq!(ring.pushed(), 100_000);
        assert!(
            ring.chunks.len() <= 3_000 / CHUNK + 2,
            "{}",
            ring.chunks.len()
        );
        assert_eq!(all(&ring), (97_000..100_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_recording_keeps_its_baseline_and_refuses_samples_after_its_end() {
        let mut recording = Recording::new(2);
        let sample = |timestamp| Sample {
            timestamp,
            ..Sample::default()
        };
        for timestamp in 1..=5 {
            assert!(recording.push(sample(timestamp), None));
        }
        assert!(recording.is_running());
        recording.end();
        let duration = recording.duration();
        assert!(!recording.push(sample(6), None));
        assert!(!recording.is_running());
        assert_eq!(recording.duration(), duration);
        assert_eq!(recording.baseline(), Some(sample(1)));
        assert_eq!(all(recording.ring()), [sample(4), sample(5)]);
    }

    proptest! {
        /// The ring holds the newest `keep` items in order, and reading it in steps of any size
        /// gives the same items as reading it whole.
        #[test]
        fn agrees_with_a_model(
            keep in prop_oneof![1usize..50, 1_000usize..3_000],
            pushes in 0u64..6_000,
            step in 1usize..2_000,
        ) {
            let mut ring = Ring::new(keep);
            (0..pushes).for_each(|item| ring.push(item));
            let model: Vec<u64> = (pushes.saturating_sub(keep as u64)..pushes).collect();
            prop_assert_eq!(ring.len(), model.len());
            prop_assert_eq!(ring.is_empty(), model.is_empty());
            prop_assert_eq!(ring.last(), model.last().copied());
            prop_assert_eq!(&all(&ring), &model);
            let (mut out, mut from) = (Vec::new(), 0);
            loop {
                let before = out.len();
                from = ring.read(from, step, &mut out);
                if out.len() == before {
                    break;
                }
                prop_assert!(out.len() - before <= step);
            }
            prop_assert_eq!(from, pushes);
            prop_assert_eq!(out, model);
        }

        /// Items dropped between two steps are skipped; none comes twice.
        #[test]
        fn reading_in_steps_survives_pushes(
            keep in 1usize..40,
            rounds in prop::collection::vec((0u64..30, 1usize..30), 1..30),
        ) {
            let mut ring = Ring::new(keep);
            let (mut out, mut from, mut next) = (Vec::new(), 0, 0u64);
            for (pushes, step) in rounds {
                for _ in 0..pushes {
                    ring.push(next);
                    next += 1;
                }
                from = ring.read(from, step, &mut out);
            }
            prop_assert!(out.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(out.iter().all(|&item| item < next));
        }
    }
}
