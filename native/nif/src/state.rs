//! Connection states as resources.

use crate::lane::{Busy, Lane};
use crate::share::Share;
use crate::terms::{Anchor, Path, Source, pack, unpack, with_packed, word};
use crate::{nif, reaper, reply, resource};
use erlmcp_memory_core::map::{self, EditError};
use erlmcp_memory_core::packed::{Item, Packed, Target, Writer, item};
use erlmcp_memory_core::state::{FieldError, Names, Sizes, State};
use parking_lot::RwLock;
use rustler::{Env, Term};
use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
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
/// takes it away.
pub struct Handle {
    state: RwLock<Option<State<Anchor>>>,
}

resource!(Handle, c"erlmcp_memory_state");

/// Tells the VM of the type; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<Handle>(env)
}

impl Drop for Handle {
    fn drop(&mut self) {
        free(self.state.get_mut().take());
    }
}

fn free(state: Option<State<Anchor>>) {
    if let Some(state) = state {
        let bytes = state.fields().heap_bytes();
        reaper::free(state, bytes);
    }
}

/// What the VM takes for a state's object besides the handle: the headers of a block, of a magic
/// binary and of a resource, and what some releases of the VM note of who asked for it.
static OVERHEAD: AtomicUsize = AtomicUsize::new(80);

/// Finds out what that is; called once, when the library is loaded.
pub fn learn_overhead() {
    if let Some(bytes) = resource::overhead(|| Handle {
        state: RwLock::new(None),
    }) {
        OVERHEAD.store(bytes, Ordering::Relaxed);
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
        state: RwLock::new(Some(state)),
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
    match state.as_deref() {
        None => Err(Busy),
        Some(Some(state)) => with(state),
        Some(None) => Ok(reply::badarg(env, 1, NO_STATE)),
    }
}

/// Entries that are put into a map one after the other on a normal scheduler.
const MERGED_AT_ONCE: usize = 128;

nif!(create => state_new(id));
nif!(update => state_update(state, field, value));
nif!(get => state_get(state, field));
nif!(remove => state_remove(state, field));
nif!(fields => state_fields(state));
nif!(from_fields => state_from_fields(fields));
nif!(sizes => state_sizes(state));

fn create<'a>(env: Env<'a>, id: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    if !id.is_binary() {
        return Ok(reply::badarg(env, 1, "the id is not a binary"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let created_at = now.map_or(0, |since| since.as_millis() as i64);
    match with_packed(env, id, lane, |id| State::new(names(), id, created_at)) {
        Ok(state) => Ok(to_term(env, state)),
        Err(error) => reply::not_packed(env, 1, error),
    }
}

fn update<'a>(
    env: Env<'a>,
    state: Term<'a>,
    field: Term<'a>,
    value: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    with_state(env, state, lane, |state| {
        let path = match Path::of_state(env, field, lane) {
            Ok(path) => path,
            Err(error) => return reply::not_packed(env, 2, error),
        };
        let updated = with_packed(env, value, lane, |value| {
            if lane == Lane::Fast && map::len_of(value).is_some_and(|len| len > MERGED_AT_ONCE) {
                return Err(Busy);
            }
            Ok(match path.with(|path| state.update(names(), path, value)) {
                Ok(state) => to_term(env, state),
                Err(error) => refused(env, error, 2, 3),
            })
        });
        match updated {
            Ok(updated) => updated,
            Err(error) => reply::not_packed(env, 3, error),
        }
    })
}

fn get<'a>(env: Env<'a>, state: Term<'a>, field: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_state(env, state, lane, |state| {
        let path = match Path::of_state(env, field, lane) {
            Ok(path) => path,
            Err(error) => return reply::not_packed(env, 2, error),
        };
        Ok(match path.with(|path| state.get(path)) {
            Some(value) => reply::ok_value(env, unpack(env, value, Source::Owned, lane)?),
            None => reply::none(env),
        })
    })
}

fn remove<'a>(
    env: Env<'a>,
    handle: Term<'a>,
    field: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    with_state(env, handle, lane, |state| {
        let path = match Path::of_state(env, field, lane) {
            Ok(path) => path,
            Err(error) => return reply::not_packed(env, 2, error),
        };
        Ok(match path.with(|path| state.remove(names(), path)) {
            Ok(Some(state)) => to_term(env, state),
            // The same state without what it did not have.
            Ok(None) => handle,
            Err(error) => refused(env, error, 2, 2),
        })
    })
}

fn fields<'a>(env: Env<'a>, state: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_state(env, state, lane, |state| {
        unpack(env, state.fields().view(), Source::Owned, lane)
    })
}

fn from_fields<'a>(env: Env<'a>, fields: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let packed = match pack(env, fields, lane) {
        Ok(packed) => packed,
        Err(error) => return reply::not_packed(env, 1, error),
    };
    Ok(match state_from(packed) {
        Ok(state) => to_term(env, state),
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

/// Takes a state away from its handle. On a dirty scheduler: its memory is given back at once.
#[rustler::nif(schedule = "DirtyCpu")]
fn state_cleanup<'a>(env: Env<'a>, state: Term<'a>) -> Term<'a> {
    match resource::get::<Handle>(state) {
        Some(handle) => {
            let state = handle.state.write().take();
            drop(state);
            reply::ok(env)
        }
        None => reply::badarg(env, 1, NO_STATE),
    }
}

/// The shares that a state refers to may be many; counting them is bounded by this many bytes.
const COUNTED_AT_ONCE: usize = 256 << 10;

fn sizes<'a>(env: Env<'a>, state: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_state(env, state, lane, |state| {
        if lane == Lane::Fast && state.fields().heap_bytes() > COUNTED_AT_ONCE {
            return Err(Busy);
        }
        let handle = OVERHEAD.load(Ordering::Relaxed) + size_of::<Handle>();
        let sizes = state.sizes(names(), handle);
        Ok(size_map(env, &sizes, shared_bytes(state)))
    })
}

/// The bytes of the contents that a state shares, each once.
fn shared_bytes(state: &State<Anchor>) -> usize {
    let mut contents = HashMap::new();
    let mut targets: Vec<&Target<Anchor>> = Vec::new();
    targets.extend(state.fields().view().links.iter().map(|(_, target)| target));
    while let Some(target) = targets.pop() {
        match target {
            Target::Anchor(Anchor::Share(share)) => {
                contents.insert(share.id(), share.get().heap_bytes());
            }
            Target::Anchor(Anchor::Foreign(_)) => {}
            Target::Blob(blob) => targets.extend(blob.links().iter().map(|(_, target)| target)),
            Target::Trie(node) => node.each_page(&mut |page| {
                targets.extend(page.links().iter().map(|(_, target)| target));
            }),
        }
    }
    contents.values().sum()
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

/// The content of a share, for those who look into an anchor.
pub fn content_of(anchor: &Anchor) -> Option<&Share> {
    match anchor {
        Anchor::Share(share) => Some(share.get()),
        Anchor::Foreign(_) => None,
    }
}
