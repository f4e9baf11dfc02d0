//! Shared content as resources.
//!
//! What is shared is kept in the packed form, by which equal content is found. A content of some
//! size is kept as a term as well, because the VM copies a term faster than anybody can build one
//! through the NIF interface; its large binaries are those of the packed form.

use crate::lane::{Busy, Lane};
use crate::resource::ResourceRef;
use crate::terms::{
    Anchor, Copied, PackError, Path, Search, Source, pack, reference_from_numbers,
    reference_numbers, unpack,
};
use crate::{nif, reaper, reply, resource};
use erlmcp_memory_core::packed::Packed;
use erlmcp_memory_core::shared::{Content, Store};
use rustler::{Env, Term};
use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock, OnceLock};

/// A content knows the numbers of the reference that stands for it, so that equal terms get the
/// same reference. They keep nothing alive: the VM says whether the resource is still there.
type Host = Vec<u8>;

static STORE: LazyLock<Store<Anchor, Host>> = LazyLock::new(Store::default);

/// The resource behind a share.
pub struct Share {
    /// There until the destructor.
    content: Option<ResourceRef<Kept>>,
    /// The content as a term, if it is kept as one. Made by who made the share.
    term: OnceLock<Copied>,
}

resource!(Share, c"erlmcp_memory_share");

/// The content of a share, in an object of its own: large binaries refer to it, among them those
/// of the share's own term, which so keeps no hold of the share.
pub struct Kept(Option<Arc<Content<Anchor, Host>>>);

resource!(Kept, c"erlmcp_memory_shared_content");

/// Tells the VM of the types; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<Share>(env) && resource::register::<Kept>(env)
}

/// The packed bytes of a content that is kept as a term. A smaller one is built in no time; of a
/// larger one, which is seldom read as a whole, the second form would take too much memory.
const KEPT_AS_TERM: RangeInclusive<usize> = 97..=4 << 20;

impl Drop for Share {
    fn drop(&mut self) {
        let bytes = self.heap_bytes();
        reaper::free((self.term.take(), self.content.take()), bytes);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(content) = self.0.take() {
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
        Share {
            content: None,
            term: OnceLock::new(),
        }
    }

    fn content(&self) -> Option<&Content<Anchor, Host>> {
        self.content.as_ref()?.0.as_deref()
    }

    /// What is shared.
    pub fn packed(&self) -> Option<&Packed<Anchor>> {
        self.content().map(Content::packed)
    }

    /// Bytes of memory behind it.
    pub fn heap_bytes(&self) -> usize {
        self.content().map_or(0, Content::heap_bytes) + self.term.get().map_or(0, Copied::bytes)
    }

    /// The share of a value: the one that exists, or a new one.
    pub fn of(env: Env<'_>, packed: Packed<Anchor>) -> ResourceRef<Share> {
        let content = STORE.intern(packed);
        let mut host = content.host.lock();
        if let Some(share) = host
            .as_ref()
            .and_then(|numbers| reference_from_numbers(env, numbers))
            .and_then(ResourceRef::from_term)
        {
            drop(host);
            STORE.release(content);
            return share;
        }
        let share = ResourceRef::new(Share {
            content: Some(ResourceRef::new(Kept(Some(Arc::clone(&content))))),
            term: OnceLock::new(),
        });
        // Writing the reference down also makes the VM able to find the resource by its numbers.
        *host = reference_numbers(env, share.to_term(env));
        drop(host);
        drop(Release(Some(content)));
        // Others that find the share before this is done build what they read.
        share.make_term();
        share
    }

    fn make_term(&self) {
        if let (Some(packed), Some(content)) = (self.packed(), &self.content)
            && KEPT_AS_TERM.contains(&packed.bytes().len())
            && let Some(term) = Copied::of(packed.view(), Source::Shared(content))
        {
            // Whoever made the share is alone here.
            let _ = self.term.set(term);
        }
    }

    /// What a list of keys leads to, as a term.
    fn find<'a>(&self, keys: Term<'a>, lane: Lane) -> Result<Option<Term<'a>>, PackError> {
        match self.term.get().map(|term| term.find(keys, lane)) {
            Some(Search::Found(value)) => return Ok(Some(value)),
            Some(Search::Nothing) => return Ok(None),
            Some(Search::Busy) => return Err(PackError::Busy),
            // Found by its packed form, which can be of any size.
            Some(Search::NotHere) | None => {}
        }
        let (Some(packed), Some(content)) = (self.packed(), &self.content) else {
            return Ok(None);
        };
        let path = Path::keys(keys.get_env(), keys, lane)?;
        let Some(found) = path.with(|keys| packed.view().find(keys)) else {
            return Ok(None);
        };
        let value = unpack(keys.get_env(), found, Source::Shared(content), lane)?;
        Ok(Some(value))
    }
}

nif!(share => share_new(term));
nif!(read => share_get(reference));
nif!(find => share_find(reference, path));

/// Packed bytes of a content that is shared on a normal scheduler: it is read twice and built once.
const SHARED_AT_ONCE: usize = 8 << 10;

fn share<'a>(env: Env<'a>, term: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    match pack(env, term, lane) {
        Ok(packed) if lane == Lane::Fast && packed.bytes().len() > SHARED_AT_ONCE => Err(Busy),
        Ok(packed) => Ok(Share::of(env, packed).to_term(env)),
        Err(error) => reply::not_packed(env, 1, error),
    }
}

const NO_SHARE: &str = "not a reference to shared content, or one that went through \
    term_to_binary/1, a file or another node";

fn read<'a>(env: Env<'a>, reference: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    find(env, reference, Term::list_new_empty(env), lane)
}

fn find<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    path: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let Some(share) = resource::get::<Share>(reference) else {
        return Ok(reply::badarg(env, 1, NO_SHARE));
    };
    match share.find(path, lane) {
        Ok(Some(value)) => Ok(reply::ok_value(env, value)),
        Ok(None) => Ok(reply::none(env)),
        Err(PackError::NotAPath) => Ok(reply::badarg(env, 2, "not a list of at most 64 keys")),
        Err(error) => reply::not_packed(env, 2, error),
    }
}
