//! What the word of a term says of it, without a call.
//!
//! The VM marks words by their lowest bits: they tell whether a word is an atom, a small integer,
//! the empty list, or leads to a list cell or to something else. The NIF interface has a function
//! for each kind of term; a term of thousands of small ones is mostly such calls. The marks are
//! those of every 64-bit VM so far; [`learn_marks`] checks them by examples when the library is
//! loaded, and where one differs, none is used.

use super::words::word;
use rustler::sys::{enif_make_map_put, enif_make_new_map};
use rustler::types::tuple::make_tuple;
use rustler::{Encoder, Env, Term};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Atom,
    /// One that is stored in the word.
    Int(i64),
    Nil,
    Cell,
    /// Neither of the above, nor a process or a port of this node.
    Boxed,
    /// The functions of the interface must be asked.
    Unknown,
}

/// Whether the marks are as expected.
static ARE_KNOWN: AtomicBool = AtomicBool::new(false);

const NIL: u64 = 0b11_1011;

#[inline(always)]
#[allow(clippy::inline_always)]
fn mark_of(word: u64) -> Mark {
    // The most frequent ones first: one after the other is faster here than a table.
    if word & 0b11 == 0b10 {
        Mark::Boxed
    } else if word & 0b11 == 0b01 {
        Mark::Cell
    } else if word & 0b1111 == 0b1111 {
        Mark::Int(word.cast_signed() >> 4)
    } else if word & 0b11_1111 == 0b00_1011 {
        Mark::Atom
    } else if word == NIL {
        Mark::Nil
    } else {
        Mark::Unknown
    }
}

/// What the word of a term says of it.
#[inline(always)]
#[allow(clippy::inline_always)]
pub fn mark(term: Term<'_>) -> Mark {
    if ARE_KNOWN.load(Ordering::Relaxed) {
        mark_of(word(term))
    } else {
        Mark::Unknown
    }
}

/// Checks the marks by examples. To be called once, when the library is loaded.
pub fn learn_marks(env: Env<'_>) {
    let says = |term: Term<'_>, mark| mark_of(word(term)) == mark;
    let ints = [0, 1, -1, 255, -256, (1 << 59) - 1, -(1 << 59)];
    let atoms = ["ok", "undefined", "erlmcp_memory_nif", ""];
    let atoms = atoms.map(|name| rustler::types::atom::Atom::from_str(env, name));
    let nil = Term::list_new_empty(env);
    // SAFETY: all terms are of this environment, and the second call gets a map.
    let (none, one) = unsafe {
        let none = enif_make_new_map(env.as_c_arg());
        let (key, mut one) = (nil.as_c_arg(), none);
        enif_make_map_put(env.as_c_arg(), none, key, key, &mut one);
        (Term::new(env, none), Term::new(env, one))
    };
    let boxed = [
        none,
        one,
        make_tuple(env, &[]),
        make_tuple(env, &[nil]),
        (1i64 << 59).encode(env),
        (-(1i64 << 59) - 1).encode(env),
        i64::MAX.encode(env),
        1.5f64.encode(env),
        "".encode(env),
        "more than is on the heap of a process"
            .repeat(2)
            .encode(env),
        env.make_ref().into(),
    ];
    let are_known = ints
        .iter()
        .all(|int| says(int.encode(env), Mark::Int(*int)))
        && atoms
            .iter()
            .flatten()
            .all(|atom| says(atom.to_term(env), Mark::Atom))
        && says(nil, Mark::Nil)
        && says(nil.list_prepend(nil), Mark::Cell)
        && boxed.iter().all(|term| says(*term, Mark::Boxed));
    ARE_KNOWN.store(are_known, Ordering::Relaxed);
}
