//! Connection states as resources.

use crate::cycles::{self, Node};
use crate::lane::{Busy, FAST_ENTRIES, Lane};
use crate::resource::ResourceRef;
use crate::share::{self, SharedBytes};
use crate::stock::Stock;
use crate::terms::{Anchor, Known, Path, Source, pack, unpack, with_packed, word};
use crate::{garbage, nif, reaper, reply, resource};
use erlmcp_memory_core::map::{self, EditError};
use erlmcp_memory_core::packed::{Item, Links, Packed, View, Writer, item};
use erlmcp_memory_core::state::{FieldError, Names, Sizes, State};
use erlmcp_memory_core::threads::Tally;
use parking_lot::RwLock;
use rustler::{Encoder, Env, Term};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

mod atoms {
    rustler::atoms! {
        id,
        phase,
        transport,
        capabilities_ref,
        metadata,
        pending_refs,
        created_at,
        undefined,
        initialization,
        total_bytes,
        base,
        metadata_map_size,
        pending_count,
        extra,
        shared_bytes,
    }
}

/// The resource behind a state. A state never changes; the lock is for `cleanup_state`, which
/// removes it, and for the first value that refers to a state with states in it.
pub struct Handle {
    state: RwLock<Holding>,
}

resource!(Handle, c"erlmcp_memory_state");

enum Holding {
    State(Counted),
    /// A state that has states in it, and that other values refer to.
    Linked(Arc<Linked>),
    /// It was cleaned up.
    Nothing,
}

impl Holding {
    fn state(&self) -> Option<&State<Anchor>> {
        match self {
            Holding::State(state) => Some(state),
            Holding::Linked(linked) => Some(&linked.state),
            Holding::Nothing => None,
        }
    }
}

/// A state that has states in it, and that values refer to. Its owners can be counted, which those
/// of a resource object cannot, and a long chain of such states is freed step by step.
#[derive(Debug)]
pub struct Linked {
    state: Counted,
    /// The one reference that stands for it.
    known: Known,
    /// Whether it leads to a pooled state.
    cyclic: bool,
}

impl Linked {
    /// The state.
    pub fn state(&self) -> &State<Anchor> {
        &self.state
    }

    /// Whether it leads to a pooled state.
    pub fn is_cyclic(&self) -> bool {
        self.cyclic
    }
}

/// A state in a value of this library.
#[derive(Debug, Clone)]
pub enum StateLink {
    /// One that has no state in it. It stays in its handle, so that a link takes nothing.
    Handle(ResourceRef<Handle>),
    /// One that has.
    Linked(LinkedOwner),
}

/// An owner of a linked state.
#[derive(Debug)]
pub struct LinkedOwner(ManuallyDrop<Arc<Linked>>);

impl Clone for LinkedOwner {
    fn clone(&self) -> Self {
        LinkedOwner(self.0.clone())
    }
}

impl Drop for LinkedOwner {
    fn drop(&mut self) {
        // SAFETY: this is the end of the owner, so nothing takes its state a second time.
        unlink(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}

/// Drops an owner. If it was the last one, what it owned may be the head of a long chain.
fn unlink(linked: Arc<Linked>) {
    if linked.cyclic {
        cycles::suspect(Node::State(linked));
    } else if let Some(linked) = Arc::into_inner(linked) {
        reaper::free_value(linked.state.into_packed());
    }
}

impl StateLink {
    fn linked_to(linked: &Arc<Linked>) -> Self {
        StateLink::Linked(LinkedOwner(ManuallyDrop::new(Arc::clone(linked))))
    }

    /// What distinguishes this state from all others while it lives.
    pub fn id(&self) -> u64 {
        match self {
            StateLink::Handle(handle) => handle.address().addr() as u64,
            StateLink::Linked(owner) => Arc::as_ptr(&owner.0).addr() as u64,
        }
    }

    /// The state, if it has states in it.
    pub fn linked(&self) -> Option<&Arc<Linked>> {
        match self {
            StateLink::Handle(_) => None,
            StateLink::Linked(owner) => Some(&owner.0),
        }
    }

    /// What the state links to, unless it was cleaned up.
    pub fn links(&self) -> Links<Anchor> {
        match self {
            // Only a cleanup writes to it.
            StateLink::Handle(handle) => {
                let held = handle.state.try_read();
                let state = held.as_ref().and_then(|held| held.state());
                state.map_or(Links::None, |state| state.fields().view().links.clone())
            }
            StateLink::Linked(owner) => owner.0.state.fields().view().links.clone(),
        }
    }

    /// A reference to the state.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            StateLink::Handle(handle) => handle.to_term(env),
            StateLink::Linked(LinkedOwner(linked)) => {
                let new = || Handle {
                    state: RwLock::new(Holding::Linked(Arc::clone(linked))),
                };
                linked.known.find_or(env, new).to_term(env)
            }
        }
    }
}

