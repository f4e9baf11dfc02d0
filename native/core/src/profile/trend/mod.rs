//! Does memory grow, and how fast?
//!
//! The slope is the Theil-Sen estimate (Theil 1950, Sen 1968): the median of the slopes of all
//! pairs of points. Up to 29 % of the points may be outliers without moving it much.
//!
//! Growth is called a leak only when it is real, worth a call, and continues:
//!
//! - real: a one-sided t-test, at the level 1 in 10,000, by one of two readings of the scatter.
//!   Either the samples scatter about a line, and the slope is tested; or their steps scatter about
//!   a mean step (a random walk that drifts), and that mean is tested. The first finds a slow
//!   growth under noise, the second one that is plain from step to step but follows no straight
//!   line, as the growth of a node in use does. Memory samples follow each other (a collection that
//!   did not happen yet, a cache that fills), so they are worth fewer than they are many: the
//!   number of independent ones is n (1 - r) / (1 + r), with r the lag-1 autocorrelation of the
//!   scatter (Bartlett 1935; used for trends as in Santer et al. 2000). A random walk about a line
//!   has r near 1, few independent samples, and is not a leak;
//! - worth a call: at least [`LEAK_BYTES_PER_HOUR`];
//! - it continues: a node that filled up and has been level since is not a leak, however surely it
//!   grew. The least-squares slope of the last two thirds of the time is at least half of the slope
//!   of the whole, and that of the last half is not significantly below 0.65 of it. The first
//!   condition decides under much noise, where only a long part says anything; the second one under
//!   little, where a growth that fades (an exponential that saturates, a logarithm) is still
//!   visible.
//!
//! The last half is also judged by itself, as a line, when it has twelve independent samples: a
//! growth that began half way is not a line over the whole time.
//!
//! How often that is right, in 500 seeded hours a line, 720 samples an hour, noise even over the
//! given range (`the_verdict_is_right_for_each_kind_of_hour` prints and verifies the table):
//!
//! | rises, then level: called normal | none | 1 MB | 3 MB | 10 MB | 30 MB |
//! |---|---|---|---|---|---|
//! | 20 MB in 20 min, then level | 100 | 100 | 100 | 100 | 98.8 |
//! | 100 MB in 20 min, then level | 100 | 100 | 100 | 100 | 100 |
//! | 300 MB in 20 min, then level | 100 | 100 | 100 | 100 | 100 |
//! | 100 MB in 25 min, then level | 100 | 100 | 100 | 100 | 100 |
//! | 100 MB, decay in 12 min | 100 | 100 | 100 | 100 | 100 |
//! | 100 MB, decay in 4 min | 100 | 100 | 100 | 100 | 100 |
//! | 100 MB, x / (x + 0.1) | 100 | 100 | 100 | 100 | 99 |
//! | 100 MB, logarithm for 20 min | 100 | 100 | 100 | 100 | 100 |
//! | 30 MB at 5, 10, 15 min | 100 | 100 | 100 | 100 | 100 |
//! | 80 MB at 20 min | 100 | 100 | 100 | 100 | 100 |
//! | steady | 100 | 100 | 100 | 100 | 100 |
//!
//! | grows to the end: called a leak | none | 1 MB | 3 MB | 5 MB | 10 MB |
//! |---|---|---|---|---|---|
//! | 5 MB/h | 100 | 100 | 100 | 100 | 97.6 |
//! | 20 MB/h | 100 | 100 | 100 | 100 | 100 |
//! | 5 MB/h, a step in 5 min | 100 | 100 | 100 | 100 | 97.4 |
//! | 5 MB/h, a step in 10 min | 100 | 100 | 100 | 99.8 | 95.6 |
//! | 20 MB/h, a step in 10 min | 100 | 100 | 100 | 100 | 100 |
//! | 5 MB/h, teeth of 2 MB a minute | 100 | 100 | 100 | 100 | 97.6 |
//! | 20 MB/h, teeth of 10 MB in 5 min | 100 | 100 | 100 | 100 | 100 |
//! | 20 MB/h, teeth of 40 MB in 2.5 min | 100 | 100 | 100 | 100 | 100 |
//! | 20 MB/h since 45 min | 100 | 100 | 100 | 100 | 100 |
//! | 20 MB/h since 30 min | 100 | 100 | 100 | 100 | 100 |
//!
//! Over 1,000 hours each it called a leak: none of the steady nodes with even noise of +-10 MB or
//! normal noise of 10 MB, 4 of the random walks; over 500 hours 1 with AR(1) noise of 0.5 and none
//! of 0.9 and 0.98. Of random walks of 20 samples, 2 in 100 are called one.
//!
//! What it does not find: 5 MB an hour that began half an hour ago under noise above +-3 MB, fewer
//! than some six steps an hour without noise between them, and 5 MB an hour under teeth of 10 MB in
//! five minutes. A logarithm is called level where the noise lets its fading be
//! seen, although it never ends.
//!
//! More than [`MAX_POINTS`] samples are first averaged into that many groups of neighbours, so
//! the cost is bounded and little is lost: neighbours' noise averages out.

