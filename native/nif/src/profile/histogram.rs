//! Latency histograms as resources: any number of processes record into one without waiting for
//! each other.

use crate::resource;
use crate::resource::ResourceRef;
use erlmcp_memory_core::profile::histogram::{Distribution, LatencyHistogram};
use rustler::{Atom, Env, NifMap};

mod atoms {
    rustler::atoms! { ok }
}

struct HistogramResource(LatencyHistogram);

resource!(HistogramResource, c"erlmcp_memory_histogram");

/// Tells the VM of the type; called while the module is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<HistogramResource>(env)
}

/// A panic while it is locked would leave counts that are off by one, nothing worse.
impl std::panic::RefUnwindSafe for HistogramResource {}

/// A distribution of durations in milliseconds.
#[derive(NifMap)]
#[rustler(encode)]
pub struct Millis {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl From<&Distribution> for Millis {
    fn from(read: &Distribution) -> Self {
        let millis = |nanos: u64| nanos as f64 / 1e6;
        Millis {
            min: millis(read.min()),
            mean: read.mean() / 1e6,
            p50: millis(read.percentile(50.0)),
            p90: millis(read.percentile(90.0)),
            p99: millis(read.percentile(99.0)),
            p999: millis(read.percentile(99.9)),
            max: millis(read.max()),
        }
    }
}

/// A distribution of durations in nanoseconds.
#[derive(NifMap)]
#[rustler(encode)]
struct Nanos {
    count: u64,
    min: u64,
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// An empty histogram.
#[rustler::nif]
fn histogram_new() -> ResourceRef<HistogramResource> {
    ResourceRef::new(HistogramResource(LatencyHistogram::new()))
}

/// Counts one duration in nanoseconds.
#[rustler::nif]
fn histogram_record(histogram: ResourceRef<HistogramResource>, nanos: u64) -> Atom {
    histogram.0.record(nanos);
    atoms::ok()
}

/// What was recorded so far.
#[rustler::nif]
fn histogram_read(histogram: ResourceRef<HistogramResource>) -> Nanos {
    let read = histogram.0.read();
    Nanos {
        count: read.count(),
        min: read.min(),
        mean: read.mean(),
        p50: read.percentile(50.0),
        p90: read.percentile(90.0),
        p99: read.percentile(99.0),
        p999: read.percentile(99.9),
        max: read.max(),
    }
}

/// The duration in nanoseconds that `percent` of 100 of the recorded ones do not exceed.
#[rustler::nif]
fn histogram_percentile(histogram: ResourceRef<HistogramResource>, percent: f64) -> u64 {
    histogram.0.read().percentile(percent)
}
