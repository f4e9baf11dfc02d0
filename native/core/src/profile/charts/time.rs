//! The axis of time: labels at whole minutes, hours and days, in UTC.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use std::ops::Range;

const SECOND: f64 = 1_000.0;
const MINUTE: f64 = 60.0 * SECOND;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;

/// Steps between labels.
const STEPS: [f64; 22] = [
    SECOND,
    2.0 * SECOND,
    5.0 * SECOND,
    10.0 * SECOND,
    30.0 * SECOND,
    MINUTE,
    2.0 * MINUTE,
    5.0 * MINUTE,
    10.0 * MINUTE,
    30.0 * MINUTE,
    HOUR,
    2.0 * HOUR,
    3.0 * HOUR,
    6.0 * HOUR,
    12.0 * HOUR,
    DAY,
    2.0 * DAY,
    3.0 * DAY,
    7.0 * DAY,
    14.0 * DAY,
    28.0 * DAY,
    364.0 * DAY,
];

/// Milliseconds since the epoch, from one to another.
pub(super) struct Time(Range<f64>);

impl Time {
    pub(super) fn new(from: f64, to: f64) -> Self {
        Time(from..to)
    }
}

impl Ranged for Time {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (left, right): (i32, i32)) -> i32 {
        let part = (value - self.0.start) / (self.0.end - self.0.start);
        left + (part * f64::from(right - left)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let most = hint.max_num_points().max(1) as f64;
        let span = self.0.end - self.0.start;
        let step = STEPS.into_iter().find(|step| span / step <= most);
        let step = step.unwrap_or(span);
        let first = (self.0.start / step).ceil() * step;
        let points = (0..=most as u32).map(|n| first + f64::from(n) * step);
        points.take_while(|at| *at <= self.0.end).collect()
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

impl ValueFormatter<f64> for Time {
    fn format_ext(&self, at: &f64) -> String {
        label(*at, self.0.end - self.0.start)
    }
}

/// The label of a moment on an axis of this span: `14:05`, `14:05:30` on a short one, and the day
/// before it on a long one.
pub(super) fn label(at: f64, span: f64) -> String {
    let seconds = (at / SECOND).floor();
    let (days, of_day) = (seconds.div_euclid(86_400.0), seconds.rem_euclid(86_400.0));
    let (hour, minute, second) = (of_day / 3_600.0, of_day / 60.0 % 60.0, of_day % 60.0);
    let clock = format!("{:02}:{:02}", hour as u32, minute as u32);
    let (month, day) = month_and_day(days as i64);
    if span > 7.0 * DAY {
        format!("{month:02}-{day:02}")
    } else if span > 1.5 * DAY {
        format!("{month:02}-{day:02} {clock}")
    } else if span < 4.0 * MINUTE {
        format!("{clock}:{:02}", second as u32)
    } else {
        clock
    }
}

/// The month and the day of the month, of days since the epoch. Counted in years that begin in
/// March, so that the leap day is the last of its year.
fn month_and_day(days: i64) -> (u32, u32) {
    let days = days.saturating_add(719_468).rem_euclid(146_097);
    let year = (days - days / 1_460 + days / 36_524 - days / 146_096) / 365;
    let of_year = days - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    ((month + 2) as u32 % 12 + 1, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plotters::coord::ranged1d::BoldPoints;

    #[test]
    fn labels_are_the_calendars() {
        assert_eq!(month_and_day(0), (1, 1));
        assert_eq!(month_and_day(59), (3, 1));
        // 29 February 2024, 31 December 2025, the day before the epoch.
        assert_eq!(month_and_day(19_782), (2, 29));
        assert_eq!(month_and_day(20_453), (12, 31));
        assert_eq!(month_and_day(-1), (12, 31));
        let noon = 19_782.0 * DAY + 12.0 * HOUR + 5.0 * MINUTE + 7.0 * SECOND;
        assert_eq!(label(noon, HOUR), "12:05");
        assert_eq!(label(noon, MINUTE), "12:05:07");
        assert_eq!(label(noon, 3.0 * DAY), "02-29 12:05");
        assert_eq!(label(noon, 70.0 * DAY), "02-29");
    }

    #[test]
    fn labels_stand_at_whole_steps_and_are_not_too_many() {
        for span in [1e3, 7.3e4, 3.7e6, 9e7, 6.1e8, 4e10, 1e18] {
            let from = 1.764e12 + 12_345.0;
            let points = Time::new(from, from + span).key_points(BoldPoints(6));
            assert!(points.len() <= 7, "{} in {span}", points.len());
            assert!(points.iter().all(|at| *at >= from && *at <= from + span));
        }
        let hours = Time::new(0.5 * HOUR, 5.5 * HOUR).key_points(BoldPoints(6));
        assert_eq!(hours, [1.0, 2.0, 3.0, 4.0, 5.0].map(|hour| hour * HOUR));
        // A week on a narrow screen has more than one.
        let days = Time::new(0.5 * DAY, 7.5 * DAY).key_points(BoldPoints(3));
        assert_eq!(days, [3.0 * DAY, 6.0 * DAY]);
    }
}