/// Growth below this is never called a leak. It stands between nothing and the 5 MB
/// an hour that must not be missed, so that noise on the estimate seldom crosses it either way.
pub const LEAK_BYTES_PER_HOUR: f64 = 3.0 * 1024.0 * 1024.0;

/// The most points that pairwise slopes are computed for.
pub const MAX_POINTS: usize = 240;

/// Independent samples that the last half of the time must have to be judged by itself: a random
/// walk looks like a line for a while, but its samples are hardly independent.
const MIN_RECENT: f64 = 12.0;

/// One sample: when, in milliseconds, and how many bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Milliseconds since any fixed moment.
    pub ms: f64,
    /// Bytes in use.
    pub bytes: u64,
}

/// What the samples say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// The smallest sample.
    pub min: u64,
    /// The largest sample.
    pub max: u64,
    /// The mean of the samples.
    pub mean: f64,
    /// The newest sample minus the oldest one.
    pub delta: i128,
    /// That difference, spread over the steps between samples.
    pub growth_per_step: f64,
    /// Bytes a second; 0.0 when all samples are of one moment.
    pub slope: f64,
    /// Whether the growth is significant, at least [`LEAK_BYTES_PER_HOUR`], and continues.
    pub leak: bool,
}

/// The trend of two samples or more, sorted here by time; `None` for fewer, and for times that are
/// not finite numbers.
pub fn trend(mut points: Vec<Point>) -> Option<Trend> {
    if points.len() < 2 || points.iter().any(|point| !point.ms.is_finite()) {
        return None;
    }
    points.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    let (first, last) = (points[0], points[points.len() - 1]);
    let (mut min, mut max, mut sum) = (u64::MAX, 0, 0u128);
    for point in &points {
        min = min.min(point.bytes);
        max = max.max(point.bytes);
        sum += u128::from(point.bytes);
    }
    let delta = i128::from(last.bytes) - i128::from(first.bytes);
    let groups = grouped(&points);
    let slope = theil_sen(&groups);
    Some(Trend {
        min,
        max,
        mean: sum as f64 / points.len() as f64,
        delta,
        growth_per_step: delta as f64 / (points.len() - 1) as f64,
        slope,
        leak: is_leak(&groups, slope, LEAK_BYTES_PER_HOUR),
    })
}

/// Seconds and bytes since the first point, averaged in groups of neighbours when there are many.
pub(crate) fn grouped(points: &[Point]) -> Vec<(f64, f64)> {
    let origin = points[0];
    let groups = points.len().min(MAX_POINTS);
    (0..groups)
        .map(|group| {
            let members =
                &points[group * points.len() / groups..(group + 1) * points.len() / groups];
            let size = members.len() as f64;
            let (seconds, bytes) = members.iter().fold((0.0, 0.0), |(seconds, bytes), point| {
                (
                    seconds + (point.ms - origin.ms) / 1000.0,
                    bytes + (point.bytes as f64 - origin.bytes as f64),
                )
            });
            (seconds / size, bytes / size)
        })
        .collect()
}

/// The points of the last part of the time, so large a share of it.
pub(crate) fn last(points: &[(f64, f64)], share: f64) -> &[(f64, f64)] {
    let (from, to) = (points[0].0, points[points.len() - 1].0);
    let start = to - (to - from) * share;
    &points[points.partition_point(|point| point.0 < start)..]
}

/// Whether points with this Theil-Sen slope are a leak of at least this many bytes an hour.
pub(crate) fn is_leak(points: &[(f64, f64)], slope: f64, least: f64) -> bool {
    let is_worth_a_call = |slope: f64| slope * 3600.0 >= least;
    let whole = || {
        is_worth_a_call(slope)
            && (about_a_line(points, slope).is_significant(0.0)
                || about_a_mean_step(points).is_significant(0.0))
    };
    let recent = || {
        let recent = last(points, 0.5);
        let slope = theil_sen(recent);
        is_worth_a_call(slope)
            && about_a_line(recent, slope).is_significant(MIN_RECENT)
            && goes_on(recent)
    };
    goes_on(points) && (whole() || recent())
}

