//! The pool of connection states: handles as resources, and the pool's settings and figures.

use crate::buffer::BLOCKS;
use crate::connection::ConnectionState;
use crate::lane::{Busy, FAST_BYTES, FAST_ENTRIES, Lane};
use crate::terms::{PackError, with_packed};
use crate::{nif, reply, resource};
use erlmcp_memory_core::map;
use erlmcp_memory_core::pool::{Lease, Pool};
use parking_lot::Mutex;
use rustler::types::atom::ok;
use rustler::{Encoder, Env, Term};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

pub use rustler::types::atom::badarg;

rustler::atoms! {
    not_a_map,
    not_started,
    released,
    too_large,
}

/// Bytes of a state that is freed on a normal scheduler.
const FAST_RELEASE: usize = 16 * FAST_BYTES;

/// All connection states of the node, and their counters since the library was loaded.
static STATES: LazyLock<Pool<ConnectionState>> = LazyLock::new(Pool::new);

/// Between `pool_start` and `pool_stop`. A pool process that was killed leaves it on: its states
/// and the acquisitions of others do not depend on the process.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Whether the pool gives out states and buffers.
pub fn started() -> bool {
    STARTED.load(Ordering::Relaxed)
}

/// A state's owner: released explicitly, or when the last reference is collected. Either way the
/// lease is dropped and the state goes back; a handle never gets a state again.
struct StateHandle(Mutex<Option<Lease<'static, ConnectionState>>>);

resource!(StateHandle, c"erlmcp_memory_pool_state");

/// Tells the VM of the type; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<StateHandle>(env)
}

/// Runs `work` on the state behind `handle`; returns `badarg` where that is no state handle, and
/// `{error, released}` where it was released.
fn with_state<'a>(
    env: Env<'a>,
    handle: Term<'a>,
    lane: Lane,
    work: impl FnOnce(&mut Lease<'static, ConnectionState>) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    let Some(handle) = resource::get::<StateHandle>(handle) else {
        return Ok(badarg().encode(env));
    };
    match lane.lock(&handle.0)?.as_mut() {
        None => Ok(env.error_tuple(released())),
        Some(state) => work(state),
    }
}

fn refusal(env: Env<'_>, why: PackError) -> Result<Term<'_>, Busy> {
    match why {
        PackError::Busy => Err(Busy),
        PackError::TooLarge | PackError::NotAPath => Ok(too_large().encode(env)),
    }
}

fn acquire<'a>(env: Env<'a>, map: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    if !map.is_map() {
        return Ok(not_a_map().encode(env));
    }
    if !started() {
        return Ok(env.error_tuple(not_started()));
    }
    // Packed before anything is taken from the pool, so a call that is repeated on the dirty lane
    // leaves no trace in the counters.
    let acquired = with_packed(env, map, lane, |entries| {
        let mut state = STATES.acquire();
        state.modify(|state| state.merge(entries));
        state
    });
    let state = match acquired {
        Ok(state) => state,
        Err(why) => return refusal(env, why),
    };
    let handle = resource::make(env, StateHandle(Mutex::new(Some(state))));
    Ok((ok(), handle).encode(env))
}

// `{ok, Ref}`, `{error, not_started}`, or the atom `not_a_map` or `too_large`.
nif!(acquire => pool_acquire(map));

fn release<'a>(env: Env<'a>, handle: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let Some(handle) = resource::get::<StateHandle>(handle) else {
        return Ok(badarg().encode(env));
    };
    let mut held = lane.lock(&handle.0)?;
    let bytes = held.as_ref().map_or(0, Lease::bytes);
    if lane == Lane::Fast && bytes > FAST_RELEASE {
        return Err(Busy);
    }
    let state = held.take();
    drop(held);
    drop(state);
    Ok(ok().encode(env))
}

// `ok`, also when it was released before.
nif!(release => pool_release(handle));

fn read<'a>(env: Env<'a>, handle: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_state(env, handle, lane, |state| {
        Ok(reply::ok_value(env, state.to_term(env, lane)?))
    })
}

// `{ok, Map}` or an error tuple.
nif!(read => pool_read(handle));

fn update<'a>(env: Env<'a>, handle: Term<'a>, map: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_state(env, handle, lane, |state| {
        if !map.is_map() {
            return Ok(not_a_map().encode(env));
        }
        let merged = with_packed(env, map, lane, |entries| {
            let many = map::len_of(entries).is_some_and(|len| len > FAST_ENTRIES);
            if lane == Lane::Fast && many && !state.is_empty() {
                return Err(Busy);
            }
            state.modify(|state| state.merge(entries));
            Ok(ok().encode(env))
        });
        match merged {
            Ok(updated) => updated,
            Err(why) => refusal(env, why),
        }
    })
}

// `ok`, `{error, released}`, or the atom `not_a_map` or `too_large`.
nif!(update => pool_update(handle, map));

/// Sets both sizes and lets acquisitions in. States and counters from before go on.
#[rustler::nif]
fn pool_start(pool_size: usize, max_pool_size: usize) -> rustler::Atom {
    STATES.set_pool_size(pool_size);
    STATES.set_max_pool_size(max_pool_size);
    BLOCKS.open();
    STARTED.store(true, Ordering::Relaxed);
    ok()
}

/// Refuses acquisitions from now on, and keeps nothing idle. States in use stay valid.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_stop() -> rustler::Atom {
    STARTED.store(false, Ordering::Relaxed);
    STATES.set_pool_size(0);
    STATES.set_max_pool_size(0);
    while STATES.shed_step(usize::MAX) > 0 {}
    BLOCKS.close();
    ok()
}

/// Makes up to `limit` of the idle states that are missing; how many were made.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_prepare(limit: usize) -> usize {
    STATES.prepare_step(limit)
}

/// Frees up to `limit` of the idle states over the maximum; 0 when there are none.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_shed(limit: usize) -> usize {
    STATES.shed_step(limit)
}

/// One trimming step over states and blocks; how many were freed.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_trim() -> usize {
    STATES.trim_step() + BLOCKS.trim_step()
}

/// `{InUse, Available, Reused, Created, ReuseRatio, IdleBytes, LiveBytes}` of the states.
#[rustler::nif]
fn pool_stats() -> (u64, u64, u64, u64, f64, u64, u64) {
    let stats = STATES.stats();
    (
        stats.in_use,
        stats.available,
        stats.reused,
        stats.created,
        stats.reuse_ratio(),
        stats.idle_bytes,
        stats.live_bytes,
    )
}

/// `{IdleBlocks, IdleBytes, LiveBytes}` of the message buffers.
#[rustler::nif]
fn buffer_stats() -> (u64, u64, u64) {
    let stats = BLOCKS.stats();
    (stats.idle, stats.idle_bytes, stats.live_bytes)
}
