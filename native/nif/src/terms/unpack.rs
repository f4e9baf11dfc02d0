//! Packed values into terms.

use super::Anchor;
use super::external::from_external;
use super::references::LocalReferences;
use super::words::raw;
use crate::lane::{Budget, Busy, Lane};
use crate::resource::ResourceRef;
use crate::share::Kept;
use erlmcp_memory_core::packed::{Item, Page, Target, View, item};
use rustler::sys::{
    ErlNifTerm, enif_make_list_cell, enif_make_list_from_array, enif_make_map_from_arrays,
    enif_make_map_put, enif_make_new_map, enif_make_tuple_from_array,
};
use rustler::types::atom;
use rustler::{Encoder, Env, NewBinary, Term};
use std::cell::Cell;

/// A binary of at most this size lies on the heap of its process; the VM's own limit.
pub const HEAP_BINARY: usize = 64;

/// Whose bytes are read: binaries inside shared content need not be copied.
#[derive(Clone, Copy)]
pub enum Source<'s> {
    /// A value that may go while terms that were made of it stay.
    Owned,
    /// Shared content, which large binaries made of it keep.
    Shared(&'s ResourceRef<Kept>),
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
        stacks: STACKS.take(),
    };
    let term = unpacker.value(value, &mut 0);
    unpacker.stacks.give_back();
    // SAFETY: the term was made in `env`.
    term.map(|term| unsafe { Term::new(env, term) })
}

/// Terms whose list, tuple or map is not made yet. The innermost one's are on top.
#[derive(Default)]
struct Stacks {
    terms: Vec<ErlNifTerm>,
    /// The values of maps, whose keys are in `terms`.
    values: Vec<ErlNifTerm>,
}

thread_local! {
    /// The stacks of a thread, so that reading a small value takes no memory beside its term.
    static STACKS: Cell<Stacks> = const {
        Cell::new(Stacks {
            terms: Vec::new(),
            values: Vec::new(),
        })
    };
}

/// The terms that the stacks of a thread keep room for.
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

struct Unpacker<'a, 's> {
    env: Env<'a>,
    source: Source<'s>,
    budget: Budget,
    references: Option<LocalReferences>,
    stacks: Stacks,
}

