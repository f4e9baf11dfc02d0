//! The external term format, as far as it must be looked into
//! (<https://www.erlang.org/doc/apps/erts/erl_ext_dist>).

use erlmcp_memory_core::external::{is_sound, skip_atom};
use rustler::sys::{ERL_NIF_BIN2TERM_SAFE, ErlNifTerm, enif_binary_to_term};
use rustler::{Env, OwnedBinary, Term};

const VERSION: u8 = 131;
const NEW_FUN: u8 = 112;

/// A term in the external format.
pub fn to_external(term: Term<'_>) -> OwnedBinary {
    term.to_binary()
}

/// A term from bytes that this node wrote.
pub fn from_external<'a>(env: Env<'a>, bytes: &[u8]) -> Option<Term<'a>> {
    decode(env, bytes, false)
}

/// A term from bytes that anybody may have written: makes no atoms, and refuses the compressed
/// form, which could unfold to gigabytes, and funs that the VM would stumble over.
pub fn decode_untrusted<'a>(env: Env<'a>, bytes: &[u8]) -> Option<Term<'a>> {
    is_sound(bytes).then(|| decode(env, bytes, true))?
}

fn decode<'a>(env: Env<'a>, bytes: &[u8], safe: bool) -> Option<Term<'a>> {
    let options = if safe { ERL_NIF_BIN2TERM_SAFE } else { 0 };
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
    // Nothing is what a call that failed has used.
    // SAFETY: the call made `term` in this environment.
    (used != 0 && used == bytes.len()).then(|| unsafe { Term::new(env, term) })
}

/// What the external format of a fun tells.
pub enum Fun {
    /// Module, function, arity; or a fun without an environment.
    Plain,
    /// A fun that took values with it.
    Closure,
}

/// Looks into the external format of a fun, and takes out of it which process made it: that is no
/// part of what makes two funs equal.
pub fn inspect_fun(external: &mut [u8]) -> Fun {
    if external.get(1) != Some(&NEW_FUN) {
        return Fun::Plain;
    }
    // 131, 112, size:32, arity:8, uniq:128, index:32, number of free variables:32, module ...
    const FREE: usize = 2 + 4 + 1 + 16 + 4;
    let free = external.get(FREE..FREE + 4).map(|n| n != [0; 4]);
    clear_creator(external, FREE + 4);
    match free {
        Some(false) => Fun::Plain,
        _ => Fun::Closure,
    }
}

/// Sets the numbers of the process that made a fun to zero.
fn clear_creator(external: &mut [u8], module_at: usize) -> Option<()> {
    const NEW_PID: u8 = 88;
    let mut at = skip_atom(external, module_at)?;
    // The old index and the old uniq.
    for _ in 0..2 {
        at += match external.get(at)? {
            97 => 2,
            98 => 5,
            110 => 3 + usize::from(*external.get(at + 1)?),
            _ => return None,
        };
    }
    if *external.get(at)? != NEW_PID {
        return None;
    }
    let numbers = skip_atom(external, at + 1)?;
    // Number and serial; the creation behind them stays.
    external.get_mut(numbers..numbers + 8)?.fill(0);
    Some(())
}

/// The name of an atom, as the external format gives it in UTF-8 on every release.
pub fn atom_name(term: Term<'_>) -> Option<String> {
    const ATOM: u8 = 100;
    const SMALL_ATOM: u8 = 115;
    let external = to_external(term);
    let header = match external.get(1)? {
        &(115 | 119) => 3,
        _ => 4,
    };
    let name = external.get(header..)?;
    match external.get(1)? {
        // Latin-1, as older releases write it.
        &(ATOM | SMALL_ATOM) => Some(name.iter().map(|byte| char::from(*byte)).collect()),
        _ => String::from_utf8(name.to_vec()).ok(),
    }
}

/// The existing atom of this name.
pub fn existing_atom<'a>(env: Env<'a>, name: &str) -> Option<Term<'a>> {
    if name.chars().count() > 255 {
        return None;
    }
    let mut external = vec![VERSION, 118];
    external.extend_from_slice(&(name.len() as u16).to_be_bytes());
    external.extend_from_slice(name.as_bytes());
    decode(env, &external, true)
}

/// The first name in the external format of a process, a port, a reference or a fun that is no
/// atom of this node: why it could not be read.
pub fn unknown_name(env: Env<'_>, external: &[u8]) -> Option<Vec<u8>> {
    let mut places = Vec::new();
    match external.get(1)? {
        // PID, NEW_PID, PORT, NEW_PORT, V4_PORT, REFERENCE
        103 | 88 | 102 | 89 | 120 | 101 => places.push(2),
        // NEW_REFERENCE, NEWER_REFERENCE: a length stands before
        114 | 90 => places.push(4),
        // EXPORT: module, function
        113 => {
            places.push(2);
            places.extend(skip_atom(external, 2));
        }
        &NEW_FUN => places.push(31),
        _ => {}
    }
    for place in places {
        let end = skip_atom(external, place)?;
        let header = if matches!(external[place], 115 | 119) {
            2
        } else {
            3
        };
        let name = external.get(place + header..end)?;
        let known = std::str::from_utf8(name)
            .ok()
            .and_then(|name| existing_atom(env, name));
        if known.is_none() {
            return Some(name.to_vec());
        }
    }
    None
}
