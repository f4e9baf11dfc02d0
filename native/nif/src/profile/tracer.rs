//! The tracer: `enabled/3` and `trace/5` of `erl_tracer`, called by the VM on the scheduler where a
//! traced process collects its garbage. It counts into a static and sends no message.

use std::sync::LazyLock;
use std::time::Instant;

use crate::nif;
use crate::terms::word;
use erlmcp_memory_core::profile::gc::{GcMonitor, Kind};
use rustler::{Atom, Env, ListIterator, Term};

mod atoms {
    rustler::atoms! {
        trace,
        remove,
        ok,
        gc_minor_start,
        gc_minor_end,
        gc_major_start,
        gc_major_end,
        heap_size,
        old_heap_size,
        mbuf_size,
    }
}

/// All collections of the node, as far as they are traced.
pub static GC: GcMonitor = GcMonitor::new();

/// The operating system's monotonic clock: the VM's own corrects for leaps of the wall clock, which
/// costs time and distorts durations.
static CLOCK: LazyLock<Instant> = LazyLock::new(Instant::now);

const WORD: u64 = size_of::<usize>() as u64;

/// Initializes atoms and clock now, outside of any collection.
pub fn prepare() {
    let _ = atoms::trace();
    LazyLock::force(&CLOCK);
}

/// Nanoseconds of the clock that collections are timed by.
pub fn now() -> u64 {
    CLOCK.elapsed().as_nanos() as u64
}

/// Whether to go on tracing. Without an open window it returns `remove`, so trace flags that a
/// killed sampler left behind dissolve at each process's next collection.
fn enabled<'a>(env: Env<'a>, _tag: Term<'a>, _state: Term<'a>, _tracee: Term<'a>) -> Term<'a> {
    let answer = if GC.is_tracing() {
        atoms::trace()
    } else {
        atoms::remove()
    };
    answer.to_term(env)
}

nif!(enabled => short enabled(tag, state, tracee));

/// One event of one process. `info` is the list that `process_info(_, garbage_collection_info)`
/// returns, with sizes in words.
fn trace<'a>(
    env: Env<'a>,
    tag: Term<'a>,
    _state: Term<'a>,
    tracee: Term<'a>,
    info: Term<'a>,
    _options: Term<'a>,
) -> Term<'a> {
    // The word of a process stays the same while it lives; here it is only a key.
    let process = word(tracee);
    // A start is timed after its list is read, an end before: the pause is the process's own.
    let started = |kind| {
        let bytes = heap_bytes(info);
        GC.started(process, kind, now(), bytes);
    };
    let ended = |kind| GC.ended(process, kind, now(), heap_bytes(info));
    let is = |atom: Atom| tag.as_c_arg() == atom.as_c_arg();
    if is(atoms::gc_minor_start()) {
        started(Kind::Minor);
    } else if is(atoms::gc_minor_end()) {
        ended(Kind::Minor);
    } else if is(atoms::gc_major_start()) {
        started(Kind::Major);
    } else if is(atoms::gc_major_end()) {
        ended(Kind::Major);
    }
    atoms::ok().to_term(env)
}

nif!(trace => short trace(tag, state, tracee, info, options));

/// What the process holds: young heap, old heap and fragments.
fn heap_bytes(info: Term) -> u64 {
    let Ok(items) = info.decode::<ListIterator>() else {
        return 0;
    };
    let wanted = [
        atoms::heap_size().as_c_arg(),
        atoms::old_heap_size().as_c_arg(),
        atoms::mbuf_size().as_c_arg(),
    ];
    let (mut words, mut found) = (0u64, 0);
    for item in items {
        let Ok((name, value)) = item.decode::<(Term, Term)>() else {
            continue;
        };
        if wanted.contains(&name.as_c_arg()) {
            words = words.saturating_add(value.decode().unwrap_or(0));
            found += 1;
            if found == wanted.len() {
                break;
            }
        }
    }
    words.saturating_mul(WORD)
}
