//! The pool of connection states: handles as resources, and the pool's settings and figures.

use crate::buffer::BLOCKS;
use crate::connection::ConnectionState;
use crate::cycles::{self, Node};
use crate::enif::owner::{Owner, Release};
use crate::lane::{Busy, FAST_BYTES, FAST_ENTRIES, Lane};
use crate::stock::Stock;
use crate::terms::{Anchor, Known, with_flat, with_packed};
use crate::{garbage, nif, reply, resource, running};
use erlmcp_memory_core::map;
use erlmcp_memory_core::packed::Links;
use erlmcp_memory_core::pool::{Lease, Pool};
use erlmcp_memory_core::threads::Usage;
use parking_lot::{Mutex, MutexGuard};
use rustler::types::atom::ok;
use rustler::{Encoder, Env, Term};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use rustler::types::atom::badarg;

rustler::atoms! {
    not_a_map,
    not_started,
    released,
}

/// The most bytes of a state that is freed on a normal scheduler.
const FAST_RELEASE: usize = 16 * FAST_BYTES;

/// All connection states of the node, and their counters since the library was loaded.
static STATES: LazyLock<Pool<ConnectionState>> = LazyLock::new(Pool::new);

/// Pooled states in use, and idle ones.
pub fn stock() -> (Stock, Usage) {
    let stats = STATES.stats();
    let in_use = Stock {
        count: stats.in_use as usize,
        heap: stats.live_bytes as usize,
        objects: resource::objects::<StateHandle>().bytes,
    };
    let idle = Usage {
        count: stats.available as usize,
        bytes: stats.idle_bytes as usize,
    };
    (in_use, idle)
}

/// The numbers of acquisitions that reused a state, of those that made one, and of released states
/// that were not kept. Acquisitions that say nothing about the host's load are left out.
pub fn acquisitions() -> (u64, u64, u64) {
    let stats = STATES.stats();
    let created = stats
        .created
        .saturating_sub(CREATED_ASIDE.load(Ordering::Relaxed));
    (stats.reused, created, stats.dropped)
}

/// A leased state; `None` after its release.
type Leased = Option<Lease<'static, ConnectionState>>;

/// A state's owner: released explicitly, or when the last reference is collected. Either way the
/// lease is dropped and the state goes back; a handle never gets a state again.
struct StateHandle(Mutex<Holding>);

resource!(StateHandle, c"erlmcp_memory_pool_state");

enum Holding {
    Own(Leased),
    /// A state that values refer to as well.
    Linked(Arc<Cell>),
}

/// A state that values refer to.
pub struct Cell {
    leased: Mutex<Leased>,
    /// The one reference that stands for it.
    known: Known,
    /// Whether it leads to more than a trial looks at, so that only a sweep decides if it is alive.
    left: AtomicBool,
    /// The sweep knows it.
    noted: AtomicBool,
}

impl std::fmt::Debug for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cell")
    }
}

impl Cell {
    /// Whether the state may refer to anything. Does not wait for a user of it: that may be the
    /// caller, an update of the state that drops a link to it.
    pub fn may_have_links(&self) -> bool {
        self.leased.try_lock().is_none_or(|leased| {
            leased
                .as_ref()
                .is_some_and(|state| !state.links().is_empty())
        })
    }

    /// Whether it is left to a sweep.
    pub fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Leaves it to a sweep, or to the next drop of an owner.
    pub fn leave(&self, left: bool) {
        self.left.store(left, Ordering::Relaxed);
    }

    /// Registers it with the sweep, unless it is: from now on it may be part of a cycle.
    fn note(self: &Arc<Self>) {
        if !self.noted.swap(true, Ordering::Relaxed) {
            cycles::note(self);
        }
    }

    /// Keeps others from using the state, unless it is in use now.
    pub fn try_lock(self: &Arc<Self>) -> Option<Held> {
        let cell = Arc::clone(self);
        // SAFETY: the cell beside the lock keeps the mutex where it is until the lock is released.
        let mutex: &'static Mutex<Leased> = unsafe { &*std::ptr::from_ref(&cell.leased) };
        let leased = mutex.try_lock()?;
        Some(Held {
            leased,
            _cell: cell,
        })
    }
}

/// A state that nothing else can use in the meantime.
pub struct Held {
    /// The first field, so that it is released before its cell may be freed.
    leased: MutexGuard<'static, Leased>,
    _cell: Arc<Cell>,
}

impl Held {
    /// What the state refers to.
    pub fn links(&self) -> Option<&Links<Anchor>> {
        self.leased.as_ref().map(|state| state.links())
    }

