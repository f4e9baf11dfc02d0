//! The worst pauses of the last hour: ten of each minute, so that the worst of any last minutes are
//! among them, and nothing old hides them.
//!
//! Each collection of the node passes by: all but those that are among the worst of their minute
//! cost two reads of what hardly ever changes.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// The kind of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the young heap only.
    Minor,
    /// Of the whole heap.
    Major,
}

/// Pauses kept of each minute.
pub const WORST: usize = 10;

/// Minutes kept, the one that goes on too.
const MINUTES: usize = 61;

const MINUTE_NANOS: u64 = 60_000_000_000;

/// A collection and whose it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    /// The process, as the VM named it to the tracer.
    pub process: u64,
    /// The kind of the collection.
    pub kind: Kind,
    /// How long it took.
    pub nanos: u64,
    /// When it ended, in nanoseconds of the monitor's clock.
    pub at: u64,
    /// The name of the process and the function it began with, once it was asked.
    pub named: Option<(String, String)>,
}

/// The worst pauses by minutes.
pub struct Worst {
    /// What a pause must be longer than to be among the worst of this minute.
    floor: AtomicU64,
    /// When this minute is over.
    until: AtomicU64,
    minutes: Mutex<VecDeque<Minute>>,
}

struct Minute {
    number: u64,
    /// In no order.
    pauses: Vec<Pause>,
}

impl Worst {
    /// None so far.
    pub const fn new() -> Self {
        Worst {
            floor: AtomicU64::new(0),
            until: AtomicU64::new(0),
            minutes: Mutex::new(VecDeque::new()),
        }
    }

    /// Notes a pause of `nanos` nanoseconds that ended at `at`; `pause` is called only if it is kept.
    #[inline]
    pub fn note(&self, nanos: u64, at: u64, pause: impl FnOnce() -> Pause) {
        let is_old = at < self.until.load(Ordering::Relaxed);
        if is_old && nanos <= self.floor.load(Ordering::Relaxed) {
            return;
        }
        self.keep(at / MINUTE_NANOS, pause());
    }

    #[cold]
    fn keep(&self, number: u64, pause: Pause) {
        let mut minutes = self.minutes.lock();
        if minutes.back().is_none_or(|last| last.number < number) {
            if minutes.len() == MINUTES {
                minutes.pop_front();
            }
            minutes.push_back(Minute {
                number,
                pauses: Vec::with_capacity(WORST),
            });
            self.floor.store(0, Ordering::Relaxed);
            self.until
                .store((number + 1).saturating_mul(MINUTE_NANOS), Ordering::Relaxed);
        }
        // One that comes late, from the minute before, is kept with this one: its time says when.
        let Some(minute) = minutes.back_mut() else {
            return;
        };
        if minute.pauses.len() < WORST {
            minute.pauses.push(pause);
        } else if let Some(least) = minute.pauses.iter_mut().min_by_key(|known| known.nanos)
            && least.nanos < pause.nanos
        {
            *least = pause;
        }
        if minute.pauses.len() == WORST {
            let floor = minute.pauses.iter().map(|known| known.nanos).min();
            self.floor.store(floor.unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// The worst that ended at `since` or later, the longest first, at most [`WORST`].
    pub fn since(&self, since: u64) -> Vec<Pause> {
        let minutes = self.minutes.lock();
        let mut found: Vec<Pause> = minutes
            .iter()
            .flat_map(|minute| &minute.pauses)
            .filter(|pause| pause.at >= since)
            .cloned()
            .collect();
        found.sort_by_key(|pause| std::cmp::Reverse(pause.nanos));
        found.truncate(WORST);
        found
    }

    /// The process and the time of those of the newest minute that have no name yet.
    pub fn unnamed(&self) -> Vec<(u64, u64)> {
        let minutes = self.minutes.lock();
        let newest = minutes.back().map(|minute| minute.pauses.iter());
        newest
            .into_iter()
            .flatten()
            .filter(|pause| pause.named.is_none())
            .map(|pause| (pause.process, pause.at))
            .collect()
    }

    /// Names the pause of that process that ended at that time, if it is still kept.
    pub fn name(&self, process: u64, at: u64, name: &str, function: &str) {
        let mut minutes = self.minutes.lock();
        let mut pauses = minutes.iter_mut().flat_map(|minute| &mut minute.pauses);
        if let Some(pause) = pauses.find(|pause| pause.process == process && pause.at == at) {
            pause.named = Some((name.to_owned(), function.to_owned()));
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.minutes.lock().clear();
        self.floor.store(0, Ordering::Relaxed);
        self.until.store(0, Ordering::Relaxed);
    }
}

impl Default for Worst {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn note(worst: &Worst, process: u64, nanos: u64, at: u64) {
        worst.note(nanos, at, || Pause {
            process,
            kind: Kind::Minor,
            nanos,
            at,
            named: None,
        });
    }

    #[test]
    fn a_name_stays_with_its_pause() {
        let worst = Worst::new();
        note(&worst, 7, 100, 5);
        note(&worst, 7, 50, 6);
        assert_eq!(worst.unnamed(), [(7, 5), (7, 6)]);
        worst.name(7, 6, "me", "m:f/1");
        worst.name(8, 6, "nobody", "");
        assert_eq!(worst.unnamed(), [(7, 5)]);
        let named = Some(("me".to_owned(), "m:f/1".to_owned()));
        assert_eq!(worst.since(0)[1].named, named);
        worst.clear();
        assert_eq!(worst.since(0), []);
    }

    #[test]
    fn an_hour_of_pauses_takes_a_bounded_memory() {
        let worst = Worst::new();
        for second in 0..20_000u64 {
            for process in 0..20 {
                note(
                    &worst,
                    process,
                    second % 97 + process,
                    second * 1_000_000_000,
                );
            }
        }
        let minutes = worst.minutes.lock();
        assert_eq!(minutes.len(), MINUTES);
        assert!(minutes.iter().all(|minute| minute.pauses.len() == WORST));
    }

    proptest! {
        /// The worst since the beginning of any of the last minutes are those of all pauses.
        #[test]
        fn agrees_with_a_model(
            pauses in prop::collection::vec((1u64..1_000, 0u64..20_000_000_000), 0..300),
            back in 0u64..10,
        ) {
            let worst = Worst::new();
            let (mut all, mut now) = (vec![], 0);
            for (at, (nanos, later)) in pauses.into_iter().enumerate() {
                now += later;
                note(&worst, at as u64, nanos, now);
                all.push((nanos, now));
            }
            let since = (now / MINUTE_NANOS).saturating_sub(back) * MINUTE_NANOS;
            let mut expected: Vec<u64> =
                all.iter().filter(|(_, at)| *at >= since).map(|(nanos, _)| *nanos).collect();
            expected.sort_by(|a, b| b.cmp(a));
            expected.truncate(WORST);
            let found: Vec<u64> = worst.since(since).iter().map(|pause| pause.nanos).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
