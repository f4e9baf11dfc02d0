//! The bytes of the packed form: its tags, its limits, and how numbers are written and read.

/// The deepest nesting of a value, where the last element of a list or a tuple lies no deeper than
/// what it is in. Nesting is followed with a stack on the heap, never with the
/// thread's, and this bounds that stack.
pub const MAX_DEPTH: usize = 1 << 20;

/// The deepest nesting of maps in keys of maps. A key is moved once for each key that it is in.
pub const MAX_KEYS: usize = 256;

/// The deepest nesting of funs in what funs close over. A host may have to open them one level after
/// the other.
pub const MAX_FUNS: usize = 1_000;

/// Values that stand before those that a fun closes over.
pub const FUN_HEAD: usize = 6;

/// Values of `fun M:F/A`.
pub const EXPORT_VALUES: usize = 3;

/// Values that stand before the fields of a native record: module, name, whether it is exported.
pub const RECORD_HEAD: usize = 3;

/// The largest arity of a tuple.
pub const MAX_ARITY: usize = (1 << 24) - 1;

/// The bytes that one packed value may have. The four-byte numbers of a map hold any length below.
pub const MAX_BYTES: usize = 512 << 20;

/// The first byte of a value.
pub mod tag {
    /// Integers from 0 to 63 are their own tag.
    pub const SMALL_END: u8 = 0x40;
    /// Any other integer of 64 bits: a zigzag varint.
    pub const INT: u8 = 0x40;
    /// A float: the eight bytes of its IEEE 754 form, little endian.
    pub const FLOAT: u8 = 0x41;
    /// An atom: the host's word for it, as a varint.
    pub const ATOM: u8 = 0x42;
    /// The empty list.
    pub const NIL: u8 = 0x43;
    /// A proper list of integers from 0 to 255: varint length, then the bytes.
    pub const BYTES: u8 = 0x44;
    /// Any other proper list: varint length, then the elements.
    pub const LIST: u8 = 0x45;
    /// An improper list: varint number of elements before the tail, the elements, the tail.
    pub const IMPROPER: u8 = 0x46;
    /// A process of this node: the host's word for it, as a varint.
    pub const PID: u8 = 0x47;
    /// A port of this node: the host's word for it, as a varint.
    pub const PORT: u8 = 0x48;
    /// A reference of this node: a byte with the length of its numbers, then these.
    pub const REFERENCE: u8 = 0x49;
    /// A term in the host's external format that nothing needs to keep alive: varint length, bytes.
    pub const OPAQUE: u8 = 0x4a;
    /// A reference of this node to something of another library, which an anchor keeps: varint id,
    /// varint length, its numbers.
    pub const FOREIGN: u8 = 0x4b;
    /// A reference to shared content: varint id.
    pub const SHARE: u8 = 0x4c;
    /// A value out of line: varint id.
    pub const BLOB: u8 = 0x4d;
    /// A map out of line: varint id.
    pub const TRIE: u8 = 0x4e;
    /// A binary of 32 bytes or more: varint length, then the bytes.
    pub const BINARY: u8 = 0x4f;
    /// A binary of up to 31 bytes: its length is in the tag.
    pub const SHORT_BINARY: u8 = 0x50;
    /// The longest binary whose length is in its tag.
    pub const SHORT_BINARY_MAX: usize = 31;
    /// A tuple of up to 7 elements: its arity is in the tag.
    pub const SHORT_TUPLE: u8 = 0x70;
    /// The greatest arity that is in the tag.
    pub const SHORT_TUPLE_MAX: usize = 7;
    /// Any other tuple: varint arity, then the elements.
    pub const TUPLE: u8 = 0x78;
    /// A map whose numbers are one byte wide.
    pub const MAP8: u8 = 0x79;
    /// A map whose numbers are two bytes wide.
    pub const MAP16: u8 = 0x7a;
    /// A map whose numbers are four bytes wide.
    pub const MAP32: u8 = 0x7b;
    /// A fun of a module's code: varint number of the values it closes over, then
    /// [`super::FUN_HEAD`] values (module, arity, uniq, index, old index, old uniq), then these.
    pub const FUN: u8 = 0x7c;
    /// `fun M:F/A`: module, function and arity follow.
    pub const EXPORT: u8 = 0x7d;
    /// A native record: varint number of fields, then [`super::RECORD_HEAD`] values, then the
    /// names of all fields, then their values.
    pub const RECORD: u8 = 0x7e;
    /// A reference to an object of the host's own, which an anchor keeps: varint id.
    pub const HANDLE: u8 = 0x7f;
    /// A map with values in parts: varint count, then key, value, key, value.
    pub const ENTRIES: u8 = 0x80;
    /// A value that is a content of its own: varint id. See [`crate::parts`].
    pub const PART: u8 = 0x81;
    /// Elements of a list, or keys and values of a map of [`ENTRIES`], that are a content of their
    /// own, a list of them: varint number of values, varint id.
    pub const RUN: u8 = 0x82;
}

