//! How the VM loads the library, once or again.
//!
//! Tools delete, purge and load Erlang modules again. The states of the node are in the statics of
//! this library and in objects whose types it registered. So a module that is loaded again takes
//! over both if it comes with this very library, and is refused if it comes with another one.

use crate::profile::{histogram, session};
use crate::{alloc, buffer, park, pool, resource, share, state, terms};
use rustler::codegen_runtime::{
    ErlNifEntry, ErlNifEnv, ErlNifTerm, c_int, c_void, internal_write_symbols, inventory,
};
use rustler::{Env, Nif, Term};
use std::panic::catch_unwind;
use std::sync::{Once, OnceLock};

/// What the VM reads about the library.
struct Entry(ErlNifEntry);

// SAFETY: it is written once, and what it points to lives as long as the library.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

static ENTRY: OnceLock<Entry> = OnceLock::new();

/// The first function of the library that the VM calls, each time it loads the module.
///
/// In place of `rustler::init!`, whose entry has no `upgrade`: without it the VM refuses to load
/// the module while an old version of it exists.
#[unsafe(no_mangle)]
extern "C" fn nif_init() -> *const ErlNifEntry {
    let entry = ENTRY.get_or_init(|| {
        // SAFETY: nothing of the VM has been called before.
        unsafe { internal_write_symbols() };
        let functions: Vec<_> = inventory::iter::<Nif>().map(Nif::get_def).collect();
        let mut entry = ErlNifEntry::new(c"erlmcp_memory_nif", functions.leak(), load);
        entry.upgrade = Some(upgrade);
        Entry(entry)
    });
    &entry.0
}

/// What distinguishes this library from others that this process has loaded: it is never unloaded,
/// see `resource::register`.
fn identity() -> usize {
    (&raw const ENTRY).addr()
}

/// Loads the module if no old version of it exists.
extern "C" fn load(env: *mut ErlNifEnv, _: *mut *mut c_void, known: ErlNifTerm) -> c_int {
    let lifetime = ();
    // SAFETY: the VM passes the environment of this call, and a term of it.
    let (env, known) = unsafe {
        let env = Env::new_init_env(&lifetime, env);
        (env, Term::new(env, known))
    };
    c_int::from(!catch_unwind(|| is_loaded(env, known)).unwrap_or(false))
}

/// Loads the module if an old version of it exists.
extern "C" fn upgrade(
    env: *mut ErlNifEnv,
    private: *mut *mut c_void,
    _: *mut *mut c_void,
    known: ErlNifTerm,
) -> c_int {
    load(env, private, known)
}

/// Prepares the library. `known` is the identity of the library that the node has, 0 for none.
fn is_loaded(env: Env<'_>, known: Term<'_>) -> bool {
    if !known
        .decode()
        .is_ok_and(|known: usize| [0, identity()].contains(&known))
    {
        return false;
    }
    let registered = buffer::register(env)
        && histogram::register(env)
        && park::register(env)
        && pool::register(env)
        && session::register(env)
        && share::register(env)
        && state::register(env);
    if registered {
        static FIRST: Once = Once::new();
        FIRST.call_once(|| {
            alloc::learn_overhead();
            resource::learn_overhead(state::Handle::example);
            state::load_names(env);
            terms::learn_magic_bit(env, share::Share::example);
            terms::learn_marks(env);
        });
    }
    registered
}

/// The identity of the library.
#[rustler::nif]
fn library() -> usize {
    identity()
}
