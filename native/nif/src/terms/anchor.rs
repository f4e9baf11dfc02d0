//! What packed values keep alive.

use crate::reaper;
use crate::resource::ResourceRef;
use crate::share::Share;
use erlmcp_memory_core::heap;
use rustler::sys::{ErlNifEnv, ErlNifTerm, enif_alloc_env, enif_free_env, enif_make_copy};
use rustler::{Env, OwnedEnv, Term};
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// Keeps something of the VM alive for a packed value.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// Shared content.
    Share(ShareHandle),
    /// A term in an environment of its own.
    Foreign(Arc<Foreign>),
}

impl erlmcp_memory_core::packed::Anchor for Anchor {
    fn kept_bytes(&self) -> usize {
        match self {
            // Shared content is kept once for all.
            Anchor::Share(_) => 0,
            Anchor::Foreign(foreign) => foreign.bytes,
        }
    }
}

/// An owner of a share.
#[derive(Clone)]
pub struct ShareHandle(ManuallyDrop<ResourceRef<Share>>);

impl ShareHandle {
    /// A further owner of this share.
    pub fn new(share: ResourceRef<Share>) -> Self {
        ShareHandle(ManuallyDrop::new(share))
    }

    /// What tells this share from all others while it lives.
    pub fn id(&self) -> u64 {
        self.0.address() as u64
    }

    /// The share.
    pub fn get(&self) -> &ResourceRef<Share> {
        &self.0
    }
}

impl std::fmt::Debug for ShareHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShareHandle({:#x})", self.id())
    }
}

impl Drop for ShareHandle {
    fn drop(&mut self) {
        // SAFETY: this is the end of the handle, so nothing takes its content a second time.
        release(Last::Share(unsafe { ManuallyDrop::take(&mut self.0) }));
    }
}

/// A term in an environment that belongs to no process.
#[derive(Debug)]
pub struct Foreign {
    env: *mut ErlNifEnv,
    term: ErlNifTerm,
    /// About what this takes, in bytes.
    bytes: usize,
}

/// What the VM takes for an environment with a small term in it: the header of a process, which
/// stands for its owner, and the smallest heap fragment. Measured.
const ENVIRONMENT: usize = 2_512;

// SAFETY: an environment of no process may be used on any thread, by one at a time. After `new` it
// is only copied from, which reads it, and freed by its last owner.
unsafe impl Send for Foreign {}
// SAFETY: copying a term out of an environment does not write to it: reference counts of what
// lies off the heap are atomic, and `new` made the one copy that may rewrite a binary's header.
unsafe impl Sync for Foreign {}

impl Foreign {
    /// A copy of a term, which takes about so many bytes.
    pub fn new(term: Term<'_>, bytes: usize) -> Self {
        let bytes = heap::arc::<Self>() + ENVIRONMENT + bytes;
        // SAFETY: the term is valid in its own environment while it is copied.
        unsafe {
            let env = enif_alloc_env();
            let term = enif_make_copy(env, term.as_c_arg());
            Foreign { env, term, bytes }
        }
    }

    /// Its external format.
    pub fn to_external(&self) -> Vec<u8> {
        OwnedEnv::new().run(|env| self.to_term(env).to_binary().as_slice().to_vec())
    }

    /// The term, in another environment.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        // SAFETY: `self.term` belongs to `self.env`, which lives as long as `self`.
        unsafe { Term::new(env, enif_make_copy(env.as_c_arg(), self.term)) }
    }

    /// Calls `with` with the term where it lies.
    pub fn with<R>(&self, with: impl for<'e> FnOnce(Term<'e>) -> R) -> R {
        let lifetime = ();
        // SAFETY: the term belongs to this environment, which lives as long as `self`; `with`
        // cannot keep it.
        unsafe {
            let env = Env::new(&lifetime, self.env);
            with(Term::new(env, self.term))
        }
    }

    /// About what it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        release(Last::Env(self.env));
    }
}

/// What is given back when an anchor goes.
enum Last {
    Share(ResourceRef<Share>),
    Env(*mut ErlNifEnv),
}

/// The rest of a long chain, which the reaper goes on with.
struct Rest(Vec<Last>);

// SAFETY: an environment of no process may be freed on any thread, and this is its only owner.
unsafe impl Send for Rest {}

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.drain(..).for_each(release);
    }
}

/// What a thread gives back in one go, so that no scheduler is held up by a long chain.
const AT_ONCE: usize = 256;

thread_local! {
    /// Some while this thread gives back anchors: what is to be given back next.
    static PENDING: RefCell<Option<Vec<Last>>> = const { RefCell::new(None) };
}

/// Gives back one thing. What hangs from it is given back after it, not inside: a chain of shares
/// may be of any length, and the stack is not.
fn release(last: Last) {
    let nested = PENDING.with_borrow_mut(|pending| match pending {
        Some(pending) => {
            pending.push(last);
            None
        }
        None => {
            *pending = Some(Vec::new());
            Some(last)
        }
    });
    let mut next = nested;
    let mut given_back = 0;
    while let Some(last) = next.take() {
        given_back += 1;
        match last {
            Last::Share(share) => drop(share),
            // SAFETY: the anchor that was dropped owned it, and it is freed once.
            Last::Env(env) => unsafe { enif_free_env(env) },
        }
        let rest = PENDING.with_borrow_mut(|pending| {
            next = pending.as_mut().and_then(Vec::pop);
            if next.is_none() || (given_back >= AT_ONCE && !reaper::is_this_thread()) {
                return pending.take();
            }
            None
        });
        if let Some(mut rest) = rest {
            rest.extend(next.take());
            if !rest.is_empty() {
                reaper::hand_over(Rest(rest));
            }
        }
    }
}