/// The link to a state, if the term is one that was not cleaned up.
pub fn link(env: Env<'_>, term: Term<'_>, lane: Lane) -> Result<Option<StateLink>, Busy> {
    let Some(handle) = ResourceRef::<Handle>::from_term(term) else {
        return Ok(None);
    };
    let held = match lane {
        Lane::Fast => handle.state.try_read().ok_or(Busy)?,
        Lane::Dirty => handle.state.read(),
    };
    let (mut stays, mut cyclic) = (true, false);
    match &*held {
        Holding::State(state) => state.fields().view().links.each_anchor(&mut |_, anchor| {
            cyclic |= cycles::leads_to_pooled(anchor);
            stays &= !cyclic && !matches!(anchor, Anchor::State(_));
        }),
        Holding::Linked(linked) => return Ok(Some(StateLink::linked_to(linked))),
        Holding::Nothing => return Ok(None),
    }
    drop(held);
    if stays {
        return Ok(Some(StateLink::Handle(handle)));
    }
    let mut held = match lane {
        Lane::Fast => handle.state.try_write().ok_or(Busy)?,
        Lane::Dirty => handle.state.write(),
    };
    let linked = match std::mem::replace(&mut *held, Holding::Nothing) {
        Holding::Nothing => return Ok(None),
        Holding::Linked(linked) => linked,
        Holding::State(state) => {
            let known = Known::default();
            known.set(env, term);
            Arc::new(Linked {
                state,
                known,
                cyclic,
            })
        }
    };
    *held = Holding::Linked(Arc::clone(&linked));
    Ok(Some(StateLink::linked_to(&linked)))
}

/// Tells the VM of the type; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<Handle>(env)
}

impl Drop for Handle {
    fn drop(&mut self) {
        free(std::mem::replace(self.state.get_mut(), Holding::Nothing));
    }
}

/// The most bytes of a state that is freed in one piece.
const FREED_AT_ONCE: usize = 256 << 10;

fn free(held: Holding) {
    match held {
        Holding::State(state) if state.fields().heap_bytes() > FREED_AT_ONCE => {
            reaper::free_value(state.into_packed());
        }
        // What its links lead to is freed elsewhere.
        Holding::State(_) | Holding::Nothing => {}
        Holding::Linked(linked) => unlink(linked),
    }
}

impl Handle {
    /// A handle without a state.
    pub fn example() -> Self {
        Handle {
            state: RwLock::new(Holding::Nothing),
        }
    }
}

/// The states of the node, and what their values take. What two versions have in common is counted
/// for both.
static STATES: Tally = Tally::new();

/// Compact states.
pub fn stock() -> Stock {
    let states = STATES.sum();
    Stock {
        count: states.count,
        heap: states.bytes,
        objects: resource::objects::<Handle>().bytes,
    }
}

/// A state that is counted while it is there.
#[derive(Debug)]
struct Counted(Option<State<Anchor>>);

