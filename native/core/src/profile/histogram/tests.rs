//! Tests of [`histogram`](super).

use super::*;
use proptest::prelude::*;

#[test]
fn empty_reads_as_zero() {
    let read = LatencyHistogram::new().read();
    assert_eq!(
        (read.count(), read.min(), read.max(), read.percentile(99.0)),
        (0, 0, 0, 0)
    );
    assert_eq!(read.mean(), 0.0);
}

#[test]
fn extremes_are_exact_even_outside_of_the_buckets() {
    let histogram = LatencyHistogram::new();
    for nanos in [0, u64::MAX] {
        histogram.record(nanos);
    }
    let read = histogram.read();
    assert_eq!((read.count(), read.min(), read.max()), (2, 0, u64::MAX));
    assert_eq!(read.mean(), u64::MAX as f64 / 2.0);
    assert_eq!(read.percentile(0.0), 0);
    assert!(read.percentile(100.0) >= MAX_NANOS);
    assert_eq!(read.percentile(f64::NAN), read.percentile(-5.0));
    assert_eq!(read.percentile(1e9), read.percentile(100.0));
}

#[test]
fn threads_lose_nothing() {
    let histogram = LatencyHistogram::new();
    std::thread::scope(|scope| {
        for thread in 0..2 * SHARDS as u64 {
            let histogram = &histogram;
            scope.spawn(move || {
                for nanos in 0..1_000 {
                    histogram.record(thread * 1_000 + nanos);
                }
            });
        }
    });
    let read = histogram.read();
    let total = 2 * SHARDS as u64 * 1_000;
    assert_eq!(
        (read.count(), read.min(), read.max()),
        (total, 0, total - 1)
    );
    assert_eq!(read.mean(), (total - 1) as f64 / 2.0);
    histogram.clear();
    assert_eq!(histogram.read().count(), 0);
}

#[test]
fn a_duration_on_a_bound_is_in_the_bucket_of_that_bound() {
    let buckets = Buckets::new();
    for bound in BOUNDS {
        buckets.record(bound);
        buckets.record(bound + 1);
    }
    buckets.record(0);
    let read = buckets.read();
    let mut expected = [2; BUCKETS];
    expected[BUCKETS - 1] = 1;
    assert_eq!(read.counts, expected);
    assert_eq!(
        read.sum,
        BOUNDS.iter().map(|bound| 2 * bound + 1).sum::<u64>()
    );
    buckets.clear();
    assert_eq!(buckets.read(), BucketCounts::default());
}

proptest! {
    /// A percentile is never below the value of that rank, and at most 1 % above it.
    #[test]
    fn percentiles_are_within_one_percent(
        mut values in prop::collection::vec(0..MAX_NANOS, 1..300),
        percent in 0.0..100.0f64,
    ) {
        let histogram = LatencyHistogram::new();
        values.iter().for_each(|&nanos| histogram.record(nanos));
        let read = histogram.read();
        values.sort_unstable();
        let rank = ((percent / 100.0 * values.len() as f64).ceil() as usize).max(1);
        let truth = values[rank - 1];
        let told = read.percentile(percent);
        prop_assert!(told >= truth, "{told} < {truth}");
        prop_assert!(told as f64 <= truth as f64 * 1.01 + 1.0, "{told} for {truth}");
        prop_assert_eq!(read.min(), values[0]);
        prop_assert_eq!(read.max(), values[values.len() - 1]);
        let mean = values.iter().map(|&v| v as f64).sum::<f64>() / values.len() as f64;
        prop_assert!((read.mean() - mean).abs() <= mean * 1e-9);
    }
}
