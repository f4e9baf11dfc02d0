//! Properties of the trend, and simulated hours of samples: 720 of them, 5 seconds apart.

use super::*;
use proptest::prelude::*;

const MB: f64 = 1024.0 * 1024.0;
const SAMPLES: usize = 720;

/// splitmix64 (Steele, Lea, Flood 2014): a seed gives the same hour everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ 0x5DEE_CE66)
    }

    /// Evenly distributed over -1.0..1.0.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// About normal, of standard deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() / 2.0
    }
}

/// An hour on a node of 500 MB, with the given bytes on top at each sample.
fn hour(mut extra: impl FnMut(usize) -> f64) -> Trend {
    let points = (0..SAMPLES)
        .map(|at| Point {
            ms: 1.769e12 + at as f64 * 5_000.0,
            bytes: (500.0 * MB + extra(at)) as u64,
        })
        .collect();
    trend(points).unwrap()
}

fn grown(at: usize, mb_per_hour: f64) -> f64 {
    mb_per_hour * MB * at as f64 / SAMPLES as f64
}

/// In how many of this many seeded hours a leak was reported.
fn leaks(runs: u64, mut run: impl FnMut(&mut Random) -> Trend) -> u64 {
    (0..runs)
        .filter(|&seed| run(&mut Random::new(seed)).leak)
        .count() as u64
}

#[test]
fn a_steady_noisy_node_is_no_leak() {
    let found = leaks(1_000, |random| hour(|_| random.uniform() * 10.0 * MB));
    println!("steady, uniform +-10 MB: {found} of 1000");
    assert_eq!(found, 0);
    let found = leaks(1_000, |random| hour(|_| random.normal() * 10.0 * MB));
    println!("steady, normal, sd 10 MB: {found} of 1000");
    assert!(found <= 1, "{found}");
}

#[test]
fn noise_that_lingers_is_no_leak() {
    for phi in [0.5, 0.9, 0.98] {
        let found = leaks(500, |random| {
            let mut level = 0.0;
            hour(|_| {
                level = phi * level + random.normal() * 3.0 * MB;
                level
            })
        });
        println!("AR(1), phi {phi}: {found} of 500");
        assert!(found <= 1, "phi {phi}: {found}");
    }
}

#[test]
fn a_random_walk_is_no_leak() {
    let found = leaks(1_000, |random| {
        let mut level = 0.0;
        hour(|_| {
            level += random.normal() * MB;
            level
        })
    });
    println!("random walk: {found} of 1000");
    assert!(found <= 6, "{found}");
}

#[test]
fn a_sawtooth_is_no_leak() {
    for period in [7, 30, 60, 90, 200] {
        let found = leaks(50, |random| {
            hour(|at| (at % period) as f64 / period as f64 * 40.0 * MB + random.uniform() * MB)
        });
        println!("sawtooth of {period} samples: {found} of 50");
        assert_eq!(found, 0, "period {period}");
    }
}

#[test]
fn a_step_and_a_falling_level_are_no_leak() {
    let step = hour(|at| if at < 60 { 0.0 } else { 80.0 * MB });
    assert!(!step.leak);
    let mut random = Random::new(3);
    let falling = hour(|at| grown(at, -50.0) + random.uniform() * MB);
    assert!(!falling.leak);
    assert!(falling.slope < 0.0);
}

#[test]
fn five_mb_an_hour_are_found() {
    for (noise, at_least) in [(0.0, 300), (3.0, 300), (10.0, 290)] {
        let found = leaks(300, |random| {
            hour(|at| grown(at, 5.0) + random.uniform() * noise * MB)
        });
        println!("5 MB/hour, uniform +-{noise} MB: {found} of 300");
        assert!(found >= at_least, "+-{noise} MB: {found}");
    }
    let found = leaks(300, |random| {
        hour(|at| grown(at, 5.0) + random.normal() * 3.0 * MB)
    });
    println!("5 MB/hour, normal, sd 3 MB: {found} of 300");
    assert_eq!(found, 300);
}

