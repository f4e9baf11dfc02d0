//! What the levels of a node's health are made of, and the worst pauses.

use super::session::{self, Kinds, Session, point, points};
use super::tracer::{self, GC};
use crate::resource::ResourceRef;
use crate::terms::{from_word, word};
use crate::{connections, pool, running};
use erlmcp_memory_core::profile::gc::Kind;
use erlmcp_memory_core::profile::growth::{Growth, Question, Verdict, growth};
use erlmcp_memory_core::profile::window::{Mark, Marks};
use parking_lot::Mutex;
use rustler::{Atom, Env, ListIterator, LocalPid, NifMap, NifResult, Term};

mod atoms {
    rustler::atoms! { ok, minor, major, growing, steady, too_short }
}

/// Marks of the node. They are the library's, so that no process need live for them to be kept.
static MARKS: Mutex<Marks> = Mutex::new(Marks::new());

/// What came on top in a window.
#[derive(NifMap)]
#[rustler(encode)]
struct Window {
    window_ms: u64,
    reused: u64,
    avoidable: u64,
    paused_ns: u64,
    timed_ns: u64,
    pool_started: bool,
    gc_measured: bool,
    connections: u64,
}

/// What came on top in the last milliseconds, and how things stand; the next call may begin here.
#[rustler::nif]
fn health_window(window: u64) -> Window {
    let (reused, created, dropped) = pool::acquisitions();
    let now = tracer::now();
    let over = MARKS.lock().over(
        Mark {
            ms: now / 1_000_000,
            reused,
            created,
            dropped,
            paused: GC.totals().pauses.sum,
            timed: GC.timed(now),
        },
        window,
    );
    Window {
        window_ms: over.ms,
        reused: over.reused,
        avoidable: over.avoidable,
        paused_ns: over.paused,
        timed_ns: over.timed,
        pool_started: running::started(),
        gc_measured: session::measures(),
        connections: connections::connections() as u64,
    }
}

/// A pause, `at` in nanoseconds of a clock of its own, `ago` before now.
#[derive(NifMap)]
#[rustler(encode)]
struct PauseMap<'a> {
    pid: Term<'a>,
    kind: Atom,
    ns: u64,
    at: u64,
    ago_ns: u64,
    name: Option<String>,
    function: Option<String>,
}

/// The worst pauses of the last milliseconds, the longest first.
#[rustler::nif]
fn gc_worst(env: Env<'_>, window: u64) -> Vec<PauseMap<'_>> {
    let now = tracer::now();
    let since = now.saturating_sub(window.saturating_mul(1_000_000));
    let pauses = GC.worst().since(since).into_iter().map(|pause| {
        let (name, function) = pause.named.unzip();
        PauseMap {
            // SAFETY: the word is a local process's, which is not a pointer.
            pid: unsafe { from_word(env, pause.process) },
            kind: match pause.kind {
                Kind::Minor => atoms::minor(),
                Kind::Major => atoms::major(),
            },
            ns: pause.nanos,
            at: pause.at,
            ago_ns: now.saturating_sub(pause.at),
            name,
            function,
        }
    });
    pauses.collect()
}

/// The process and the time of the worst pauses of the newest minute that have no name yet.
#[rustler::nif]
fn gc_unnamed(env: Env<'_>) -> Vec<(Term<'_>, u64)> {
    let unnamed = GC.worst().unnamed().into_iter();
    // SAFETY: as above.
    let named = unnamed.map(|(process, at)| (unsafe { from_word(env, process) }, at));
    named.collect()
}

/// Names a pause.
#[rustler::nif]
fn gc_name<'a>(process: Term<'a>, at: u64, name: String, function: String) -> NifResult<Atom> {
    // Only a local process can be the key of a pause.
    let _pid: LocalPid = process.decode()?;
    GC.worst().name(word(process), at, &name, &function);
    Ok(atoms::ok())
}

/// `{Verdict, BytesAnHour, Confidence}`.
type Said = (Atom, f64, f64);

fn said(growth: Growth) -> Said {
    let verdict = match growth.verdict {
        Verdict::Growing => atoms::growing(),
        Verdict::Steady => atoms::steady(),
        Verdict::TooShort => atoms::too_short(),
    };
    (verdict, growth.per_hour, growth.confidence)
}

fn question((least, matters, span): (f64, f64, f64)) -> Question {
    Question {
        least,
        matters,
        span,
    }
}

const KINDS: &Kinds = &[
    ("total", |sample| sample.total_memory),
    ("resident", |sample| sample.resident_memory),
    ("processes", |sample| sample.process_memory),
    ("binaries", |sample| sample.binary_memory),
    ("ets", |sample| sample.ets_memory),
    ("atoms", |sample| sample.atom_memory),
    ("native", |sample| sample.native_memory),
];

/// Of the samples of the last `back` milliseconds of a session: the first kinds, and what is said
/// of each. `asked`: bytes an hour that growth is at least, those that matter, and milliseconds
/// that samples must go back.
#[rustler::nif(schedule = "DirtyCpu")]
fn profiler_growth(
    session: ResourceRef<Session>,
    back: f64,
    asked: (f64, f64, f64),
    kinds: usize,
) -> Vec<(&'static str, Said)> {
    let kinds = points(&session, back, &KINDS[..kinds.min(KINDS.len())]);
    let verdicts = kinds.into_iter().filter_map(|(kind, points)| {
        let found = growth(points, question(asked))?;
        Some((kind, said(found)))
    });
    verdicts.collect()
}

/// The same for a list of `{Milliseconds, Bytes}`; an error if it is not one.
#[rustler::nif(schedule = "DirtyCpu")]
fn memory_growth(items: Term<'_>, asked: (f64, f64, f64)) -> NifResult<Said> {
    // The iterator trusts a list to be proper.
    items.list_length()?;
    let points = items
        .decode::<ListIterator>()?
        .map(point)
        .collect::<NifResult<Vec<_>>>()?;
    growth(points, question(asked))
        .map(said)
        .ok_or(rustler::Error::BadArg)
}

/// `{Used, Limit}` of file descriptors; `nil` where the system does not tell. Dirty: older kernels
/// have no count, and each is looked at.
#[rustler::nif(schedule = "DirtyIo")]
fn file_descriptors() -> Option<(u64, u64)> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: it writes to the struct that it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return None;
    }
    // Signed on some systems.
    #[allow(clippy::unnecessary_cast)]
    let most = limit.rlim_cur as u64;
    Some((open_descriptors()?, most))
}

#[cfg(target_os = "linux")]
fn open_descriptors() -> Option<u64> {
    // Since Linux 6.2 the folder's size is how many there are.
    match std::fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_descriptors() -> Option<u64> {
    Some(std::fs::read_dir("/dev/fd").ok()?.count() as u64)
}
