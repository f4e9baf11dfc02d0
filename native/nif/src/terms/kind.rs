//! What kind of term this is, by its word or by functions that accept any term of any release.
//! (`enif_term_type` ends the node on a term that it does not know.)

use super::mark::{Mark, mark};
use super::words::{is_local_pid, is_local_port};
use rustler::sys::{
    ErlNifMapIterator, ErlNifMapIteratorEntry, ErlNifTerm, c_int, enif_get_double, enif_get_int64,
    enif_get_list_cell, enif_get_tuple, enif_is_atom, enif_is_binary, enif_is_empty_list,
    enif_is_fun, enif_is_map, enif_is_number, enif_is_pid, enif_is_port, enif_is_ref,
    enif_map_iterator_create, enif_map_iterator_destroy, enif_map_iterator_get_pair,
    enif_map_iterator_next,
};
use rustler::{Env, Term};
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
#[inline]
pub fn kind(term: Term<'_>) -> Kind<'_> {
    match mark(term) {
        Mark::Atom => Kind::Atom,
        Mark::Int(value) => Kind::Int(value),
        Mark::Nil => Kind::Nil,
        Mark::Cell => match list_cell(term) {
            Some((head, tail)) => Kind::Cell(head, tail),
            None => asked(term),
        },
        Mark::Boxed => boxed(term),
        Mark::Unknown => asked(term),
    }
}

/// The kind of a term whose mark is [`Mark::Boxed`], the most frequent ones first.
fn boxed(term: Term<'_>) -> Kind<'_> {
    let (env, word) = (term.get_env().as_c_arg(), term.as_c_arg());
    // SAFETY: the term belongs to this environment.
    unsafe {
        if enif_is_binary(env, word) != 0 {
            return Kind::Binary;
        }
        if enif_is_map(env, word) != 0 {
            return Kind::Map;
        }
    }
    match tuple_elements(term) {
        Some(elements) => Kind::Tuple(elements),
        None => asked(term),
    }
}

/// The kind of a term, found by trying one kind after another.
fn asked(term: Term<'_>) -> Kind<'_> {
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

/// The entries of a map, one after the other.
pub struct MapEntries<'a> {
    env: Env<'a>,
    at: MaybeUninit<ErlNifMapIterator>,
    is_map: bool,
}

impl<'a> MapEntries<'a> {
    /// Of a map; none of anything else.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub fn of(map: Term<'a>) -> Self {
        let env = map.get_env();
        let mut entries = MapEntries {
            env,
            at: MaybeUninit::uninit(),
            is_map: false,
        };
        let first = ErlNifMapIteratorEntry::ERL_NIF_MAP_ITERATOR_HEAD;
        let at = entries.at.as_mut_ptr();
        // SAFETY: the map belongs to this environment; the call sets `at` when it succeeds.
        let created =
            unsafe { enif_map_iterator_create(env.as_c_arg(), map.as_c_arg(), at, first) };
        entries.is_map = created != 0;
        entries
    }
}

impl<'a> Iterator for MapEntries<'a> {
    type Item = (Term<'a>, Term<'a>);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if !self.is_map {
            return None;
        }
        let (env, at) = (self.env.as_c_arg(), self.at.as_mut_ptr());
        let (mut key, mut value) = Default::default();
        // SAFETY: the iterator was made in this environment; the first call sets both when there is
        // an entry, and they belong to the map's environment.
        unsafe {
            if enif_map_iterator_get_pair(env, at, &mut key, &mut value) == 0 {
                return None;
            }
            enif_map_iterator_next(env, at);
            Some((Term::new(self.env, key), Term::new(self.env, value)))
        }
    }
}

impl Drop for MapEntries<'_> {
    fn drop(&mut self) {
        if self.is_map {
            // SAFETY: the iterator was made in this environment, and is not used any more.
            unsafe { enif_map_iterator_destroy(self.env.as_c_arg(), self.at.as_mut_ptr()) };
        }
    }
}