/// What the level of a node does over an hour (0.0 to 1.0), in MB.
type Shape = Box<dyn Fn(f64) -> f64>;

/// Shapes that rise in the first part and are level, or fade, afterwards.
fn levelled() -> Vec<(&'static str, Shape)> {
    let ramp = |minutes: f64, height: f64| -> Shape {
        Box::new(move |x| height * (x * 60.0 / minutes).min(1.0))
    };
    let saturating = |rate: f64| -> Shape { Box::new(move |x| 100.0 * (1.0 - (-rate * x).exp())) };
    vec![
        ("20 MB in 20 min, then level", ramp(20.0, 20.0)),
        ("100 MB in 20 min, then level", ramp(20.0, 100.0)),
        ("300 MB in 20 min, then level", ramp(20.0, 300.0)),
        ("100 MB in 25 min, then level", ramp(25.0, 100.0)),
        ("100 MB, decay in 12 min", saturating(5.0)),
        ("100 MB, decay in 4 min", saturating(15.0)),
        ("100 MB, x / (x + 0.1)", Box::new(|x| 100.0 * x / (x + 0.1))),
        (
            "100 MB, logarithm for 20 min",
            Box::new(|x| 100.0 * (1.0 + 60.0 * x.min(1.0 / 3.0)).ln() / 21f64.ln()),
        ),
        (
            "30 MB at 5, 10, 15 min",
            Box::new(|x| 30.0 * (x * 12.0).floor().min(3.0)),
        ),
        (
            "80 MB at 20 min",
            Box::new(|x| if x < 1.0 / 3.0 { 0.0 } else { 80.0 }),
        ),
        ("steady", Box::new(|_| 0.0)),
    ]
}

/// Shapes that grow to the end.
fn growing() -> Vec<(&'static str, Shape)> {
    let stairs = |rate: f64, minutes: f64| -> Shape {
        Box::new(move |x| (x * 60.0 / minutes).floor() * rate * minutes / 60.0)
    };
    let saw = |rate: f64, tooth: f64, minutes: f64| -> Shape {
        Box::new(move |x| rate * x + tooth * (x * 60.0 / minutes).fract())
    };
    let late = |rate: f64, minutes: f64| -> Shape {
        Box::new(move |x| rate * (x - minutes / 60.0).max(0.0))
    };
    vec![
        ("5 MB/h", Box::new(|x| 5.0 * x)),
        ("20 MB/h", Box::new(|x| 20.0 * x)),
        ("5 MB/h, a step in 5 min", stairs(5.0, 5.0)),
        ("5 MB/h, a step in 10 min", stairs(5.0, 10.0)),
        ("20 MB/h, a step in 10 min", stairs(20.0, 10.0)),
        ("5 MB/h, teeth of 2 MB a minute", saw(5.0, 2.0, 1.0)),
        ("20 MB/h, teeth of 10 MB in 5 min", saw(20.0, 10.0, 5.0)),
        ("20 MB/h, teeth of 40 MB in 2.5 min", saw(20.0, 40.0, 2.5)),
        ("20 MB/h since 45 min", late(20.0, 15.0)),
        ("20 MB/h since 30 min", late(20.0, 30.0)),
    ]
}

