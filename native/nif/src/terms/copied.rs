//! A term that is kept to be copied from, whole or in parts.

use super::Anchor;
use super::anchor::ENVIRONMENT;
use super::kind::{Kind, MapEntries, kind, list_cell};
use super::opened::{HEAP_BINARY, is_small};
use super::unpack::{Source, unpack};
use crate::lane::Lane;
use erlmcp_memory_core::map::MAX_PATH;
use erlmcp_memory_core::packed::{Item, Target, View, item, skip};
use erlmcp_memory_core::threads::{Tally, Usage};
use rustler::sys::{
    ErlNifEnv, ErlNifTerm, enif_alloc_env, enif_free_env, enif_get_map_value, enif_is_identical,
    enif_make_copy,
};
use rustler::{Binary, Env, OwnedEnv, Term};
use smallvec::SmallVec;

/// Words that are copied on a normal scheduler: some 50 microseconds of work.
const COPIED_AT_ONCE: usize = 16 << 10;

/// Bytes of a key that is looked for on a normal scheduler without counting.
const SHORT_KEY: usize = 1 << 10;

/// A term in an environment of its own. The VM copies a term out of it faster than one can be built
/// through the NIF interface, and finds keys as in any map.
#[derive(Debug)]
pub struct Copied {
    env: *mut ErlNifEnv,
    term: ErlNifTerm,
    /// About how many words it takes.
    words: usize,
    /// Its parts that are too large to be copied on a normal scheduler, in order.
    large: SmallVec<[ErlNifTerm; 4]>,
}

// SAFETY: an environment of no process may be used on any thread, by one at a time. After `of` it
// is only copied from, which reads it, and freed by its last owner.
unsafe impl Send for Copied {}
// SAFETY: copying a term out of an environment does not write to it: reference counts of what
// lies off the heap are atomic, and `of` made the one copy that may rewrite a binary's header.
unsafe impl Sync for Copied {}

static TERMS: Tally = Tally::new();

/// The terms that are kept to be copied, and their bytes: these count among the heaps of processes.
pub fn copied() -> Usage {
    TERMS.sum()
}

impl Drop for Copied {
    fn drop(&mut self) {
        TERMS.went(self.term_bytes());
        // SAFETY: the environment has no other owner.
        unsafe { enif_free_env(self.env) };
    }
}

/// The outcome of a search.
pub enum Search<'a> {
    /// The value.
    Found(Term<'a>),
    /// There is no such value.
    Nothing,
    /// It is too large for a normal scheduler.
    Busy,
    /// The path is not valid, or has keys that this search does not support.
    NotHere,
}

impl Copied {
    /// The term of a packed value; `None` if it has a fun that is too large to be copied on a
    /// normal scheduler, because the size of a fun cannot be seen from it.
    pub fn of(value: View<'_, Anchor>, source: Source<'_>) -> Option<Self> {
        if has_large_fun(value) {
            return None;
        }
        let mut copied = Self::whole(value, source, 0)?;
        let mut large = SmallVec::new();
        let words = copied.with(|term| heap_words(term, 0, &mut |part| large.push(part)));
        large.sort_unstable();
        (copied.words, copied.large) = (words, large);
        TERMS.add(0, copied.term_bytes() as isize);
        Some(copied)
    }

    /// The term of a packed value, which takes this many words. It must not be searched.
    pub fn whole(value: View<'_, Anchor>, source: Source<'_>, words: usize) -> Option<Self> {
        // Built elsewhere and then copied, so that it is in one piece.
        OwnedEnv::new().run(|env| {
            let term = unpack(env, value, source, Lane::Dirty).ok()?;
            // SAFETY: the term is valid in its own environment while it is copied; the other one
            // belongs to the value that is made here.
            let (env, term) = unsafe {
                let env = enif_alloc_env();
                (env, enif_make_copy(env, term.as_c_arg()))
            };
            let copied = Copied {
                env,
                term,
                words,
                large: SmallVec::new(),
            };
            TERMS.came(copied.term_bytes());
            Some(copied)
        })
    }

