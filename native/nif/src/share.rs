//! Shared content as resources.

use crate::lane::Lane;
use crate::terms::{Anchor, Path, Source, pack, reference_from_numbers, reference_numbers, unpack};
use crate::{lanes, reaper, reply};
use erlmcp_memory_core::packed::Packed;
use erlmcp_memory_core::shared::{Content, Store};
use rustler::{Encoder, Env, Resource, ResourceArc, Term};
use std::sync::{Arc, LazyLock};

/// A content knows the numbers of the reference that stands for it, so that equal terms get the
/// same reference. They keep nothing alive: the VM says whether the resource is still there.
type Host = Vec<u8>;

static STORE: LazyLock<Store<Anchor, Host>> = LazyLock::new(Store::default);

/// The resource behind a share.
pub struct Share {
    /// Taken by the destructor alone.
    content: Option<Arc<Content<Anchor, Host>>>,
}

#[rustler::resource_impl(name = "erlmcp_memory_share")]
impl Resource for Share {}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(content) = self.content.take() {
            let bytes = content.heap_bytes();
            reaper::free(Release(Some(content)), bytes);
        }
    }
}

/// Gives a content back to the store when it is dropped.
struct Release(Option<Arc<Content<Anchor, Host>>>);

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(content) = self.0.take() {
            STORE.release(content);
        }
    }
}

impl Share {
    /// A share of nothing, to see what a reference to a resource looks like.
    pub fn example() -> Self {
        Share { content: None }
    }

    /// What is shared.
    pub fn packed(&self) -> Option<&Packed<Anchor>> {
        self.content.as_ref().map(|content| content.packed())
    }

    /// Bytes of memory behind it.
    pub fn heap_bytes(&self) -> usize {
        self.content
            .as_ref()
            .map_or(0, |content| content.heap_bytes())
    }

    /// The share of a value: the one that exists, or a new one.
    pub fn of(env: Env<'_>, packed: Packed<Anchor>) -> ResourceArc<Share> {
        let content = STORE.intern(packed);
        let mut host = content.host.lock();
        if let Some(share) = host
            .as_ref()
            .and_then(|numbers| reference_from_numbers(env, numbers))
            .and_then(|reference| reference.decode::<ResourceArc<Share>>().ok())
        {
            drop(host);
            STORE.release(content);
            return share;
        }
        let share = ResourceArc::new(Share {
            content: Some(Arc::clone(&content)),
        });
        // Writing the reference down also makes the VM able to find the resource by its numbers.
        *host = reference_numbers(env, share.encode(env));
        drop(host);
        share
    }
}

lanes!(share => share_new, share_new_dirty(term));
lanes!(read => share_get, share_get_dirty(reference));
lanes!(find => share_find, share_find_dirty(reference, path));

fn share<'a>(env: Env<'a>, term: Term<'a>, lane: Lane) -> Term<'a> {
    match pack(env, term, lane) {
        Ok(packed) => Share::of(env, packed).encode(env),
        Err(error) => reply::not_packed(env, 1, error),
    }
}

const NO_SHARE: &str = "not a reference to shared content";

fn read<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Term<'a> {
    let Ok(share) = reference.decode::<ResourceArc<Share>>() else {
        return reply::badarg(env, 1, NO_SHARE);
    };
    match share.packed() {
        Some(packed) => {
            let term = unpack(env, packed.view(), Source::Shared(&share), lane);
            reply::unpacked(env, term, reply::ok_value)
        }
        None => reply::badarg(env, 1, NO_SHARE),
    }
}

fn find<'a>(env: Env<'a>, reference: Term<'a>, path: Term<'a>, lane: Lane) -> Term<'a> {
    let Ok(share) = reference.decode::<ResourceArc<Share>>() else {
        return reply::badarg(env, 1, NO_SHARE);
    };
    let path = match Path::keys(env, path, lane) {
        Ok(path) => path,
        Err(crate::terms::PackError::NotAPath) => {
            return reply::badarg(env, 2, "not a list of at most 64 keys");
        }
        Err(error) => return reply::not_packed(env, 2, error),
    };
    let found = path.with(|keys| share.packed()?.view().find(keys));
    match found {
        Some(value) => {
            let term = unpack(env, value, Source::Shared(&share), lane);
            reply::unpacked(env, term, reply::ok_value)
        }
        None => reply::none(env),
    }
}
