//! Terms that are the same word in every environment: atoms, and the processes and ports of this
//! node.

use rustler::sys::{ErlNifPort, ErlNifTerm, enif_get_local_port};
use rustler::{Env, LocalPid, Term};
use std::mem::{MaybeUninit, transmute};

/// The word of such a term.
pub fn word(term: Term<'_>) -> u64 {
    // SAFETY: `ErlNifTerm` is a transparent wrapper of a `usize`.
    let word: usize = unsafe { transmute(term.as_c_arg()) };
    word as u64
}

/// The term as the VM's functions take it.
///
/// # Safety
///
/// The word must come from [`word`], of an atom or of a process or a port of this node.
pub unsafe fn raw(word: u64) -> ErlNifTerm {
    // SAFETY: as above.
    unsafe { transmute(word as usize) }
}

/// The term of a word.
///
/// # Safety
///
/// As for [`raw`].
pub unsafe fn from_word(env: Env<'_>, word: u64) -> Term<'_> {
    // SAFETY: such a term is valid in every environment as long as the node runs.
    unsafe { Term::new(env, raw(word)) }
}

/// Whether this is a process of this node.
pub fn is_local_pid(term: Term<'_>) -> bool {
    term.decode::<LocalPid>().is_ok()
}

/// Whether this is a port of this node.
pub fn is_local_port(term: Term<'_>) -> bool {
    let mut port = MaybeUninit::<ErlNifPort>::uninit();
    // SAFETY: the call only writes `port`.
    unsafe {
        enif_get_local_port(
            term.get_env().as_c_arg(),
            term.as_c_arg(),
            port.as_mut_ptr(),
        ) != 0
    }
}
