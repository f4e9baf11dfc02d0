//! The packed form of a term: one run of bytes a value, without pointers.
//!
//! A value is a tag byte and what the tag asks for ([`tag`]). Integers are LEB128 varints, signed
//! ones in zigzag (the encodings of Protocol Buffers). The form is canonical: terms that are equal
//! (`=:=`) have equal bytes, so that a map is searched by comparing bytes and equal shared content
//! is found by hashing them.
//!
//! What bytes cannot hold is a *link*: the bytes have the link's id, the [`Links`] beside them hold
//! its target. [`Target::Anchor`] keeps something of the host's alive (a shared content, an
//! environment with a fun in it); [`Target::Blob`] and [`Target::Trie`] hold large parts of a
//! [`crate::map::Map`] out of line, so that two versions of a map can have them in common. Each
//! occurrence of an id in the bytes has its own entry in the links, so that a part of a value can
//! be cut out together with its links, without looking at the rest.
//!
//! A map is `tag, count, length, offsets, body`: entries sorted by the bytes of their keys, every
//! number one, two or four bytes wide as the length of the body asks for. A key is found by binary
//! search, and no other entry is looked at.

mod links;
mod numbered;
mod page;
mod reader;
mod rewrite;
mod writer;

pub(crate) use links::LinkVec;
pub use links::{Link, Links, Target};
pub use numbered::numbered;
pub(crate) use page::build_into;
pub use page::{Entries, Entry, Page};
pub use reader::{Item, ReadError, View, item, item_here, skip};
pub use rewrite::{Place, Rewrite, rewrite};
pub use writer::{MapBuilder, Scalar, Scratch, Writer, pack_atom, pack_int};

use std::fmt::Debug;

/// A target that the host keeps alive through a packed value. Cloning makes a further owner.
pub trait Anchor: Clone + Debug + Send + Sync + 'static {
    /// Bytes of memory that only this target takes; none for one that others may keep as well.
    fn kept_bytes(&self) -> usize {
        0
    }

    /// The value behind this target, where that is shared content.
    fn shared_content(&self) -> Option<&Packed<Self>> {
        None
    }

    /// Frees what may take long to free, at a pace and on a thread of the host's choice.
    fn free(garbage: Packed<Self>) {
        let mut freeing = crate::reclaim::Reclaim::new(garbage);
        while freeing.step() {}
    }
}

impl Anchor for std::convert::Infallible {}

impl<T: Debug + Send + Sync + ?Sized + 'static> Anchor for std::sync::Arc<T> {}

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

/// A value that owns its bytes and its links.
#[derive(Debug)]
pub struct Packed<A> {
    bytes: Box<[u8]>,
    links: Links<A>,
}

impl<A> AsRef<[u8]> for Packed<A> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<A: Anchor> Packed<A> {
    /// A value from its parts, as a [`Writer`] made them.
    pub fn new(bytes: Box<[u8]>, links: Links<A>) -> Self {
        Packed { bytes, links }
    }

    /// A value without links.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Packed {
            bytes: bytes.into(),
            links: Links::default(),
        }
    }

    /// Its bytes and its links.
    pub fn into_parts(self) -> (Box<[u8]>, Links<A>) {
        (self.bytes, self.links)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its links.
    pub fn links(&self) -> &Links<A> {
        &self.links
    }

    /// The value, to be read.
    pub fn view(&self) -> View<'_, A> {
        View::new(&self.bytes, &self.links)
    }

    /// Bytes of memory behind it, out-of-line parts included.
    pub fn heap_bytes(&self) -> usize {
        crate::heap::block(self.bytes.len()) + self.links.heap_bytes()
    }
}
