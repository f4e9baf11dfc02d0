//! Rules of the collection monitor, and a model it agrees with.

use super::*;
use proptest::prelude::*;

impl GcMonitor {
    /// Begins a session that counts at once.
    fn activate(&self) -> u64 {
        let session = self.begin();
        self.open(session);
        self.count_from(session, 0);
        session
    }
}

#[test]
fn nothing_is_counted_without_a_session() {
    let gc = GcMonitor::new();
    gc.started(1, Kind::Minor, 10, 100);
    gc.ended(1, Kind::Minor, 30, 40);
    assert_eq!(gc.take_longest(Consumer::Caller), 0);
    assert_eq!(gc.summary().pauses.count(), 0);
}

#[test]
fn a_collection_is_counted_once_with_its_pause_and_bytes() {
    let gc = GcMonitor::new();
    gc.activate();
    gc.started(1, Kind::Minor, 1_000, 500);
    gc.started(2, Kind::Minor, 1_100, 300);
    gc.ended(2, Kind::Major, 1_200, 100);
    gc.ended(1, Kind::Minor, 3_000, 50);
    gc.ended(1, Kind::Minor, 9_000, 0);
    let summary = gc.summary();
    assert_eq!((summary.minor, summary.major), (1, 1));
    assert_eq!(summary.reclaimed_bytes, 650);
    assert_eq!(summary.pauses.count(), 2);
    assert_eq!(summary.pauses.max(), 2_000);
}

#[test]
fn a_failed_minor_collection_and_the_major_one_after_it_are_one() {
    let gc = GcMonitor::new();
    gc.activate();
    gc.started(7, Kind::Minor, 0, 224);
    gc.ended(7, Kind::Minor, 5, 229);
    gc.started(7, Kind::Major, 6, 234);
    gc.ended(7, Kind::Major, 40, 200);
    let summary = gc.summary();
    assert_eq!(
        (summary.minor, summary.major, summary.reclaimed_bytes),
        (0, 1, 34)
    );
    assert_eq!((summary.pauses.count(), summary.pauses.max()), (1, 40));
}

#[test]
fn a_fruitless_minor_collection_counts_when_nothing_goes_on_from_it() {
    let gc = GcMonitor::new();
    gc.activate();
    let fruitless = |process, nanos| {
        gc.started(process, Kind::Minor, nanos, 100);
        gc.ended(process, Kind::Minor, nanos + 10, 100);
    };
    // Much later, another process, another minor one, and nothing at all.
    fruitless(1, 0);
    gc.started(1, Kind::Major, 11 + AT_ONCE_NANOS, 100);
    gc.ended(1, Kind::Major, 12 + AT_ONCE_NANOS, 100);
    fruitless(2, 0);
    gc.started(3, Kind::Major, 11, 100);
    gc.ended(3, Kind::Major, 12, 100);
    fruitless(4, 0);
    fruitless(4, 20);
    let summary = gc.summary();
    assert_eq!((summary.minor, summary.major), (4, 2));
    assert_eq!(summary.pauses.max(), 10);
}

#[test]
fn a_start_whose_end_was_lost_does_not_stretch_the_next_pause() {
    let gc = GcMonitor::new();
    gc.activate();
    gc.started(7, Kind::Minor, 0, 100);
    gc.started(7, Kind::Minor, 1_000_000, 100);
    gc.ended(7, Kind::Minor, 1_000_010, 100);
    assert_eq!(gc.summary().pauses.max(), 10);

    gc.started(7, Kind::Minor, 2_000_000, 100);
    gc.activate();
    gc.ended(7, Kind::Minor, 9_000_000, 100);
    assert_eq!(gc.summary().pauses.count(), 0);
}

#[test]
fn lost_ends_do_not_pile_up() {
    let gc = GcMonitor::new();
    gc.activate();
    for process in 0..100_000 {
        gc.started(process, Kind::Minor, process, 1);
    }
    let held: usize = gc.open.iter().map(|open| open.lock().len()).sum();
    assert!(held <= SHARDS * MAX_OPEN, "{held}");
    // The newest one is never the one given up.
    gc.ended(99_999, Kind::Minor, 100_099, 0);
    assert_eq!(gc.summary().pauses.max(), 100);
}

#[test]
fn each_consumer_has_its_own_longest_pause() {
    let gc = GcMonitor::new();
    gc.activate();
    for (process, pause) in [(1, 70), (2, 900), (3, 20)] {
        gc.started(process, Kind::Minor, 0, 0);
        gc.ended(process, Kind::Minor, pause, 0);
    }
    assert_eq!(gc.take_longest(Consumer::Sampler), 900);
    assert_eq!(gc.take_longest(Consumer::Sampler), 0);
    assert_eq!(gc.take_longest(Consumer::Caller), 900);
    gc.started(1, Kind::Minor, 0, 0);
    gc.ended(1, Kind::Minor, 5, 0);
    assert_eq!(gc.take_longest(Consumer::Caller), 5);
    assert_eq!(gc.take_longest(Consumer::Sampler), 5);
}

#[test]
fn an_ended_session_stays_readable_and_can_not_end_its_successor() {
    let gc = GcMonitor::new();
    let first = gc.activate();
    gc.started(1, Kind::Minor, 0, 64);
    gc.ended(1, Kind::Major, 8, 0);
    gc.end(first, 0);
    assert!(!gc.is_tracing());
    assert_eq!(gc.take_longest(Consumer::Caller), 0);
    assert_eq!(gc.summary().major, 1);

    let second = gc.activate();
    assert_ne!(first, second);
    assert_eq!(gc.summary().major, 0);
    gc.end(first, 0);
    assert!(gc.is_tracing());
    gc.reset();
    assert!(!gc.is_tracing());
}