impl Counted {
    fn new(state: State<Anchor>) -> Self {
        STATES.came(state.fields().heap_bytes());
        Counted(Some(state))
    }

    fn into_packed(mut self) -> Packed<Anchor> {
        self.take()
            .map_or_else(|| Packed::from_bytes(&[]), State::into_packed)
    }

    fn take(&mut self) -> Option<State<Anchor>> {
        let state = self.0.take()?;
        STATES.went(state.fields().heap_bytes());
        Some(state)
    }
}

impl Deref for Counted {
    type Target = State<Anchor>;

    fn deref(&self) -> &State<Anchor> {
        self.0.as_ref().expect("it is taken at its end")
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        drop(self.take());
    }
}

const NO_STATE: &str = "not a connection state, or one that was cleaned up, or a reference that \
    went through term_to_binary/1, a file or another node";

static NAMES: OnceLock<Names<Anchor>> = OnceLock::new();

/// Makes the packed names of the fields; called once, when the library is loaded.
pub fn load_names(env: Env<'_>) {
    let packed = |atom: rustler::Atom| {
        let mut name = Writer::default();
        name.atom(word(atom.to_term(env)));
        name.finish()
    };
    let _ = NAMES.set(Names {
        id: packed(atoms::id()),
        phase: packed(atoms::phase()),
        transport: packed(atoms::transport()),
        capabilities_ref: packed(atoms::capabilities_ref()),
        metadata: packed(atoms::metadata()),
        pending_refs: packed(atoms::pending_refs()),
        created_at: packed(atoms::created_at()),
        undefined: packed(atoms::undefined()),
        initialization: packed(atoms::initialization()),
    });
}

/// The packed names of the fields.
pub fn names() -> &'static Names<Anchor> {
    // The library is not loaded unless `load_names` ran.
    NAMES
        .get()
        .expect("names are made when the library is loaded")
}