/// Whether the later part grows about as the whole does.
fn goes_on(points: &[(f64, f64)]) -> bool {
    // One-sided, at the level 1 in 20.
    const NOT_SURELY_BELOW: f64 = 1.645;
    let (whole, _) = least_squares(points);
    let (most, _) = least_squares(last(points, 2.0 / 3.0));
    let (half, error) = least_squares(last(points, 0.5));
    most >= 0.5 * whole && half + NOT_SURELY_BELOW * error >= 0.65 * whole
}

/// The least-squares slope and its standard error; both 0.0 for points of one moment, the error
/// also for two points.
fn least_squares(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let mean_time = points.iter().map(|point| point.0).sum::<f64>() / n;
    let mean_bytes = points.iter().map(|point| point.1).sum::<f64>() / n;
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        points
            .iter()
            .map(|&(time, bytes)| of(time - mean_time, bytes - mean_bytes))
            .sum()
    };
    let weight = sum(&|time, _| time * time);
    if weight <= 0.0 || !weight.is_finite() {
        return (0.0, 0.0);
    }
    let slope = sum(&|time, bytes| time * bytes) / weight;
    let scatter = sum(&|time, bytes| (bytes - slope * time).powi(2));
    (slope, (scatter / (n - 2.0).max(1.0) / weight).sqrt())
}

/// A slope, and what is needed to judge it: the scatter that it leaves.
pub(crate) struct Fit {
    slope: f64,
    residuals: Vec<f64>,
    /// What the scatter of one residual is divided by to give that of the slope, squared.
    weight: f64,
    /// What was estimated from the residuals' data.
    parameters: f64,
}

/// The samples as a line of that slope through their mean, and noise.
pub(crate) fn about_a_line(points: &[(f64, f64)], slope: f64) -> Fit {
    let n = points.len() as f64;
    let mean_time = points.iter().map(|point| point.0).sum::<f64>() / n;
    let mean_bytes = points.iter().map(|point| point.1).sum::<f64>() / n;
    Fit {
        slope,
        residuals: points
            .iter()
            .map(|(time, bytes)| bytes - mean_bytes - slope * (time - mean_time))
            .collect(),
        weight: points
            .iter()
            .map(|point| (point.0 - mean_time).powi(2))
            .sum(),
        parameters: 2.0,
    }
}

/// The samples as a random walk that drifts: Brownian motion, whose steps vary with the time
/// they take. Its most likely drift depends on the first and the last sample alone.
pub(crate) fn about_a_mean_step(points: &[(f64, f64)]) -> Fit {
    let (first, last) = (points[0], points[points.len() - 1]);
    let weight = last.0 - first.0;
    let slope = (last.1 - first.1) / weight;
    Fit {
        slope,
        residuals: points
            .windows(2)
            .map(|pair| (pair[1].0 - pair[0].0, pair[1].1 - pair[0].1))
            .filter(|&(seconds, _)| seconds > 0.0)
            .map(|(seconds, bytes)| (bytes - slope * seconds) / seconds.sqrt())
            .collect(),
        weight,
        parameters: 1.0,
    }
}

/// What a slope scatters by.
enum Scatter {
    /// There are too few independent samples to say.
    Unknown,
    /// By nothing.
    None,
    /// With this standard error and number of degrees of freedom.
    Of { error: f64, degrees: f64 },
}

impl Fit {
    /// Whether the slope is surely positive, with at least this many independent samples.
    fn is_significant(&self, samples: f64) -> bool {
        match self.scatter(samples) {
            Scatter::Unknown => false,
            Scatter::None => self.slope > 0.0,
            Scatter::Of { error, degrees } => self.slope / error > critical_t(degrees),
        }
    }

    /// How sure it is that the true slope is above `least`: from 0.0 to 1.0.
    pub(crate) fn above(&self, least: f64) -> f64 {
        match self.scatter(0.0) {
            Scatter::Unknown => 0.5,
            Scatter::None => f64::from(u8::from(self.slope > least)),
            Scatter::Of { error, degrees } => student((self.slope - least) / error, degrees),
        }
    }