    /// Empties the state.
    pub fn take_content(&mut self) -> Option<ConnectionState> {
        let state = self.leased.as_mut()?;
        Some(state.modify(std::mem::take))
    }
}

/// A pooled state in a value of this library.
#[derive(Debug, Clone)]
pub struct PooledLink(Owner<Arc<Cell>>);

impl Release for Arc<Cell> {
    /// If other owners remain, they may be a cycle.
    fn release(self) {
        if Arc::strong_count(&self) > 1 && !self.is_left() && self.may_have_links() {
            cycles::suspect(Node::Cell(self));
        }
    }
}

impl Drop for StateHandle {
    fn drop(&mut self) {
        let released = Holding::Own(None);
        if let Holding::Linked(cell) = std::mem::replace(self.0.get_mut(), released) {
            cell.release();
        }
    }
}

impl PooledLink {
    /// What distinguishes this state from all others while it lives.
    pub fn id(&self) -> u64 {
        Arc::as_ptr(&self.0).addr() as u64
    }

    /// The state.
    pub fn cell(&self) -> &Arc<Cell> {
        &self.0
    }

    /// A reference to the state. Does not wait for a user of it: that may be the caller, reading a
    /// state that holds its own handle. What the caller reads from keeps the state alive.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        let new = || StateHandle(Mutex::new(Holding::Linked(Arc::clone(&self.0))));
        self.0.known.find_or(env, new).to_term(env)
    }
}

/// The link to a pooled state, if the term is one.
pub fn link(env: Env<'_>, term: Term<'_>, lane: Lane) -> Result<Option<PooledLink>, Busy> {
    let Some(handle) = resource::get::<StateHandle>(term) else {
        return Ok(None);
    };
    let mut holding = lane.lock(&handle.0)?;
    let cell = match &mut *holding {
        Holding::Linked(cell) => Arc::clone(cell),
        Holding::Own(leased) => {
            let known = Known::default();
            known.set(env, term);
            let leased = leased.take();
            let has_links = leased.as_ref().is_some_and(|s| !s.links().is_empty());
            let cell = Arc::new(Cell {
                leased: Mutex::new(leased),
                known,
                left: AtomicBool::new(false),
                noted: AtomicBool::new(false),
            });
            if has_links {
                cell.note();
            }
            *holding = Holding::Linked(Arc::clone(&cell));
            cell
        }
    };
    Ok(Some(PooledLink(Owner::new(cell))))
}

/// Tells the VM of the type; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<StateHandle>(env)
}

/// Calls `work` with the state behind a handle; `None` if the term is not a handle.
fn with_leased<R>(
    handle: Term<'_>,
    lane: Lane,
    work: impl FnOnce(&mut Leased) -> Result<R, Busy>,
) -> Result<Option<R>, Busy> {
    let Some(handle) = resource::get::<StateHandle>(handle) else {
        return Ok(None);
    };
    let mut holding = lane.lock(&handle.0)?;
    match &mut *holding {
        Holding::Own(leased) => work(leased).map(Some),
        Holding::Linked(cell) => {
            let cell = Arc::clone(cell);
            drop(holding);
            let mut leased = lane.lock(&cell.leased)?;
            let result = work(&mut leased).map(Some);
            if leased.as_ref().is_some_and(|s| !s.links().is_empty()) {
                cell.note();
            }
            result
        }
    }
}

/// Runs `work` on the state behind `handle`; returns `badarg` if that is not a state handle, and
/// `{error, released}` if it was released.
fn with_state<'a>(
    env: Env<'a>,
    handle: Term<'a>,
    lane: Lane,
    work: impl FnOnce(&mut Lease<'static, ConnectionState>) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    let result = with_leased(handle, lane, |leased| match leased {
        None => Ok(env.error_tuple(released())),
        Some(state) => work(state),
    });
    Ok(result?.unwrap_or_else(|| badarg().encode(env)))
}

/// States that were created for acquisitions that say nothing about the host's load.
static CREATED_ASIDE: AtomicU64 = AtomicU64::new(0);

