//! Builds terms from packed values.

use super::Anchor;
use super::external::from_external;
use super::opened::HEAP_BINARY;
use super::references::LocalReferences;
use super::words::raw;
use super::written::Written;
use crate::lane::{Budget, Busy, Lane};
use crate::resource::ResourceRef;
use crate::share::{Kept, Shared};
use erlmcp_memory_core::packed::{Item, Packed, Page, Target, View, item_here};
use rustler::sys::{
    ErlNifTerm, enif_make_list_cell, enif_make_list_from_array, enif_make_map_from_arrays,
    enif_make_map_put, enif_make_new_map, enif_make_tuple_from_array,
};
use rustler::types::atom;
use rustler::{Encoder, Env, NewBinary, Term};
use smallvec::SmallVec;
use std::cell::Cell;

/// Whose bytes are read: binaries inside shared content need not be copied.
#[derive(Clone, Copy)]
pub enum Source<'s> {
    /// A value that may be freed before terms that were made of it.
    Owned,
    /// Shared content, which large binaries made of it keep alive.
    Shared(&'s ResourceRef<Kept>),
    /// A parked term, which is unpacked in this lane. The terms of parts that are read often are
    /// made and kept.
    Parked(Lane),
}

/// The term that a packed value stands for.
pub fn unpack<'a>(
    env: Env<'a>,
    value: View<'_, Anchor>,
    source: Source<'_>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let mut unpacker = Unpacker {
        env,
        source,
        budget: Budget::new(lane),
        references: None,
        written: None,
        stacks: STACKS.take(),
    };
    let term = unpacker.value(value);
    unpacker.stacks.give_back();
    // SAFETY: the term was made in `env`.
    term.map(|term| unsafe { Term::new(env, term) })
}

/// Terms whose list, tuple, map, fun or record is not made yet. The innermost one's are on top.
#[derive(Default)]
struct Stacks {
    terms: Vec<ErlNifTerm>,
    /// Work for the map that is being made.
    values: Vec<ErlNifTerm>,
}

thread_local! {
    /// The stacks of a thread, so that reading a small value allocates nothing but its term.
    static STACKS: Cell<Stacks> = const {
        Cell::new(Stacks {
            terms: Vec::new(),
            values: Vec::new(),
        })
    };
}

/// How many terms the stacks of a thread keep room for.
const STACKS_KEPT: usize = 512;

impl Stacks {
    fn give_back(mut self) {
        if self.terms.capacity().max(self.values.capacity()) <= STACKS_KEPT {
            self.terms.clear();
            self.values.clear();
            STACKS.set(self);
        }
    }
}

/// What is made of the terms of a frame once all are built.
#[derive(Clone, Copy)]
enum Made {
    /// Nothing: they belong to the frame below.
    Same,
    List,
    Improper,
    Tuple,
    /// Keys and values in turn.
    Map,
    Fun,
    /// `fun M:F/A` or a record.
    Closed,
}