    /// What the slope scatters by, with so many independent samples at least.
    fn scatter(&self, samples: f64) -> Scatter {
        let n = self.residuals.len() as f64;
        let explained = self.slope * self.slope * self.weight;
        if n <= self.parameters || n < samples || explained.is_nan() || self.weight <= 0.0 {
            // Two points always lie on a line.
            return Scatter::Unknown;
        }
        let scatter: f64 = self
            .residuals
            .iter()
            .map(|residual| residual * residual)
            .sum();
        if scatter <= explained * 1e-12 {
            // A straight line but for rounding; the autocorrelation of rounding says nothing.
            return Scatter::None;
        }
        let r = autocorrelation(&self.residuals, scatter);
        let independent = n * (1.0 - r) / (1.0 + r);
        let degrees = independent - self.parameters;
        if degrees < 1.0 || independent < samples {
            return Scatter::Unknown;
        }
        Scatter::Of {
            error: (scatter / degrees / self.weight).sqrt(),
            degrees,
        }
    }
}

/// The lag-1 autocorrelation of residuals whose squares sum up to that scatter.
///
/// About a fitted line the estimate is too low by (2 + 4r) / n on average (Kendall 1954 for the
/// mean, one more term for the slope): much for samples that wander. Negative values would promise
/// more independent samples than there are.
fn autocorrelation(residuals: &[f64], scatter: f64) -> f64 {
    let neighbours: f64 = residuals.windows(2).map(|pair| pair[0] * pair[1]).sum();
    let low = neighbours / scatter;
    (low + (2.0 + 4.0 * low) / residuals.len() as f64).clamp(0.0, 1.0)
}

/// The median of the slopes of all pairs of points of different times; 0.0 when there is none.
pub(crate) fn theil_sen(points: &[(f64, f64)]) -> f64 {
    let mut slopes = Vec::with_capacity(points.len() * points.len().saturating_sub(1) / 2);
    for (at, &(time, bytes)) in points.iter().enumerate() {
        for &(later, more) in &points[at + 1..] {
            let slope = (more - bytes) / (later - time);
            if later > time && slope.is_finite() {
                slopes.push(slope);
            }
        }
    }
    if slopes.is_empty() {
        return 0.0;
    }
    let middle = slopes.len() / 2;
    let (below, &mut median, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
    match below.iter().copied().max_by(f64::total_cmp) {
        Some(lower) if slopes.len() % 2 == 0 => lower + (median - lower) / 2.0,
        _ => median,
    }
}

/// How often Student's t with this many degrees of freedom is below a value, by Wallace's normal
/// approximation (1959), right to about 0.002.
fn student(t: f64, degrees: f64) -> f64 {
    let z = (8.0 * degrees + 1.0) / (8.0 * degrees + 3.0)
        * (degrees * (t * t / degrees).ln_1p()).sqrt();
    // The normal distribution's tail (Abramowitz and Stegun, 26.2.17).
    let k = 1.0 / (1.0 + 0.231_641_9 * z);
    let polynomial = k
        * (0.319_381_530
            + k * (-0.356_563_782
                + k * (1.781_477_937 + k * (-1.821_255_978 + k * 1.330_274_429))));
    let tail = (-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt() * polynomial;
    if t < 0.0 { tail } else { 1.0 - tail }
}

/// What Student's t with this many degrees of freedom exceeds once in 10,000 times. Between the
/// entries of the table the larger value holds.
fn critical_t(degrees: f64) -> f64 {
    const TABLE: [(f64, f64); 38] = [
        (1.0, 3183.10),
        (2.0, 70.7001),
        (3.0, 22.2037),
        (4.0, 13.0337),
        (5.0, 9.67757),
        (6.0, 8.02479),
        (7.0, 7.06343),
        (8.0, 6.44200),
        (9.0, 6.01013),
        (10.0, 5.69382),
        (11.0, 5.45276),
        (12.0, 5.26327),
        (13.0, 5.11058),
        (14.0, 4.98501),
        (15.0, 4.88000),
        (16.0, 4.79091),
        (17.0, 4.71441),
        (18.0, 4.64801),
        (19.0, 4.58986),
        (20.0, 4.53852),
        (21.0, 4.49286),
        (22.0, 4.45199),
        (23.0, 4.41520),
        (24.0, 4.38192),
        (25.0, 4.35165),
        (26.0, 4.32402),
        (27.0, 4.29870),
        (28.0, 4.27540),
        (29.0, 4.25389),
        (30.0, 4.23399),
        (35.0, 4.15315),
        (40.0, 4.09421),
        (50.0, 4.01405),
        (60.0, 3.96209),
        (80.0, 3.89876),
        (100.0, 3.86160),
        (120.0, 3.83717),
        (200.0, 3.78912),
    ];
    TABLE
        .iter()
        .take_while(|(upto, _)| *upto <= degrees)
        .last()
        .map_or(f64::INFINITY, |&(_, t)| t)
}

#[cfg(test)]
mod tests;
