//! What counters moved by over the last minutes, from marks that are set while time goes by.

use std::collections::VecDeque;

/// Marks kept of a window, about.
const MARKS: u64 = 120;

/// The counters at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mark {
    /// Milliseconds of any monotonic clock.
    pub ms: u64,
    /// Acquisitions that an idle state served.
    pub reused: u64,
    /// Acquisitions that had to make one.
    pub created: u64,
    /// States that came back and were not kept.
    pub dropped: u64,
    /// Nanoseconds of garbage collections.
    pub paused: u64,
    /// Nanoseconds in which they were timed.
    pub timed: u64,
}

/// What came on top in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Over {
    /// How long it is, in milliseconds: shorter where there is no older mark.
    pub ms: u64,
    /// Acquisitions that an idle state served.
    pub reused: u64,
    /// Acquisitions that had to make a state although one had come back in this window, and had not
    /// been kept. All others that had to make one are growth: nothing was there to be kept.
    pub avoidable: u64,
    /// Nanoseconds of garbage collections.
    pub paused: u64,
    /// Nanoseconds in which they were timed.
    pub timed: u64,
}

/// Marks, the oldest first.
#[derive(Debug, Default)]
pub struct Marks(VecDeque<Mark>);

impl Marks {
    /// None so far.
    pub const fn new() -> Self {
        Marks(VecDeque::new())
    }

    /// What came on top in the last `window` milliseconds until now; `now` is a mark from then on,
    /// unless the last one is new.
    pub fn over(&mut self, now: Mark, window: u64) -> Over {
        let since = now.ms.saturating_sub(window);
        // The newest that is as old as the window stays: it is where that begins.
        while self.0.get(1).is_some_and(|second| second.ms <= since) {
            self.0.pop_front();
        }
        let marks = self.0.iter().chain([&now]);
        let (mut over, mut kept_not) = (Over::default(), 0);
        for (before, after) in marks.clone().zip(marks.skip(1)) {
            // Within a step it is unknown whether what was made came before what was dropped: only
            // earlier drops count.
            let created = after.created.saturating_sub(before.created);
            let avoidable = created.min(kept_not);
            over.avoidable += avoidable;
            kept_not += after.dropped.saturating_sub(before.dropped);
            kept_not -= avoidable;
            over.ms += after.ms.saturating_sub(before.ms);
            over.reused += after.reused.saturating_sub(before.reused);
            // A session that began in between began these at zero.
            over.paused += since_reset(before.paused, after.paused);
            over.timed += since_reset(before.timed, after.timed);
        }
        let is_due = |last: &Mark| now.ms >= last.ms + (window / MARKS).max(1);
        if self.0.back().is_none_or(is_due) {
            self.0.push_back(now);
        }
        over
    }
}

fn since_reset(before: u64, after: u64) -> u64 {
    after.checked_sub(before).unwrap_or(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: u64 = 600_000;

    /// Each step: seconds, reused, created, dropped on top.
    fn run(steps: &[(u64, u64, u64, u64)]) -> Over {
        let (mut marks, mut mark) = (Marks::new(), Mark::default());
        let mut over = marks.over(mark, WINDOW);
        for &(seconds, reused, created, dropped) in steps {
            mark.ms += 1_000 * seconds;
            mark.reused += reused;
            mark.created += created;
            mark.dropped += dropped;
            over = marks.over(mark, WINDOW);
        }
        over
    }

    fn judged(steps: &[(u64, u64, u64, u64)]) -> (u64, u64) {
        let over = run(steps);
        (over.reused, over.avoidable)
    }

    #[test]
    fn a_start_is_growth() {
        assert_eq!(judged(&[(60, 1_000, 99_000, 0)]), (1_000, 0));
        // Also if all leave at once and none returns.
        assert_eq!(
            judged(&[(5, 1_000, 99_000, 90_000), (60, 0, 0, 0)]),
            (1_000, 0)
        );
    }

    #[test]
    fn what_was_dropped_and_made_anew_is_not() {
        let steps = [
            (5, 0, 100, 0),
            (5, 0, 0, 90),
            (5, 10, 90, 0),
            (5, 0, 500, 0),
        ];
        assert_eq!(judged(&steps), (10, 90));
    }

    #[test]
    fn it_is_over_with_the_window() {
        let drop_and_make = [(5, 0, 100, 0), (5, 0, 0, 90), (5, 10, 90, 0)];
        let later = |seconds| [&drop_and_make[..], &[(seconds, 7, 0, 0)]].concat();
        assert_eq!(judged(&later(580)), (17, 90));
        assert_eq!(judged(&later(700)), (7, 0));
        // Idle states are not kept for a night's pause.
        assert_eq!(
            judged(&[
                (5, 0, 100, 0),
                (5, 0, 0, 90),
                (700, 0, 0, 0),
                (5, 10, 90, 0)
            ]),
            (10, 0)
        );
    }

    #[test]
    fn a_new_session_begins_its_pauses_at_zero() {
        let mut marks = Marks::new();
        let mark = |ms, paused, timed| Mark {
            ms,
            paused,
            timed,
            ..Mark::default()
        };
        marks.over(mark(0, 100, 1_000), WINDOW);
        marks.over(mark(5_000, 150, 2_000), WINDOW);
        let over = marks.over(mark(10_000, 30, 40), WINDOW);
        assert_eq!((over.paused, over.timed, over.ms), (80, 1_040, 10_000));
    }

    proptest! {
        /// Marks are few, whatever the steps, and the window is no longer than its last step makes it.
        #[test]
        fn marks_are_few(steps in prop::collection::vec(0u64..20_000, 0..2_000)) {
            let (mut marks, mut ms) = (Marks::new(), 0);
            for step in steps {
                ms += step;
                let over = marks.over(Mark { ms, ..Mark::default() }, WINDOW);
                prop_assert!(marks.0.len() as u64 <= MARKS + 2);
                prop_assert!(over.ms <= WINDOW + 25_000);
            }
        }
    }
}