/// A term for a new state.
pub fn to_term(env: Env<'_>, state: State<Anchor>) -> Term<'_> {
    let handle = Handle {
        state: RwLock::new(Holding::State(Counted::new(state))),
    };
    resource::make(env, handle)
}

fn refused(env: Env<'_>, error: FieldError, field: u32, value: u32) -> Term<'_> {
    match error {
        FieldError::Id => reply::badarg(env, value, "the id is not a binary"),
        FieldError::CreatedAt => {
            reply::badarg(env, value, "created_at is not an integer of 64 bits")
        }
        FieldError::NotAMap => reply::badarg(env, value, "not a map"),
        FieldError::Name => reply::badarg(env, field, reply::NO_PATH),
        FieldError::Required => reply::badarg(env, field, "every state has an id and a created_at"),
        FieldError::Path(EditError::NotAMap(_)) => reply::badarg(
            env,
            field,
            "the path leads through a value that is not a map",
        ),
        FieldError::Path(EditError::PathLength) => {
            reply::badarg(env, field, "not a path of 1 to 64 keys")
        }
    }
}

/// Calls `with` with the state behind a term.
pub fn with_state<'a>(
    env: Env<'a>,
    term: Term<'a>,
    lane: Lane,
    with: impl FnOnce(&State<Anchor>) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    let Some(handle) = resource::get::<Handle>(term) else {
        return Ok(reply::badarg(env, 1, NO_STATE));
    };
    // A reader waits for a cleanup that waits for another, slow reader.
    let state = match lane {
        Lane::Fast => handle.state.try_read(),
        Lane::Dirty => Some(handle.state.read()),
    };
    match state.as_deref().map(Holding::state) {
        None => Err(Busy),
        Some(Some(state)) => with(state),
        Some(None) => Ok(reply::badarg(env, 1, NO_STATE)),
    }
}

nif!(create => sized state_new(id));
nif!(update => sized state_update(state, field, value, opened));
nif!(get => state_get(state, field, opened));
nif!(remove => state_remove(state, field, opened));
nif!(fields => state_fields(state));
nif!(from_fields => state_from_fields(fields, opened));
nif!(sizes => state_sizes(state));
nif!(cleanup => state_cleanup(state));
nif!(update_all => state_update_all(state, fields, opened));
nif!(is_state => short state_is(term));

fn create<'a>(env: Env<'a>, id: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    if !id.is_binary() {
        return Ok(reply::badarg(env, 1, "the id is not a binary"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let created_at = now.map_or(0, |since| since.as_millis() as i64);
    let none = Term::list_new_empty(env);
    match with_packed(id, none, lane, |id| State::new(names(), id, created_at)) {
        Ok(state) => Ok(to_term(env, state)),
        Err(error) => reply::not_packed(env, 1, error),
    }
}

/// Calls `with` with the keys of the path that names a field.
pub fn at_field<'a>(
    env: Env<'a>,
    field: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    with: impl FnOnce(&[View<'_, Anchor>]) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    match Path::of_state(field, opened, lane) {
        Ok(path) => path.with(with),
        Err(error) => reply::not_packed(env, 2, error),
    }
}

/// Calls `with` with a value, the argument at this position, that goes into a state. It is packed
/// before the state is locked: it may be a value of that state.
fn with_value<'a>(
    env: Env<'a>,
    value: Term<'a>,
    position: u32,
    opened: Term<'a>,
    lane: Lane,
    with: impl FnOnce(View<'_, Anchor>) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    let result = with_packed(value, opened, lane, |value| match map::len_of(value) {
        Some(len) if lane == Lane::Fast && len > FAST_ENTRIES => Err(Busy),
        _ => with(value),
    });
    result.unwrap_or_else(|error| reply::not_packed(env, position, error))
}

fn update<'a>(
    env: Env<'a>,
    state: Term<'a>,
    field: Term<'a>,
    value: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    at_field(env, field, opened, lane, |path| {
        with_value(env, value, 3, opened, lane, |value| {
            let bytes = value.bytes.len();
            with_state(env, state, lane, |state| {
                Ok(match state.update(names(), path, value) {
                    Ok(state) => garbage::made(env, to_term(env, state), bytes),
                    Err(FieldError::Path(error)) => {
                        let shared = share::into_share(env, state.fields().view(), path);
                        shared.unwrap_or_else(|| refused(env, FieldError::Path(error), 2, 3))
                    }
                    Err(error) => refused(env, error, 2, 3),
                })
            })
        })
    })
}

fn update_all<'a>(
    env: Env<'a>,
    state: Term<'a>,
    fields: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    if !fields.is_map() {
        return Ok(reply::badarg(env, 2, "not a map"));
    }
    with_value(env, fields, 2, opened, lane, |fields| {
        with_state(env, state, lane, |state| {
            Ok(match state.update_all(names(), fields) {
                Ok(state) => garbage::made(env, to_term(env, state), fields.bytes.len()),
                // Perhaps a path through shared content: set them one by one.
                Err(FieldError::Path(EditError::NotAMap(_))) => reply::none(env),
                Err(error) => refused(env, error, 2, 2),
            })
        })
    })
}

fn is_state<'a>(env: Env<'a>, term: Term<'a>) -> Term<'a> {
    resource::get::<Handle>(term).is_some().encode(env)
}

fn get<'a>(
    env: Env<'a>,
    state: Term<'a>,
    field: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    at_field(env, field, opened, lane, |path| {
        with_state(env, state, lane, |state| {
            Ok(match state.get(path) {
                Some(value) => reply::ok_value(env, unpack(env, value, Source::Owned, lane)?),
                None => reply::none(env),
            })
        })
    })
}

fn remove<'a>(
    env: Env<'a>,
    handle: Term<'a>,
    field: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    at_field(env, field, opened, lane, |path| {
        with_state(env, handle, lane, |state| {
            Ok(match state.remove(names(), path) {
                Ok(Some(state)) => to_term(env, state),
                // The state did not have it.
                Ok(None) => share::into_share(env, state.fields().view(), path).unwrap_or(handle),
                Err(error) => refused(env, error, 2, 2),
            })
        })
    })
}

