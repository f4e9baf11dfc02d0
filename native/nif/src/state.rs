//! Connection states as resources.

use crate::cycles::{self, Node};
use crate::lane::{Busy, FAST_ENTRIES, Lane};
use crate::resource::ResourceRef;
use crate::share::{self, SharedBytes};
use crate::stock::Stock;
use crate::terms::{
    Anchor, Known, Source, unpack, with_flat, with_packed, with_room, with_state_path, word,
};
use crate::{garbage, nif, reaper, reply, resource};
use erlmcp_memory_core::heap;
use erlmcp_memory_core::map::{self, EditError, Room};
use erlmcp_memory_core::packed::{Item, Links, Packed, View, Writer, item};
use erlmcp_memory_core::state::{FieldError, Fields, Names, Sizes, State, complete, new_state};
use erlmcp_memory_core::threads::Tally;
use parking_lot::RwLock;
use rustler::{Encoder, Env, Term};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
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
///
/// A small state lies behind its handle in the same object, so that a new version takes one block:
///
/// ```text
///   Handle │ packed fields        one object of the VM
/// ```
pub struct Handle {
    state: RwLock<Holding>,
}

resource!(Handle, c"erlmcp_memory_state");

/// The most packed bytes of a state in the object of its handle. What is there goes with the last
/// reference; `cleanup_state` gives the rest back.
const INSIDE: usize = 512;

enum Holding {
    /// A state behind the handle.
    Inside(Inside),
    State(Counted),
    /// A state that has states in it, and that other values refer to.
    Linked(Arc<Linked>),
    /// It was cleaned up.
    Nothing,
}

impl Holding {
    fn state(&self) -> Option<Held<'_>> {
        match self {
            Holding::Inside(inside) => Some(Held {
                fields: Fields::of(View::new(inside.bytes(), &inside.links)),
                is_inside: true,
            }),
            Holding::State(state) => Some(Held::apart(state)),
            Holding::Linked(linked) => Some(Held::apart(&linked.state)),
            Holding::Nothing => None,
        }
    }
}

/// A state that is read, wherever it lies.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// Its fields.
    pub fields: Fields<'a, Anchor>,
    /// Whether it is part of the object of its handle.
    is_inside: bool,
}

impl<'a> Held<'a> {
    fn apart(state: &'a State<Anchor>) -> Self {
        Held {
            fields: state.fields(),
            is_inside: false,
        }
    }

    /// Bytes of memory besides the object of its handle.
    pub fn heap_bytes(self) -> usize {
        let View { bytes, links } = self.fields.view();
        let block = if self.is_inside {
            0
        } else {
            heap::block(bytes.len())
        };
        block + links.heap_bytes()
    }

    /// Bytes of the object of its handle.
    fn object_bytes(self) -> usize {
        let bytes = self.fields.view().bytes.len();
        let inside = if self.is_inside { room_for(bytes) } else { 0 };
        resource::overhead() + size_of::<Handle>() + inside
    }
}

/// Bytes that so many packed bytes add to an object.
fn room_for(bytes: usize) -> usize {
    bytes.next_multiple_of(size_of::<usize>())
}

/// Packed fields behind a handle, and what they link to.
struct Inside {
    start: NonNull<u8>,
    len: u16,
    links: Links<Anchor>,
}

// SAFETY: the bytes behind the handle never change, and are as much its own as the links are.
unsafe impl Send for Inside {}
// SAFETY: as above.
unsafe impl Sync for Inside {}

/// Packed bytes in the objects of handles.
static INSIDES: Tally = Tally::new();

