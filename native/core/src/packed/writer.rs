//! Writing packed bytes.

use super::format::{ReadError, Scalar, map_tag, tag, width_for, write_varint, zigzag};
use super::links::{Anchor, LinkVec, Links, Packed, Target};
use super::reader::Item;
use super::view::View;

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
    /// The keys of the maps that are not ended yet, the innermost one's last.
    keys: Vec<u8>,
    /// The entries of these maps.
    entries: Vec<Entry>,
}

impl Scratch {
    /// The bytes that were written last.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// About the bytes of memory behind it.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.keys.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}

/// Where the key of an entry begins and ends among the keys of its map, and its number in the
/// order of writing. No number is over [`super::MAX_BYTES`].
#[derive(Debug, Clone, Copy)]
struct Entry {
    from: u32,
    to: u32,
    index: u32,
    /// Its first bytes, which tell most keys apart. They are set once all keys are there: bytes that
    /// were just written one by one take long to be read as a word.
    begin: u64,
}

/// The first eight bytes, in the order of which the bytes are; zeros follow fewer.
#[inline]
fn beginning(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            let bits = bytes
                .iter()
                .fold(0, |bits, byte| bits << 8 | u64::from(*byte));
            bits.wrapping_shl(8 * (8 - bytes.len() as u32))
        }
    }
}

/// Appends bytes that are mostly few: a call of the C library takes as long as copying two words.
#[inline(always)]
#[allow(clippy::inline_always)]
fn append(to: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        0..4 => bytes.iter().for_each(|byte| to.push(*byte)),
        4..8 => append_ends::<4>(to, bytes),
        8..16 => append_ends::<8>(to, bytes),
        16..=32 => append_ends::<16>(to, bytes),
        _ => to.extend_from_slice(bytes),
    }
}

/// Appends at least `N` and at most twice as many bytes: the first and the last of them.
#[inline]
fn append_ends<const N: usize>(to: &mut Vec<u8>, bytes: &[u8]) {
    let at = to.len();
    if let (Some(first), Some(last)) = (bytes.first_chunk::<N>(), bytes.last_chunk::<N>()) {
        to.extend_from_slice(first);
        to.truncate(at + bytes.len() - N);
        to.extend_from_slice(last);
    }
}

/// A map that is being written: first all of its keys, in any order, then the values in the order
/// that [`Writer::next_value`] asks for. So each value is written in its place, and a map that
/// nests deep is not moved once for each level.
#[derive(Debug)]
pub struct MapBuilder {
    /// Where its bytes begin, its keys and its entries.
    start: usize,
    keys: usize,
    first: usize,
    /// The entry whose value is to be written next.
    next: usize,
}

impl MapBuilder {
    /// The number of the entry whose value is being written, from 1.
    pub fn number(&self) -> usize {
        self.next
    }
}

/// The width of the numbers of a map while it is written; where the body turns out to be small,
/// they are narrowed at its end.
const WIDE: usize = 4;

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

