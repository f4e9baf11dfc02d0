//! The external term format: every byte of it that is read or written here
//! (<https://www.erlang.org/doc/apps/erts/erl_ext_dist>).
//!
//! The packed form holds nearly every term itself. In the external format it keeps those that have
//! no parts and that only a VM understands: big integers, bit strings, and processes, ports and
//! references that may be another node's. Funs and native records are handed to the VM in this
//! format, because it has no other door for them. Terms with parts are read from it ([`part`])
//! where the first release of this library kept some.

use std::ops::Range;

/// The first byte of every term.
pub const VERSION: u8 = 131;

mod tag {
    pub const RECORD: u8 = 67;
    pub const NEW_FLOAT: u8 = 70;
    pub const BIT_BINARY: u8 = 77;
    pub const NEW_PID: u8 = 88;
    pub const NEW_PORT: u8 = 89;
    pub const NEWER_REFERENCE: u8 = 90;
    pub const SMALL_INTEGER: u8 = 97;
    pub const INTEGER: u8 = 98;
    pub const ATOM: u8 = 100;
    pub const REFERENCE: u8 = 101;
    pub const PORT: u8 = 102;
    pub const PID: u8 = 103;
    pub const SMALL_TUPLE: u8 = 104;
    pub const LARGE_TUPLE: u8 = 105;
    pub const NIL: u8 = 106;
    pub const STRING: u8 = 107;
    pub const LIST: u8 = 108;
    pub const BINARY: u8 = 109;
    pub const SMALL_BIG: u8 = 110;
    pub const LARGE_BIG: u8 = 111;
    pub const NEW_FUN: u8 = 112;
    pub const EXPORT: u8 = 113;
    pub const NEW_REFERENCE: u8 = 114;
    pub const SMALL_ATOM: u8 = 115;
    pub const MAP: u8 = 116;
    pub const ATOM_UTF8: u8 = 118;
    pub const SMALL_ATOM_UTF8: u8 = 119;
    pub const V4_PORT: u8 = 120;
}

/// A term without parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flat<'a> {
    /// A big integer or a bit string.
    Number,
    /// A process, a port or a reference of the node whose name is the atom in these bytes.
    OfNode(&'a [u8]),
}

/// What these bytes are, version byte included, if they are exactly one term without parts.
pub fn flat(external: &[u8]) -> Option<Flat<'_>> {
    let (&VERSION, term) = external.split_first()? else {
        return None;
    };
    let (flat, end) = first_flat(term)?;
    (end == term.len()).then_some(flat)
}

/// The term without parts that these bytes begin with, and where it ends.
fn first_flat(term: &[u8]) -> Option<(Flat<'_>, usize)> {
    let (tag, rest) = term.split_first()?;
    // A sign, or the number of bits in the last byte, is between the length and the rest.
    let number = |bytes: usize| {
        let end = bytes + 1 + number(rest.get(..bytes)?);
        Some((rest.get(bytes + 1..end)?, 1 + end))
    };
    let of_node = |before: usize, after: usize| {
        let end = skip_atom(rest, before)?;
        rest.get(end..end + after)?;
        Some((Flat::OfNode(&rest[before..end]), 1 + end + after))
    };
    let words = || Some(4 * usize::from(u16::from_be_bytes(*rest.first_chunk()?)));
    match *tag {
        tag::SMALL_BIG => number(1).and_then(|(digits, end)| Some((big(digits)?, end))),
        tag::LARGE_BIG => number(4).and_then(|(digits, end)| Some((big(digits)?, end))),
        tag::BIT_BINARY => number(4).map(|(_, end)| (Flat::Number, end)),
        tag::PID => of_node(0, 9),
        tag::NEW_PID | tag::V4_PORT => of_node(0, 12),
        tag::PORT | tag::REFERENCE => of_node(0, 5),
        tag::NEW_PORT => of_node(0, 8),
        tag::NEW_REFERENCE => of_node(2, 1 + words()?),
        tag::NEWER_REFERENCE => of_node(2, 4 + words()?),
        _ => None,
    }
}

