//! The profiling session: its samples, its end, and what is read from it.

use std::sync::OnceLock;

use erlmcp_memory_core::profile::charts::{self, Size};
use erlmcp_memory_core::profile::gc::Consumer;
use erlmcp_memory_core::profile::samples::{Recording, Sample};
use erlmcp_memory_core::profile::trend::{Point, Trend, trend};
use parking_lot::Mutex;
use rustler::types::tuple::{get_tuple, make_tuple};
use rustler::{
    Atom, Decoder, Encoder, Env, Error, ListIterator, LocalPid, NifMap, NifResult, Term,
};

use super::histogram::Millis;
use super::tracer::{self, GC};
use crate::alloc::live_bytes;
use crate::lane::{Busy, Lane, NoResult};
use crate::resource::ResourceRef;
use crate::stock::Stock;
use crate::{connections, nif, resource};

mod atoms {
    rustler::atoms! {
        ok,
        undefined,
        invalid_input,
        memory_snapshot,
        sampler,
        caller,
        open,
        count,
        stop,
        close,
    }
}

/// The most samples that a NIF on a normal scheduler encodes.
const FEW_SAMPLES: usize = 500;

/// The most points whose trend a NIF on a normal scheduler computes: the work grows with their
/// square.
const FEW_POINTS: usize = 100;

/// Samples copied out of the ring at a time, so that a long read holds the lock only briefly.
const STEP: usize = 1_024;

/// The last session; its data can be read until the next one begins.
static LAST: Mutex<Option<ResourceRef<Session>>> = Mutex::new(None);

/// A profiling session. It watches the sampler and ends with it, however it ends.
pub struct Session {
    recording: Mutex<Recording>,
    /// The number of its session in [`GC`]; `None` when collections are not measured.
    gc: Option<u64>,
    /// After how many milliseconds of the session its trace flags were found cleared.
    gc_lost: OnceLock<u64>,
    /// The tag by which a restarted sampler recognizes its session.
    tag: OnceLock<u64>,
}

resource!(Session, c"erlmcp_memory_session", Session::end);

/// Tells the VM of the type; called while the module is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<Session>(env)
}

/// The samples of sessions.
pub fn stock() -> Stock {
    let last = LAST.lock().clone();
    let recordings = last.map(|session| session.recording.lock().heap_bytes());
    let objects = resource::objects::<Session>();
    Stock {
        count: objects.count,
        heap: recordings.unwrap_or(0),
        objects: objects.bytes,
    }
}

/// A panic while it is locked would at worst lose a sample.
impl std::panic::RefUnwindSafe for Session {}

impl Session {
    fn end(&self) {
        self.recording.lock().end();
        if let Some(number) = self.gc {
            GC.end(number, tracer::now());
        }
    }

    /// Whether the collections of the whole session are counted.
    pub fn measures(&self) -> bool {
        self.gc.is_some() && self.gc_lost.get().is_none()
    }

    fn samples(&self) -> Vec<Sample> {
        let (mut samples, mut from) = (Vec::new(), 0);
        // A session that is being sampled is read as it was at the beginning.
        let upto = self.recording.lock().ring().pushed();
        while from < upto {
            let limit = STEP.min((upto - from) as usize);
            from = self.recording.lock().ring().read(from, limit, &mut samples);
        }
        samples
    }

    /// [`Busy`] on the fast lane if there are more samples than that.
    fn at_most(&self, limit: usize, lane: Lane) -> Result<(), Busy> {
        if lane == Lane::Fast && self.recording.lock().ring().len() > limit {
            return Err(Busy);
        }
        Ok(())
    }
}

/// `#memory_snapshot{}` of `include/erlmcp_memory.hrl`.
struct Snapshot(Sample);

/// The record's fields in order. A record of an older header ends earlier; missing fields are 0.
macro_rules! record {
    ($($field:ident),*) => {
        impl Encoder for Snapshot {
            fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
                let tag = atoms::memory_snapshot().encode(env);
                make_tuple(env, &[tag, $(self.0.$field.encode(env)),*])
            }
        }

        impl<'a> Decoder<'a> for Snapshot {
            fn decode(term: Term<'a>) -> NifResult<Self> {
                let mut elements = get_tuple(term)?.into_iter();
                let tag = elements.next().ok_or(Error::BadArg)?;
                if tag.decode::<Atom>()? != atoms::memory_snapshot() {
                    return Err(Error::BadArg);
                }
                let mut sample = Sample::default();
                $(if let Some(value) = elements.next() {
                    sample.$field = value.decode()?;
                })*
                Ok(Snapshot(sample))
            }
        }
    };
}

