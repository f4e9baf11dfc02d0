//! The profiling session: its samples, its end, and what is read from it.

use erlmcp_memory_core::gc::Consumer;
use erlmcp_memory_core::samples::{Recording, Sample};
use erlmcp_memory_core::trend::{Point, Trend, trend};
use parking_lot::Mutex;
use rustler::{
    Atom, Encoder, Env, Error, ListIterator, LocalPid, NifMap, NifRecord, NifResult, Term,
};

use crate::alloc::live_bytes;
use crate::histogram::Millis;
use crate::lane::{Busy, Lane, NoResult};
use crate::resource::ResourceRef;
use crate::tracer::{self, GC};
use crate::{nif, resource};

mod atoms {
    rustler::atoms! {
        ok,
        undefined,
        invalid_input,
        sampler,
        caller,
    }
}

/// Samples that a NIF on a normal scheduler encodes at the most.
const FEW_SAMPLES: usize = 500;

/// Points whose trend a NIF on a normal scheduler takes at the most: it grows with their square.
const FEW_POINTS: usize = 100;

/// Samples copied out of the ring at a time, so that a long reading holds the lock only briefly.
const STEP: usize = 1_024;

/// The last session; its data stay readable until the next one begins.
static LAST: Mutex<Option<ResourceRef<Session>>> = Mutex::new(None);

/// A profiling session. It watches the sampler and ends with it, however it ends.
struct Session {
    recording: Mutex<Recording>,
    /// The number of its session in [`GC`]; `None` when collections are not measured.
    gc: Option<u64>,
}

resource!(Session, c"erlmcp_memory_session", Session::end);

/// Tells the VM of the type; called while the module is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<Session>(env)
}

/// A panic in between would at worst lose a sample.
impl std::panic::RefUnwindSafe for Session {}

impl Session {
    fn end(&self) {
        self.recording.lock().end();
        if let Some(number) = self.gc {
            GC.deactivate(number);
        }
    }

    fn samples(&self) -> Vec<Sample> {
        let (mut samples, mut from) = (Vec::new(), 0);
        // A session that is sampled meanwhile is read as far as it had come at the beginning.
        let upto = self.recording.lock().ring().pushed();
        while from < upto {
            let limit = STEP.min((upto - from) as usize);
            from = self.recording.lock().ring().read(from, limit, &mut samples);
        }
        samples
    }

    /// [`Busy`] on the fast lane where there are more samples than that.
    fn at_most(&self, limit: usize, lane: Lane) -> Result<(), Busy> {
        if lane == Lane::Fast && self.recording.lock().ring().len() > limit {
            return Err(Busy);
        }
        Ok(())
    }
}

/// `#memory_snapshot{}` of `include/erlmcp_memory.hrl`.
#[derive(NifRecord)]
#[tag = "memory_snapshot"]
struct Snapshot {
    timestamp: i64,
    process_count: u64,
    total_memory: u64,
    process_memory: u64,
    binary_memory: u64,
    ets_memory: u64,
    atom_memory: u64,
    gc_collections: u64,
    gc_reclaimed: u64,
    gc_pause_max: f64,
    native_memory: u64,
    resident_memory: u64,
}

/// Two structs of the same field names, one into the other.
macro_rules! same_fields {
    ($from:expr, $into:ident { $($field:ident),* }) => {{
        let from = $from;
        $into { $($field: from.$field),* }
    }};
}

impl From<Sample> for Snapshot {
    fn from(sample: Sample) -> Self {
        same_fields!(
            sample,
            Snapshot {
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
                resident_memory
            }
        )
    }
}

impl From<Snapshot> for Sample {
    fn from(snapshot: Snapshot) -> Self {
        same_fields!(
            snapshot,
            Sample {
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
                resident_memory
            }
        )
    }
}

/// Begins a session that the given process samples for, in place of the last one. Dirty: the last
/// one's samples may be many to free.
#[rustler::nif(schedule = "DirtyCpu")]
fn profiler_start(
    env: Env,
    sampler: LocalPid,
    keep: u64,
    gc: bool,
) -> NifResult<ResourceRef<Session>> {
    tracer::prepare();
    let number = if gc {
        Some(GC.activate())
    } else {
        GC.reset();
        None
    };
    let session = ResourceRef::new(Session {
        recording: Mutex::new(Recording::new(usize::try_from(keep).unwrap_or(usize::MAX))),
        gc: number,
    });
    if !session.monitor(env, &sampler) {
        session.end();
        return Err(Error::BadArg);
    }
    // The lock is let go before the last session's memory is.
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

/// Adds a snapshot; `false` when the session has ended.
#[rustler::nif]
fn profiler_push(session: ResourceRef<Session>, snapshot: Snapshot) -> bool {
    session.recording.lock().push(snapshot.into())
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
    gc_measured: bool,
    baseline: Option<Snapshot>,
    last: Option<Snapshot>,
    held: u64,
    taken: u64,
    duration_ms: u64,
}

/// How a session stands. `baseline` and `last` are `nil` before the first snapshot.
#[rustler::nif]
fn profiler_status(session: ResourceRef<Session>) -> Status {
    let recording = session.recording.lock();
    Status {
        running: recording.is_running(),
        gc_measured: session.gc.is_some(),
        baseline: recording.baseline().map(Snapshot::from),
        last: recording.ring().last().map(Snapshot::from),
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
        list.list_prepend(Snapshot::from(sample).encode(env))
    }))
}

nif!(samples => profiler_samples(session));

#[derive(NifMap)]
#[rustler(encode)]
struct TrendMap {
    min_memory: u64,
    max_memory: u64,
    avg_memory: f64,
    memory_delta: i64,
    avg_growth_per_snapshot: f64,
    trend_slope: f64,
    leak_indication: &'static str,
}

impl From<Trend> for TrendMap {
    fn from(trend: Trend) -> Self {
        TrendMap {
            min_memory: trend.min,
            max_memory: trend.max,
            avg_memory: trend.mean,
            // Sizes above 63 bits are refused when they are read.
            memory_delta: trend.delta as i64,
            avg_growth_per_snapshot: trend.growth_per_step,
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
            ms: sample.timestamp as f64,
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
fn point(item: Term) -> NifResult<Point> {
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
    // The length is asked also because the iterator trusts a list to be proper.
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

#[derive(NifMap)]
#[rustler(encode)]
struct GcMap {
    measured: bool,
    collections: u64,
    minor: u64,
    major: u64,
    reclaimed_bytes: u64,
    pause_ms: Millis,
}

/// The collections of the last session, running or not.
#[rustler::nif]
fn profiler_gc() -> GcMap {
    let measured = LAST.lock().as_ref().is_some_and(|last| last.gc.is_some());
    let summary = GC.summary();
    GcMap {
        measured,
        collections: summary.minor + summary.major,
        minor: summary.minor,
        major: summary.major,
        reclaimed_bytes: summary.reclaimed_bytes,
        pause_ms: Millis::from(&summary.pauses),
    }
}

/// `{NativeBytes, ResidentBytes, LongestPauseMs}`: the pause since this consumer, `sampler` or
/// `caller`, asked last.
#[rustler::nif]
fn profiler_probe(consumer: Atom) -> NifResult<(u64, u64, f64)> {
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
    ))
}
