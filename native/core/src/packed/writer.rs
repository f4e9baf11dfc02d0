//! Writing packed bytes.

use super::page::push_header;
use super::{Anchor, LinkVec, Links, Packed, Target, tag};

/// Writes one value, item after item, in the order of [`super::Item`]: the head of a list or a
/// tuple, then its elements. Maps go through [`Writer::begin_map`].
#[derive(Debug)]
pub struct Writer<A> {
    scratch: Scratch,
    links: LinkVec<A>,
}

/// The memory that a [`Writer`] works in, to be used by one after the other.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    /// The entries of the maps that are not ended yet, the innermost one's last.
    entries: Vec<Entry>,
}

impl Scratch {
    /// The bytes that were written last.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of memory behind it, about.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}

/// Where an entry's key, its value and what follows it begin.
#[derive(Debug, Clone, Copy)]
struct Entry {
    key: usize,
    value: usize,
    end: usize,
}

/// A map that is being written.
#[derive(Debug)]
#[must_use]
pub struct MapBuilder {
    /// Where its bytes begin, and its entries.
    start: usize,
    first: usize,
}

/// Writes a number of a map in so many bytes. No number is over [`super::MAX_BYTES`].
#[inline]
pub(super) fn push_number(out: &mut Vec<u8>, width: usize, number: usize) {
    match width {
        1 => out.push(number as u8),
        2 => out.extend_from_slice(&(number as u16).to_le_bytes()),
        _ => out.extend_from_slice(&(number as u32).to_le_bytes()),
    }
}

/// Room for any packed integer or atom: a tag and a varint.
pub type Scalar = [u8; 11];

/// The packed form of an atom, without a writer; how many bytes it has.
pub fn pack_atom(word: u64, to: &mut Scalar) -> usize {
    tagged_varint(tag::ATOM, word, to)
}

/// The packed form of an integer, without a writer; how many bytes it has.
pub fn pack_int(value: i64, to: &mut Scalar) -> usize {
    match u8::try_from(value) {
        Ok(small) if small < tag::SMALL_END => {
            to[0] = small;
            1
        }
        _ => tagged_varint(tag::INT, zigzag(value), to),
    }
}

fn tagged_varint(tag: u8, mut value: u64, to: &mut Scalar) -> usize {
    to[0] = tag;
    let mut len = 1;
    while value >= 0x80 {
        to[len] = value as u8 | 0x80;
        value >>= 7;
        len += 1;
    }
    to[len] = value as u8;
    len + 1
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

impl<A> Default for Writer<A> {
    fn default() -> Self {
        Writer {
            scratch: Scratch::default(),
            links: LinkVec::new(),
        }
    }
}

impl<A: Anchor> Writer<A> {
    /// A writer with room for a small value.
    pub fn new() -> Self {
        Self::reusing(Scratch {
            bytes: Vec::with_capacity(128),
            entries: Vec::new(),
        })
    }

    /// A writer that works in this memory.
    pub fn reusing(mut scratch: Scratch) -> Self {
        scratch.bytes.clear();
        scratch.entries.clear();
        Writer {
            scratch,
            links: LinkVec::new(),
        }
    }

    /// The memory, with the bytes of the value that was written in it, and its links: as
    /// [`finish`](Self::finish), but for one who looks at the bytes and keeps the memory.
    pub fn into_parts(self) -> (Scratch, Links<A>) {
        (self.scratch, Links::from_unsorted(self.links))
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.scratch.bytes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.scratch.bytes.is_empty()
    }

    /// The bytes written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.scratch.bytes
    }

    /// The value that was written.
    pub fn finish(self) -> Packed<A> {
        Packed::new(
            self.scratch.bytes.as_slice().into(),
            Links::from_unsorted(self.links),
        )
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.scratch.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.scratch.bytes.push(value as u8);
    }

    fn tagged(&mut self, tag: u8, value: u64) {
        let mut scalar = Scalar::default();
        let len = tagged_varint(tag, value, &mut scalar);
        self.scratch.bytes.extend_from_slice(&scalar[..len]);
    }

    fn sized(&mut self, tag: u8, bytes: &[u8]) {
        self.tagged(tag, bytes.len() as u64);
        self.scratch.bytes.extend_from_slice(bytes);
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        let mut scalar = Scalar::default();
        let len = pack_int(value, &mut scalar);
        self.scratch.bytes.extend_from_slice(&scalar[..len]);
    }

    /// A float.
    pub fn float(&mut self, value: f64) {
        self.scratch.bytes.push(tag::FLOAT);
        self.scratch.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// An atom, by the host's word for it.
    pub fn atom(&mut self, word: u64) {
        self.tagged(tag::ATOM, word);
    }

    /// A process of this node, by the host's word for it.
    pub fn pid(&mut self, word: u64) {
        self.tagged(tag::PID, word);
    }

    /// A port of this node, by the host's word for it.
    pub fn port(&mut self, word: u64) {
        self.tagged(tag::PORT, word);
    }

    /// The empty list.
    pub fn nil(&mut self) {
        self.scratch.bytes.push(tag::NIL);
    }

    /// A proper list of bytes, at least one.
    pub fn byte_list(&mut self, bytes: impl ExactSizeIterator<Item = u8>) {
        self.tagged(tag::BYTES, bytes.len() as u64);
        self.scratch.bytes.extend(bytes);
    }

    /// The head of a proper list that is no list of bytes, with at least one element.
    pub fn list(&mut self, len: usize) {
        self.tagged(tag::LIST, len as u64);
    }

    /// The head of an improper list: elements before the tail, at least one.
    pub fn improper(&mut self, len: usize) {
        self.tagged(tag::IMPROPER, len as u64);
    }

    /// The head of a tuple.
    pub fn tuple(&mut self, arity: usize) {
        match u8::try_from(arity) {
            Ok(small) if arity <= tag::SHORT_TUPLE_MAX => {
                self.scratch.bytes.push(tag::SHORT_TUPLE + small);
            }
            _ => self.tagged(tag::TUPLE, arity as u64),
        }
    }

    /// A binary.
    pub fn binary(&mut self, bytes: &[u8]) {
        match u8::try_from(bytes.len()) {
            Ok(small) if bytes.len() <= tag::SHORT_BINARY_MAX => {
                self.scratch.bytes.push(tag::SHORT_BINARY + small);
                self.scratch.bytes.extend_from_slice(bytes);
            }
            _ => self.sized(tag::BINARY, bytes),
        }
    }

    /// A reference of this node, by its numbers (at most 255 bytes).
    pub fn reference(&mut self, numbers: &[u8]) {
        self.scratch.bytes.push(tag::REFERENCE);
        self.scratch.bytes.push(numbers.len() as u8);
        self.scratch.bytes.extend_from_slice(numbers);
    }

    /// A term in the host's external format.
    pub fn opaque(&mut self, external: &[u8]) {
        self.sized(tag::OPAQUE, external);
    }

    /// A term that `anchor` keeps, and bytes by which it is compared.
    pub fn foreign(&mut self, id: u64, likeness: &[u8], anchor: A) {
        self.tagged(tag::FOREIGN, id);
        self.varint(likeness.len() as u64);
        self.scratch.bytes.extend_from_slice(likeness);
        self.links.push((id, Target::Anchor(anchor)));
    }

    /// A reference to shared content.
    pub fn share(&mut self, id: u64, anchor: A) {
        self.tagged(tag::SHARE, id);
        self.links.push((id, Target::Anchor(anchor)));
    }

    /// The number of a shared content, without an anchor: for formats that number them.
    pub fn share_number(&mut self, number: u64) {
        self.tagged(tag::SHARE, number);
    }

    /// A value that was packed already.
    pub fn packed(&mut self, value: &Packed<A>) {
        self.scratch.bytes.extend_from_slice(value.bytes());
        self.links.extend(value.links().iter().cloned());
    }

    pub(crate) fn link(&mut self, target: Target<A>) {
        let (tag, id) = match &target {
            Target::Blob(blob) => (tag::BLOB, std::sync::Arc::as_ptr(blob) as u64),
            Target::Trie(node) => (tag::TRIE, std::sync::Arc::as_ptr(node) as u64),
            Target::Anchor(_) => unreachable!("anchors have tags of their own"),
        };
        self.tagged(tag, id);
        self.links.push((id, target));
    }

    /// How many links the value has so far.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Begins a map. Maps end in the opposite order.
    pub fn begin_map(&self) -> MapBuilder {
        MapBuilder {
            start: self.scratch.bytes.len(),
            first: self.scratch.entries.len(),
        }
    }

    /// Says that the key, then the value, of an entry of the innermost map were written since
    /// `key_start`, the value from `value_start` on.
    pub fn entry(&mut self, key_start: usize, value_start: usize) {
        self.scratch.entries.push(Entry {
            key: key_start,
            value: value_start,
            end: self.scratch.bytes.len(),
        });
    }

    /// Ends a map: sorts its entries and puts its head before them. `false`: a key occurs twice.
    #[must_use]
    pub fn end_map(&mut self, map: MapBuilder) -> bool {
        let MapBuilder { start, first } = map;
        let Scratch { bytes, entries } = &mut self.scratch;
        let end = bytes.len();
        let map_entries = &mut entries[first..];
        let key = |entry: &Entry| &bytes[entry.key..entry.value];
        map_entries.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        let distinct = !map_entries
            .windows(2)
            .any(|pair| key(&pair[0]) == key(&pair[1]));
        // In order behind the map, then over it.
        let width = push_header(bytes, map_entries.len(), end - start);
        let mut offset = 0;
        for entry in &*map_entries {
            push_number(bytes, width, offset);
            offset += entry.end - entry.key;
        }
        for entry in &*map_entries {
            bytes.extend_from_within(entry.key..entry.end);
        }
        bytes.copy_within(end.., start);
        bytes.truncate(start + bytes.len() - end);
        entries.truncate(first);
        distinct
    }
}
