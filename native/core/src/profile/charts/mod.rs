//! Charts of a session's samples, as SVG for a page.
//!
//! Colours are classes, so that the page decides: `k1` to `k6` fill a kind, `h1` to `h5` a cell of
//! the heat map, `line` is a line, `text`, `grid` and `axis` say what they are. Nothing in a chart
//! refers to anything outside of it. A chart has at most as many points as it has room for,
//! whatever the number of samples.

mod time;

use crate::profile::heat::{Column, merged};
use crate::profile::histogram::{BOUNDS, BUCKETS};
use crate::profile::samples::Sample;
use plotters::coord::Shift;
use plotters::prelude::*;
use time::{Time, label};

/// Width and height of a chart, in the pixels that its text is measured in.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl Size {
    /// Points that can be distinguished.
    fn points(self) -> usize {
        (self.width as usize / 2).max(16)
    }

    fn labels(self) -> usize {
        (self.width as usize / 90).max(3)
    }
}

/// The kinds of memory, in the order of the classes `k1` to `k6`, from the bottom of the chart up.
pub const KINDS: [&str; 6] = ["processes", "binaries", "ETS", "atoms", "native", "VM"];

/// Why a chart could not be drawn.
type Refused = Box<dyn std::error::Error + Send + Sync>;

const fn colour(number: u8) -> RGBColor {
    RGBColor(1, 2, number)
}

const TEXT: RGBColor = colour(1);
const GRID: RGBColor = colour(2);
const AXIS: RGBColor = colour(3);
const LINE: RGBColor = colour(4);
const KIND: u8 = 16;
const HEAT: u8 = 32;

/// Levels of the heat map: under 10 pauses, under 100, and so on.
const LEVELS: u8 = 5;

fn classes() -> Vec<(String, String)> {
    let named =
        [(1, "text"), (2, "grid"), (3, "axis"), (4, "line")].map(|(n, name)| (n, name.into()));
    let kinds = (1..=KINDS.len() as u8).map(|n| (KIND + n, format!("k{n}")));
    let heat = (1..=LEVELS).map(|n| (HEAT + n, format!("h{n}")));
    let all = named.into_iter().chain(kinds).chain(heat);
    all.map(|(number, class)| (format!("\"#0102{number:02X}\""), class))
        .collect()
}

/// Draws a chart, and puts classes in the place of colours.
fn svg(
    size: Size,
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Refused>,
) -> Option<String> {
    let mut text = String::new();
    {
        let area =
            SVGBackend::with_string(&mut text, (size.width, size.height)).into_drawing_area();
        draw(&area).ok()?;
        area.present().ok()?;
    }
    for (colour, class) in classes() {
        let class = format!("class=\"{class}\"");
        for attribute in ["fill=", "stroke="] {
            text = text.replace(&format!("{attribute}{colour}"), &class);
        }
    }
    let inner = text.split_once('>').map_or("", |(_, inner)| inner);
    let inner = inner.replace(" opacity=\"1\"", "").replace("\n\n", "\n");
    let Size { width, height } = size;
    Some(format!("<svg viewBox=\"0 0 {width} {height}\">{inner}"))
}

/// What the axes say.
struct Axes<'a> {
    times: (f64, f64),
    top: f64,
    unit: &'a str,
    rows: usize,
    left: u32,
    row: &'a dyn Fn(&f64) -> String,
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Time, RangedF64>>;
type RangedF64 = plotters::coord::types::RangedCoordf64;

/// About the pixels that a digit takes at most in a label.
const CHARACTER: u32 = 9;

fn framed<'a, 'b>(
    area: &'a DrawingArea<SVGBackend<'b>, Shift>,
    size: Size,
    axes: &Axes<'_>,
) -> Result<Chart<'a, 'b>, Refused> {
    let (from, to) = axes.times;
    let times = Time::new(from, to);
    let span = to - from;
    // The last label may stand at the end of the axis: half of it is beside.
    let label_width = label(to, span).len() as u32 * CHARACTER;
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .margin_top(12)
        .margin_right(label_width / 2 + 4)
        .x_label_area_size(44)
        .y_label_area_size(axes.left)
        .build_cartesian_2d(times, 0.0..axes.top)?;
    let style = ("sans-serif", 15).into_font().color(&TEXT);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .label_style(style.clone())
        .axis_desc_style(style)
        .x_labels(size.labels())
        .y_labels(axes.rows)
        .x_label_formatter(&|at| label(*at, span))
        .y_label_formatter(axes.row)
        .x_desc("time (UTC)")
        .y_desc(axes.unit)
        .draw()?;
    Ok(chart)
}

/// A unit for values up to this one, and how many bytes it has.
fn unit(top: f64) -> (&'static str, f64) {
    let units = [("GB", 30), ("MB", 20), ("KB", 10)];
    let fits = |&(_, bits): &(&str, i32)| top >= 2.0 * 2f64.powi(bits);
    match units.into_iter().find(fits) {
        Some((name, bits)) => (name, 2f64.powi(bits)),
        None => ("bytes", 1.0),
    }
}

