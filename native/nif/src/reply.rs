//! What NIFs return besides their results.

use crate::lane::Busy;
use crate::terms::PackError;
use erlmcp_memory_core::copy::copy;
use rustler::sys::{ErlNifTerm, enif_make_list_from_array, enif_make_sub_binary};
use rustler::{Encoder, Env, NewBinary, Term};

mod atoms {
    rustler::atoms! {
        badarg,
        closed,
        collect,
        none,
        ok,
        shared,
        too_large,
    }
}

/// The atom `none`.
pub fn none(env: Env<'_>) -> Term<'_> {
    atoms::none().encode(env)
}

/// The atom `ok`.
pub fn ok(env: Env<'_>) -> Term<'_> {
    atoms::ok().encode(env)
}

/// `{ok, Value}`.
pub fn ok_value<'a>(env: Env<'a>, value: Term<'a>) -> Term<'a> {
    (atoms::ok(), value).encode(env)
}

/// `{badarg, Position, Text}`: which argument of the public function is wrong, and why.
pub fn badarg<'a>(env: Env<'a>, position: u32, text: &str) -> Term<'a> {
    (atoms::badarg(), position, binary(env, text.as_bytes())).encode(env)
}

/// A binary of these bytes.
pub fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut binary = NewBinary::new(env, bytes.len());
    copy(binary.as_mut_slice(), bytes);
    binary.into()
}

/// A part of a binary, which keeps all of it alive.
pub fn part<'a>(env: Env<'a>, binary: Term<'a>, start: usize, len: usize) -> Term<'a> {
    // SAFETY: the term is a binary of this environment, and the caller looked at these bytes.
    unsafe {
        let part = enif_make_sub_binary(env.as_c_arg(), binary.as_c_arg(), start, len);
        Term::new(env, part)
    }
}

/// A list of terms of this environment.
pub fn list<'a>(env: Env<'a>, terms: &[ErlNifTerm]) -> Term<'a> {
    // SAFETY: the terms were made in `env`.
    unsafe {
        let list = enif_make_list_from_array(env.as_c_arg(), terms.as_ptr(), terms.len() as u32);
        Term::new(env, list)
    }
}

/// `{closed, Terms}`: the call must be repeated with what is in these terms.
pub fn closed<'a>(env: Env<'a>, terms: Vec<Term<'a>>) -> Term<'a> {
    (atoms::closed(), terms).encode(env)
}

/// `{shared, N, Share}`: after this many keys, the path of a change leads into shared content.
pub fn shared<'a>(env: Env<'a>, keys: usize, share: Term<'a>) -> Term<'a> {
    (atoms::shared(), keys, share).encode(env)
}

/// `{collect, Result}`: the wrapper must collect the caller's garbage.
pub fn collect<'a>(env: Env<'a>, result: Term<'a>) -> Term<'a> {
    (atoms::collect(), result).encode(env)
}

/// The text for a term that should name a field.
pub const NO_PATH: &str =
    "neither a field (an atom) nor a path (a list of 1 to 64 keys that begins with a field)";

/// What is returned for a term, the argument at this position, that could not be packed.
pub fn not_packed<'a>(env: Env<'a>, position: u32, error: PackError<'a>) -> Result<Term<'a>, Busy> {
    Ok(match error {
        PackError::Closed(terms) => closed(env, terms),
        PackError::TooDeep => badarg(env, position, "nested deeper than 1,048,576 levels"),
        PackError::TooManyFuns => badarg(
            env,
            position,
            "funs close over funs in more than 1,000 levels",
        ),
        PackError::TooManyKeys => badarg(
            env,
            position,
            "maps are keys of maps in more than 256 levels",
        ),
        PackError::Unknown => badarg(
            env,
            position,
            "holds a term of a kind that this library does not know",
        ),
        PackError::TooShared => badarg(
            env,
            position,
            "written out in full, more than 1 MiB and more than 8 times as large as it is",
        ),
        PackError::Busy => return Err(Busy),
        PackError::TooLarge => badarg(env, position, "larger than 512 MiB"),
        PackError::NotAPath => badarg(env, position, NO_PATH),
    })
}
