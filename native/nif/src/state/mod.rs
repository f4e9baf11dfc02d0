//! Connection states: what a NIF does for each function of the optimizer.

mod handle;
mod link;
mod names;

pub use handle::{Handle, Held, register, stock, to_term};
pub use link::{Linked, StateLink, link};
pub use names::{load_names, names};

use crate::lane::{Busy, FAST_ENTRIES, Lane};
use crate::share::{self, SharedBytes};
use crate::terms::{Anchor, Source, unpack, with_flat, with_packed, with_room, with_state_path};
use crate::{garbage, nif, reply, resource};
use erlmcp_memory_core::map::{self, EditError, Room};
use erlmcp_memory_core::packed::{Item, Links, Packed, View, item};
use erlmcp_memory_core::state::{FieldError, Fields, Sizes, State, complete, new_state};
use handle::{FREED_AT_ONCE, Holding, built, free, to_term_of};
use names::atoms;
use rustler::{Encoder, Env, Term};
use std::time::{SystemTime, UNIX_EPOCH};

const NO_STATE: &str = "not a connection state, or one that was cleaned up, or a reference that \
    went through term_to_binary/1, a file or another node";

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
                // The general way below repeats it and reports the error.
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
                // The path may lead through shared content: the caller sets the fields one by one.
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
                // There was nothing to remove.
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

/// Like `from_fields`, with the defaults of a new state for missing fields.
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