#[test]
fn the_verdict_is_right_for_each_kind_of_hour() {
    const RUNS: u64 = 500;
    let kinds = levelled()
        .into_iter()
        .map(|kind| (false, [0.0, 1.0, 3.0, 10.0, 30.0], kind))
        .chain(
            growing()
                .into_iter()
                .map(|kind| (true, [0.0, 1.0, 3.0, 5.0, 10.0], kind)),
        );
    let mut wrong = vec![];
    for (leak, noises, (name, shape)) in kinds {
        let mut row = format!("{name:34} {:6}", if leak { "leak" } else { "normal" });
        for noise in noises {
            let found = leaks(RUNS, |random| {
                hour(|at| (shape(at as f64 / SAMPLES as f64) + random.uniform() * noise) * MB)
            });
            let right = if leak { found } else { RUNS - found };
            row += &format!(" {:5.1}", 100.0 * right as f64 / RUNS as f64);
            if right * 100 < RUNS * 95 {
                wrong.push(format!("{name}, +-{noise} MB: {right} of {RUNS}"));
            }
        }
        println!("{row}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn five_mb_an_hour_are_found_soon() {
    for (noise, at_least) in [(0.0, 300), (1.0, 300), (3.0, 285)] {
        let found = leaks(300, |random| {
            hour(|at| grown(at.max(SAMPLES / 2) - SAMPLES / 2, 5.0) + random.uniform() * noise * MB)
        });
        println!("5 MB/hour since 30 min, uniform +-{noise} MB: {found} of 300");
        assert!(found >= at_least, "+-{noise} MB: {found}");
    }
}

#[test]
fn a_logarithm_fades() {
    for rate in [20.0, 60.0, 300.0] {
        for noise in [0.0, 1.0, 3.0, 10.0] {
            let found = leaks(300, |random| {
                hour(|at| {
                    let level = (1.0 + rate * at as f64 / SAMPLES as f64).ln() / f64::ln_1p(rate);
                    (100.0 * level + random.uniform() * noise) * MB
                })
            });
            println!("logarithm of {rate}, +-{noise} MB: {found} of 300");
            assert!(found <= 15, "{rate}, +-{noise}: {found}");
        }
    }
}

/// What a node in use does: each minute some megabytes, more at first, one jump. No line fits.
#[test]
fn growth_that_follows_no_line_is_found() {
    let found = leaks(1_000, |random| {
        let mut bytes = 30.0 * MB;
        trend(
            (0..20)
                .map(|minute| {
                    bytes += (0.6 + 0.2 * random.uniform() + 4.0 / (4.0 + f64::from(minute))) * MB;
                    if minute == 12 {
                        bytes += MB;
                    }
                    Point {
                        ms: 60_000.0 * f64::from(minute),
                        bytes: bytes as u64,
                    }
                })
                .collect(),
        )
        .unwrap()
    });
    println!("growth that slows down, 20 samples: {found} of 1000");
    assert!(found >= 850, "{found}");
}

/// Few samples distinguish a drift from chance; a line through a short walk is less certain.
#[test]
fn a_short_random_walk_is_seldom_a_leak() {
    let mut drifts = 0;
    let found = leaks(10_000, |random| {
        let mut bytes = 500.0 * MB;
        let walk: Vec<Point> = (0..20)
            .map(|minute| {
                bytes += random.normal() * MB;
                Point {
                    ms: 60_000.0 * f64::from(minute),
                    bytes: bytes as u64,
                }
            })
            .collect();
        drifts += u32::from(about_a_mean_step(&grouped(&walk)).is_significant(0.0));
        trend(walk).unwrap()
    });
    println!("random walk, 20 samples: {found} of 10000, by its steps {drifts}");
    assert!(found <= 300, "{found}");
    assert!(drifts <= 6, "{drifts}");
}

#[test]
fn growth_too_slow_to_matter_is_no_leak() {
    assert!(!hour(|at| grown(at, 1.0)).leak);
}

#[test]
fn the_slope_is_right_under_noise_and_outliers() {
    let mut random = Random::new(1);
    let found = hour(|at| {
        let outlier = if at % 10 == 0 { 300.0 * MB } else { 0.0 };
        grown(at, 20.0) + random.uniform() * 2.0 * MB + outlier
    });
    assert!((found.slope * 3600.0 / MB - 20.0).abs() < 3.0, "{found:?}");
}

fn points(values: &[(f64, u64)]) -> Vec<Point> {
    values
        .iter()
        .map(|&(ms, bytes)| Point { ms, bytes })
        .collect()
}

#[test]
fn too_few_and_senseless_samples() {
    assert_eq!(trend(vec![]), None);
    assert_eq!(trend(points(&[(0.0, 1)])), None);
    assert_eq!(trend(points(&[(0.0, 1), (f64::NAN, 2)])), None);
    assert_eq!(trend(points(&[(f64::INFINITY, 1), (0.0, 2)])), None);
}

#[test]
fn two_points_are_no_leak_and_three_on_a_line_are() {
    let two = trend(points(&[(0.0, 0), (1_000.0, 1_000_000)])).unwrap();
    assert_eq!((two.slope, two.leak), (1_000_000.0, false));
    let three = trend(points(&[
        (0.0, 0),
        (1_000.0, 1_000_000),
        (2_000.0, 2_000_000),
    ]))
    .unwrap();
    assert_eq!(
        three,
        Trend {
            min: 0,
            max: 2_000_000,
            mean: 1_000_000.0,
            delta: 2_000_000,
            growth_per_step: 1_000_000.0,
            slope: 1_000_000.0,
            leak: true
        }
    );
}

#[test]
fn samples_of_one_moment_have_no_slope() {
    let still = trend(points(&[(5.0, 1), (5.0, 100_000_000), (5.0, 900_000_000)])).unwrap();
    assert_eq!((still.slope, still.leak), (0.0, false));
}

#[test]
fn the_largest_numbers_do_no_harm() {
    let huge = trend(points(&[
        (-1e300, 0),
        (0.0, u64::MAX),
        (1e300, u64::MAX),
        (f64::MAX, 0),
    ]))
    .unwrap();
    assert!(huge.slope.is_finite() && !huge.leak);
    assert_eq!((huge.min, huge.max), (0, u64::MAX));
}

#[test]
fn the_critical_values_fall_and_a_fraction_of_a_degree_counts_as_none() {
    assert_eq!(critical_t(0.9), f64::INFINITY);
    assert_eq!(critical_t(1.9), critical_t(1.0));
    assert_eq!(critical_t(1e9), critical_t(200.0));
    let values: Vec<f64> = (1..400)
        .map(|degrees| critical_t(f64::from(degrees)))
        .collect();
    assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
}

proptest! {
    /// A straight line keeps its slope, whatever its length and its samples' order; it is a leak
    /// from three points and the practical rate on.
    #[test]
    fn a_straight_line_is_recovered(
        n in 2usize..2_000,
        step_ms in 1u32..60_000,
        growth in 0u64..1_000_000,
        swap in any::<prop::sample::Index>(),
    ) {
        let mut line: Vec<Point> = (0..n)
            .map(|at| Point {
                ms: (at as u64 * u64::from(step_ms)) as f64,
                bytes: 1_000_000 + at as u64 * growth,
            })
            .collect();
        let other = swap.index(n);
        line.swap(0, other);
        let found = trend(line).unwrap();
        let slope = growth as f64 * 1_000.0 / f64::from(step_ms);
        prop_assert!((found.slope - slope).abs() <= slope * 1e-6 + 1e-9, "{found:?} {slope}");
        prop_assert_eq!(found.delta, ((n - 1) as u64 * growth) as i128);
        let rate = slope * 3600.0;
        if (rate - LEAK_BYTES_PER_HOUR).abs() > 1.0 {
            prop_assert_eq!(found.leak, n >= 3 && rate > LEAK_BYTES_PER_HOUR);
        }
    }

    /// Any samples give finite numbers, and the mean is between the extremes.
    #[test]
    fn any_samples_give_sane_numbers(
        values in prop::collection::vec((-4e18..4e18f64, any::<u64>()), 2..100)
    ) {
        let found = trend(points(&values)).unwrap();
        prop_assert!(found.slope.is_finite());
        prop_assert!(found.growth_per_step.is_finite());
        prop_assert!(found.min as f64 <= found.mean * (1.0 + 1e-9));
        prop_assert!(found.mean <= found.max as f64 * (1.0 + 1e-9));
    }
}
