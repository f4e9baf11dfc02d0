//! Funs and native records, which the VM makes only from their external format.
//!
//! The outermost one is written with everything in it, and read once. So what a fun closes over
//! exists twice while it is made, however many funs are around it.

use super::Anchor;
use super::external::{from_external, to_external};
use super::references::LocalReferences;
use super::words::{from_word, word};
use erlmcp_memory_core::etf::{self, FunHead};
use erlmcp_memory_core::packed::{FUN_HEAD, Item, RECORD_HEAD, Target, View, item};
use rustler::types::atom;
use rustler::{Binary, Env, Term};
use std::collections::HashMap;
use std::ops::Range;

/// A fun or a native record that is being written.
pub struct Written<'a> {
    env: Env<'a>,
    to: etf::Writer,
    local: Option<LocalReferences>,
    /// Where an atom was written first: the VM need not be asked again.
    atoms: HashMap<u64, Range<usize>>,
}

impl<'a> Written<'a> {
    /// Where the outermost one begins: after the version byte.
    pub const OUTERMOST: usize = 1;

    /// An empty one.
    pub fn new(env: Env<'a>) -> Self {
        Written {
            env,
            to: etf::Writer::default(),
            local: None,
            atoms: HashMap::new(),
        }
    }

    /// Begins what has parts, in a value that is read up to `at`: where it begins, and how many
    /// values follow.
    pub fn begin(
        &mut self,
        head: Item<'_>,
        from: View<'_, Anchor>,
        at: &mut usize,
    ) -> (usize, usize) {
        let start = self.to.bytes().len();
        let mut following = head.following();
        match head {
            Item::List(len) | Item::Improper(len) => self.to.list(len),
            Item::Tuple(len) => self.to.tuple(len),
            Item::Map(page) => self.to.map(page.len()),
            Item::Entries(len) => self.to.map(len),
            Item::Trie(id) => match from.links.get(id) {
                Some(Target::Trie(node)) => self.to.map(node.len()),
                _ => self.to.map(0),
            },
            Item::Fun(free) => {
                following -= FUN_HEAD;
                self.fun(free, from.bytes, at);
            }
            Item::Export => self.to.export(),
            Item::Record(fields) => {
                following -= RECORD_HEAD;
                self.record(fields, from.bytes, at);
            }
            _ => {}
        }
        (start, following)
    }

    fn fun(&mut self, free: usize, bytes: &[u8], at: &mut usize) {
        let head: [_; FUN_HEAD] = std::array::from_fn(|_| item(bytes, at));
        // No other head was written, and nothing is read from a value without one.
        let [
            Ok(Item::Atom(module)),
            Ok(Item::Int(arity)),
            Ok(Item::Binary(uniq)),
            Ok(Item::Int(index)),
            Ok(Item::Int(old_index)),
            Ok(Item::Int(old_uniq)),
        ] = head
        else {
            return;
        };
        let head = FunHead {
            arity: arity as u8,
            uniq,
            index: index as u32,
            free: free as u32,
        };
        self.to.fun(head);
        self.atom(module);
        self.to.int(old_index);
        self.to.int(old_uniq);
        // The process that made a fun is not part of its value, but its external format has one: a
        // process that never existed.
        let creator = etf::pid(self.local().node());
        self.to.term(&creator);
    }

    fn record(&mut self, fields: usize, bytes: &[u8], at: &mut usize) {
        let head: [_; RECORD_HEAD] = std::array::from_fn(|_| item(bytes, at));
        if let [Ok(module), Ok(name), Ok(Item::Atom(exported))] = head {
            let is_exported = exported == word(atom::true_().to_term(self.env));
            self.to.record(fields, is_exported);
            for atom in [module, name] {
                if let Item::Atom(word) = atom {
                    self.atom(word);
                }
            }
        }
    }

    /// Writes a value without parts.
    pub fn leaf(&mut self, leaf: Item<'_>, from: View<'_, Anchor>) {
        match leaf {
            Item::Int(value) => self.to.int(value),
            Item::Float(value) => self.to.float(value),
            Item::Nil => self.to.nil(),
            Item::ByteList(bytes) => self.to.byte_list(bytes),
            Item::Binary(bytes) => self.to.binary(bytes),
            Item::Opaque(external) => self.to.term(&external[1..]),
            Item::Reference(numbers) => {
                let external = self.local().external(numbers);
                self.to.term(&external[1..]);
            }
            Item::Atom(word) => self.atom(word),
            // SAFETY: the packer wrote the word of a process or a port.
            Item::Pid(word) | Item::Port(word) => self.term(unsafe { from_word(self.env, word) }),
            Item::Foreign { id, .. } | Item::Handle(id) | Item::Share(id) => {
                match from.links.get(id) {
                    // The VM finds the object again as long as the value that is read keeps it, and
                    // longer: the caller has the term.
                    Some(Target::Anchor(anchor)) => self.term(anchor.to_term(self.env)),
                    _ => self.term(atom::undefined().to_term(self.env)),
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
            | Item::Run { .. } => self.term(atom::undefined().to_term(self.env)),
        }
    }

    /// Writes a term.
    pub fn term(&mut self, term: Term<'a>) {
        match term.decode::<Binary>() {
            Ok(binary) => self.to.binary(&binary),
            Err(_) => self.to.term(&to_external(term)[1..]),
        }
    }

    fn atom(&mut self, word: u64) {
        if let Some(written) = self.atoms.get(&word) {
            return self.to.again(written.clone());
        }
        let start = self.to.bytes().len();
        // SAFETY: the packer wrote the word of an atom.
        self.term(unsafe { from_word(self.env, word) });
        self.atoms.insert(word, start..self.to.bytes().len());
    }

    /// Ends a proper list.
    pub fn end_list(&mut self) {
        self.to.nil();
    }

    /// Ends the fun that begins there.
    pub fn end_fun(&mut self, start: usize) {
        self.to.end_fun(start);
    }

    /// What was written.
    pub fn read(&self) -> Term<'a> {
        let undefined = || atom::undefined().to_term(self.env);
        from_external(self.env, self.to.bytes()).unwrap_or_else(undefined)
    }

    fn local(&mut self) -> &LocalReferences {
        let env = self.env;
        self.local.get_or_insert_with(|| LocalReferences::new(env))
    }
}
