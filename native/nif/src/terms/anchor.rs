//! What packed values keep alive.

use crate::buffer::BufferLink;
use crate::park::ParkedLink;
use crate::pool::PooledLink;
use crate::reaper;
use crate::share::ShareLink;
use crate::state::StateLink;
use erlmcp_memory_core::heap;
use erlmcp_memory_core::packed::Packed;
use erlmcp_memory_core::threads::Tally;
use rustler::sys::{ErlNifEnv, ErlNifTerm, enif_alloc_env, enif_free_env, enif_make_copy};
use rustler::{Env, Term};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keeps something alive for a packed value. All but the last are this library's own values.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// Shared content.
    Share(ShareLink),
    /// A compact state.
    State(StateLink),
    /// A pooled state.
    Pooled(PooledLink),
    /// A parked term.
    Parked(ParkedLink),
    /// A message buffer.
    Buffer(BufferLink),
    /// A reference to an object of another library, or a large binary.
    Foreign(Arc<Foreign>),
}

impl Anchor {
    /// The reference that it stands for.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Anchor::Share(share) => share.to_term(env),
            Anchor::State(state) => state.to_term(env),
            Anchor::Pooled(pooled) => pooled.to_term(env),
            Anchor::Parked(parked) => parked.to_term(env),
            Anchor::Buffer(buffer) => buffer.to_term(env),
            Anchor::Foreign(foreign) => foreign.to_term(env),
        }
    }
}

impl erlmcp_memory_core::packed::Anchor for Anchor {
    fn kept_bytes(&self) -> usize {
        match self {
            // Kept once for all owners, and counted there.
            Anchor::Share(_)
            | Anchor::State(_)
            | Anchor::Pooled(_)
            | Anchor::Parked(_)
            | Anchor::Buffer(_) => 0,
            Anchor::Foreign(foreign) => foreign.heap_bytes(),
        }
    }

    fn shared_content(&self) -> Option<&Packed<Self>> {
        match self {
            Anchor::Share(share) => Some(share.shared().packed()),
            _ => None,
        }
    }

    fn free(garbage: Packed<Self>) {
        reaper::free_value(garbage);
    }
}

/// A reference or a binary in an environment of the VM, which keeps what it refers to.
#[derive(Debug)]
pub struct Foreign {
    env: Arc<Environment>,
    term: ErlNifTerm,
}

/// An environment that belongs to no process.
#[derive(Debug)]
struct Environment {
    env: *mut ErlNifEnv,
    terms: AtomicUsize,
}

/// What the VM takes for an environment with a small term in it: the header of a process, which
/// stands for its owner, and the smallest heap fragment. Measured.
pub const ENVIRONMENT: usize = 2_512;

/// What each further reference takes there, on OTP 25 to 29.
const REFERENCE: usize = 32;

// SAFETY: an environment of no process may be used on any thread, by one at a time. It is written
// to only by the `Keeper` that owns it, which is not `Sync`, until that is dropped; afterwards it
// is only copied from.
unsafe impl Send for Environment {}
// SAFETY: copying a reference out of an environment does not write to it: the count of what it
// refers to is atomic.
unsafe impl Sync for Environment {}

/// The environments, and what the VM takes for them.
static ENVIRONMENTS: Tally = Tally::new();

/// What the VM takes for the environments that keep references.
pub fn environment_bytes() -> usize {
    ENVIRONMENTS.sum().bytes
}

impl Drop for Environment {
    fn drop(&mut self) {
        ENVIRONMENTS.went(ENVIRONMENT + self.terms.load(Ordering::Relaxed) * REFERENCE);
        // SAFETY: this is the environment's only owner.
        unsafe { enif_free_env(self.env) };
    }
}

impl Foreign {
    /// The reference, in another environment.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        // SAFETY: `self.term` belongs to the environment, which lives as long as `self`.
        unsafe { Term::new(env, enif_make_copy(env.as_c_arg(), self.term)) }
    }

    /// What it takes, with its part of the environment that it shares with others.
    fn heap_bytes(&self) -> usize {
        let terms = self.env.terms.load(Ordering::Relaxed).max(1);
        heap::arc::<Self>() + REFERENCE + (ENVIRONMENT + heap::arc::<Environment>()).div_ceil(terms)
    }
}

/// Keeps the references of one value, all in one environment.
#[derive(Default)]
pub struct Keeper(Option<Arc<Environment>>);

impl Keeper {
    /// Keeps a reference.
    pub fn keep(&mut self, reference: Term<'_>) -> Arc<Foreign> {
        let env = self.0.get_or_insert_with(|| {
            // SAFETY: the call has no conditions; the environment is freed by its owner.
            let env = unsafe { enif_alloc_env() };
            ENVIRONMENTS.came(ENVIRONMENT);
            Arc::new(Environment {
                env,
                terms: AtomicUsize::new(0),
            })
        });
        env.terms.fetch_add(1, Ordering::Relaxed);
        ENVIRONMENTS.add(0, REFERENCE as isize);
        // SAFETY: the reference is valid in its own environment while it is copied, and nothing
        // else uses the other one while `self` may add to it: values are not passed on before they
        // are complete.
        let term = unsafe { enif_make_copy(env.env, reference.as_c_arg()) };
        Arc::new(Foreign {
            env: Arc::clone(env),
            term,
        })
    }
}