/// Something that is being made. Nesting uses no stack of the thread.
enum Frame<'v> {
    /// This many values follow; the terms of those before are on the stack from `start` on.
    Values {
        left: usize,
        made: Made,
        start: usize,
    },
    /// Reading continues there.
    Resume(View<'v, Anchor>, usize),
    /// Pages of a map that are to be read.
    Pages(std::vec::IntoIter<&'v Packed<Anchor>>),
}

struct Unpacker<'a, 's> {
    env: Env<'a>,
    source: Source<'s>,
    budget: Budget,
    references: Option<LocalReferences>,
    /// The fun or the record that is being made, with everything in it.
    written: Option<Box<Written<'a>>>,
    stacks: Stacks,
}

impl<'a> Unpacker<'a, '_> {
    fn value(&mut self, whole: View<'_, Anchor>) -> Result<ErlNifTerm, Busy> {
        let (mut here, mut at) = (whole, 0);
        let mut frames: SmallVec<[Frame<'_>; 6]> = SmallVec::new();
        // A value without parts needs no frames.
        let (mut left, mut made, mut start) = (1, Made::Same, 0);
        loop {
            while left > 0 {
                left -= 1;
                self.budget.spend(0)?;
                // The bytes were written by this library and never left it.
                let Ok(next) = item_here(here.bytes, &mut at) else {
                    self.undefined();
                    continue;
                };
                let inside = match next {
                    Item::List(_) => Made::List,
                    Item::Improper(_) => Made::Improper,
                    Item::Tuple(_) => Made::Tuple,
                    Item::Fun(_) => Made::Fun,
                    Item::Export | Item::Record(_) => Made::Closed,
                    Item::Map(_) | Item::Trie(_) | Item::Entries(_) => Made::Map,
                    Item::Blob(_) => Made::Same,
                    Item::Part(id) => {
                        let Some(Target::Anchor(Anchor::Share(share))) = here.links.get(id) else {
                            self.undefined();
                            continue;
                        };
                        let shared = share.shared();
                        if let Some(term) = self.part(shared)? {
                            self.push(term);
                            continue;
                        }
                        frames.push(Frame::Values { left, made, start });
                        frames.push(Frame::Resume(here, at));
                        (left, made) = (1, Made::Same);
                        (here, at) = (shared.packed().view(), 0);
                        continue;
                    }
                    Item::Run { len, id } => {
                        let Some(Target::Anchor(Anchor::Share(share))) = here.links.get(id) else {
                            self.undefined();
                            continue;
                        };
                        // It counted for one.
                        let below = (left + 1).saturating_sub(len);
                        frames.push(Frame::Values {
                            left: below,
                            made,
                            start,
                        });
                        frames.push(Frame::Resume(here, at));
                        (left, made) = (len, Made::Same);
                        (here, at) = (share.shared().packed().view(), 0);
                        // The head of the list that it is kept as.
                        let _ = item_here(here.bytes, &mut at);
                        self.budget.spend(len * size_of::<ErlNifTerm>())?;
                        continue;
                    }
                    leaf if self.written.is_some() => {
                        self.write(here, leaf)?;
                        continue;
                    }
                    leaf => {
                        let term = self.leaf(here, leaf)?;
                        self.push(term);
                        continue;
                    }
                };
                frames.push(Frame::Values { left, made, start });
                (left, made) = (next.following(), inside);
                self.budget.spend(left * size_of::<ErlNifTerm>())?;
                if self.written.is_none() && matches!(made, Made::Fun | Made::Closed) {
                    self.written = Some(Box::new(Written::new(self.env)));
                }
                start = match &mut self.written {
                    None => self.stacks.terms.len(),
                    Some(written) => {
                        let (begun, rest) = written.begin(next, here, &mut at);
                        left = rest;
                        begun
                    }
                };
                match next {
                    Item::Map(page) => {
                        frames.push(Frame::Resume(here, at));
                        (here, at) = (View::new(page.body(), here.links), 0);
                        left = 2 * page.len();
                    }
                    Item::Trie(id) => {
                        if let Some(Target::Trie(node)) = here.links.get(id) {
                            // All of it or nothing: the pages are not counted one by one.
                            self.budget.spend(node.packed_bytes())?;
                            let mut pages = Vec::new();
                            node.each_page(&mut |page| pages.push(page));
                            frames.push(Frame::Resume(here, at));
                            frames.push(Frame::Pages(pages.into_iter()));
                        }
                    }
                    Item::Blob(id) => {
                        frames.push(Frame::Resume(here, at));
                        if let Some(Target::Blob(blob)) = here.links.get(id) {
                            (here, at) = (blob.view(), 0);
                        }
                        left = 1;
                    }
                    _ => {}
                }
            }
            // The terms of the innermost frame are built, or those of one of its pages.
            match frames.pop() {
                Some(Frame::Pages(mut pages)) => {
                    if let Some(packed) = pages.next() {
                        frames.push(Frame::Pages(pages));
                        if let Some(page) = Page::of(packed.bytes()) {
                            (here, at) = (View::new(page.body(), packed.links()), 0);
                            left = 2 * page.len();
                        }
                    }
                }
                Some(Frame::Resume(view, from)) => (here, at) = (view, from),
                Some(Frame::Values {
                    left: below,
                    made: outer,
                    start: from,
                }) => {
                    self.make(made, start);
                    (left, made, start) = (below, outer, from);
                }
                None => break,
            }
        }
        let term = self.stacks.terms.pop();
        Ok(term.unwrap_or_else(|| atom::undefined().as_c_arg()))
    }

    /// The result if nothing can be read.
    fn undefined(&mut self) {
        match &mut self.written {
            Some(written) => written.term(atom::undefined().to_term(self.env)),
            None => self.push(atom::undefined().as_c_arg()),
        }
    }

    fn push(&mut self, term: ErlNifTerm) {
        self.stacks.terms.push(term);
    }

    /// The term of a part, if that is kept as a term.
    fn part(&self, shared: &Shared) -> Result<Option<ErlNifTerm>, Busy> {
        if self.written.is_some() {
            return Ok(None);
        }
        let lane = match self.source {
            Source::Parked(lane) => Some(lane),
            Source::Owned | Source::Shared(_) => None,
        };
        let kept = shared.host.part_term(shared, lane)?;
        Ok(kept.map(|kept| kept.to_term(self.env).as_c_arg()))
    }

    fn leaf(&mut self, from: View<'_, Anchor>, leaf: Item<'_>) -> Result<ErlNifTerm, Busy> {
        let env = self.env;
        Ok(match leaf {
            Item::Int(value) => value.encode(env).as_c_arg(),
            Item::Float(value) => value.encode(env).as_c_arg(),
            // SAFETY: the packer wrote the word of an atom, a process or a port.
            Item::Atom(word) | Item::Pid(word) | Item::Port(word) => unsafe { raw(word) },
            Item::Nil => Term::list_new_empty(env).as_c_arg(),
            Item::ByteList(bytes) => {
                self.budget.spend(bytes.len() * 8)?;
                let start = self.stacks.terms.len();
                let elements = bytes.iter().map(|byte| byte.encode(env).as_c_arg());
                self.stacks.terms.extend(elements);
                self.list(start)
            }
            Item::Binary(bytes) => self.binary(bytes)?,
            Item::Reference(numbers) => {
                let external = self.local().external(numbers);
                self.external(&external)
            }
            Item::Opaque(external) => {
                self.budget.spend(external.len() * 4)?;
                self.external(external)
            }
            Item::Foreign { id, .. } | Item::Handle(id) | Item::Share(id) => {
                match from.links.get(id) {
                    Some(Target::Anchor(anchor)) => anchor.to_term(env).as_c_arg(),
                    _ => atom::undefined().as_c_arg(),
                }
            }
            // A value with parts is not a leaf.
            Item::List(_)
            | Item::Improper(_)
            | Item::Tuple(_)
            | Item::Fun(_)
            | Item::Export
            | Item::Record(_)
            | Item::Blob(_)
            | Item::Trie(_)
            | Item::Map(_)
            | Item::Entries(_)
            | Item::Part(_)
            | Item::Run { .. } => atom::undefined().as_c_arg(),
        })
    }

    /// Writes a value without parts inside a fun or a record.
    fn write(&mut self, from: View<'_, Anchor>, leaf: Item<'_>) -> Result<(), Busy> {
        let bytes = match leaf {
            Item::ByteList(bytes) | Item::Binary(bytes) | Item::Opaque(bytes) => bytes.len(),
            _ => 0,
        };
        self.budget.spend(bytes)?;
        if let Some(written) = &mut self.written {
            written.leaf(leaf, from);
        }
        Ok(())
    }

    fn local(&mut self) -> &LocalReferences {
        let env = self.env;
        self.references
            .get_or_insert_with(|| LocalReferences::new(env))
    }

    /// Makes one term of those on the stack from `start` on.
    fn make(&mut self, made: Made, start: usize) {
        if let Some(written) = &mut self.written {
            match made {
                Made::List => written.end_list(),
                Made::Fun => written.end_fun(start),
                _ => {}
            }
            // A part in it ends no more than itself.
            if start == Written::OUTERMOST && !matches!(made, Made::Same) {
                let term = written.read();
                self.written = None;
                self.push(term.as_c_arg());
            }
            return;
        }
        let term = match made {
            // A fun or a record is written, not made of terms.
            Made::Same | Made::Fun | Made::Closed => return,
            Made::List => self.list(start),
            Made::Improper => self.improper(start),
            Made::Tuple => self.tuple(start),
            Made::Map => self.map(start),
        };
        self.stacks.terms.truncate(start);
        self.push(term);
    }

    fn list(&mut self, start: usize) -> ErlNifTerm {
        let elements = &self.stacks.terms[start..];
        // SAFETY: the elements were made in `env`.
        let list = unsafe {
            let len = elements.len() as u32;
            enif_make_list_from_array(self.env.as_c_arg(), elements.as_ptr(), len)
        };
        self.stacks.terms.truncate(start);
        list
    }

    fn improper(&mut self, start: usize) -> ErlNifTerm {
        let mut elements = self.stacks.terms.drain(start..).rev();
        let tail = elements.next();
        let mut list = tail.unwrap_or_else(|| atom::undefined().as_c_arg());
        for element in elements {
            // SAFETY: both terms were made in `env`.
            list = unsafe { enif_make_list_cell(self.env.as_c_arg(), element, list) };
        }
        list
    }

    fn tuple(&self, start: usize) -> ErlNifTerm {
        let elements = &self.stacks.terms[start..];
        // SAFETY: the elements were made in `env`.
        unsafe {
            let len = elements.len() as u32;
            enif_make_tuple_from_array(self.env.as_c_arg(), elements.as_ptr(), len)
        }
    }

    fn map(&mut self, start: usize) -> ErlNifTerm {
        let Stacks { terms, values } = &mut self.stacks;
        values.clear();
        values.extend(terms[start..].iter().skip(1).step_by(2));
        let count = values.len();
        for index in 0..count {
            terms[start + index] = terms[start + 2 * index];
        }
        let keys = &terms[start..start + count];
        let mut term = ErlNifTerm::default();
        let env = self.env.as_c_arg();
        // SAFETY: as many keys as values, all made in `env`.
        let made = unsafe {
            enif_make_map_from_arrays(env, keys.as_ptr(), values.as_ptr(), count, &mut term)
        };
        if made == 0 {
            // Keys that are equal but have different bytes, such as references that became equal
            // because what they referred to is gone. The last one wins. SAFETY: all terms were made
            // in `env`, and `term` is a map.
            unsafe {
                term = enif_make_new_map(env);
                for (key, value) in keys.iter().zip(&*values) {
                    enif_make_map_put(env, term, *key, *value, &mut term);
                }
            }
        }
        if values.capacity() > STACKS_KEPT {
            *values = Vec::new();
        }
        term
    }

    fn binary(&mut self, bytes: &[u8]) -> Result<ErlNifTerm, Busy> {
        if let Source::Shared(content) = self.source
            && bytes.len() > HEAP_BINARY
        {
            // SAFETY: the bytes are part of this content, which never changes and lives as long
            // as the object.
            let binary = unsafe { content.binary(self.env, bytes) };
            return Ok(binary.as_c_arg());
        }
        self.budget.spend(bytes.len())?;
        let mut binary = NewBinary::new(self.env, bytes.len());
        binary.as_mut_slice().copy_from_slice(bytes);
        Ok(Term::from(binary).as_c_arg())
    }

    fn external(&self, external: &[u8]) -> ErlNifTerm {
        let term = from_external(self.env, external);
        term.map_or(atom::undefined().as_c_arg(), |term| term.as_c_arg())
    }
}
