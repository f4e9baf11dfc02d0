//! Terms into the packed form.

use super::external::{Fun, decode_untrusted, inspect_fun, to_external};
use super::references::{LocalReferences, may_be_magic};
use super::words::{is_local_pid, is_local_port, word};
use super::{Anchor, anchor::Foreign, anchor::ShareHandle};
use crate::lane::{Budget, Busy, Lane};
use crate::resource::ResourceRef;
use crate::share::Share;
use erlmcp_memory_core::packed::{
    Links, MAX_BYTES, MAX_DEPTH, MAX_KEY_DEPTH, Packed, Scalar, Scratch, View, Writer, pack_atom,
};
use rustler::sys::{ErlNifTerm, enif_get_list_cell, enif_get_tuple, enif_is_identical};
use rustler::{Binary, Encoder, Env, MapIterator, OwnedEnv, Term, TermType};
use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::mem::MaybeUninit;
use std::sync::{Arc, LazyLock};

/// Why a term was not packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackError {
    /// It is more than a normal scheduler should do.
    Busy,
    /// It has more than [`MAX_BYTES`] in the packed form.
    TooLarge,
    /// A path is no list of keys that begins with a field, or is too long.
    NotAPath,
}

impl From<Busy> for PackError {
    fn from(Busy: Busy) -> Self {
        PackError::Busy
    }
}

/// The nodes that a term below [`MAX_DEPTH`] may have: it is copied by the VM, which does not ask
/// how large the copy becomes.
const MAX_DEEP_NODES: usize = 16 << 20;

/// Ids of foreign terms: equal ones get equal ids, and none can be chosen to meet another.
static FOREIGN_IDS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A term in the packed form.
pub fn pack(env: Env<'_>, term: Term<'_>, lane: Lane) -> Result<Packed<Anchor>, PackError> {
    let mut packer = Packer::new(env, lane, Writer::new());
    packer.value(term, 0)?;
    Ok(packer.writer.finish())
}