impl<'a> Unpacker<'a, '_> {
    fn value(&mut self, from: View<'_, Anchor>, at: &mut usize) -> Result<ErlNifTerm, Busy> {
        self.budget.spend(0)?;
        let env = self.env;
        // The bytes were written by this library and never left it.
        let Ok(next) = item(from.bytes, at) else {
            return Ok(atom::undefined().as_c_arg());
        };
        Ok(match next {
            Item::Int(value) => value.encode(env).as_c_arg(),
            Item::Float(value) => value.encode(env).as_c_arg(),
            Item::Atom(word) | Item::Pid(word) | Item::Port(word) => raw(word),
            Item::Nil => self.list(self.stacks.terms.len()),
            Item::ByteList(bytes) => {
                self.budget.spend(bytes.len() * 8)?;
                let start = self.stacks.terms.len();
                let elements = bytes.iter().map(|byte| byte.encode(env).as_c_arg());
                self.stacks.terms.extend(elements);
                self.list(start)
            }
            Item::Binary(bytes) => self.binary(bytes)?,
            Item::List(len) => {
                let start = self.elements(from, at, len)?;
                self.list(start)
            }
            Item::Improper(len) => {
                let start = self.elements(from, at, len)?;
                let mut list = self.value(from, at)?;
                for element in self.stacks.terms.drain(start..).rev() {
                    // SAFETY: both terms were made in `env`.
                    list = unsafe { enif_make_list_cell(env.as_c_arg(), element, list) };
                }
                list
            }
            Item::Tuple(len) => {
                let start = self.elements(from, at, len)?;
                let elements = &self.stacks.terms[start..];
                // SAFETY: the elements were made in `env`.
                let tuple = unsafe {
                    let len = elements.len() as u32;
                    enif_make_tuple_from_array(env.as_c_arg(), elements.as_ptr(), len)
                };
                self.stacks.terms.truncate(start);
                tuple
            }
            Item::Map(_) | Item::Trie(_) => self.map(from, next)?,
            Item::Reference(numbers) => {
                let local = self
                    .references
                    .get_or_insert_with(|| LocalReferences::new(env));
                let external = local.external(numbers);
                self.external(&external)
            }
            Item::Opaque(external) => {
                self.budget.spend(external.len() * 4)?;
                self.external(external)
            }
            Item::Foreign { id, likeness } => {
                self.budget.spend(likeness.len() * 4)?;
                match from.links.get(id) {
                    Some(Target::Anchor(Anchor::Foreign(foreign))) => {
                        foreign.to_term(env).as_c_arg()
                    }
                    _ => atom::undefined().as_c_arg(),
                }
            }
            Item::Share(id) => match from.links.get(id) {
                Some(Target::Anchor(Anchor::Share(share))) => share.get().to_term(env).as_c_arg(),
                _ => atom::undefined().as_c_arg(),
            },
            Item::Blob(id) => match from.links.get(id) {
                Some(Target::Blob(blob)) => self.value(blob.view(), &mut 0)?,
                _ => atom::undefined().as_c_arg(),
            },
        })
    }

    /// Reads elements onto the stack; from where on they lie there.
    fn elements(
        &mut self,
        from: View<'_, Anchor>,
        at: &mut usize,
        len: usize,
    ) -> Result<usize, Busy> {
        self.budget.spend(len * size_of::<ErlNifTerm>())?;
        let start = self.stacks.terms.len();
        for _ in 0..len {
            let element = self.value(from, at)?;
            self.stacks.terms.push(element);
        }
        Ok(start)
    }

    /// The list of what lies on the stack from `start` on.
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

    fn map(&mut self, from: View<'_, Anchor>, map: Item<'_>) -> Result<ErlNifTerm, Busy> {
        if let Item::Trie(id) = map
            && let Some(Target::Trie(node)) = from.links.get(id)
        {
            // All of it or nothing: a walk over the entries is not broken off.
            self.budget.spend(node.packed_bytes())?;
        }
        let start = (self.stacks.terms.len(), self.stacks.values.len());
        match map {
            Item::Map(page) => {
                let (body, mut at) = (View::new(page.body(), from.links), 0);
                for _ in 0..page.len() {
                    self.entry(body, &mut at)?;
                }
            }
            Item::Trie(id) => {
                if let Some(Target::Trie(node)) = from.links.get(id) {
                    let mut outcome = Ok(());
                    node.each_page(&mut |packed| {
                        let Some(page) = Page::of(packed.bytes()) else {
                            return;
                        };
                        let (body, mut at) = (View::new(page.body(), packed.links()), 0);
                        for _ in 0..page.len() {
                            if outcome.is_ok() {
                                outcome = self.entry(body, &mut at);
                            }
                        }
                    });
                    outcome?;
                }
            }
            _ => {}
        }
        let (keys, values) = (
            &self.stacks.terms[start.0..],
            &self.stacks.values[start.1..],
        );
        let mut term = ErlNifTerm::default();
        let env = self.env.as_c_arg();
        // SAFETY: as many keys as values, all made in `env`.
        let made = unsafe {
            enif_make_map_from_arrays(env, keys.as_ptr(), values.as_ptr(), keys.len(), &mut term)
        };
        if made == 0 {
            // Keys that are equal but have different bytes: what anchors keep cannot be looked
            // into, and a snapshot may have been made to hold them. The last one stands.
            // SAFETY: all terms were made in `env`, and `term` is a map.
            unsafe {
                term = enif_make_new_map(env);
                for (key, value) in keys.iter().zip(values) {
                    enif_make_map_put(env, term, *key, *value, &mut term);
                }
            }
        }
        self.stacks.terms.truncate(start.0);
        self.stacks.values.truncate(start.1);
        Ok(term)
    }

    /// Reads a key and its value onto the stacks.
    fn entry(&mut self, body: View<'_, Anchor>, at: &mut usize) -> Result<(), Busy> {
        let key = self.value(body, at)?;
        let value = self.value(body, at)?;
        self.stacks.terms.push(key);
        self.stacks.values.push(value);
        Ok(())
    }
}