/// A number in big-endian bytes.
fn number(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}

/// An integer of these digits to the base 256, the lowest first, if it needs this many: a smaller
/// one has another form, and would be a byte in a list that is none of bytes.
fn big(digits: &[u8]) -> Option<Flat<'static>> {
    const INTEGER: usize = size_of::<i64>();
    (digits.len() >= INTEGER && digits.last() != Some(&0)).then_some(Flat::Number)
}

/// Where the atom at `at` ends, if there is one.
fn skip_atom(bytes: &[u8], at: usize) -> Option<usize> {
    let name = bytes.get(at..)?;
    let end = at + name_start(name)? + name_length(name)?;
    (end <= bytes.len()).then_some(end)
}

fn name_start(atom: &[u8]) -> Option<usize> {
    match *atom.first()? {
        tag::SMALL_ATOM | tag::SMALL_ATOM_UTF8 => Some(2),
        tag::ATOM | tag::ATOM_UTF8 => Some(3),
        _ => None,
    }
}

fn name_length(atom: &[u8]) -> Option<usize> {
    match name_start(atom)? {
        2 => Some(usize::from(*atom.get(1)?)),
        _ => Some(usize::from(u16::from_be_bytes([
            *atom.get(1)?,
            *atom.get(2)?,
        ]))),
    }
}

/// The name of an atom, which these bytes (without a version byte) are.
pub fn atom_name(atom: &[u8]) -> Option<String> {
    let name = atom.get(name_start(atom)?..)?;
    if name.len() != name_length(atom)? {
        return None;
    }
    match atom[0] {
        // Latin-1, as older releases write it.
        tag::ATOM | tag::SMALL_ATOM => Some(name.iter().map(|byte| char::from(*byte)).collect()),
        _ => String::from_utf8(name.to_vec()).ok(),
    }
}

/// Whether a name can be that of an atom: at most 255 characters.
pub fn is_atom_name(name: &str) -> bool {
    name.len() <= 255 || name.chars().count() <= 255
}

/// An atom of this name, version byte included. It must be a name of one, see [`is_atom_name`].
pub fn atom(name: &str) -> Vec<u8> {
    let mut out = vec![VERSION, tag::ATOM_UTF8];
    out.extend_from_slice(&(name.len() as u16).to_be_bytes());
    out.extend_from_slice(name.as_bytes());
    out
}