impl Inside {
    /// # Safety
    ///
    /// There is room for the bytes, which are at most [`INSIDE`], at `start`, for as long as what is
    /// returned lives, and nobody else uses it.
    unsafe fn new(bytes: &[u8], links: Links<Anchor>, start: NonNull<u8>) -> Self {
        // SAFETY: the caller promises the room, so it is not part of `bytes`.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        STATES.came(links.heap_bytes());
        INSIDES.came(room_for(bytes.len()));
        Inside {
            start,
            len: bytes.len() as u16,
            links,
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `new` wrote so many, and they stay as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len.into()) }
    }

    /// The links, for another owner of a copy of the bytes.
    fn take_links(&mut self) -> Links<Anchor> {
        let links = std::mem::take(&mut self.links);
        STATES.add(0, -(links.heap_bytes() as isize));
        links
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        STATES.went(self.links.heap_bytes());
        INSIDES.went(room_for(self.len.into()));
        if self.links.heap_bytes() > FREED_AT_ONCE {
            let links = std::mem::take(&mut self.links);
            reaper::free_value(Packed::new(Box::default(), links));
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
                state.map_or(Links::None, |state| state.fields.view().links.clone())
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
    if let Holding::Linked(linked) = &*held {
        return Ok(Some(StateLink::linked_to(linked)));
    }
    let Some(state) = held.state() else {
        return Ok(None);
    };
    let links = state.fields.view().links;
    links.each_anchor(&mut |_, anchor| {
        cyclic |= cycles::leads_to_pooled(anchor);
        stays &= !cyclic && !matches!(anchor, Anchor::State(_));
    });
    drop(held);
    if stays {
        return Ok(Some(StateLink::Handle(handle)));
    }
    let mut held = match lane {
        Lane::Fast => handle.state.try_write().ok_or(Busy)?,
        Lane::Dirty => handle.state.write(),
    };
    let state = match std::mem::replace(&mut *held, Holding::Nothing) {
        Holding::Nothing => return Ok(None),
        Holding::Linked(linked) => {
            *held = Holding::Linked(Arc::clone(&linked));
            return Ok(Some(StateLink::linked_to(&linked)));
        }
        Holding::State(state) => state,
        Holding::Inside(mut inside) => {
            let links = inside.take_links();
            Counted::new(State::again(Packed::new(inside.bytes().into(), links)))
        }
    };
    let known = Known::default();
    known.set(env, term);
    let linked = Arc::new(Linked {
        state,
        known,
        cyclic,
    });
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
        Holding::State(state) if state.heap_bytes() > FREED_AT_ONCE => {
            reaper::free_value(state.into_packed());
        }
        // What its links lead to is freed elsewhere.
        Holding::Inside(_) | Holding::State(_) | Holding::Nothing => {}
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
        objects: resource::objects::<Handle>().bytes + INSIDES.sum().bytes,
    }
}

/// A state that is counted while it is there.
#[derive(Debug)]
struct Counted(Option<State<Anchor>>);

impl Counted {
    fn new(state: State<Anchor>) -> Self {
        STATES.came(state.heap_bytes());
        Counted(Some(state))
    }

    fn into_packed(mut self) -> Packed<Anchor> {
        self.take()
            .map_or_else(|| Packed::from_bytes(&[]), State::into_packed)
    }

    fn take(&mut self) -> Option<State<Anchor>> {
        let state = self.0.take()?;
        STATES.went(state.heap_bytes());
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
    let packed = state.into_packed();
    if packed.bytes().len() <= INSIDE {
        let (bytes, links) = packed.into_parts();
        return small(env, &bytes, links);
    }
    let handle = Handle {
        state: RwLock::new(Holding::State(Counted::new(State::again(packed)))),
    };
    resource::make(env, handle)
}

/// A term for a new state of at most [`INSIDE`] packed bytes.
fn small<'a>(env: Env<'a>, bytes: &[u8], links: Links<Anchor>) -> Term<'a> {
    debug_assert!(bytes.len() <= INSIDE);
    let handle = |behind| {
        // SAFETY: so many bytes lie behind the handle, which owns what is made here.
        let inside = unsafe { Inside::new(bytes, links, behind) };
        Handle {
            state: RwLock::new(Holding::Inside(inside)),
        }
    };
    ResourceRef::with_tail(handle, room_for(bytes.len())).to_term(env)
}

/// A term for the state that `build` builds in the room; `None` if it does not, or if that is not
/// small.
fn built<'a>(
    env: Env<'a>,
    build: impl FnOnce(&mut Room) -> Result<Option<Links<Anchor>>, FieldError>,
) -> Result<Option<Term<'a>>, FieldError> {
    with_room(|room| {
        let links = build(room)?;
        let fits = room.bytes().len() <= INSIDE;
        Ok(links
            .filter(|_| fits)
            .map(|links| small(env, room.bytes(), links)))
    })
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
    with: impl FnOnce(Held<'_>) -> Result<Term<'a>, Busy>,
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
nif!(from_map => state_from_map(map, opened));
nif!(sizes => state_sizes(state));
nif!(cleanup => state_cleanup(state));
nif!(update_all => state_update_all(state, fields, opened));
nif!(is_state => short state_is(term));

fn create<'a>(env: Env<'a>, id: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    if !id.is_binary() {
        return Ok(reply::badarg(env, 1, "the id is not a binary"));
    }
    let created_at = now();
    let none = Term::list_new_empty(env);
    let made = with_packed(id, none, lane, |id| {
        with_room(|room| {
            new_state(names(), id.bytes, created_at, room);
            to_term_of(env, View::new(room.bytes(), &Links::default()))
        })
    });
    made.or_else(|error| reply::not_packed(env, 1, error))
}

/// Milliseconds since the epoch.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as i64)
}