fn tagged_varint(tag: u8, value: u64, to: &mut Scalar) -> usize {
    to[0] = tag;
    write_varint(value, to, 1)
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
            ..Scratch::default()
        })
    }

    /// A writer that works in this memory.
    pub fn reusing(mut scratch: Scratch) -> Self {
        scratch.bytes.clear();
        scratch.keys.clear();
        scratch.entries.clear();
        Writer {
            scratch,
            links: LinkVec::new(),
        }
    }

    /// The memory, with the bytes of the value that was written in it, and its links: as
    /// [`finish`](Self::finish), but for callers that read the bytes and keep the memory.
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
        if value < 0x80 {
            self.scratch.bytes.extend_from_slice(&[tag, value as u8]);
            return;
        }
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

    /// The head of a proper list that is not a list of bytes, with at least one element.
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
                append(&mut self.scratch.bytes, bytes);
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

    /// A reference to something of another library, by its numbers; `anchor` keeps it.
    pub fn foreign(&mut self, id: u64, numbers: &[u8], anchor: A) {
        self.tagged(tag::FOREIGN, id);
        self.varint(numbers.len() as u64);
        self.scratch.bytes.extend_from_slice(numbers);
        self.links.push((id, Target::Anchor(anchor)));
    }

    /// A reference to an object of the host's own, which `anchor` keeps.
    pub fn handle(&mut self, id: u64, anchor: A) {
        self.tagged(tag::HANDLE, id);
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

    /// The head of a map of this many entries, with values in parts.
    pub(crate) fn entries(&mut self, count: usize) {
        self.tagged(tag::ENTRIES, count as u64);
    }

    /// A content of its own, which `anchor` keeps.
    pub fn part(&mut self, id: u64, anchor: A) {
        self.tagged(tag::PART, id);
        self.links.push((id, Target::Anchor(anchor)));
    }

    /// This many values of a list or a map as a content of their own, which `anchor` keeps.
    pub fn run(&mut self, len: usize, id: u64, anchor: A) {
        self.tagged(tag::RUN, len as u64);
        let mut scalar = Scalar::default();
        let end = write_varint(id, &mut scalar, 0);
        self.scratch.bytes.extend_from_slice(&scalar[..end]);
        self.links.push((id, Target::Anchor(anchor)));
    }

    /// Whole items that were written already, and their links.
    pub(crate) fn items(&mut self, items: View<'_, A>) {
        self.scratch.bytes.extend_from_slice(items.bytes);
        self.links.extend(items.own_links());
    }

    /// How many links the value has so far.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// The head of a fun that closes over this many values; [`super::FUN_HEAD`] values and these
    /// follow.
    pub fn fun(&mut self, free: usize) {
        self.tagged(tag::FUN, free as u64);
    }

    /// The head of `fun M:F/A`; module, function and arity follow.
    pub fn export(&mut self) {
        self.scratch.bytes.push(tag::EXPORT);
    }

    /// The head of a native record of this many fields; [`super::RECORD_HEAD`] values follow, then
    /// the names of all fields, then their values.
    pub fn record(&mut self, fields: usize) {
        self.tagged(tag::RECORD, fields as u64);
    }

    /// An item that is the same on every node: an integer, a float, an empty list, bytes, or what
    /// the host wrote in its external format.
    pub fn plain(&mut self, item: Item<'_>) -> Result<(), ReadError> {
        match item {
            Item::Int(value) => self.int(value),
            Item::Float(value) => self.float(value),
            Item::Nil => self.nil(),
            Item::ByteList(bytes) => self.byte_list(bytes.iter().copied()),
            Item::Binary(bytes) => self.binary(bytes),
            Item::Opaque(external) => self.opaque(external),
            _ => return Err(ReadError),
        }
        Ok(())
    }

    /// The head that this item is; nothing for an item without following values.
    pub(super) fn head(&mut self, head: Item<'_>) {
        match head {
            Item::List(len) => self.list(len),
            Item::Improper(len) => self.improper(len),
            Item::Tuple(arity) => self.tuple(arity),
            Item::Fun(free) => self.fun(free),
            Item::Export => self.export(),
            Item::Record(fields) => self.record(fields),
            _ => {}
        }
    }

    /// Begins a map. Maps end in the opposite order.
    pub fn begin_map(&self) -> MapBuilder {
        MapBuilder {
            start: self.scratch.bytes.len(),
            keys: self.scratch.keys.len(),
            first: self.scratch.entries.len(),
            next: 0,
        }
    }

    /// Says that a whole key of the map was written since the last one.
    pub fn end_key(&mut self, map: &MapBuilder) {
        let Scratch { bytes, entries, .. } = &mut self.scratch;
        let index = entries.len() - map.first;
        let from = match index {
            0 => 0,
            _ => entries.last().map_or(0, |entry| entry.to),
        };
        entries.push(Entry {
            from,
            to: (bytes.len() - map.start) as u32,
            index: index as u32,
            begin: 0,
        });
    }

    /// Says that all keys were written. `false`: a key occurs twice.
    #[must_use]
    pub fn end_keys(&mut self, map: &MapBuilder) -> bool {
        let Scratch {
            bytes,
            keys,
            entries,
        } = &mut self.scratch;
        append(keys, &bytes[map.start..]);
        bytes.truncate(map.start);
        let keys = &keys[map.keys..];
        let entries = &mut entries[map.first..];
        let key = |entry: &Entry| &keys[entry.from as usize..entry.to as usize];
        for entry in &mut *entries {
            entry.begin = beginning(&keys[entry.from as usize..]);
        }
        entries.sort_unstable_by(|a, b| {
            let begin = a.begin.cmp(&b.begin);
            begin.then_with(|| key(a).cmp(key(b)))
        });
        // Room for the head, which is written when the body is there.
        bytes.resize(map.start + 1 + (2 + entries.len()) * WIDE, 0);
        !entries
            .windows(2)
            .any(|pair| key(&pair[0]) == key(&pair[1]))
    }

    /// The number of the key whose value is to be written now. `None`: there is no other, and
    /// the map is ended.
    pub fn next_value(&mut self, map: &mut MapBuilder) -> Option<usize> {
        let count = self.scratch.entries.len() - map.first;
        let body = map.start + 1 + (2 + count) * WIDE;
        if map.next == count {
            self.end_map(map, count, body);
            return None;
        }
        let Scratch {
            bytes,
            keys,
            entries,
        } = &mut self.scratch;
        let entry = entries[map.first + map.next];
        let offset = (bytes.len() - body) as u32;
        let slot = map.start + 1 + (2 + map.next) * WIDE;
        bytes[slot..slot + WIDE].copy_from_slice(&offset.to_le_bytes());
        let key = map.keys + entry.from as usize..map.keys + entry.to as usize;
        append(bytes, &keys[key]);
        map.next += 1;
        Some(entry.index as usize)
    }

    /// Writes the head of a map whose entries are there. The numbers of a small body become
    /// narrower, and the body moves up to them; a large one stays where it is.
    fn end_map(&mut self, map: &MapBuilder, count: usize, body: usize) {
        let Scratch {
            bytes,
            keys,
            entries,
        } = &mut self.scratch;
        entries.truncate(map.first);
        keys.truncate(map.keys);
        let body_len = bytes.len() - body;
        let width = width_for(body_len);
        let head = &mut bytes[map.start..body];
        head[0] = map_tag(width);
        // Little endian: the low bytes come first.
        head[1..1 + width].copy_from_slice(&count.to_le_bytes()[..width]);
        head[1 + width..1 + 2 * width].copy_from_slice(&body_len.to_le_bytes()[..width]);
        if width == WIDE {
            return;
        }
        let (mut to, from) = (map.start + 1 + 2 * width, map.start + 1 + 2 * WIDE);
        for from in (from..).step_by(WIDE).take(count) {
            let low = [bytes[from], bytes[from + 1]];
            bytes[to] = low[0];
            if width == 2 {
                bytes[to + 1] = low[1];
            }
            to += width;
        }
        bytes.copy_within(body.., to);
        bytes.truncate(to + body_len);
    }
}