/// A part of a term: one without parts of its own, or the head of one whose parts follow.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// An integer of 64 bits.
    Int(i64),
    /// A float, which may be one that Erlang does not have.
    Float(f64),
    /// An atom, see [`atom_name`].
    Atom(&'a [u8]),
    /// The empty list.
    Nil,
    /// A proper list of bytes.
    String(&'a [u8]),
    /// A binary.
    Binary(&'a [u8]),
    /// This many elements follow, at least one, and then the tail.
    List(usize),
    /// This many elements follow.
    Tuple(usize),
    /// This many keys follow, each with its value.
    Map(usize),
    /// The values follow that it closes over.
    Fun(Fun<'a>),
    /// `fun M:F/A`: two atoms and the arity.
    Export(&'a [u8], &'a [u8], u8),
    /// What [`flat`] knows, without a version byte.
    Flat(&'a [u8]),
}

impl Part<'_> {
    /// How many terms follow that belong to this part.
    pub fn following(&self) -> usize {
        match *self {
            Part::List(n) => n + 1,
            Part::Tuple(n) => n,
            Part::Map(n) => 2 * n,
            Part::Fun(Fun { head, .. }) => head.free as usize,
            _ => 0,
        }
    }
}

/// The part of a term at `at`, which moves behind it. Only what a VM writes: each integer in its
/// shortest form, and a process as the one that made a fun.
pub fn part<'a>(term: &'a [u8], at: &mut usize) -> Option<Part<'a>> {
    let start = *at;
    match *term.get(start)? {
        tag::SMALL_INTEGER | tag::INTEGER => return int(term, at).map(Part::Int),
        tag::SMALL_BIG => {
            if let Some(value) = int(term, at) {
                return Some(Part::Int(value));
            }
        }
        tag::ATOM | tag::SMALL_ATOM | tag::ATOM_UTF8 | tag::SMALL_ATOM_UTF8 => {
            return atom_bytes(term, at).map(Part::Atom);
        }
        _ => {}
    }
    if let Some((_, length)) = first_flat(&term[start..]) {
        *at += length;
        return Some(Part::Flat(&term[start..*at]));
    }
    *at += 1;
    match term[start] {
        tag::NEW_FLOAT => take(term, at, 8)
            .and_then(|bytes| Some(Part::Float(f64::from_be_bytes(bytes.try_into().ok()?)))),
        tag::NIL => Some(Part::Nil),
        tag::STRING => sized(term, at, 2)
            .filter(|s| !s.is_empty())
            .map(Part::String),
        tag::BINARY => sized(term, at, 4).map(Part::Binary),
        tag::LIST => count(term, at, 4).filter(|n| *n > 0).map(Part::List),
        tag::SMALL_TUPLE => count(term, at, 1).map(Part::Tuple),
        tag::LARGE_TUPLE => count(term, at, 4).map(Part::Tuple),
        tag::MAP => count(term, at, 4).map(Part::Map),
        tag::NEW_FUN => fun_at(term, at).map(Part::Fun),
        tag::EXPORT => {
            let (module, function) = (atom_bytes(term, at)?, atom_bytes(term, at)?);
            let arity = u8::try_from(int(term, at)?).ok()?;
            Some(Part::Export(module, function, arity))
        }
        _ => None,
    }
}

fn take<'a>(term: &'a [u8], at: &mut usize, length: usize) -> Option<&'a [u8]> {
    let taken = term.get(*at..at.checked_add(length)?)?;
    *at += length;
    Some(taken)
}

/// A number of this many bytes that counts what follows, each of which takes at least a byte.
fn count(term: &[u8], at: &mut usize, bytes: usize) -> Option<usize> {
    let count = number(take(term, at, bytes)?);
    (count <= term.len() - *at).then_some(count)
}

fn sized<'a>(term: &'a [u8], at: &mut usize, bytes: usize) -> Option<&'a [u8]> {
    let length = count(term, at, bytes)?;
    take(term, at, length)
}

fn atom_bytes<'a>(term: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let start = std::mem::replace(at, skip_atom(term, *at)?);
    Some(&term[start..*at])
}

/// An integer of 64 bits in its shortest form.
fn int(term: &[u8], at: &mut usize) -> Option<i64> {
    let rest = term.get(*at + 1..)?;
    let (value, length, is_shortest) = match term[*at] {
        tag::SMALL_INTEGER => (i64::from(*rest.first()?), 1, true),
        tag::INTEGER => {
            let value = i32::from_be_bytes(*rest.first_chunk()?);
            (value.into(), 4, u8::try_from(value).is_err())
        }
        tag::SMALL_BIG => {
            let (&[length @ ..=8, sign], rest) = rest.split_first_chunk()? else {
                return None;
            };
            let digits = rest.get(..length.into())?;
            let magnitude = digits.iter().rev().fold(0, |n, d| n << 8 | i128::from(*d));
            let value = i64::try_from(if sign == 0 { magnitude } else { -magnitude }).ok()?;
            let is_shortest = digits.last() != Some(&0) && i32::try_from(value).is_err();
            (value, 2 + digits.len(), is_shortest)
        }
        _ => return None,
    };
    is_shortest.then(|| {
        *at += 1 + length;
        value
    })
}

/// This many elements of a list, if each is a byte.
pub fn bytes_of(elements: &[u8], len: usize) -> Option<impl ExactSizeIterator<Item = u8>> {
    let (pairs, rest) = elements.as_chunks::<2>();
    let is_bytes = rest.is_empty()
        && pairs.len() == len
        && pairs.iter().all(|[tag, _]| *tag == tag::SMALL_INTEGER);
    is_bytes.then(|| pairs.iter().map(|[_, byte]| *byte))
}

