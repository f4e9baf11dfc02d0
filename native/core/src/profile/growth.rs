//! Does memory grow: a verdict for an operator, and how sure it is.
//!
//! [`crate::profile::trend`] names a growth when it is certain. Where it names none there are two cases that
//! an operator must tell apart: memory is level, or the samples cannot say. It is level where a
//! growth of the rate that matters is excluded at 19 to 1, over the whole time or over its last
//! half: a node that filled up first and has been level since is level.

use crate::profile::trend::{
    Point, about_a_line, about_a_mean_step, grouped, is_leak, last, theil_sen,
};

/// How sure a verdict of [`Verdict::Steady`] is at least.
const SURE: f64 = 0.95;

/// What the samples say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Memory grows, and goes on.
    Growing,
    /// It does not grow at a rate that matters.
    Steady,
    /// Neither can be said yet.
    TooShort,
}

/// What is asked of samples.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Growth below this rate is never named, in bytes an hour.
    pub least: f64,
    /// Growth at this rate must be excluded before memory is called level.
    pub matters: f64,
    /// How long samples must go back to say anything, in milliseconds.
    pub span: f64,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// What it says.
    pub verdict: Verdict,
    /// From 0.0 to 1.0: how sure that is; 0.0 for [`Verdict::TooShort`].
    pub confidence: f64,
    /// The Theil-Sen slope in bytes an hour, whatever the verdict.
    pub per_hour: f64,
}

/// Whether memory grows; `None` for times that are not finite numbers.
pub fn growth(mut points: Vec<Point>, question: Question) -> Option<Growth> {
    if points.iter().any(|point| !point.ms.is_finite()) {
        return None;
    }
    points.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    let too_short = |per_hour| Growth {
        verdict: Verdict::TooShort,
        confidence: 0.0,
        per_hour,
    };
    let (Some(first), Some(newest)) = (points.first(), points.last()) else {
        return Some(too_short(0.0));
    };
    let span = newest.ms - first.ms;
    let groups = grouped(&points);
    let slope = theil_sen(&groups);
    let per_hour = slope * 3600.0;
    if points.len() < 3 || span < question.span {
        return Some(too_short(per_hour));
    }
    let recent = last(&groups, 0.5);
    if is_leak(&groups, slope, question.least) {
        let fits = [
            about_a_line(&groups, slope),
            about_a_mean_step(&groups),
            about_a_line(recent, theil_sen(recent)),
        ];
        let sure = fits.iter().map(|fit| fit.above(0.0));
        return Some(Growth {
            verdict: Verdict::Growing,
            confidence: sure.fold(0.0, f64::max),
            per_hour,
        });
    }
    let limit = question.matters / 3600.0;
    let below = |points: &[(f64, f64)], slope| 1.0 - about_a_line(points, slope).above(limit);
    let sure = below(&groups, slope).max(below(recent, theil_sen(recent)));
    Some(if sure >= SURE {
        Growth {
            verdict: Verdict::Steady,
            confidence: sure,
            per_hour,
        }
    } else {
        too_short(per_hour)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MB: f64 = 1_048_576.0;
    const QUESTION: Question = Question {
        least: 3.0 * MB,
        matters: 5.0 * MB,
        span: 1_800_000.0,
    };

    fn judged(hours: f64, level: impl Fn(f64) -> f64) -> Growth {
        let count = (hours * 720.0) as usize;
        let points = (0..=count).map(|at| {
            let hour = at as f64 / 720.0;
            Point {
                ms: hour * 3_600_000.0,
                bytes: ((500.0 + level(hour)) * MB) as u64,
            }
        });
        growth(points.collect(), QUESTION).unwrap()
    }

    /// Even noise from -1.0 to 1.0.
    fn noise(hour: f64) -> f64 {
        let mut bits = ((hour * 720.0).round() as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    #[test]
    fn grows_is_level_or_cannot_be_told() {
        let verdict = |hours, level: &dyn Fn(f64) -> f64| judged(hours, level).verdict;
        assert_eq!(verdict(1.0, &|x| 10.0 * noise(x)), Verdict::Steady);
        assert_eq!(verdict(0.4, &|x| 20.0 * x), Verdict::TooShort);
        assert_eq!(verdict(1.0, &|x| 20.0 * x + noise(x)), Verdict::Growing);
        // Under much noise an hour says nothing, and six do.
        let slow = |x: f64| 5.0 * x + 50.0 * noise(x);
        assert_eq!(verdict(1.0, &slow), Verdict::TooShort);
        assert_eq!(verdict(6.0, &slow), Verdict::Growing);
        // Filled up, and level since.
        assert_eq!(
            verdict(6.0, &|x| 300.0 * x.min(1.0) + noise(x)),
            Verdict::Steady
        );
        assert_eq!(verdict(6.0, &|x| -30.0 * x), Verdict::Steady);
        assert_eq!(verdict(6.0, &|_| 0.0), Verdict::Steady);
    }

    #[test]
    fn a_verdict_says_how_sure_it_is() {
        let sure = judged(6.0, |x| 20.0 * x + noise(x));
        assert!(
            sure.confidence > 0.9999 && (sure.per_hour / MB - 20.0).abs() < 0.1,
            "{sure:?}"
        );
        let level = judged(1.0, |x| 10.0 * noise(x));
        assert!(
            level.confidence >= SURE && level.confidence < 1.0 + 1e-9,
            "{level:?}"
        );
        assert_eq!(judged(0.1, |x| 20.0 * x).confidence, 0.0);
    }

    #[test]
    fn nothing_to_judge() {
        let none = growth(vec![], QUESTION).unwrap();
        assert_eq!((none.verdict, none.per_hour), (Verdict::TooShort, 0.0));
        let one = vec![Point { ms: 1.0, bytes: 1 }];
        assert_eq!(growth(one, QUESTION).unwrap().verdict, Verdict::TooShort);
        let nowhere = vec![Point {
            ms: f64::NAN,
            bytes: 1,
        }];
        assert_eq!(growth(nowhere, QUESTION), None);
    }

    proptest! {
        /// Any samples give a confidence from 0 to 1, and none without a verdict.
        #[test]
        fn any_samples_give_sane_numbers(
            values in prop::collection::vec((-4e18..4e18f64, any::<u64>()), 0..100)
        ) {
            let points = values.into_iter().map(|(ms, bytes)| Point { ms, bytes }).collect();
            let found = growth(points, QUESTION).unwrap();
            prop_assert!(found.per_hour.is_finite());
            prop_assert!((0.0..=1.0).contains(&found.confidence), "{found:?}");
            prop_assert_eq!(found.confidence == 0.0, found.verdict == Verdict::TooShort);
        }
    }
}
