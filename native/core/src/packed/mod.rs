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

mod format;
mod links;
mod numbered;
mod page;
mod reader;
mod rewrite;
mod view;
mod writer;

pub use format::{
    EXPORT_VALUES, FUN_HEAD, MAX_ARITY, MAX_BYTES, MAX_DEPTH, MAX_FUNS, MAX_KEYS, RECORD_HEAD,
    ReadError, Scalar, tag,
};
pub use links::{Anchor, Link, Links, Node, Packed, Reclaim, Sum, Target};
pub(crate) use links::{FANOUT, LinkVec};
pub use numbered::numbered;
pub use page::Entries;
pub use reader::{Item, Page, item, item_here, skip};
pub use rewrite::{Place, Rewrite, rewrite};
pub use view::View;
pub use writer::{MapBuilder, Scratch, Writer, pack_atom, pack_int};