/// What comes in a fun before the values that it closes over.
#[derive(Debug, Clone, Copy)]
pub struct Fun<'a> {
    /// What the VM must know of it.
    pub head: FunHead<'a>,
    /// Its module, an atom.
    pub module: &'a [u8],
    /// Which fun of its module, and the checksum of its code, as the VM's first releases had them.
    pub old: [i64; 2],
    /// Where it ends, by what it says of its size.
    pub end: usize,
}

fn fun_at<'a>(term: &'a [u8], at: &mut usize) -> Option<Fun<'a>> {
    let end = *at + number(take(term, &mut { *at }, 4)?);
    let fixed = take(term, at, 4 + 1 + UNIQ + 4 + 4)?;
    let (uniq, numbers) = fixed[5..].split_at(UNIQ);
    let module = atom_bytes(term, at)?;
    let old = [int(term, at)?, int(term, at)?];
    let Some(&(tag::PID | tag::NEW_PID)) = term.get(*at) else {
        return None;
    };
    let (_, creator) = first_flat(&term[*at..])?;
    *at += creator;
    let head = FunHead {
        arity: fixed[4],
        uniq,
        index: number(&numbers[..4]) as u32,
        free: number(&numbers[4..]) as u32,
    };
    Some(Fun {
        head,
        module,
        old,
        end,
    })
}

/// Bytes of the checksum of a module's code.
pub const UNIQ: usize = 16;

/// The elements of a tuple one after another, from its external format.
pub fn tuple_elements(external: &[u8]) -> Option<&[u8]> {
    match *external.get(1)? {
        tag::SMALL_TUPLE => external.get(3..),
        tag::LARGE_TUPLE => external.get(6..),
        _ => None,
    }
}

/// What the VM must know of a fun besides the values in its external format.
#[derive(Debug, Clone, Copy)]
pub struct FunHead<'a> {
    /// Its arity.
    pub arity: u8,
    /// The checksum of the code that made it, 16 bytes.
    pub uniq: &'a [u8],
    /// Which fun of its module.
    pub index: u32,
    /// How many values it closes over.
    pub free: u32,
}

/// `fun M:F/A`. `values` has module, function and arity in the external format without version
/// bytes.
pub fn export(values: &[u8]) -> Vec<u8> {
    let mut out = vec![VERSION, tag::EXPORT];
    out.extend_from_slice(values);
    out
}

/// One term, written part after part: one without parts of its own, or the head of one whose parts
/// follow.
#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Default for Writer {
    fn default() -> Self {
        Writer(vec![VERSION])
    }
}