record!(
    timestamp,
    process_count,
    total_memory,
    process_memory,
    binary_memory,
    ets_memory,
    atom_memory,
    gc_collections,
    gc_reclaimed,
    gc_pause_max,
    native_memory,
    resident_memory,
    time_offset,
    connections
);

/// Begins a session that ends with the given process, in place of the last one; where it times
/// collections, a window of it opens. Dirty: the last one's samples may be many to free.
#[rustler::nif(schedule = "DirtyCpu")]
fn profiler_start(
    env: Env,
    sampler: LocalPid,
    keep: u64,
    gc: bool,
) -> NifResult<ResourceRef<Session>> {
    tracer::prepare();
    let number = if gc {
        let number = GC.begin();
        GC.open(number);
        Some(number)
    } else {
        GC.reset();
        None
    };
    let session = ResourceRef::new(Session {
        recording: Mutex::new(Recording::new(usize::try_from(keep).unwrap_or(usize::MAX))),
        gc: number,
        gc_lost: OnceLock::new(),
        tag: OnceLock::new(),
    });
    if !session.monitor(env, &sampler) {
        session.end();
        return Err(Error::BadArg);
    }
    // The lock is released before the memory of the last session is freed.
    let last = LAST.lock().replace(session.clone());
    drop(last);
    Ok(session)
}

/// Ends a session; ending it again changes nothing.
#[rustler::nif]
fn profiler_stop(session: ResourceRef<Session>) -> Atom {
    session.end();
    atoms::ok()
}

/// Trace flags of the session were cleared by another program: it counts no collections from now on,
/// and the remaining flags disappear by themselves.
#[rustler::nif]
fn profiler_gc_lost(session: ResourceRef<Session>) -> Atom {
    if let Some(number) = session.gc {
        GC.end(number, tracer::now());
        let after = session.recording.lock().duration().as_millis() as u64;
        let _first = session.gc_lost.set(after);
    }
    atoms::ok()
}

/// A window opens, counts once its flags are set, stops that, and closes once they are taken away.
#[rustler::nif]
fn profiler_window(session: ResourceRef<Session>, step: Atom) -> NifResult<Atom> {
    let Some(number) = session.gc else {
        return Err(Error::BadArg);
    };
    if step == atoms::open() {
        GC.open(number);
    } else if step == atoms::count() {
        GC.count_from(number, tracer::now());
    } else if step == atoms::stop() {
        GC.count_until(number, tracer::now());
    } else if step == atoms::close() {
        GC.close(number, tracer::now());
    } else {
        return Err(Error::BadArg);
    }
    Ok(atoms::ok())
}

/// Gives a session its tag, once.
#[rustler::nif]
fn profiler_tag(session: ResourceRef<Session>, tag: u64) -> Atom {
    let _first = session.tag.set(tag);
    atoms::ok()
}

/// Adds a snapshot; `false` when the session has ended.
#[rustler::nif]
fn profiler_push(session: ResourceRef<Session>, snapshot: Snapshot) -> bool {
    let pauses = session.measures().then(|| GC.totals().pauses);
    session.recording.lock().push(snapshot.0, pauses)
}

/// The last session, running or not; `undefined` before the first one.
#[rustler::nif]
fn profiler_session(env: Env) -> Term {
    let last = LAST.lock().clone();
    match last {
        Some(session) => session.encode(env),
        None => atoms::undefined().encode(env),
    }
}

#[derive(NifMap)]
#[rustler(encode)]
struct Status {
    running: bool,
    tag: Option<u64>,
    gc_measured: bool,
    gc_lost_ms: Option<u64>,
    baseline: Option<Snapshot>,
    last: Option<Snapshot>,
    held: u64,
    taken: u64,
    duration_ms: u64,
}