/// The bytes do not follow the packed format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadError;

/// Room for any packed integer or atom: a tag and a varint.
pub type Scalar = [u8; 11];

/// Writes a number of a map in this many bytes. No number is over [`super::MAX_BYTES`].
#[inline]
pub(super) fn push_number(out: &mut Vec<u8>, width: usize, number: usize) {
    match width {
        1 => out.push(number as u8),
        2 => out.extend_from_slice(&(number as u16).to_le_bytes()),
        _ => out.extend_from_slice(&(number as u32).to_le_bytes()),
    }
}

/// The width of the numbers of a map with a body of this length. (A body never has fewer bytes
/// than entries, so this holds for the count too.)
pub(super) fn width_for(body: usize) -> usize {
    match body {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        _ => 4,
    }
}

#[inline]
pub(super) fn number(width: usize, bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?;
    Some(match width {
        1 => usize::from(*bytes.first()?),
        2 => usize::from(u16::from_le_bytes(*bytes.first_chunk()?)),
        _ => u32::from_le_bytes(*bytes.first_chunk()?) as usize,
    })
}

/// The tag of a map whose numbers have this width.
pub(super) fn map_tag(width: usize) -> u8 {
    match width {
        1 => tag::MAP8,
        2 => tag::MAP16,
        _ => tag::MAP32,
    }
}

/// Writes a varint at `at`, and returns where it ends.
pub(super) fn write_varint(mut value: u64, to: &mut Scalar, at: usize) -> usize {
    let mut len = at;
    while value >= 0x80 {
        to[len] = value as u8 | 0x80;
        value >>= 7;
        len += 1;
    }
    to[len] = value as u8;
    len + 1
}

pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

pub(super) fn byte(bytes: &[u8], at: &mut usize) -> Result<u8, ReadError> {
    let byte = *bytes.get(*at).ok_or(ReadError)?;
    *at += 1;
    Ok(byte)
}

pub(super) fn take<'a>(bytes: &'a [u8], at: &mut usize, len: usize) -> Result<&'a [u8], ReadError> {
    let end = at.checked_add(len).ok_or(ReadError)?;
    let taken = bytes.get(*at..end).ok_or(ReadError)?;
    *at = end;
    Ok(taken)
}

pub(super) fn varint(bytes: &[u8], at: &mut usize) -> Result<u64, ReadError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = byte(bytes, at)?;
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            return Err(ReadError);
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ReadError)
}

/// A length or a count: what it counts takes at least a byte each, so it is at most what is left.
pub(super) fn length(bytes: &[u8], at: &mut usize) -> Result<usize, ReadError> {
    let length = usize::try_from(varint(bytes, at)?).map_err(|_| ReadError)?;
    if length > bytes.len() - *at {
        return Err(ReadError);
    }
    Ok(length)
}

/// As [`length`], for values of which some may be in runs.
pub(super) fn count(bytes: &[u8], at: &mut usize) -> Result<usize, ReadError> {
    match usize::try_from(varint(bytes, at)?) {
        Ok(count) if count <= MAX_BYTES => Ok(count),
        _ => Err(ReadError),
    }
}

pub(super) fn sized<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], ReadError> {
    let len = length(bytes, at)?;
    take(bytes, at, len)
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}