fn acquire<'a>(
    env: Env<'a>,
    map: Term<'a>,
    opened: Term<'a>,
    aside: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let is_aside = aside.decode::<bool>().unwrap_or(false);
    let created = || {
        if is_aside {
            CREATED_ASIDE.fetch_add(1, Ordering::Relaxed);
        }
    };
    if !map.is_map() {
        return Ok(not_a_map().encode(env));
    }
    if !running::started() {
        return Ok(env.error_tuple(not_started()));
    }
    let to_term = |state| {
        let handle = StateHandle(Mutex::new(Holding::Own(Some(state))));
        (ok(), resource::make(env, handle)).encode(env)
    };
    // Packed before anything is taken from the pool, so a call that is repeated on the dirty lane
    // leaves no trace in the counters.
    let flat = with_flat(map, |entries| {
        let mut state = STATES.acquire_noting(created);
        // As few as they are, they fit into a state that is empty.
        let merged = state.modify(|state| state.merge_small(entries));
        merged.then_some(state)
    });
    if let Some(state) = flat {
        return Ok(to_term(state));
    }
    let acquired = with_packed(map, opened, lane, |entries| {
        let mut state = STATES.acquire_noting(created);
        state.modify(|state| state.merge(entries));
        (state, entries.bytes.len())
    });
    let (state, bytes) = match acquired {
        Ok(acquired) => acquired,
        Err(why) => return reply::not_packed(env, 1, why),
    };
    Ok(garbage::made(env, to_term(state), bytes))
}

// `{ok, Ref}`, `{error, not_started}`, `not_a_map`, or why it could not be packed.
nif!(acquire => pool_acquire(map, opened, aside));

fn release<'a>(env: Env<'a>, handle: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let state = with_leased(handle, lane, |leased| {
        let bytes = leased.as_ref().map_or(0, Lease::bytes);
        if lane == Lane::Fast && bytes > FAST_RELEASE {
            return Err(Busy);
        }
        Ok(leased.take())
    });
    Ok(match state? {
        Some(state) => {
            drop(state);
            ok().encode(env)
        }
        None => badarg().encode(env),
    })
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

fn update<'a>(
    env: Env<'a>,
    handle: Term<'a>,
    map: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    if !map.is_map() {
        return Ok(match resource::get::<StateHandle>(handle) {
            Some(_) => not_a_map().encode(env),
            None => badarg().encode(env),
        });
    }
    let flat = with_flat(map, |entries| {
        let merged = with_state(env, handle, lane, |state| {
            match state.modify(|state| state.merge_small(entries)) {
                true => Ok(ok().encode(env)),
                false => Err(Busy),
            }
        });
        merged.ok()
    });
    if let Some(merged) = flat {
        return Ok(merged);
    }
    // Packed before the state is locked: it may be its own value.
    let merged = with_packed(map, opened, lane, |entries| {
        let many = map::len_of(entries).is_some_and(|len| len > FAST_ENTRIES);
        with_state(env, handle, lane, |state| {
            if lane == Lane::Fast && many && !state.is_empty() {
                return Err(Busy);
            }
            state.modify(|state| state.merge(entries));
            Ok(ok().encode(env))
        })
    });
    match merged {
        Ok(result) => result,
        Err(why) => reply::not_packed(env, 2, why),
    }
}

// `ok`, `{error, released}`, `not_a_map`, or why it could not be packed.
nif!(update => pool_update(handle, map, opened));

/// Sets both sizes and allows acquisitions. Earlier states and counters stay.
#[rustler::nif]
fn pool_start(pool_size: usize, max_pool_size: usize) -> rustler::Atom {
    STATES.set_pool_size(pool_size);
    STATES.set_max_pool_size(max_pool_size);
    BLOCKS.open();
    running::start();
    ok()
}

/// Refuses acquisitions from now on, and keeps nothing idle. States in use stay valid.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_stop() -> rustler::Atom {
    running::stop();
    STATES.set_pool_size(0);
    STATES.set_max_pool_size(0);
    while STATES.shed_step(usize::MAX) > 0 {}
    BLOCKS.close();
    ok()
}

/// Makes up to `limit` of the idle states that are missing. Returns how many it made.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_prepare(limit: usize) -> usize {
    STATES.prepare_step(limit)
}

/// Frees up to `limit` of the idle states over the maximum. Returns how many it freed.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_shed(limit: usize) -> usize {
    STATES.shed_step(limit)
}

/// One trimming step over states and blocks. Returns how many it freed.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_trim() -> usize {
    cycles::sweep();
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

/// How many states were created for acquisitions that say nothing about the host's load.
#[rustler::nif]
fn pool_created_aside() -> u64 {
    CREATED_ASIDE.load(Ordering::Relaxed)
}

/// `{IdleBlocks, IdleBytes, LiveBytes}` of the message buffers.
#[rustler::nif]
fn buffer_stats() -> (u64, u64, u64) {
    let stats = BLOCKS.stats();
    (stats.idle, stats.idle_bytes, stats.live_bytes)
}