/// The status of a session. `baseline` and `last` are `nil` before the first snapshot, `gc_lost_ms`
/// unless [`profiler_gc_lost`] was called.
#[rustler::nif]
fn profiler_status(session: ResourceRef<Session>) -> Status {
    let recording = session.recording.lock();
    Status {
        running: recording.is_running(),
        tag: session.tag.get().copied(),
        gc_measured: session.measures(),
        gc_lost_ms: session.gc_lost.get().copied(),
        baseline: recording.baseline().map(Snapshot),
        last: recording.ring().last().map(Snapshot),
        held: recording.ring().len() as u64,
        taken: recording.ring().pushed(),
        duration_ms: recording.duration().as_millis() as u64,
    }
}

/// The snapshots of a session, oldest first.
fn samples<'a>(env: Env<'a>, session: Term<'a>, lane: Lane) -> Result<Term<'a>, NoResult> {
    let session: ResourceRef<Session> = session.decode()?;
    session.at_most(FEW_SAMPLES, lane)?;
    let samples = session.samples().into_iter().rev();
    Ok(samples.fold(Term::list_new_empty(env), |list, sample| {
        list.list_prepend(Snapshot(sample).encode(env))
    }))
}

nif!(samples => profiler_samples(session));

#[derive(NifMap)]
#[rustler(encode)]
struct TrendMap {
    min_memory: u64,
    max_memory: u64,
    avg_memory: i64,
    memory_delta: i64,
    avg_growth_per_snapshot: i64,
    trend_slope: f64,
    leak_indication: &'static str,
}

impl From<Trend> for TrendMap {
    fn from(trend: Trend) -> Self {
        TrendMap {
            min_memory: trend.min,
            max_memory: trend.max,
            // Hosts print both with ~B.
            avg_memory: trend.mean.round() as i64,
            // Sizes above 63 bits are refused when they are read.
            memory_delta: trend.delta as i64,
            avg_growth_per_snapshot: trend.growth_per_step.round() as i64,
            trend_slope: trend.slope,
            leak_indication: if trend.leak {
                "possible_memory_leak"
            } else {
                "normal"
            },
        }
    }
}

/// The trend of a session's snapshots; `undefined` for fewer than two.
fn session_trend<'a>(env: Env<'a>, session: Term<'a>, lane: Lane) -> Result<Term<'a>, NoResult> {
    let session: ResourceRef<Session> = session.decode()?;
    session.at_most(FEW_POINTS, lane)?;
    let points = session
        .samples()
        .iter()
        .map(|sample| Point {
            ms: sample.monotonic_ms(),
            bytes: sample.total_memory,
        })
        .collect();
    Ok(match trend(points) {
        Some(found) => TrendMap::from(found).encode(env),
        None => atoms::undefined().encode(env),
    })
}

nif!(session_trend => profiler_trend(session));

/// `{Timestamp, Bytes}`: the timestamp an integer of 64 bits or a float, the bytes an integer of
/// 0 and up.
pub fn point(item: Term) -> NifResult<Point> {
    let (timestamp, bytes): (Term, i64) = item.decode()?;
    Ok(Point {
        ms: match timestamp.decode::<i64>() {
            Ok(integer) => integer as f64,
            Err(_) => timestamp.decode()?,
        },
        bytes: u64::try_from(bytes).map_err(|_| Error::BadArg)?,
    })
}

/// The trend of a list of `{Timestamp, Bytes}`, or `invalid_input`.
fn list_trend<'a>(env: Env<'a>, items: Term<'a>, lane: Lane) -> Result<Term<'a>, NoResult> {
    // The length is checked also because the iterator expects a proper list.
    if items.list_length()? > FEW_POINTS && lane == Lane::Fast {
        return Err(NoResult::Busy);
    }
    let points = items
        .decode::<ListIterator>()?
        .map(point)
        .collect::<NifResult<Vec<_>>>();
    Ok(match points.ok().and_then(trend) {
        Some(found) => TrendMap::from(found).encode(env),
        None => atoms::invalid_input().encode(env),
    })
}

nif!(list_trend => memory_trend(items));