fn fields<'a>(env: Env<'a>, state: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_state(env, state, lane, |state| {
        unpack(env, state.fields().view(), Source::Owned, lane)
    })
}

fn from_fields<'a>(
    env: Env<'a>,
    fields: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let packed = match pack(fields, opened, lane) {
        Ok(packed) => packed,
        Err(error) => return reply::not_packed(env, 1, error),
    };
    let bytes = packed.bytes().len();
    Ok(match state_from(packed) {
        Ok(state) => garbage::made(env, to_term(env, state), bytes),
        Err(text) => reply::badarg(env, 1, text),
    })
}

/// A state of these fields, or what is wrong with them.
pub fn state_from(fields: Packed<Anchor>) -> Result<State<Anchor>, &'static str> {
    let named = |key: &[u8]| matches!(item(key, &mut 0), Ok(Item::Atom(_)));
    let state = State::from_fields(names(), fields).map_err(|error| match error {
        FieldError::Id => "no binary under the key id",
        FieldError::CreatedAt => "no integer of 64 bits under the key created_at",
        _ => "not a map, or metadata or pending_refs is not a map",
    })?;
    let mut atoms_only = true;
    state.fields().for_each(|key, _| atoms_only &= named(key));
    if atoms_only {
        Ok(state)
    } else {
        Err("a key is not an atom")
    }
}

/// Removes a state from its handle. Its memory is freed at once.
fn cleanup<'a>(env: Env<'a>, state: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let Some(handle) = resource::get::<Handle>(state) else {
        return Ok(reply::badarg(env, 1, NO_STATE));
    };
    let mut held = match lane {
        Lane::Fast => handle.state.try_write().ok_or(Busy)?,
        Lane::Dirty => handle.state.write(),
    };
    if lane == Lane::Fast
        && let Holding::State(state) = &*held
        && state.fields().heap_bytes() > FREED_AT_ONCE
    {
        return Err(Busy);
    }
    let state = std::mem::replace(&mut *held, Holding::Nothing);
    drop(held);
    match state {
        // Its memory is freed when the call returns.
        Holding::State(state) => drop(state),
        other => free(other),
    }
    Ok(reply::ok(env))
}

/// The shares that a state refers to may be many; counting them is bounded by this many bytes.
const COUNTED_AT_ONCE: usize = 256 << 10;

fn sizes<'a>(env: Env<'a>, state: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_state(env, state, lane, |state| {
        if lane == Lane::Fast && state.fields().heap_bytes() > COUNTED_AT_ONCE {
            return Err(Busy);
        }
        let handle = resource::overhead() + size_of::<Handle>();
        let sizes = state.sizes(names(), handle);
        let mut shared = SharedBytes::default();
        shared.add_links(state.fields().view().links);
        Ok(size_map(env, &sizes, shared.bytes()))
    })
}

fn size_map<'a>(env: Env<'a>, sizes: &Sizes, shared_bytes: usize) -> Term<'a> {
    let pairs = [
        (atoms::total_bytes(), sizes.total),
        (atoms::base(), sizes.base),
        (atoms::id(), sizes.id),
        (atoms::transport(), sizes.transport),
        (atoms::capabilities_ref(), sizes.capabilities_ref),
        (atoms::metadata(), sizes.metadata),
        (atoms::pending_refs(), sizes.pending_refs),
        (atoms::extra(), sizes.extra),
        (atoms::metadata_map_size(), sizes.metadata_len),
        (atoms::pending_count(), sizes.pending_len),
        (atoms::shared_bytes(), shared_bytes),
    ];
    Term::map_from_pairs(env, &pairs).unwrap_or_else(|_| reply::none(env))
}
