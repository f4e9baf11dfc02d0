//! What kind of term this is, by functions that accept any term of any release. (`enif_term_type`
//! ends the node on a term that it does not know.)

use super::words::{is_local_pid, is_local_port};
use rustler::Term;
use rustler::sys::{
    ErlNifTerm, c_int, enif_get_double, enif_get_int64, enif_get_list_cell, enif_get_tuple,
    enif_is_atom, enif_is_binary, enif_is_empty_list, enif_is_fun, enif_is_map, enif_is_number,
    enif_is_pid, enif_is_port, enif_is_ref,
};
use std::mem::MaybeUninit;

/// A kind of term, and what finding it out has shown.
pub enum Kind<'a> {
    Atom,
    Int(i64),
    /// An integer of more than 64 bits.
    Big,
    Float(f64),
    /// A whole number of bytes.
    Binary,
    Nil,
    Cell(Term<'a>, Term<'a>),
    Tuple(&'a [ErlNifTerm]),
    Map,
    Ref,
    Fun,
    /// Of this node.
    Pid,
    /// Of this node.
    Port,
    /// A process or a port of another node.
    Remote,
    /// A bit string, a native record, or a new kind of a later release.
    Other,
}

/// The kind of a term.
pub fn kind(term: Term<'_>) -> Kind<'_> {
    let (env, word) = (term.get_env().as_c_arg(), term.as_c_arg());
    let (mut int, mut float) = (0, 0.0);
    let is = |yes: c_int| yes != 0;
    // SAFETY: the term belongs to this environment; the calls write only through the given
    // pointers.
    unsafe {
        if is(enif_is_atom(env, word)) {
            return Kind::Atom;
        }
        if is(enif_get_int64(env, word, &mut int)) {
            return Kind::Int(int);
        }
        if is(enif_is_binary(env, word)) {
            return Kind::Binary;
        }
        if let Some((head, tail)) = list_cell(term) {
            return Kind::Cell(head, tail);
        }
        if let Some(elements) = tuple_elements(term) {
            return Kind::Tuple(elements);
        }
        if is(enif_is_map(env, word)) {
            return Kind::Map;
        }
        if is(enif_is_empty_list(env, word)) {
            return Kind::Nil;
        }
        if is(enif_get_double(env, word, &mut float)) {
            return Kind::Float(float);
        }
        if is(enif_is_ref(env, word)) {
            return Kind::Ref;
        }
        if is(enif_is_fun(env, word)) {
            return Kind::Fun;
        }
        if is(enif_is_pid(env, word)) {
            return if is_local_pid(term) {
                Kind::Pid
            } else {
                Kind::Remote
            };
        }
        if is(enif_is_port(env, word)) {
            return if is_local_port(term) {
                Kind::Port
            } else {
                Kind::Remote
            };
        }
        if is(enif_is_number(env, word)) {
            return Kind::Big;
        }
    }
    Kind::Other
}

/// Head and tail of a list that is not empty.
#[inline]
pub fn list_cell<'a>(list: Term<'a>) -> Option<(Term<'a>, Term<'a>)> {
    let env = list.get_env();
    let (mut head, mut tail) = Default::default();
    // SAFETY: the call writes both when it succeeds, and they belong to the list's environment.
    unsafe {
        let is_cell = enif_get_list_cell(env.as_c_arg(), list.as_c_arg(), &mut head, &mut tail);
        (is_cell != 0).then(|| (Term::new(env, head), Term::new(env, tail)))
    }
}

/// The elements of a tuple; `None` if it is not one.
#[inline]
pub fn tuple_elements<'a>(tuple: Term<'a>) -> Option<&'a [ErlNifTerm]> {
    let (mut arity, mut elements) = (0, MaybeUninit::uninit());
    // SAFETY: when the call succeeds, it sets `elements` to an array of `arity` terms that lives
    // as long as the tuple's environment. An empty tuple may have no array at all.
    unsafe {
        let env = tuple.get_env().as_c_arg();
        if enif_get_tuple(env, tuple.as_c_arg(), &mut arity, elements.as_mut_ptr()) == 0 {
            return None;
        }
        Some(match usize::try_from(arity) {
            Ok(arity) if arity > 0 => std::slice::from_raw_parts(elements.assume_init(), arity),
            _ => &[],
        })
    }
}
