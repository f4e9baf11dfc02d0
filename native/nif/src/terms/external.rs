//! Terms in the external term format that only the VM can write or read.

use erlmcp_memory_core::etf::{self, Flat};
use rustler::sys::{ERL_NIF_BIN2TERM_SAFE, ErlNifBinaryToTerm, ErlNifTerm, enif_binary_to_term};
use rustler::{Env, OwnedBinary, Term};

/// A term in the external format.
pub fn to_external(term: Term<'_>) -> OwnedBinary {
    term.to_binary()
}

/// A term from bytes that this library wrote.
pub fn from_external<'a>(env: Env<'a>, bytes: &[u8]) -> Option<Term<'a>> {
    decode(env, bytes, 0)
}

/// A term from bytes, or `None` if that would make an atom.
pub fn from_external_safe<'a>(env: Env<'a>, bytes: &[u8]) -> Option<Term<'a>> {
    decode(env, bytes, ERL_NIF_BIN2TERM_SAFE)
}

fn decode<'a>(env: Env<'a>, bytes: &[u8], options: ErlNifBinaryToTerm) -> Option<Term<'a>> {
    let mut term = ErlNifTerm::default();
    // SAFETY: the bytes are valid for the call, which writes `term` when it succeeds.
    let used = unsafe {
        enif_binary_to_term(
            env.as_c_arg(),
            bytes.as_ptr(),
            bytes.len(),
            &mut term,
            options,
        )
    };
    // A failed call has used none. SAFETY: the call made `term` in this environment.
    (used != 0 && used == bytes.len()).then(|| unsafe { Term::new(env, term) })
}

/// The name of an atom.
pub fn atom_name(term: Term<'_>) -> Option<String> {
    etf::atom_name(to_external(term).get(1..)?)
}

/// The existing atom of this name.
pub fn existing_atom<'a>(env: Env<'a>, name: &str) -> Option<Term<'a>> {
    etf::is_atom_name(name).then(|| from_external_safe(env, &etf::atom(name)))?
}

/// The name of the node of a process, a port or a reference, if that is not an atom of this node:
/// the reason why it cannot be read.
pub fn unknown_node(env: Env<'_>, external: &[u8]) -> Option<String> {
    let Some(Flat::OfNode(node)) = etf::flat(external) else {
        return None;
    };
    etf::atom_name(node).filter(|name| existing_atom(env, name).is_none())
}