fn number(value: &f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

/// When a sample was taken, by the system clock as it was at the last one.
fn at(sample: &Sample, last: &Sample) -> f64 {
    sample.monotonic_ms() + last.time_offset as f64
}

/// One sample for each point: that which is largest.
fn thinned(samples: &[Sample], points: usize, by: impl Fn(&Sample) -> f64) -> Vec<Sample> {
    let each = samples.len().div_ceil(points).max(1);
    let largest = |group: &[Sample]| group.iter().copied().max_by(|a, b| by(a).total_cmp(&by(b)));
    samples.chunks(each).filter_map(largest).collect()
}

fn times(samples: &[Sample]) -> Option<(f64, f64)> {
    let last = samples.last()?;
    let (from, to) = (at(samples.first()?, last), at(last, last));
    (from.is_finite() && to.is_finite()).then(|| (from, to.max(from + 1_000.0)))
}

/// What each kind takes: those of [`KINDS`].
fn kinds(sample: &Sample) -> [f64; KINDS.len()] {
    let told = [
        sample.process_memory,
        sample.binary_memory,
        sample.ets_memory,
        sample.atom_memory,
        sample.native_memory,
    ];
    let rest = told
        .iter()
        .fold(sample.total_memory, |rest, part| rest.saturating_sub(*part));
    let [processes, binaries, ets, atoms, native] = told;
    [processes, binaries, ets, atoms, native, rest].map(|bytes| bytes as f64)
}

/// Memory by kind, one on top of the other, and resident memory as a line.
pub fn memory(samples: &[Sample], size: Size) -> Option<String> {
    let times = times(samples)?;
    let last = samples.last()?;
    let thin = thinned(samples, size.points(), |sample| sample.total_memory as f64);
    let highest = |sample: &Sample| sample.total_memory.max(sample.resident_memory);
    let top = thin.iter().map(highest).max()? as f64 * 1.05;
    let (unit, bytes) = unit(top);
    let axes = Axes {
        times,
        top: (top / bytes).max(1.0),
        unit,
        rows: 6,
        left: 68,
        row: &number,
    };
    svg(size, |area| {
        let mut chart = framed(area, size, &axes)?;
        let mut below = vec![0.0; thin.len()];
        for kind in 0..KINDS.len() {
            let mut outline = Vec::with_capacity(2 * thin.len());
            for (sample, below) in thin.iter().zip(&below) {
                outline.push((at(sample, last), below / bytes));
            }
            for (sample, below) in thin.iter().zip(&mut below) {
                *below += kinds(sample)[kind];
            }
            for (sample, above) in thin.iter().zip(&below).rev() {
                outline.push((at(sample, last), above / bytes));
            }
            let fill = colour(KIND + 1 + kind as u8).filled();
            chart.draw_series([Polygon::new(outline, fill)])?;
        }
        let resident = |sample: &Sample| (at(sample, last), sample.resident_memory as f64 / bytes);
        let line: Vec<_> = thin.iter().map(resident).collect();
        chart.draw_series([PathElement::new(line, LINE.stroke_width(2))])?;
        Ok(())
    })
}

/// A value of each sample as a line.
fn line(
    samples: &[Sample],
    size: Size,
    unit: &str,
    scale: f64,
    value: impl Fn(&Sample) -> f64,
) -> Option<String> {
    let times = times(samples)?;
    let last = samples.last()?;
    let thin = thinned(samples, size.points(), &value);
    let points: Vec<_> = thin
        .iter()
        .map(|sample| (at(sample, last), value(sample) / scale))
        .collect();
    let top = points.iter().map(|point| point.1).fold(0.0, f64::max) * 1.05;
    let axes = Axes {
        times,
        top: top.max(1.0),
        unit,
        rows: 5,
        left: 68,
        row: &number,
    };
    svg(size, |area| {
        let mut chart = framed(area, size, &axes)?;
        chart.draw_series([PathElement::new(points, LINE.stroke_width(2))])?;
        Ok(())
    })
}

/// Connections over time.
pub fn connections(samples: &[Sample], size: Size) -> Option<String> {
    line(samples, size, "connections", 1.0, |sample| {
        sample.connections as f64
    })
}

/// All memory over the number of connections, over time; 0 without connections.
pub fn per_connection(samples: &[Sample], size: Size) -> Option<String> {
    let value = |sample: &Sample| match sample.connections {
        0 => 0.0,
        connections => sample.total_memory as f64 / connections as f64,
    };
    let top = samples.iter().map(value).fold(0.0, f64::max);
    let (unit, bytes) = unit(top);
    line(samples, size, &format!("{unit} a connection"), bytes, value)
}

/// Pauses by time and length. `ahead` is what the clock of the labels is ahead of that of the
/// columns, in milliseconds.
pub fn heat(columns: &[Column], ahead: f64, size: Size) -> Option<String> {
    let (first, last) = (columns.first()?, columns.last()?);
    let (from, to) = (first.from + ahead, last.to + ahead);
    let times = (from, to.max(from + 1_000.0));
    let cells = merged(columns, columns.len().div_ceil(size.points() / 4));
    let bound = |row: &f64| match *row as usize {
        0 => "0".into(),
        row if row < BUCKETS => duration(BOUNDS[row - 1]),
        _ => "longer".into(),
    };
    let axes = Axes {
        times,
        top: BUCKETS as f64,
        unit: "length of pauses",
        // On a low chart every second one.
        rows: if size.width < 600 {
            BUCKETS / 2
        } else {
            BUCKETS + 1
        },
        left: 84,
        row: &bound,
    };
    svg(size, |area| {
        let mut chart = framed(area, size, &axes)?;
        let rectangles = cells.iter().flat_map(|cell| {
            let rows = cell
                .counts
                .iter()
                .enumerate()
                .filter(|(_, count)| **count > 0);
            rows.map(|(row, count)| {
                let level = 1 + (count.ilog10() as u8).min(LEVELS - 1);
                let corner = |at: f64, row: usize| (at + ahead, row as f64);
                let corners = [corner(cell.from, row + 1), corner(cell.to, row)];
                Rectangle::new(corners, colour(HEAT + level).filled())
            })
        });
        chart.draw_series(rectangles)?;
        Ok(())
    })
}

fn duration(nanos: u64) -> String {
    match nanos {
        1_000_000_000.. => format!("{} s", nanos / 1_000_000_000),
        1_000_000.. => format!("{} ms", nanos / 1_000_000),
        _ => format!("{} us", nanos / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Size = Size {
        width: 800,
        height: 300,
    };

    fn week() -> Vec<Sample> {
        let sample = |minute: u64| Sample {
            timestamp: 1_764_000_000_000 + 60_000 * minute as i64,
            time_offset: 1_700_000_000_000,
            total_memory: (300 << 20) + ((minute * 7919) % 1_000_003) * 97,
            process_memory: 100 << 20,
            binary_memory: 20 << 20,
            ets_memory: 5 << 20,
            atom_memory: 1 << 20,
            native_memory: 90 << 20,
            resident_memory: 450 << 20,
            connections: 100_000 - minute % 900,
            ..Sample::default()
        };
        (0..10_080).map(sample).collect()
    }

    fn columns() -> Vec<Column> {
        let column = |n: u32| Column {
            from: 60_000.0 * f64::from(n),
            to: 60_000.0 * f64::from(n + 1),
            counts: [n; BUCKETS],
        };
        (0..240).map(column).collect()
    }

    fn all(samples: &[Sample], columns: &[Column], size: Size) -> Vec<Option<String>> {
        vec![
            memory(samples, size),
            connections(samples, size),
            per_connection(samples, size),
            heat(columns, 1.7e12, size),
        ]
    }

    #[test]
    fn a_week_of_samples_is_drawn_small_and_refers_to_nothing() {
        for svg in all(&week(), &columns(), WIDE) {
            let svg = svg.expect("a chart");
            assert!(svg.starts_with("<svg viewBox=\"0 0 800 300\">"));
            assert!(svg.trim_end().ends_with("</svg>"));
            assert!(svg.len() < 200_000, "{}", svg.len());
            for outside in ["http", "href", "url(", "#0102", "NaN", "inf"] {
                assert!(!svg.contains(outside), "{outside}");
            }
            assert!(svg.contains("time (UTC)"));
        }
    }

    #[test]
    fn a_peak_of_one_sample_in_a_week_is_drawn() {
        let mut samples = week();
        samples[5_000].total_memory = 4 << 30;
        let thin = thinned(&samples, 100, |sample| sample.total_memory as f64);
        assert!(thin.len() <= 100);
        assert!(thin.iter().any(|sample| sample.total_memory == 4 << 30));
    }

    #[test]
    fn nothing_and_one_moment_and_nonsense_draw_no_nonsense() {
        assert_eq!(all(&[], &[], WIDE), vec![None, None, None, None]);
        let extreme = Sample {
            timestamp: i64::MIN,
            time_offset: i64::MAX,
            total_memory: u64::MAX,
            resident_memory: u64::MAX,
            process_memory: u64::MAX,
            connections: u64::MAX,
            ..Sample::default()
        };
        for samples in [&week()[..1], &[Sample::default()], &[extreme, extreme]] {
            for svg in all(samples, &columns()[..1], WIDE) {
                assert!(!svg.expect("a chart").contains("NaN"));
            }
        }
    }

    #[test]
    fn units_fit_the_values() {
        let told = |top: f64| unit(top).0;
        assert_eq!(
            [told(1_000.0), told(5e3), told(5e6), told(5e9)],
            ["bytes", "KB", "MB", "GB"]
        );
        assert_eq!(
            [number(&1.5), number(&20.0), number(&0.0)],
            ["1.5", "20", "0"]
        );
        assert_eq!(BOUNDS.map(duration)[0], "10 us");
        assert_eq!(BOUNDS.map(duration)[15], "1 s");
    }
}
