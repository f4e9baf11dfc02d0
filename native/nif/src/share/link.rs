//! The objects behind references to contents, and contents in values of this library.

use super::reader::reader;
use super::slot::{Holder, Shared};
use crate::cycles::{self, Node};
use crate::enif::owner::{Owner, Release};
use crate::resource;
use crate::resource::ResourceRef;
use crate::terms::{Anchor, Source};
use erlmcp_memory_core::packed::View;
use erlmcp_memory_core::shared::Content;
use rustler::{Env, Term};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The resource behind a share.
pub struct Share(Option<Arc<Shared>>);

resource!(Share, c"erlmcp_memory_share");

/// The content of a share, for the large binaries that were made of it: they keep its bytes and
/// nothing else of the share.
pub struct Kept(#[expect(dead_code, reason = "keeps the bytes")] pub(super) Arc<Content<Anchor>>);

resource!(Kept, c"erlmcp_memory_shared_content");

/// Tells the VM of the types; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<Share>(env) && resource::register::<Kept>(env)
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take()
            && shared.host.is_cyclic()
        {
            cycles::suspect(Node::Shared(shared));
        }
    }
}

impl Share {
    /// A share of nothing, to see what a reference to a resource looks like.
    pub fn example() -> Self {
        Share(None)
    }
}

/// A content in a value of this library.
#[derive(Debug, Clone)]
pub struct ShareLink(Owner<Holder>);

impl Release for Holder {
    fn release(self) {
        if self.shared().host.is_cyclic() {
            // Dropped before what it leaves is looked at.
            let shared = Arc::clone(self.shared());
            drop(self);
            cycles::suspect(Node::Shared(shared));
        }
    }
}

impl ShareLink {
    /// A further link to a content.
    pub fn new(shared: &Arc<Shared>) -> Self {
        ShareLink(Owner::new(shared.holder()))
    }

    /// What distinguishes this content from all others while it lives.
    pub fn id(&self) -> u64 {
        Arc::as_ptr(self.shared()).addr() as u64
    }

    /// The content.
    pub fn shared(&self) -> &Arc<Shared> {
        self.0.shared()
    }

    /// A reference to the content.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        let shared = self.shared();
        if shared.host.is_cyclic() {
            // Not kept: the loss of the last reference must be noticed.
            return reference(env, shared);
        }
        let mut kept = shared.host.kept.lock();
        shared.host.is_kept.store(true, Ordering::Relaxed);
        kept.get_or_insert_with(|| object(env, shared)).to_term(env)
    }
}

/// The link to the content of a share, if the term is one.
pub fn link(term: Term<'_>) -> Option<ShareLink> {
    let shared = shared_of(term)?;
    let link = ShareLink::new(shared);
    if !shared.host.is_cyclic() && !shared.host.is_kept.load(Ordering::Relaxed) {
        let mut kept = shared.host.kept.lock();
        if kept.is_none() {
            *kept = ResourceRef::from_term(term);
        }
        shared.host.is_kept.store(true, Ordering::Relaxed);
    }
    Some(link)
}

/// Calls `with` with what is behind the reference of a share, and what it may be read from.
pub fn with_content<R>(
    term: Term<'_>,
    with: impl FnOnce(View<'_, Anchor>, Source<'_>) -> R,
) -> Option<R> {
    let shared = shared_of(term)?;
    let source = Source::Shared(&reader(shared).content);
    Some(with(shared.packed().view(), source))
}

/// The reference to a content.
pub(super) fn reference<'a>(env: Env<'a>, shared: &Arc<Shared>) -> Term<'a> {
    object(env, shared).to_term(env)
}

/// The object that stands for a content.
fn object(env: Env<'_>, shared: &Arc<Shared>) -> ResourceRef<Share> {
    let new = || Share(Some(Arc::clone(shared)));
    shared.host.known.find_or(env, new)
}

/// The content behind a reference.
pub(super) fn shared_of(term: Term<'_>) -> Option<&Arc<Shared>> {
    resource::get::<Share>(term)?.0.as_ref()
}

/// Whether the term is a reference to shared content.
pub fn is(term: Term<'_>) -> bool {
    resource::get::<Share>(term).is_some()
}