/// Calls `with` with the keys of the path that names a field.
pub fn at_field<'a>(
    env: Env<'a>,
    field: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    with: impl FnOnce(&[View<'_, Anchor>]) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    match with_state_path(field, opened, lane, with) {
        Ok(result) => result,
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
                let fields = state.fields;
                let small = built(env, |room| fields.update_in(names(), path, value, room));
                let updated = small.and_then(|term| match term {
                    Some(term) => Ok(term),
                    None => Ok(to_term(env, fields.update(names(), path, value)?)),
                });
                Ok(match updated {
                    Ok(state) => garbage::made(env, state, bytes),
                    Err(FieldError::Path(error)) => {
                        let shared = share::into_share(env, fields.view(), path);
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
    let flat = with_flat(fields, |entries| {
        let updated = with_state(env, state, lane, |state| {
            let build = |room: &mut Room| state.fields.update_all_in(names(), entries, room);
            match built(env, build) {
                Ok(Some(term)) => Ok(term),
                // To be found again, in the way that is right for all.
                Ok(None) | Err(_) => Err(Busy),
            }
        });
        updated.ok()
    });
    if let Some(updated) = flat {
        return Ok(updated);
    }
    with_value(env, fields, 2, opened, lane, |fields| {
        with_state(env, state, lane, |state| {
            Ok(match state.fields.update_all(names(), fields) {
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
            Ok(match state.fields.get(path) {
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
            Ok(match state.fields.remove(names(), path) {
                Ok(Some(state)) => to_term(env, state),
                // The state did not have it.
                Ok(None) => share::into_share(env, state.fields.view(), path).unwrap_or(handle),
                Err(error) => refused(env, error, 2, 2),
            })
        })
    })
}

fn fields<'a>(env: Env<'a>, state: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_state(env, state, lane, |state| {
        unpack(env, state.fields.view(), Source::Owned, lane)
    })
}

fn from_fields<'a>(
    env: Env<'a>,
    fields: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let made = with_packed(fields, opened, lane, |fields| from_packed(env, fields));
    made.or_else(|error| reply::not_packed(env, 1, error))
}

/// As `from_fields`, with what a new state has where the map has nothing.
fn from_map<'a>(
    env: Env<'a>,
    map: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let made = with_packed(map, opened, lane, |given| {
        let completed = complete(names(), given, now());
        from_packed(env, completed.as_ref().map_or(given, Packed::view))
    });
    made.or_else(|error| reply::not_packed(env, 1, error))
}

fn from_packed<'a>(env: Env<'a>, fields: View<'_, Anchor>) -> Term<'a> {
    match checked(fields) {
        Ok(()) => garbage::made(env, to_term_of(env, fields), fields.bytes.len()),
        Err(text) => reply::badarg(env, 1, text),
    }
}

/// A term for a new state of these fields, which were checked.
fn to_term_of<'a>(env: Env<'a>, fields: View<'_, Anchor>) -> Term<'a> {
    if fields.bytes.len() <= INSIDE {
        return small(env, fields.bytes, fields.links.clone());
    }
    let packed = Packed::new(fields.bytes.into(), fields.links.clone());
    to_term(env, State::of(packed))
}

/// What is wrong with the fields of a state, if anything is.
fn checked(fields: View<'_, Anchor>) -> Result<(), &'static str> {
    let named = |key: &[u8]| matches!(item(key, &mut 0), Ok(Item::Atom(_)));
    let fields = Fields::checked(names(), fields).map_err(|error| match error {
        FieldError::Id => "no binary under the key id",
        FieldError::CreatedAt => "no integer of 64 bits under the key created_at",
        _ => "not a map, or metadata or pending_refs is not a map",
    })?;
    let mut atoms_only = true;
    map::for_each_of(fields.view(), |key, _| atoms_only &= named(key));
    if atoms_only {
        Ok(())
    } else {
        Err("a key is not an atom")
    }
}

/// A state of these fields, or what is wrong with them.
pub fn state_from(fields: Packed<Anchor>) -> Result<State<Anchor>, &'static str> {
    checked(fields.view())?;
    Ok(State::of(fields))
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
        && held
            .state()
            .is_some_and(|state| state.heap_bytes() > FREED_AT_ONCE)
    {
        return Err(Busy);
    }
    let state = std::mem::replace(&mut *held, Holding::Nothing);
    drop(held);
    match state {
        // Its memory is freed when the call returns.
        Holding::State(state) => drop(state),
        Holding::Inside(mut inside) => drop(inside.take_links()),
        other => free(other),
    }
    Ok(reply::ok(env))
}

/// The shares that a state refers to may be many; counting them is bounded by this many bytes.
const COUNTED_AT_ONCE: usize = 256 << 10;

fn sizes<'a>(env: Env<'a>, state: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_state(env, state, lane, |state| {
        if lane == Lane::Fast && state.heap_bytes() > COUNTED_AT_ONCE {
            return Err(Busy);
        }
        let total = state.object_bytes() + state.heap_bytes();
        let sizes = state.fields.sizes(names(), total);
        let mut shared = SharedBytes::default();
        shared.add_links(state.fields.view().links);
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
