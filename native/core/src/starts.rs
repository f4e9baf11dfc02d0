//! When a server may start, so that servers that start at the same time do not outgrow the memory
//! together.
//!
//! A server that starts is small, and grows with the messages that it gets then. So each has
//! reserved in the [`Ledger`] what is expected of it, which is learned from those before it. If there
//! is no room for that, it waits: it takes less time all told than if all were parked and unparked
//! for each message.

use crate::awake::{Entry, Ledger};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes that are expected of the first servers. Those of a server that takes less wait a moment
/// when hundreds start at once; of one that takes more, too many start.
const FIRST: usize = 1 << 20;

/// What one server took counts as one part of this many.
const WEIGHT: usize = 8;

/// Milliseconds after which the next one starts although there is no room: what is awake may stay
/// so, or wait for one that starts.
const LONGEST: u64 = 20;

/// Of all that wait, this many look each millisecond whether there is room.
const LOOKS: usize = 4;
const SHORTEST_PAUSE: usize = 2;
const LONGEST_PAUSE: usize = 1000;

/// The starts of a node.
#[derive(Debug)]
pub struct Starts {
    expected: AtomicUsize,
    /// When the last one was let in, in milliseconds.
    last: AtomicU64,
    waiting: AtomicUsize,
}

impl Default for Starts {
    fn default() -> Self {
        Self::new()
    }
}

impl Starts {
    /// No start yet.
    pub const fn new() -> Self {
        Starts {
            expected: AtomicUsize::new(FIRST),
            last: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Bytes that are expected of the next server.
    pub fn expected(&self) -> usize {
        self.expected.load(Ordering::Relaxed)
    }

    /// Records how many bytes a server that has started has awake.
    pub fn grew_to(&self, bytes: usize) {
        let expected = self.expected();
        // A lost update is made up for by the next ones.
        let new = expected - expected / WEIGHT + bytes / WEIGHT;
        self.expected.store(new, Ordering::Relaxed);
    }

    /// Reserves what is expected of a server, unless more than the limit would be awake then.
    /// Returns the bytes; `None` if the server has to wait and ask again. `now` is in milliseconds.
    pub fn admit(&self, entry: &Entry, ledger: &Ledger, limit: usize, now: u64) -> Option<usize> {
        let bytes = self.expected();
        let has_room = entry.reserve(ledger, bytes, limit);
        if !has_room {
            let last = self.last.load(Ordering::Relaxed);
            let is_due = now.saturating_sub(last) >= LONGEST;
            // If nothing is awake, there is nothing to wait for.
            if ledger.awake() > 0 && !(is_due && self.take_turn(last, now)) {
                if entry.set_waits(true) {
                    self.waiting.fetch_add(1, Ordering::Relaxed);
                }
                return None;
            }
            entry.set_awake(ledger, bytes);
        }
        self.last.fetch_max(now, Ordering::Relaxed);
        self.leave(entry);
        Some(bytes)
    }

    fn take_turn(&self, last: u64, now: u64) -> bool {
        self.last
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// How many milliseconds one that has to wait does so before it asks again: the more wait, the
    /// longer.
    pub fn pause(&self) -> u64 {
        let waiting = self.waiting.load(Ordering::Relaxed);
        (waiting / LOOKS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE) as u64
    }

    /// Notes that the owner of this entry does not wait any more: it goes.
    pub fn leave(&self, entry: &Entry) {
        if entry.set_waits(false) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries<const N: usize>() -> [Entry; N] {
        std::array::from_fn(|_| Entry::default())
    }

    #[test]
    fn as_many_start_as_there_is_room_for() {
        let (ledger, starts) = (Ledger::new(), Starts::new());
        let [a, b, c] = entries();
        let limit = 2 * FIRST;
        assert_eq!(starts.admit(&a, &ledger, limit, 1), Some(FIRST));
        assert_eq!(starts.admit(&b, &ledger, limit, 1), Some(FIRST));
        assert_eq!(starts.admit(&c, &ledger, limit, 1), None);
        assert_eq!(ledger.awake(), limit);
        a.set_awake(&ledger, 0);
        assert_eq!(starts.admit(&c, &ledger, limit, 2), Some(FIRST));
    }

    #[test]
    fn one_starts_now_and_then_without_room() {
        let (ledger, starts) = (Ledger::new(), Starts::new());
        let [a, b, c, d] = entries();
        a.set_awake(&ledger, 5000);
        assert_eq!(starts.admit(&b, &ledger, 100, 1000), Some(FIRST));
        assert_eq!(starts.admit(&c, &ledger, 100, 1000), None);
        assert_eq!(starts.admit(&c, &ledger, 100, 999 + LONGEST), None);
        assert_eq!(starts.admit(&c, &ledger, 100, 1000 + LONGEST), Some(FIRST));
        // A clock that is behind is no reason.
        assert_eq!(starts.admit(&d, &ledger, 100, 10), None);
    }

    #[test]
    fn the_only_one_need_not_wait() {
        let (ledger, starts) = (Ledger::new(), Starts::new());
        let [a, b] = entries();
        assert_eq!(starts.admit(&a, &ledger, 0, 1), Some(FIRST));
        assert_eq!(starts.admit(&b, &ledger, 0, 1), None);
        a.close(&ledger);
        assert_eq!(starts.admit(&b, &ledger, 0, 1), Some(FIRST));
    }

    #[test]
    fn what_is_expected_is_learned() {
        let starts = Starts::new();
        (0..100).for_each(|_| starts.grew_to(3000));
        assert!((2900..3100).contains(&starts.expected()));
        (0..100).for_each(|_| starts.grew_to(40 << 20));
        assert!(starts.expected() > 39 << 20);
        (0..1000).for_each(|_| starts.grew_to(0));
        assert!(starts.expected() < WEIGHT);
        starts.grew_to(usize::MAX);
    }

    #[test]
    fn the_more_wait_the_longer() {
        let (ledger, starts) = (Ledger::new(), Starts::new());
        let first = Entry::default();
        starts.admit(&first, &ledger, 0, 1);
        let waiting: Vec<Entry> = (0..400).map(|_| Entry::default()).collect();
        for _ in 0..3 {
            for entry in &waiting {
                assert_eq!(starts.admit(entry, &ledger, 0, 1), None);
            }
        }
        assert_eq!(starts.pause(), 100);
        waiting.iter().for_each(|entry| starts.leave(entry));
        waiting.iter().for_each(|entry| starts.leave(entry));
        assert_eq!(starts.pause(), SHORTEST_PAUSE as u64);
    }
}