impl Writer {
    /// What was written, version byte included.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn head(&mut self, tag: u8, count: usize) {
        self.0.push(tag);
        self.0.extend_from_slice(&(count as u32).to_be_bytes());
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        if let Ok(byte) = u8::try_from(value) {
            self.0.extend_from_slice(&[tag::SMALL_INTEGER, byte]);
        } else if let Ok(value) = i32::try_from(value) {
            self.0.push(tag::INTEGER);
            self.0.extend_from_slice(&value.to_be_bytes());
        } else {
            let digits = value.unsigned_abs().to_le_bytes();
            let len = digits
                .iter()
                .rposition(|digit| *digit != 0)
                .map_or(0, |last| last + 1);
            self.0
                .extend_from_slice(&[tag::SMALL_BIG, len as u8, u8::from(value < 0)]);
            self.0.extend_from_slice(&digits[..len]);
        }
    }

    /// A float.
    pub fn float(&mut self, value: f64) {
        self.0.push(tag::NEW_FLOAT);
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// The empty list, or the end of a list.
    pub fn nil(&mut self) {
        self.0.push(tag::NIL);
    }

    /// A proper list of bytes.
    pub fn byte_list(&mut self, bytes: &[u8]) {
        if let Ok(len) = u16::try_from(bytes.len()) {
            self.0.push(tag::STRING);
            self.0.extend_from_slice(&len.to_be_bytes());
            self.0.extend_from_slice(bytes);
        } else {
            self.list(bytes.len());
            let elements = bytes.iter().flat_map(|byte| [tag::SMALL_INTEGER, *byte]);
            self.0.extend(elements);
            self.nil();
        }
    }

    /// A binary.
    pub fn binary(&mut self, bytes: &[u8]) {
        self.head(tag::BINARY, bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// A list: this many elements follow, and then the tail.
    pub fn list(&mut self, elements: usize) {
        self.head(tag::LIST, elements);
    }

    /// A tuple: this many elements follow.
    pub fn tuple(&mut self, elements: usize) {
        match u8::try_from(elements) {
            Ok(elements) => self.0.extend_from_slice(&[tag::SMALL_TUPLE, elements]),
            Err(_) => self.head(tag::LARGE_TUPLE, elements),
        }
    }

    /// A map: this many keys follow, each with its value.
    pub fn map(&mut self, entries: usize) {
        self.head(tag::MAP, entries);
    }

    /// A fun: module, old index, old uniq, the process that made it and the values that it closes
    /// over follow, and then [`end_fun`](Self::end_fun).
    pub fn fun(&mut self, head: FunHead<'_>) {
        self.head(tag::NEW_FUN, 0);
        self.0.push(head.arity);
        self.0.extend_from_slice(head.uniq);
        self.0.extend_from_slice(&head.index.to_be_bytes());
        self.0.extend_from_slice(&head.free.to_be_bytes());
    }

    /// Says how many bytes the fun has that begins at `start`.
    pub fn end_fun(&mut self, start: usize) {
        // The size counts itself and all that follows.
        let size = (self.0.len() - start - 1) as u32;
        self.0[start + 1..start + 5].copy_from_slice(&size.to_be_bytes());
    }

    /// `fun M:F/A`: module, function and arity follow.
    pub fn export(&mut self) {
        self.0.push(tag::EXPORT);
    }

    /// A native record of this many fields, as OTP 29 and later write it: module, name, the names
    /// of all fields, then their values follow.
    pub fn record(&mut self, fields: usize, exported: bool) {
        self.head(tag::RECORD, fields);
        self.0.push(u8::from(exported));
    }

    /// A term that is in the external format, without its version byte.
    pub fn term(&mut self, term: &[u8]) {
        self.0.extend_from_slice(term);
    }

    /// A term that was written here before.
    pub fn again(&mut self, written: Range<usize>) {
        self.0.extend_from_within(written);
    }
}

/// A process, without a version byte, that the node with this name and creation (see
/// [`reference_parts`]) has never had: the VM numbers them from 1.
pub fn pid(node: &[u8]) -> Vec<u8> {
    let (name, creation) = node.split_at(node.len().saturating_sub(4));
    let mut out = vec![tag::NEW_PID];
    out.extend_from_slice(name);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(creation);
    out
}

/// Bytes of a word of a reference.
const WORD: usize = 4;

/// Node name with creation, and numbers, of a reference in the external format
/// `131, 90, number of words:16, node, creation:32, words`. Node and creation change when the node
/// gets a name, the numbers do not.
pub fn reference_parts(external: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[VERSION, tag::NEWER_REFERENCE, high, low], rest) = external.split_first_chunk()? else {
        return None;
    };
    let words = usize::from(u16::from_be_bytes([high, low]));
    rest.split_at_checked(rest.len().checked_sub(words * WORD)?)
}

/// The reference with these parts.
pub fn reference(node: &[u8], numbers: &[u8]) -> Vec<u8> {
    let mut out = vec![VERSION, tag::NEWER_REFERENCE];
    out.extend_from_slice(&((numbers.len() / WORD) as u16).to_be_bytes());
    out.extend_from_slice(node);
    out.extend_from_slice(numbers);
    out
}

#[cfg(test)]
mod tests;
