//! What the NIF interface cannot look into.
//!
//! No function of the interface opens a fun or a native record, and those that copy one or write it
//! out do not say beforehand how much that is. The Erlang module `erlmcp_memory_opened` opens them
//! instead: a call that meets such terms returns them, and is made again with what is in each.

use super::kind::{Kind, kind, list_cell, tuple_elements};
use super::words::word;
use crate::lane::{Budget, Lane};
use crate::terms::PackError;
use erlmcp_memory_core::packed::MAX_BYTES;
use rustler::sys::ErlNifTerm;
use rustler::{Binary, Env, ListIterator, MapIterator, Term};
use std::collections::{HashMap, HashSet};

mod atoms {
    rustler::atoms! { bits, export, r#fun = "fun", record, unknown }
}

/// What is in a term that the interface cannot look into.
#[derive(Clone, Copy)]
pub enum Inside<'a> {
    /// A bit string.
    Bits,
    /// Nobody knows.
    Unknown,
    /// `fun M:F/A`: these three.
    Export([Term<'a>; 3]),
    /// A fun of a module's code: module, arity, uniq, index, old index, old uniq, and the list of
    /// the values that it closes over.
    Fun([Term<'a>; 6], Term<'a>),
    /// A native record: module, name, whether it is exported; the names and the values of its
    /// fields.
    Record([Term<'a>; 3], Term<'a>, Term<'a>),
}

/// Opened terms by their words. A word tells a term from all others within one call.
pub struct Opened<'a> {
    list: Term<'a>,
    /// Made when it is first asked for.
    inside: Option<HashMap<u64, Inside<'a>>>,
}

impl<'a> Opened<'a> {
    /// From the list that the Erlang module made, `[{Term, Kind, ...}]`.
    pub fn new(list: Term<'a>) -> Self {
        Opened { list, inside: None }
    }

    /// Of nothing.
    pub fn none(env: Env<'a>) -> Self {
        Self::new(Term::list_new_empty(env))
    }

    /// What is in a term, if it was opened.
    pub fn get(&mut self, term: Term<'_>) -> Option<Inside<'a>> {
        if self.list.is_empty_list() {
            return None;
        }
        let list = self.list;
        let inside = self.inside.get_or_insert_with(|| entries(list).collect());
        inside.get(&word(term)).copied()
    }
}

/// The opened terms of a list and what is in them; others are passed over.
fn entries<'a>(list: Term<'a>) -> impl Iterator<Item = (u64, Inside<'a>)> {
    let env = list.get_env();
    let mut rest = list;
    std::iter::from_fn(move || {
        let (entry, tail) = list_cell(rest)?;
        rest = tail;
        Some(entry)
    })
    .filter_map(move |entry| {
        // SAFETY: an element of a tuple belongs to the environment of the tuple.
        let term = |element: &ErlNifTerm| unsafe { Term::new(env, *element) };
        let parts: Vec<_> = tuple_elements(entry)?.iter().map(term).collect();
        let inside = match *parts {
            [_, kind] if atoms::bits() == kind => Inside::Bits,
            [_, kind] if atoms::unknown() == kind => Inside::Unknown,
            [_, kind, m, f, a] if atoms::export() == kind => Inside::Export([m, f, a]),
            [_, kind, m, a, u, i, oi, ou, free] if atoms::r#fun() == kind => {
                Inside::Fun([m, a, u, i, oi, ou], free)
            }
            [_, kind, m, n, e, names, values] if atoms::record() == kind => {
                Inside::Record([m, n, e], names, values)
            }
            _ => return None,
        };
        Some((word(*parts.first()?), inside))
    })
}

/// What a walk over a term has seen.
#[derive(Default)]
pub struct Seen<'a> {
    /// Words that it takes on a heap, written out in full.
    pub words: usize,
    /// Bytes of the binaries that do not lie on the heap.
    pub off_heap: usize,
    /// Terms that must be opened, each once.
    pub closed: Vec<Term<'a>>,
}

/// A binary of at most this size lies on the heap of its process; the VM's own limit.
pub const HEAP_BINARY: usize = 64;

/// Walks over terms, each as often as it occurs: at most as many as a packed value has bytes.
/// Opened terms are passed over where `known` has them, and looked into where `inside` has them.
pub fn walk<'a>(
    terms: impl IntoIterator<Item = Term<'a>>,
    lane: Lane,
    known: &HashSet<u64>,
    inside: &mut Opened<'a>,
) -> Result<Seen<'a>, PackError<'a>> {
    let mut budget = Budget::new(lane);
    let (mut seen, mut met, mut count) = (Seen::default(), HashSet::new(), 0);
    let mut stack: Vec<Term<'a>> = terms.into_iter().collect();
    while let Some(mut term) = stack.pop() {
        loop {
            budget.spend(0)?;
            count += 1;
            if count > MAX_BYTES {
                return Err(PackError::TooLarge);
            }
            match kind(term) {
                Kind::Atom | Kind::Nil | Kind::Pid | Kind::Port => {}
                Kind::Int(int) => seen.words += if is_small(int) { 0 } else { 2 },
                Kind::Float(_) => seen.words += 2,
                Kind::Big | Kind::Ref | Kind::Remote => seen.words += 5,
                Kind::Binary => {
                    let size = term.decode::<Binary>().map_or(0, |binary| binary.len());
                    if size > HEAP_BINARY {
                        seen.words += 8;
                        seen.off_heap += size;
                    } else {
                        seen.words += 2 + size.div_ceil(size_of::<ErlNifTerm>());
                    }
                }
                Kind::Cell(head, tail) => {
                    seen.words += 2;
                    stack.push(head);
                    term = tail;
                    continue;
                }
                Kind::Tuple(elements) => {
                    seen.words += 1 + elements.len();
                    let env = term.get_env();
                    // SAFETY: an element of a tuple belongs to the environment of the tuple.
                    let term = |element: &ErlNifTerm| unsafe { Term::new(env, *element) };
                    stack.extend(elements.iter().map(term));
                }
                Kind::Map => {
                    seen.words += 5;
                    for (key, value) in MapIterator::new(term).into_iter().flatten() {
                        seen.words += 2;
                        stack.extend([key, value]);
                    }
                }
                Kind::Fun | Kind::Other => {
                    seen.words += 7;
                    match inside.get(term) {
                        Some(Inside::Fun(_, free)) => stack.push(free),
                        Some(Inside::Record(_, _, values)) => stack.push(values),
                        Some(Inside::Bits | Inside::Unknown | Inside::Export(_)) => {}
                        None if known.contains(&word(term)) => {}
                        None if met.insert(word(term)) => seen.closed.push(term),
                        None => {}
                    }
                }
            }
            break;
        }
    }
    Ok(seen)
}

/// Whether the VM holds an integer in a word: 60 bits.
fn is_small(int: i64) -> bool {
    (-(1 << 59)..1 << 59).contains(&int)
}

/// The terms in what was just opened that must be opened still; `known` are all that were.
pub fn closed_in<'a>(
    opened: Term<'a>,
    known: Term<'a>,
    lane: Lane,
) -> Result<Vec<Term<'a>>, PackError<'a>> {
    let known: HashSet<u64> = entries(known).map(|(word, _)| word).collect();
    let values = entries(opened).filter_map(|(_, inside)| match inside {
        Inside::Fun(_, free) => Some(free),
        Inside::Record(_, _, values) => Some(values),
        Inside::Bits | Inside::Unknown | Inside::Export(_) => None,
    });
    let env = opened.get_env();
    Ok(walk(values, lane, &known, &mut Opened::none(env))?.closed)
}

/// The elements of a proper list.
pub fn list_elements<'a>(list: Term<'a>) -> Option<ListIterator<'a>> {
    list.list_length().ok()?;
    list.decode().ok()
}
