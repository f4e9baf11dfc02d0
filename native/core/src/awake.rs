//! How much of what was parked is awake, and how many are parking at once.
//!
//! A [`Ledger`] has the sums of a node, an [`Entry`] what one owner added to them. An entry takes
//! back what it added when its owner goes, so the sums are 0 when there is no owner.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The sums.
#[derive(Debug, Default)]
pub struct Ledger {
    awake: AtomicUsize,
    /// The most that was awake since [`Ledger::next_peak`].
    peak: AtomicUsize,
    parking: AtomicUsize,
}

/// What one owner added to the sums.
#[derive(Debug, Default)]
pub struct Entry {
    awake: AtomicUsize,
    has_place: AtomicBool,
    /// Whether it waits for room to start in.
    waits: AtomicBool,
}

/// A peak is over when at most one part in `LEFT` of it is awake.
const LEFT: usize = 8;

impl Ledger {
    /// A ledger of nothing.
    pub const fn new() -> Self {
        Ledger {
            awake: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            parking: AtomicUsize::new(0),
        }
    }

    /// Bytes that all owners have awake.
    pub fn awake(&self) -> usize {
        self.awake.load(Ordering::Relaxed)
    }

    /// The most bytes that were awake since the present peak began.
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Whether but a part of what was awake at the peak is awake now.
    pub fn is_over(&self) -> bool {
        self.awake() <= self.peak() / LEFT
    }

    /// Begins the next peak.
    pub fn next_peak(&self) {
        self.peak.store(self.awake(), Ordering::Relaxed);
    }

    fn note(&self, sum: usize) {
        // Read first: it seldom changes, and all schedulers come here.
        if sum > self.peak() {
            self.peak.fetch_max(sum, Ordering::Relaxed);
        }
    }

    /// Owners that have a place.
    pub fn parking(&self) -> usize {
        self.parking.load(Ordering::Relaxed)
    }
}

impl Entry {
    /// Says how many bytes the owner has awake, and returns those of all.
    pub fn set_awake(&self, ledger: &Ledger, bytes: usize) -> usize {
        let before = self.awake.swap(bytes, Ordering::Relaxed);
        // The sum is moved by the difference, in one step, so it never misses what was there.
        let change = bytes.wrapping_sub(before);
        if change == 0 {
            return ledger.awake();
        }
        let sum = ledger.awake.fetch_add(change, Ordering::Relaxed);
        let sum = sum.wrapping_add(change);
        // Not what a sum becomes that is lowered before it was raised.
        if bytes > before {
            ledger.note(sum);
        }
        sum
    }

    /// As [`set_awake`](Self::set_awake), unless the sum would be over the limit; whether it was
    /// done.
    pub fn reserve(&self, ledger: &Ledger, bytes: usize, limit: usize) -> bool {
        let own = self.awake.load(Ordering::Relaxed);
        let reserved = ledger
            .awake
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |sum| {
                let sum = sum.wrapping_sub(own).wrapping_add(bytes);
                (sum <= limit || bytes <= own).then_some(sum)
            });
        if let Ok(sum) = reserved {
            ledger.note(sum.wrapping_sub(own).wrapping_add(bytes));
            // An owner is used by one at a time; should another have changed it meanwhile, the
            // difference goes to the sum as well.
            let before = self.awake.swap(bytes, Ordering::Relaxed);
            let missed = own.wrapping_sub(before);
            ledger.awake.fetch_add(missed, Ordering::Relaxed);
        }
        reserved.is_ok()
    }

    /// Takes one of this many places, unless all are taken; `true` also for an owner that has one.
    pub fn enter(&self, ledger: &Ledger, places: usize) -> bool {
        if self.has_place.load(Ordering::Relaxed) {
            return true;
        }
        let entered = ledger
            .parking
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < places).then_some(taken + 1)
            });
        if entered.is_ok() && self.has_place.swap(true, Ordering::Relaxed) {
            ledger.parking.fetch_sub(1, Ordering::Relaxed);
        }
        entered.is_ok()
    }

    /// Gives the place back.
    pub fn leave(&self, ledger: &Ledger) {
        if self.has_place.swap(false, Ordering::Relaxed) {
            ledger.parking.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Notes whether the owner waits for room; `true` if that is new.
    pub(crate) fn set_waits(&self, waits: bool) -> bool {
        self.waits.load(Ordering::Relaxed) != waits
            && self.waits.swap(waits, Ordering::Relaxed) != waits
    }

    /// Takes back all that the owner added: it goes.
    pub fn close(&self, ledger: &Ledger) {
        self.set_awake(ledger, 0);
        self.leave(ledger);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_what_the_entries_have() {
        let (ledger, a, b) = (Ledger::new(), Entry::default(), Entry::default());
        assert_eq!(a.set_awake(&ledger, 100), 100);
        assert_eq!(b.set_awake(&ledger, 20), 120);
        assert_eq!(a.set_awake(&ledger, 5), 25);
        a.close(&ledger);
        assert_eq!(ledger.awake(), 20);
        b.close(&ledger);
        b.close(&ledger);
        assert_eq!(ledger.awake(), 0);
    }

    #[test]
    fn nothing_is_reserved_over_the_limit() {
        let (ledger, a, b) = (Ledger::new(), Entry::default(), Entry::default());
        assert!(a.reserve(&ledger, 60, 100));
        assert!(!b.reserve(&ledger, 60, 100));
        assert_eq!(ledger.awake(), 60);
        assert!(a.reserve(&ledger, 100, 100));
        assert_eq!(ledger.awake(), 100);
        // What exists already is not more than before.
        assert!(a.reserve(&ledger, 90, 50));
        a.close(&ledger);
        assert!(b.reserve(&ledger, 60, 100));
        assert_eq!(ledger.awake(), 60);
    }

    #[test]
    fn a_peak_is_over_when_little_of_it_is_left() {
        let (ledger, a, b) = (Ledger::new(), Entry::default(), Entry::default());
        a.set_awake(&ledger, 100);
        assert!(b.reserve(&ledger, 700, 1000));
        assert_eq!(ledger.peak(), 800);
        a.set_awake(&ledger, 101);
        b.close(&ledger);
        assert!(!ledger.is_over());
        a.set_awake(&ledger, 100);
        assert_eq!(ledger.peak(), 801);
        assert!(ledger.is_over());
        ledger.next_peak();
        assert_eq!(ledger.peak(), 100);
        assert!(!ledger.is_over());
        a.close(&ledger);
        assert!(ledger.is_over());
    }

    #[test]
    fn a_place_is_taken_once_and_given_back_once() {
        let (ledger, a, b) = (Ledger::new(), Entry::default(), Entry::default());
        assert!(a.enter(&ledger, 1));
        assert!(a.enter(&ledger, 1));
        assert!(!b.enter(&ledger, 1));
        a.leave(&ledger);
        a.leave(&ledger);
        assert_eq!(ledger.parking(), 0);
        assert!(b.enter(&ledger, 1));
        b.close(&ledger);
        assert_eq!(ledger.parking(), 0);
    }

    #[test]
    fn threads_leave_nothing_behind() {
        let ledger = Ledger::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let ledger = &ledger;
                scope.spawn(move || {
                    let entry = Entry::default();
                    for round in 0..5_000 {
                        entry.reserve(ledger, round % 100, 250);
                        assert!(ledger.parking() <= 2);
                        entry.enter(ledger, 2);
                        entry.set_awake(ledger, round * thread);
                        entry.leave(ledger);
                    }
                    entry.close(ledger);
                });
            }
        });
        assert_eq!((ledger.awake(), ledger.parking()), (0, 0));
    }
}