/// Kinds of memory by name, and where a sample has them.
pub type Kinds = [(&'static str, fn(&Sample) -> u64)];

/// The points of the samples of the last `back` milliseconds of a session's time, for each kind.
pub fn points(
    session: &ResourceRef<Session>,
    back: f64,
    kinds: &Kinds,
) -> Vec<(&'static str, Vec<Point>)> {
    let samples = session.samples();
    let since = samples
        .last()
        .map_or(0.0, |last| last.monotonic_ms() - back);
    let of = |bytes: fn(&Sample) -> u64| {
        let recent = samples.iter().filter(|one| one.monotonic_ms() >= since);
        let point = recent.map(|sample| Point {
            ms: sample.monotonic_ms(),
            bytes: bytes(sample),
        });
        point.collect()
    };
    let named = kinds.iter().map(|&(name, bytes)| (name, of(bytes)));
    named.collect()
}

/// Whether the last session times collections: not where it does not, or where its flags were
/// taken away.
pub fn measures() -> bool {
    LAST.lock().as_ref().is_some_and(|last| last.measures())
}

#[derive(NifMap)]
#[rustler(encode)]
struct GcMap {
    measured: bool,
    collections: u64,
    minor: u64,
    major: u64,
    reclaimed_bytes: u64,
    pause_ms: Millis,
    timed_ms: f64,
    paused_ms: f64,
}

/// The collections of the last session, running or not.
#[rustler::nif]
fn profiler_gc() -> GcMap {
    let summary = GC.summary();
    GcMap {
        measured: measures(),
        collections: summary.minor + summary.major,
        minor: summary.minor,
        major: summary.major,
        reclaimed_bytes: summary.reclaimed_bytes,
        pause_ms: Millis::from(&summary.pauses),
        timed_ms: GC.timed(tracer::now()) as f64 / 1e6,
        paused_ms: GC.totals().pauses.sum as f64 / 1e6,
    }
}

/// `{NativeBytes, ResidentBytes, LongestPauseMs, Connections}`: the longest pause since the last
/// call of this consumer, `sampler` or `caller`.
#[rustler::nif]
fn profiler_probe(consumer: Atom) -> NifResult<(u64, u64, f64, u64)> {
    let consumer = if consumer == atoms::sampler() {
        Consumer::Sampler
    } else if consumer == atoms::caller() {
        Consumer::Caller
    } else {
        return Err(Error::BadArg);
    };
    let resident = memory_stats::memory_stats().map_or(0, |stats| stats.physical_mem as u64);
    Ok((
        live_bytes(),
        resident,
        GC.take_longest(consumer) as f64 / 1e6,
        connections::connections() as u64,
    ))
}

/// Wide and narrow charts have text of the same size.
const WIDE: Size = Size {
    width: 700,
    height: 300,
};
const NARROW: Size = Size {
    width: 340,
    height: 270,
};

/// A chart for wide screens and one for narrow ones, as SVG; `nil` if there is nothing to draw.
#[derive(NifMap)]
#[rustler(encode)]
struct Chart {
    wide: Option<String>,
    narrow: Option<String>,
}

impl Chart {
    fn of(draw: impl Fn(Size) -> Option<String>) -> Self {
        Chart {
            wide: draw(WIDE),
            narrow: draw(NARROW),
        }
    }
}

#[derive(NifMap)]
#[rustler(encode)]
struct Charts {
    memory: Chart,
    connections: Chart,
    per_connection: Chart,
    pauses: Chart,
}

/// The charts of a session.
#[rustler::nif(schedule = "DirtyCpu")]
fn profiler_charts(session: ResourceRef<Session>) -> Charts {
    let samples = session.samples();
    let columns = session.recording.lock().heat().columns().to_vec();
    let ahead = samples.last().map_or(0, |sample| sample.time_offset) as f64;
    Charts {
        memory: Chart::of(|size| charts::memory(&samples, size)),
        connections: Chart::of(|size| charts::connections(&samples, size)),
        per_connection: Chart::of(|size| charts::per_connection(&samples, size)),
        pauses: Chart::of(|size| charts::heat(&columns, ahead, size)),
    }
}

/// The kinds of memory in the memory chart, from the bottom up.
#[rustler::nif]
fn chart_kinds() -> Vec<&'static str> {
    charts::KINDS.into()
}

/// `{Minor, Major, ReclaimedBytes, TimedNanos, PauseNanos, Pauses}`: of the last session; for how
/// long collections were timed; pauses by the bounds of `pause_bounds`, and longer ones.
#[rustler::nif]
fn profiler_gc_totals() -> (u64, u64, u64, u64, u64, Vec<u64>) {
    let totals = GC.totals();
    let pauses = totals.pauses;
    (
        totals.minor,
        totals.major,
        totals.reclaimed_bytes,
        GC.timed(tracer::now()),
        pauses.sum,
        pauses.counts.into(),
    )
}