#[test]
fn schedulers_lose_nothing() {
    let gc = GcMonitor::new();
    gc.activate();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let gc = &gc;
            scope.spawn(move || {
                for round in 0..2_000 {
                    gc.started(thread, Kind::Minor, round, 10);
                    gc.ended(thread, Kind::Minor, round + 3, 4);
                }
            });
        }
    });
    let summary = gc.summary();
    assert_eq!(summary.minor, 16_000);
    assert_eq!(summary.reclaimed_bytes, 96_000);
    assert_eq!((summary.pauses.min(), summary.pauses.max()), (3, 3));
}

proptest! {
    /// Whatever order the starts and ends of a few processes come in, on one thread, what is
    /// counted is what a plain model of the rules above would have counted.
    #[test]
    fn agrees_with_a_model(
        events in prop::collection::vec(
            (0u64..4, any::<bool>(), any::<bool>(), 0u64..6, 1u64..AT_ONCE_NANOS * 3 / 2),
            0..200,
        )
    ) {
        let gc = GcMonitor::new();
        gc.activate();
        let mut open = std::collections::HashMap::new();
        let mut waiting: Option<(u64, u64, u64)> = None;
        let mut counted: Vec<(Kind, u64, u64)> = Vec::new();
        let mut nanos = 0;
        for (process, major, start, bytes, gap) in events {
            nanos += gap;
            let kind = if major { Kind::Major } else { Kind::Minor };
            if start {
                gc.started(process, kind, nanos, bytes);
                let mut began = (nanos, bytes);
                if let Some((of, since, ended)) = waiting.take() {
                    if of == process && major && nanos - ended <= AT_ONCE_NANOS {
                        began = (since, bytes);
                    } else {
                        counted.push((Kind::Minor, ended - since, 0));
                    }
                }
                open.insert(process, began);
            } else {
                gc.ended(process, kind, nanos, bytes);
                if let Some((since, before)) = open.remove(&process) {
                    if !major && bytes >= before {
                        let other = waiting.replace((process, since, nanos));
                        counted.extend(
                            other.map(|(_, since, ended)| (Kind::Minor, ended - since, 0)),
                        );
                    } else {
                        counted.push((kind, nanos - since, u64::saturating_sub(before, bytes)));
                    }
                }
            }
        }
        counted.extend(waiting.map(|(_, since, ended)| (Kind::Minor, ended - since, 0)));
        let longest = gc.take_longest(Consumer::Caller);
        let summary = gc.summary();
        let minor = counted.iter().filter(|(kind, ..)| *kind == Kind::Minor).count() as u64;
        prop_assert_eq!(summary.minor, minor);
        prop_assert_eq!(summary.minor + summary.major, counted.len() as u64);
        prop_assert_eq!(summary.pauses.count(), counted.len() as u64);
        prop_assert_eq!(
            summary.reclaimed_bytes,
            counted.iter().map(|(.., reclaimed)| reclaimed).sum::<u64>()
        );
        prop_assert_eq!(
            longest,
            counted.iter().map(|(_, pause, _)| *pause).max().unwrap_or(0)
        );
    }
}

#[test]
fn collections_count_in_windows_and_the_windows_are_timed() {
    let gc = GcMonitor::new();
    let one = |process, from, to| {
        gc.started(process, Kind::Minor, from, 100);
        gc.ended(process, Kind::Minor, to, 50);
    };
    let session = gc.begin();
    one(1, 0, 10);
    gc.open(session);
    assert!(gc.is_tracing());
    one(1, 20, 30);
    assert_eq!((gc.summary().minor, gc.timed(40)), (0, 0));
    gc.count_from(session, 100);
    one(1, 110, 117);
    gc.started(2, Kind::Minor, 190, 100);
    assert_eq!(gc.timed(150), 50);
    gc.count_until(session, 200);
    one(1, 201, 202);
    assert!(gc.is_tracing());
    gc.close(session, 205);
    assert!(!gc.is_tracing());
    one(1, 210, 300);
    assert_eq!((gc.summary().minor, gc.timed(900)), (1, 100));
    // What a window measured is read after it too.
    assert_eq!(gc.take_longest(Consumer::Sampler), 7);
    // A collection that was open when the window closed is not one of fifty windows.
    gc.open(session);
    gc.count_from(session, 1_000);
    gc.ended(2, Kind::Minor, 1_010, 10);
    one(2, 1_020, 1_025);
    gc.end(session, 1_030);
    assert_eq!((gc.summary().minor, gc.timed(9_999)), (2, 130));
    assert_eq!(gc.summary().pauses.max(), 7);
    let worst: Vec<_> = gc
        .worst()
        .since(0)
        .iter()
        .map(|pause| pause.nanos)
        .collect();
    assert_eq!(worst, [7, 5]);
    // A window of a session that is over does nothing.
    gc.open(session);
    gc.count_from(session, 2_000);
    assert!(!gc.is_tracing());
    one(3, 2_010, 2_020);
    assert_eq!(gc.summary().minor, 2);
    assert_eq!(gc.take_longest(Consumer::Sampler), 0);
}
