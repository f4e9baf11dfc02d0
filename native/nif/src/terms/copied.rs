//! A term that is kept to be copied from, whole or in parts.

use super::Anchor;
use super::anchor::Foreign;
use super::pack::{list_cell, tuple_elements};
use super::unpack::{HEAP_BINARY, Source, unpack};
use crate::lane::Lane;
use erlmcp_memory_core::map::MAX_PATH;
use erlmcp_memory_core::packed::{MAX_DEPTH, View};
use rustler::sys::{ErlNifTerm, enif_get_map_value};
use rustler::{Binary, MapIterator, OwnedEnv, Term, TermType};
use smallvec::SmallVec;

/// Words that are copied on a normal scheduler: some 50 microseconds of work.
const COPIED_AT_ONCE: usize = 16 << 10;

/// Bytes of a key that is looked for on a normal scheduler without counting.
const SHORT_KEY: usize = 1 << 10;

/// A term in an environment of its own. The VM copies a term out of it faster than anybody can
/// build one through the NIF interface, and finds keys as it finds them in any map.
#[derive(Debug)]
pub struct Copied {
    term: Foreign,
    /// About the words that it takes.
    words: usize,
    /// Its parts that are too large to be copied on a normal scheduler, in order.
    large: SmallVec<[ErlNifTerm; 4]>,
}

/// What became of a search.
pub enum Search<'a> {
    /// The value.
    Found(Term<'a>),
    /// There is no such value.
    Nothing,
    /// It is too large for a normal scheduler.
    Busy,
    /// The path is none, or has keys that this search does not look for.
    NotHere,
}

impl Copied {
    /// The term of a packed value. Nothing on failure to build it.
    pub fn of(value: View<'_, Anchor>, source: Source<'_>) -> Option<Self> {
        // Built elsewhere and then copied, so that it lies in one piece.
        OwnedEnv::new().run(|env| {
            let term = unpack(env, value, source, Lane::Dirty).ok()?;
            let term = Foreign::new(term, 0);
            let mut large = SmallVec::new();
            let words = term.with(|term| heap_words(term, 0, &mut |part| large.push(part)));
            large.sort_unstable();
            Some(Copied { term, words, large })
        })
    }

    /// About what it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.term.bytes() + self.words * size_of::<ErlNifTerm>()
    }

    /// What a list of keys leads to, in the environment of the list.
    pub fn find<'a>(&self, keys: Term<'a>, lane: Lane) -> Search<'a> {
        self.term.with(|root| {
            let mut here = root.as_c_arg();
            let mut rest = keys;
            let mut length = 0;
            while let Some((key, tail)) = list_cell(rest) {
                length += 1;
                if length > MAX_PATH || !is_short(key) {
                    return Search::NotHere;
                }
                let (env, map) = (root.get_env().as_c_arg(), here);
                // SAFETY: `map` belongs to `env`, and the key to an environment that lives; the
                // call compares them, writes `here` when it succeeds, and keeps neither.
                if unsafe { enif_get_map_value(env, map, key.as_c_arg(), &mut here) } == 0 {
                    // Not before it is known whether the rest is a path.
                    return if is_path(tail, MAX_PATH - length) {
                        Search::Nothing
                    } else {
                        Search::NotHere
                    };
                }
                rest = tail;
            }
            if !rest.is_empty_list() {
                Search::NotHere
            } else if lane == Lane::Fast && self.large.binary_search(&here).is_ok() {
                Search::Busy
            } else {
                // SAFETY: `here` is a part of the term, and belongs to its environment.
                let found = unsafe { Term::new(root.get_env(), here) };
                Search::Found(found.in_env(keys.get_env()))
            }
        })
    }
}

/// Whether a list of at most so many keys.
fn is_path(list: Term<'_>, limit: usize) -> bool {
    let mut rest = list;
    for _ in 0..=limit {
        match list_cell(rest) {
            Some((_, tail)) => rest = tail,
            None => return rest.is_empty_list(),
        }
    }
    false
}

/// Keys that are compared in no time.
fn is_short(key: Term<'_>) -> bool {
    key.is_atom()
        || key.decode::<Binary>().map_or_else(
            |_| key.decode::<i64>().is_ok(),
            |key| key.len() <= SHORT_KEY,
        )
}

/// About the words that a term takes on a heap. `large` is told of the parts that have more than
/// [`COPIED_AT_ONCE`].
fn heap_words(term: Term<'_>, depth: usize, large: &mut impl FnMut(ErlNifTerm)) -> usize {
    let mut words = 0;
    match term.get_type() {
        TermType::Atom => {}
        TermType::Integer if term.decode::<i32>().is_ok() => {}
        // Kept deeper than the packed form goes: not looked through.
        TermType::List | TermType::Tuple | TermType::Map if depth > MAX_DEPTH => {
            words = COPIED_AT_ONCE + 1;
        }
        TermType::List => {
            let mut rest = term;
            while let Some((head, tail)) = list_cell(rest) {
                words += 2 + heap_words(head, depth + 1, large);
                rest = tail;
            }
            if !rest.is_empty_list() {
                words += heap_words(rest, depth + 1, large);
            }
        }
        TermType::Tuple => {
            let env = term.get_env();
            for element in tuple_elements(term) {
                // SAFETY: an element of a tuple belongs to the environment of the tuple.
                let element = unsafe { Term::new(env, *element) };
                words += 1 + heap_words(element, depth + 1, large);
            }
            words += 1;
        }
        TermType::Map => {
            for (key, value) in MapIterator::new(term).into_iter().flatten() {
                words += 2 + heap_words(key, depth + 1, large);
                words += heap_words(value, depth + 1, large);
            }
            words += 5;
        }
        _ => {
            words = 4 + term.decode::<Binary>().map_or(0, |binary| {
                binary.len().min(HEAP_BINARY) / size_of::<ErlNifTerm>()
            });
        }
    }
    if words > COPIED_AT_ONCE {
        large(term.as_c_arg());
    }
    words
}