    /// A copy of the whole term.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        self.with(|term| term.in_env(env))
    }

    /// Whether the term equals this one. The time depends on the size of the kept term alone.
    pub fn is_identical(&self, term: Term<'_>) -> bool {
        // SAFETY: both terms are valid in their environments; the call compares them and keeps
        // neither.
        unsafe { enif_is_identical(self.term, term.as_c_arg()) != 0 }
    }

    /// Calls `with` with the term in its environment.
    fn with<R>(&self, with: impl for<'e> FnOnce(Term<'e>) -> R) -> R {
        let lifetime = ();
        // SAFETY: the term belongs to this environment, which lives as long as `self`; `with`
        // cannot keep it.
        unsafe {
            let env = Env::new(&lifetime, self.env);
            with(Term::new(env, self.term))
        }
    }

    /// About how many bytes it takes.
    pub fn bytes(&self) -> usize {
        ENVIRONMENT + self.term_bytes()
    }

    fn term_bytes(&self) -> usize {
        self.words * size_of::<ErlNifTerm>()
    }

    /// What a list of keys leads to, in the environment of the list.
    pub fn find<'a>(&self, keys: Term<'a>, lane: Lane) -> Search<'a> {
        self.with(|root| {
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
                    // SAFETY: it is a part of the term, and belongs to its environment.
                    if unsafe { Term::new(root.get_env(), map) }.is_ref() {
                        // It may be a share; the packed form knows its content.
                        return Search::NotHere;
                    }
                    // Not before the rest is known to be a path.
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

/// Whether this is a list of at most this many keys.
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

/// Whether comparing the key takes negligible time.
fn is_short(key: Term<'_>) -> bool {
    key.is_atom()
        || key.decode::<Binary>().map_or_else(
            |_| key.decode::<i64>().is_ok(),
            |key| key.len() <= SHORT_KEY,
        )
}

/// Whether a fun in a packed value has more packed bytes than a normal scheduler should copy.
fn has_large_fun(value: View<'_, Anchor>) -> bool {
    let mut rest = vec![value];
    while let Some(View { bytes, links }) = rest.pop() {
        let mut at = 0;
        while at < bytes.len() {
            let start = at;
            match item(bytes, &mut at) {
                Ok(Item::Fun(_)) => {
                    let mut end = start;
                    if skip(bytes, &mut end).is_err() || end - start > LARGE_FUN {
                        return true;
                    }
                    at = end;
                }
                // Back to the first entry: keys and values follow one another.
                Ok(Item::Map(page)) => at -= page.body().len(),
                Ok(Item::Blob(id) | Item::Trie(id)) => match links.get(id) {
                    Some(Target::Blob(blob)) => rest.push(blob.view()),
                    Some(Target::Trie(node)) => node.each_page(&mut |page| rest.push(page.view())),
                    _ => {}
                },
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    }
    false
}

/// The most packed bytes of a fun that a normal scheduler may copy.
const LARGE_FUN: usize = 16 << 10;

/// The deepest nesting that is searched.
const DEPTH: usize = 64;

/// About how many words a term takes on a heap. `large` is called with the parts that have more
/// than [`COPIED_AT_ONCE`].
fn heap_words(term: Term<'_>, depth: usize, large: &mut impl FnMut(ErlNifTerm)) -> usize {
    let mut words = 0;
    match kind(term) {
        Kind::Atom | Kind::Nil | Kind::Pid | Kind::Port => {}
        Kind::Cell(..) | Kind::Tuple(_) | Kind::Map if depth > DEPTH => {
            words = COPIED_AT_ONCE + 1;
        }
        Kind::Cell(..) => {
            let mut rest = term;
            while let Some((head, tail)) = list_cell(rest) {
                words += 2 + heap_words(head, depth + 1, large);
                rest = tail;
            }
            words += heap_words(rest, depth + 1, large);
        }
        Kind::Tuple(elements) => {
            let env = term.get_env();
            for element in elements {
                // SAFETY: an element of a tuple belongs to the environment of the tuple.
                let element = unsafe { Term::new(env, *element) };
                words += 1 + heap_words(element, depth + 1, large);
            }
            words += 1;
        }
        Kind::Map => {
            for (key, value) in MapEntries::of(term) {
                words += 2 + heap_words(key, depth + 1, large);
                words += heap_words(value, depth + 1, large);
            }
            words += 5;
        }
        Kind::Int(int) => words = if is_small(int) { 0 } else { 2 },
        Kind::Binary => {
            words = 4 + term.decode::<Binary>().map_or(0, |binary| {
                binary.len().min(HEAP_BINARY) / size_of::<ErlNifTerm>()
            });
        }
        Kind::Float(_) | Kind::Big | Kind::Ref | Kind::Remote | Kind::Other => words = 5,
        // As much as its packed form may take.
        Kind::Fun => words = LARGE_FUN / size_of::<ErlNifTerm>() / 16,
    }
    if words > COPIED_AT_ONCE {
        large(term.as_c_arg());
    }
    words
}
