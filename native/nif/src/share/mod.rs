//! Shared content as resources.
//!
//! Shared content is kept in the packed form, which is how equal content is found. A content that
//! is read often is kept as a term as well, because the VM copies a term faster than one can be
//! built through the NIF interface; its large binaries are those of the packed form.
//!
//! Every read changes the reference count of what large binaries refer to. Each scheduler has its
//! own [`Reader`](reader::Reader) of a content, so that readers on different schedulers share nothing.

mod link;
mod part;
mod reader;
mod slot;
mod sum;
mod taken;

pub use link::{Kept, Share, ShareLink, is, link, register, with_content};
pub use part::part_built;
pub use slot::{Shared, intern, largest, stock};
pub use sum::SharedBytes;
pub use taken::{Parts, note_parts, part_at};

use crate::lane::{Busy, Lane};
use crate::terms::{Anchor, PackError, Path, Search, Source, pack_content, unpack};
use crate::{cycles, garbage, nif, reply};
use erlmcp_memory_core::map;
use erlmcp_memory_core::packed::{Links, Packed, Target, View};
use link::{reference, shared_of};
use reader::{len_of, reader};
use rustler::{Encoder, Env, Term};
use slot::STORE;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The reference to the content that equals a changed one; only the change is looked at.
fn changed_reference<'a>(
    env: Env<'a>,
    packed: Packed<Anchor>,
    before: &Shared,
    change: &Links<Anchor>,
) -> Term<'a> {
    let shared = STORE.intern(packed);
    let cyclic = || before.host.is_cyclic() || cycles::lead_to_pooled(change);
    shared.host.cyclic.get_or_init(cyclic);
    reference(env, &shared)
}

/// The most packed bytes whose term is built on a normal scheduler.
const BUILT_AT_ONCE: usize = 4 << 10;

/// What a list of keys leads to, as a term.
fn find_in<'a>(
    shared: &Shared,
    keys: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Option<Term<'a>>, PackError<'a>> {
    let packed = shared.packed();
    let own = reader(shared);
    if own.is_due(shared) {
        if lane == Lane::Fast && len_of(packed.view()) > BUILT_AT_ONCE {
            return Err(PackError::Busy);
        }
        own.make_term(packed);
    }
    if lane == Lane::Dirty {
        // Fast-lane calls that could not build it came here.
        let due = shared.host.readers().filter(|other| other.is_due(shared));
        due.for_each(|other| other.make_term(packed));
    }
    match own.term.get().map(|term| term.find(keys, lane)) {
        Some(Search::Found(value)) => return Ok(Some(value)),
        Some(Search::Nothing) => return Ok(None),
        Some(Search::Busy) => return Err(PackError::Busy),
        // Found by its packed form, which can be of any size.
        Some(Search::NotHere) | None => {}
    }
    let path = Path::keys(keys, opened, lane)?;
    let Some(found) = path.with(|keys| packed.view().find(keys)) else {
        return Ok(None);
    };
    let value = unpack(keys.get_env(), found, Source::Shared(&own.content), lane)?;
    own.read.fetch_add(len_of(found), Ordering::Relaxed);
    Ok(Some(value))
}

nif!(share => sized share_new(term, opened));
nif!(read => share_get(reference));
nif!(find => share_find(reference, path, opened));
nif!(change => sized share_update(reference, path, value, opened));
nif!(remove => share_remove(reference, path, opened));
nif!(is_share => short share_is(term));

/// The most packed bytes of a content that is shared on a normal scheduler.
const SHARED_AT_ONCE: usize = 32 << 10;

fn share<'a>(env: Env<'a>, term: Term<'a>, opened: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    match pack_content(term, opened, lane) {
        Ok(packed) if lane == Lane::Fast && packed.bytes().len() > SHARED_AT_ONCE => Err(Busy),
        Ok(packed) => {
            let bytes = packed.bytes().len();
            Ok(garbage::made(env, reference(env, &intern(packed)), bytes))
        }
        Err(error) => reply::not_packed(env, 1, error),
    }
}

