//! What the NIF interface cannot look into.
//!
//! No function of the interface opens a fun or a native record, and those that copy or write one do
//! not tell its size first. The Erlang module `erlmcp_memory_opened` opens them instead: a call
//! that meets such terms returns them, and is repeated with the contents of each.

use super::error::PackError;
use super::kind::{Kind, MapEntries, kind, list_cell, tuple_elements};
use super::words::word;
use crate::lane::{Budget, Busy, Lane};
use erlmcp_memory_core::packed::MAX_BYTES;
use rustler::sys::ErlNifTerm;
use rustler::{Binary, Env, ListIterator, Term};
use std::collections::{HashMap, HashSet};

mod atoms {
    rustler::atoms! { bits, export, r#fun = "fun", held, record, unknown }
}

/// The contents of a term that the interface cannot look into.
#[derive(Clone, Copy)]
pub enum Inside<'a> {
    /// A bit string, or a part of a much larger binary.
    Bits,
    /// A large binary that is kept as it is.
    Held,
    /// A term of an unknown kind.
    Unknown,
    /// `fun M:F/A`: module, name and arity.
    Export([Term<'a>; 3]),
    /// A fun of a module's code: module, arity, uniq, index, old index, old uniq, and the list of
    /// the values that it closes over.
    Fun([Term<'a>; 6], Term<'a>),
    /// A native record: module, name, whether it is exported; the names and the values of its
    /// fields.
    Record([Term<'a>; 3], Term<'a>, Term<'a>),
}

/// Opened terms by their words. A word identifies a term within one call.
pub struct Opened<'a> {
    list: Term<'a>,
    lane: Lane,
    /// Made on first use.
    inside: Option<HashMap<u64, Inside<'a>>>,
}

impl<'a> Opened<'a> {
    /// From the list made by the Erlang module, `[{Term, Kind, ...}]`.
    pub fn new(list: Term<'a>, lane: Lane) -> Self {
        Opened {
            list,
            lane,
            inside: None,
        }
    }

    /// Without any terms.
    pub fn none(env: Env<'a>) -> Self {
        Self::new(Term::list_new_empty(env), Lane::Fast)
    }

    /// The contents of a term, if it was opened.
    pub fn get(&mut self, term: Term<'_>) -> Result<Option<Inside<'a>>, Busy> {
        if self.list.is_empty_list() {
            return Ok(None);
        }
        if self.inside.is_none() {
            let mut budget = Budget::new(self.lane);
            let entry = |(word, inside)| budget.spend(0).map(|()| (word, inside));
            self.inside = Some(entries(self.list).map(entry).collect::<Result<_, _>>()?);
        }
        let inside = self
            .inside
            .as_ref()
            .and_then(|inside| inside.get(&word(term)));
        Ok(inside.copied())
    }
}

/// The opened terms of a list and their contents; others are skipped.
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
            [_, kind] if atoms::held() == kind => Inside::Held,
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
    /// The size of the term with nothing shared.
    pub size: Size,
    /// The size of the term, with subterms that occur more than once counted once.
    pub distinct: usize,
    /// Terms that must be opened, each once.
    pub closed: Vec<Term<'a>>,
    /// References, each once.
    pub references: Vec<Term<'a>>,
}

/// The size of a term with nothing shared, as in every copy of it.
#[derive(Default, Clone, Copy)]
pub struct Size {
    /// Its least size in the packed form, in bytes.
    packed: usize,
    /// Words that it takes on a heap.
    words: usize,
    /// Bytes of the binaries that are off the heap.
    off_heap: usize,
}

impl Size {
    /// Its least size in the packed form, in bytes.
    pub fn packed_bytes(&self) -> usize {
        self.packed
    }

    fn heap(words: usize) -> Self {
        Size {
            packed: 1,
            words,
            off_heap: 0,
        }
    }

    fn add(&mut self, other: Size) {
        self.packed = self.packed.saturating_add(other.packed);
        self.words = self.words.saturating_add(other.words);
        self.off_heap = self.off_heap.saturating_add(other.off_heap);
    }

    /// Bytes on the heap and off it.
    pub fn bytes(&self) -> usize {
        let heap = self.words.saturating_mul(size_of::<ErlNifTerm>());
        heap.saturating_add(self.off_heap)
    }
}

/// A binary of at most this size is on the heap of its process; the VM's own limit.
pub const HEAP_BINARY: usize = 64;

enum Step<'a> {
    /// This term must be visited.
    Visit(Term<'a>),
    /// Everything in the term of this word was visited.
    Done(u64),
}

/// Walks over terms. A subterm that occurs more than once is visited once, because a term of a few
/// words can take terabytes when written out; `Err` if the whole has more bytes than a packed value
/// may have. Opened terms are entered if `inside` has them.
pub fn walk<'a>(
    terms: impl IntoIterator<Item = Term<'a>>,
    lane: Lane,
    inside: &mut Opened<'a>,
) -> Result<Seen<'a>, PackError<'a>> {
    let mut budget = Budget::new(lane);
    let mut seen = Seen::default();
    let mut binaries = HashSet::new();
    let mut met: HashMap<u64, Size> = HashMap::new();
    // The sizes of the terms being visited, the outermost first.
    let mut sizes = vec![Size::default()];
    let mut steps = Vec::new();
    for term in terms {
        budget.spend(0)?;
        steps.push(Step::Visit(term));
    }
    while let Some(step) = steps.pop() {
        let mut term = match step {
            Step::Visit(term) => term,
            Step::Done(word) => {
                let size = sizes.pop().unwrap_or_default();
                met.insert(word, size);
                add(&mut sizes, size)?;
                continue;
            }
        };
        let mut is_tail = false;
        loop {
            budget.spend(0)?;
            let mut is_new = true;
            let own = match kind(term) {
                Kind::Nil => Size::heap(0),
                Kind::Atom | Kind::Pid | Kind::Port => Size {
                    packed: 2,
                    ..Size::heap(0)
                },
                Kind::Int(int) if is_small(int) => Size::heap(0),
                Kind::Int(_) | Kind::Float(_) => Size::heap(2),
                Kind::Ref => {
                    seen.references.push(term);
                    Size::heap(5)
                }
                Kind::Big | Kind::Remote => Size::heap(5),
                Kind::Binary => {
                    let binary = term.decode::<Binary>().ok();
                    let bytes = binary.as_ref().map_or(0, |binary| binary.len());
                    is_new = bytes <= HEAP_BINARY
                        || binary.is_some_and(|binary| binaries.insert(binary.as_ptr()));
                    let on_heap = Size::heap(2 + bytes.div_ceil(size_of::<ErlNifTerm>()));
                    let off_heap = Size {
                        off_heap: bytes,
                        ..Size::heap(8)
                    };
                    Size {
                        packed: 1 + bytes,
                        ..if bytes > HEAP_BINARY {
                            off_heap
                        } else {
                            on_heap
                        }
                    }
                }
                // A list cell need not be remembered if it is reached from the one before and holds
                // nothing that could occur again.
                Kind::Cell(head, tail) if is_tail && is_leaf(head) => {
                    add(&mut sizes, Size::heap(2))?;
                    seen.distinct += Size::heap(2).bytes();
                    steps.push(Step::Visit(head));
                    term = tail;
                    continue;
                }
                compound => {
                    if let Some(size) = met.get(&word(term)) {
                        is_new = false;
                        *size
                    } else {
                        steps.push(Step::Done(word(term)));
                        sizes.push(Size::default());
                        let env = term.get_env();
                        // SAFETY: an element of a tuple belongs to the environment of the tuple.
                        let part =
                            |part: &ErlNifTerm| Step::Visit(unsafe { Term::new(env, *part) });
                        match compound {
                            Kind::Cell(head, tail) => {
                                add(&mut sizes, Size::heap(2))?;
                                seen.distinct += Size::heap(2).bytes();
                                steps.push(Step::Visit(head));
                                term = tail;
                                is_tail = true;
                                continue;
                            }
                            Kind::Tuple(elements) => {
                                steps.extend(elements.iter().map(part));
                                Size::heap(1 + elements.len())
                            }
                            Kind::Map => {
                                let before = steps.len();
                                for (key, value) in MapEntries::of(term) {
                                    steps.extend([Step::Visit(key), Step::Visit(value)]);
                                }
                                Size::heap(5 + steps.len() - before)
                            }
                            _ => {
                                match inside.get(term)? {
                                    Some(Inside::Fun(_, free)) => steps.push(Step::Visit(free)),
                                    Some(Inside::Record(_, _, values)) => {
                                        steps.push(Step::Visit(values));
                                    }
                                    Some(_) => {}
                                    None => seen.closed.push(term),
                                }
                                Size::heap(7)
                            }
                        }
                    }
                }
            };
            add(&mut sizes, own)?;
            if is_new {
                seen.distinct = seen.distinct.saturating_add(own.bytes());
            }
            break;
        }
    }
    seen.size = sizes.pop().unwrap_or_default();
    Ok(seen)
}

/// Adds something to the term being visited.
fn add<'a>(sizes: &mut [Size], size: Size) -> Result<(), PackError<'a>> {
    if let Some(last) = sizes.last_mut() {
        last.add(size);
        if last.packed > MAX_BYTES {
            return Err(PackError::TooLarge);
        }
    }
    Ok(())
}

fn is_leaf(term: Term<'_>) -> bool {
    !matches!(
        kind(term),
        Kind::Cell(..) | Kind::Tuple(_) | Kind::Map | Kind::Fun | Kind::Other
    )
}

/// Whether the VM stores an integer in one word: 60 bits.
pub fn is_small(int: i64) -> bool {
    (-(1 << 59)..1 << 59).contains(&int)
}

/// What is in terms that were just opened.
pub fn walk_opened<'a>(opened: Term<'a>, lane: Lane) -> Result<Seen<'a>, PackError<'a>> {
    let values = entries(opened).filter_map(|(_, inside)| match inside {
        Inside::Fun(_, free) => Some(free),
        Inside::Record(_, _, values) => Some(values),
        Inside::Bits | Inside::Held | Inside::Unknown | Inside::Export(_) => None,
    });
    walk(values, lane, &mut Opened::none(opened.get_env()))
}

/// The terms that are not among the opened ones, and the opened ones, each once.
pub fn unopened<'a>(
    terms: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<(Vec<Term<'a>>, Vec<Term<'a>>), Busy> {
    let mut budget = Budget::new(lane);
    let mut words = HashSet::new();
    let mut once = |list: Term<'a>, word: fn(Term<'a>) -> Option<u64>| {
        let (mut new, mut rest) = (Vec::new(), list);
        while let Some((entry, tail)) = list_cell(rest) {
            budget.spend(0)?;
            if word(entry).is_some_and(|word| words.insert(word)) {
                new.push(entry);
            }
            rest = tail;
        }
        Ok(new)
    };
    let opened = once(opened, |entry| {
        let first = *tuple_elements(entry)?.first()?;
        // SAFETY: an element of a tuple belongs to the environment of the tuple.
        Some(word(unsafe { Term::new(entry.get_env(), first) }))
    })?;
    Ok((once(terms, |term| Some(word(term)))?, opened))
}

/// The elements of a proper list.
pub fn list_elements<'a>(list: Term<'a>) -> Option<ListIterator<'a>> {
    list.list_length().ok()?;
    list.decode().ok()
}