thread_local! {
    /// What small values are packed into on their way into a state.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// The capacity that the scratch vector of a thread keeps.
const SCRATCH_KEPT: usize = 4 << 10;

/// Writes the keys of a proper list one behind the other, and tells `ended` where each ends; it
/// says whether one more may come.
pub fn pack_keys(
    env: Env<'_>,
    keys: Term<'_>,
    lane: Lane,
    writer: Writer<Anchor>,
    mut ended: impl FnMut(usize) -> bool,
) -> Result<Writer<Anchor>, PackError> {
    // One budget for all of them.
    let mut packer = Packer::new(env, lane, writer);
    let mut rest = keys;
    while let Some((key, tail)) = list_cell(rest) {
        packer.key(key, 0)?;
        if !ended(packer.writer.len()) {
            return Err(PackError::NotAPath);
        }
        rest = tail;
    }
    if rest.is_empty_list() {
        Ok(packer.writer)
    } else {
        Err(PackError::NotAPath)
    }
}

/// Calls `with` with the packed form of a term, which is gone afterwards.
pub fn with_packed<R>(
    env: Env<'_>,
    term: Term<'_>,
    lane: Lane,
    with: impl FnOnce(View<'_, Anchor>) -> R,
) -> Result<R, PackError> {
    if term.is_atom() {
        // What fields are set to more often than to anything else, without a writer.
        let mut bytes = Scalar::default();
        let len = pack_atom(word(term), &mut bytes);
        return Ok(with(View::new(&bytes[..len], &Links::default())));
    }
    let mut packer = Packer::new(env, lane, Writer::reusing(SCRATCH.take()));
    packer.value(term, 0)?;
    let (scratch, links) = packer.writer.into_parts();
    let result = with(View::new(scratch.bytes(), &links));
    if scratch.capacity() <= SCRATCH_KEPT {
        SCRATCH.set(scratch);
    }
    Ok(result)
}

const WORD: usize = size_of::<ErlNifTerm>();

/// Whether 0.0 and -0.0 are the same key: so before OTP 27.
static ZEROS_ARE_EQUAL: LazyLock<bool> = LazyLock::new(|| {
    OwnedEnv::new().run(|env| {
        let (zero, negative) = (0.0f64.encode(env), (-0.0f64).encode(env));
        // SAFETY: the call compares two terms and keeps neither.
        unsafe { enif_is_identical(zero.as_c_arg(), negative.as_c_arg()) != 0 }
    })
});

/// A term from the external format, made of bytes that anybody may have written, in the packed
/// form, where lists, tuples and maps are kept as foreign terms. `Ok(None)`: it is one of these,
/// and none is allowed. `Err`: it cannot be read.
pub fn pack_untrusted(
    env: Env<'_>,
    external: &[u8],
    compound: bool,
) -> Result<Option<Packed<Anchor>>, PackError> {
    // What is read on the way to the packed form goes at once, and not with the caller's heap.
    OwnedEnv::new().run(|own| {
        let term = decode_untrusted(own, external).ok_or(PackError::TooLarge)?;
        let is_compound =
            term.is_list() && !term.is_empty_list() || term.is_tuple() || term.is_map();
        if is_compound && !compound {
            return Ok(None);
        }
        let mut packer = Packer::new(env, Lane::Dirty, Writer::new());
        packer.value(term, MAX_DEPTH)?;
        Ok(Some(packer.writer.finish()))
    })
}

struct Packer<'a> {
    env: Env<'a>,
    lane: Lane,
    budget: Budget,
    writer: Writer<Anchor>,
    references: Option<LocalReferences>,
    in_key: bool,
}

impl<'a> Packer<'a> {
    fn new(env: Env<'a>, lane: Lane, writer: Writer<Anchor>) -> Self {
        Packer {
            env,
            lane,
            budget: Budget::new(lane),
            writer,
            references: None,
            in_key: false,
        }
    }

    /// A key of a map that lies at this depth. Its bytes do not depend on the depth, so that it is
    /// found again by a path.
    fn key(&mut self, key: Term<'_>, depth: usize) -> Result<(), PackError> {
        if self.in_key {
            return self.value(key, depth + 1);
        }
        self.in_key = true;
        let written = self.value(key, MAX_DEPTH - MAX_KEY_DEPTH);
        self.in_key = false;
        written
    }

    fn value(&mut self, term: Term<'_>, depth: usize) -> Result<(), PackError> {
        self.budget.spend(0)?;
        if self.writer.len() > MAX_BYTES {
            return Err(PackError::TooLarge);
        }
        match term.get_type() {
            TermType::Atom => self.writer.atom(word(term)),
            TermType::Integer => match term.decode::<i64>() {
                Ok(value) => self.writer.int(value),
                Err(_) => self.opaque(term)?,
            },
            TermType::Float => match term.decode::<f64>() {
                Ok(value) if self.in_key && value == 0.0 && *ZEROS_ARE_EQUAL => {
                    self.writer.float(0.0);
                }
                Ok(value) => self.writer.float(value),
                Err(_) => self.opaque(term)?,
            },
            // Not `decode_as_binary`, which takes an iolist, too.
            TermType::Binary => match term.decode::<Binary>() {
                Ok(binary) => {
                    self.copy(binary.len())?;
                    self.writer.binary(&binary);
                }
                // A bit string that is no binary.
                Err(_) => self.opaque(term)?,
            },
            TermType::Pid if is_local_pid(term) => self.writer.pid(word(term)),
            TermType::Port if is_local_port(term) => self.writer.port(word(term)),
            TermType::Pid | TermType::Port => self.opaque(term)?,
            TermType::Ref => self.reference(term)?,
            TermType::Fun => self.fun(term)?,
            TermType::List if term.is_empty_list() => self.writer.nil(),
            TermType::List | TermType::Tuple | TermType::Map if depth >= MAX_DEPTH => {
                self.deep(term)?;
            }
            TermType::List => self.list(term, depth)?,
            TermType::Tuple => {
                let elements = tuple_elements(term);
                self.writer.tuple(elements.len());
                for element in elements {
                    // SAFETY: an element of a tuple belongs to the environment of the tuple.
                    let element = unsafe { Term::new(term.get_env(), *element) };
                    self.value(element, depth + 1)?;
                }
            }
            TermType::Map => self.map(term, depth)?,
            TermType::Unknown => return Err(PackError::TooLarge),
        }
        Ok(())
    }

    /// Makes sure that so many bytes may be copied.
    fn copy(&mut self, bytes: usize) -> Result<(), PackError> {
        self.budget.spend(bytes)?;
        if self.writer.len().saturating_add(bytes) > MAX_BYTES {
            return Err(PackError::TooLarge);
        }
        Ok(())
    }

    fn list(&mut self, list: Term<'_>, depth: usize) -> Result<(), PackError> {
        let (mut len, mut bytes, mut rest) = (0, true, list);
        while let Some((head, tail)) = list_cell(rest) {
            self.budget.spend(0)?;
            bytes = bytes && byte(head).is_some();
            len += 1;
            rest = tail;
        }
        let proper = rest.is_empty_list();
        if proper && bytes {
            self.copy(len)?;
            let mut rest = list;
            let elements = (0..len).map(|_| {
                let (head, tail) = list_cell(rest).unwrap_or((rest, rest));
                rest = tail;
                byte(head).unwrap_or(0)
            });
            self.writer.byte_list(elements);
            return Ok(());
        }
        if proper {
            self.writer.list(len);
        } else {
            self.writer.improper(len);
        }
        let mut rest = list;
        while let Some((head, tail)) = list_cell(rest) {
            self.value(head, depth + 1)?;
            rest = tail;
        }
        if proper {
            return Ok(());
        }
        self.value(rest, depth + 1)
    }

    fn map(&mut self, map: Term<'_>, depth: usize) -> Result<(), PackError> {
        let Some(entries) = MapIterator::new(map) else {
            return Err(PackError::TooLarge);
        };
        let built = self.writer.begin_map();
        for (key, value) in entries {
            let key_start = self.writer.len();
            self.key(key, depth)?;
            let value_start = self.writer.len();
            self.value(value, depth + 1)?;
            self.writer.entry(key_start, value_start);
        }
        // The keys of a map differ, and so do their packed forms.
        let distinct = self.writer.end_map(built);
        debug_assert!(distinct);
        Ok(())
    }

    /// A term that only the VM understands and that nothing needs to keep alive.
    fn opaque(&mut self, term: Term<'_>) -> Result<(), PackError> {
        // How large it is cannot be asked beforehand.
        self.unbounded()?;
        let external = to_external(term);
        self.copy(external.len())?;
        self.writer.opaque(&external);
        Ok(())
    }

    fn unbounded(&self) -> Result<(), PackError> {
        match self.lane {
            Lane::Fast => Err(PackError::Busy),
            Lane::Dirty => Ok(()),
        }
    }

    fn reference(&mut self, term: Term<'_>) -> Result<(), PackError> {
        let external = to_external(term);
        let env = self.env;
        let local = self
            .references
            .get_or_insert_with(|| LocalReferences::new(env));
        match local.numbers(&external) {
            None => self.writer.opaque(&external),
            Some(numbers) if !may_be_magic(numbers) => self.writer.reference(numbers),
            Some(numbers) => match ResourceRef::<Share>::from_term(term) {
                Some(share) => {
                    let handle = ShareHandle::new(share);
                    self.writer.share(handle.id(), Anchor::Share(handle));
                }
                // Compared by its numbers: they stay when the node gets a name.
                None => self.foreign(term, numbers, 0)?,
            },
        }
        Ok(())
    }

    fn fun(&mut self, term: Term<'_>) -> Result<(), PackError> {
        self.unbounded()?;
        let mut external = to_external(term);
        match inspect_fun(&mut external) {
            Fun::Plain => {
                self.copy(external.len())?;
                self.writer.opaque(&external);
                Ok(())
            }
            // What it took with it cannot be counted: about three bytes for each byte of
            // its external format.
            Fun::Closure => self.foreign(term, &external, 3 * external.len()),
        }
    }

    /// A term that nests deeper than the packed form: the VM copies it without a stack.
    fn deep(&mut self, term: Term<'_>) -> Result<(), PackError> {
        self.unbounded()?;
        let Some(words) = flat_words(term, MAX_DEEP_NODES) else {
            return Err(PackError::TooLarge);
        };
        let external = to_external(term);
        self.foreign(term, &external, words * WORD)
    }

    /// A term that must be kept alive to stay what it is, bytes that equal terms have equal, and
    /// about how many bytes it takes.
    fn foreign(&mut self, term: Term<'_>, likeness: &[u8], bytes: usize) -> Result<(), PackError> {
        self.copy(likeness.len())?;
        let id = FOREIGN_IDS.hash_one(likeness);
        let anchor = Anchor::Foreign(Arc::new(Foreign::new(term, bytes)));
        self.writer.foreign(id, likeness, anchor);
        Ok(())
    }
}

/// The words that a term takes, written out in full; nothing if it has more than `limit` nodes, a
/// binary counting by its size.
fn flat_words(term: Term<'_>, limit: usize) -> Option<usize> {
    let mut left = limit;
    let mut words = 0;
    let mut stack = vec![term];
    while let Some(term) = stack.pop() {
        let mut rest = term;
        loop {
            let size = rest.decode::<Binary>().map_or(0, |binary| binary.len());
            left = left.checked_sub(1 + size)?;
            if let Some((head, tail)) = list_cell(rest) {
                words += 2;
                stack.push(head);
                rest = tail;
                continue;
            }
            match rest.get_type() {
                TermType::Tuple => {
                    let env = rest.get_env();
                    // SAFETY: an element of a tuple belongs to the environment of the tuple.
                    let element = |element: &ErlNifTerm| unsafe { Term::new(env, *element) };
                    let elements = tuple_elements(rest);
                    words += 1 + elements.len();
                    stack.extend(elements.iter().map(element));
                }
                TermType::Map => {
                    words += 4;
                    for (key, value) in MapIterator::new(rest).into_iter().flatten() {
                        words += 2;
                        stack.extend([key, value]);
                    }
                }
                TermType::Atom => {}
                _ => words += 2 + size / WORD,
            }
            break;
        }
        if stack.len() > limit {
            return None;
        }
    }
    Some(words)
}

/// An integer from 0 to 255. (rustler's decoder of `u8` takes any integer, modulo 256.)
fn byte(term: Term<'_>) -> Option<u8> {
    u8::try_from(term.decode::<i64>().ok()?).ok()
}

/// Head and tail of a list that is not empty.
pub fn list_cell<'a>(list: Term<'a>) -> Option<(Term<'a>, Term<'a>)> {
    let env = list.get_env();
    let (mut head, mut tail) = Default::default();
    // SAFETY: the call writes both when it succeeds, and they belong to the list's environment.
    unsafe {
        let is_cell = enif_get_list_cell(env.as_c_arg(), list.as_c_arg(), &mut head, &mut tail);
        (is_cell != 0).then(|| (Term::new(env, head), Term::new(env, tail)))
    }
}

/// The elements of a tuple; none of another term.
pub fn tuple_elements<'a>(tuple: Term<'a>) -> &'a [ErlNifTerm] {
    let (mut arity, mut elements) = (0, MaybeUninit::uninit());
    // SAFETY: when the call succeeds, it sets `elements` to an array of `arity` terms that lives
    // as long as the tuple's environment. An empty tuple may have no array at all.
    unsafe {
        let env = tuple.get_env().as_c_arg();
        if enif_get_tuple(env, tuple.as_c_arg(), &mut arity, elements.as_mut_ptr()) == 0
            || arity <= 0
        {
            return &[];
        }
        std::slice::from_raw_parts(elements.assume_init(), arity as usize)
    }
}