pub const NO_SHARE: &str = "not a reference to shared content, or one that went through \
    term_to_binary/1, a file or another node";

fn read<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let none = Term::list_new_empty(env);
    find(env, reference, none, none, lane)
}

/// Calls `with` with the content behind a reference.
fn with_shared<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    with: impl FnOnce(&Arc<Shared>) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    match shared_of(reference) {
        Some(shared) => with(shared),
        None => Ok(reply::badarg(env, 1, NO_SHARE)),
    }
}

/// What is returned for a path that could not be packed.
pub fn no_path<'a>(env: Env<'a>, error: PackError<'a>) -> Result<Term<'a>, Busy> {
    match error {
        PackError::NotAPath => Ok(reply::badarg(env, 2, "not a list of at most 64 keys")),
        error => reply::not_packed(env, 2, error),
    }
}

fn find<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    path: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    with_shared(env, reference, |shared| {
        match find_in(shared, path, opened, lane) {
            Ok(Some(value)) => Ok(reply::ok_value(env, value)),
            Ok(None) => Ok(reply::none(env)),
            Err(error) => no_path(env, error),
        }
    })
}

/// The most bytes of a content that is changed on a normal scheduler: it may have to be compared
/// with an equal one.
const CHANGED_AT_ONCE: usize = 256 << 10;

/// Calls `with` with the content behind a reference that is to be changed, and the keys of a path.
fn at_path<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    path: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    with: impl FnOnce(&Shared, &[View<'_, Anchor>]) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    with_shared(env, reference, |shared| {
        let packed = shared.packed();
        let in_one_piece = packed.bytes().len() > SHARED_AT_ONCE;
        if lane == Lane::Fast && (in_one_piece || len_of(packed.view()) > CHANGED_AT_ONCE) {
            return Err(Busy);
        }
        match Path::keys(path, opened, lane) {
            Ok(path) => path.with(|path| with(shared, path)),
            Err(error) => no_path(env, error),
        }
    })
}

fn change<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    path: Term<'a>,
    value: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    at_path(env, reference, path, opened, lane, |shared, path| {
        let value = match pack_content(value, opened, lane) {
            Ok(value) => value,
            Err(error) => return reply::not_packed(env, 3, error),
        };
        let bytes = value.bytes().len();
        if lane == Lane::Fast && bytes > SHARED_AT_ONCE {
            return Err(Busy);
        }
        let links = value.links().clone();
        let changed = match path {
            [] => Ok(value),
            // No value counts as missing.
            _ => map::put(shared.packed().view(), path, value.view(), &[]),
        };
        Ok(match changed {
            Ok(changed) => {
                let changed = changed_reference(env, changed, shared, &links);
                garbage::made(env, changed, bytes)
            }
            Err(_) => into_share(env, shared.packed().view(), path).unwrap_or_else(|| {
                reply::badarg(env, 2, "the path leads through a value that is not a map")
            }),
        })
    })
}

fn remove<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    path: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    at_path(env, reference, path, opened, lane, |shared, path| {
        let packed = shared.packed();
        Ok(match map::remove(packed.view(), path) {
            Some(changed) => changed_reference(env, changed, shared, &Links::None),
            None => into_share(env, packed.view(), path).unwrap_or(reference),
        })
    })
}

/// Where the path of a change leads into shared content: after how many keys, and into which.
pub fn into_share<'a>(
    env: Env<'a>,
    root: View<'_, Anchor>,
    path: &[View<'_, Anchor>],
) -> Option<Term<'a>> {
    (0..path.len()).find_map(|keys| match root.find(&path[..keys])?.target() {
        Some(Target::Anchor(Anchor::Share(share))) => {
            Some(reply::shared(env, keys, share.to_term(env)))
        }
        _ => None,
    })
}

fn is_share<'a>(env: Env<'a>, term: Term<'a>) -> Term<'a> {
    is(term).encode(env)
}
