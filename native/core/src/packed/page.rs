//! A map inside packed bytes: sorted entries behind a table of offsets.

use super::format::{map_tag, number, push_number, tag, width_for};
use super::reader::{Page, skip};
use smallvec::SmallVec;

/// How many bytes of two keys are compared one by one: most differ within these, and a call of the
/// C library takes as long as all of them.
const SOON: usize = 8;

/// As [`Ord::cmp`].
#[inline]
fn compare(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    for (one, other) in a.iter().zip(b).take(SOON) {
        if one != other {
            return one.cmp(other);
        }
    }
    match (a.get(SOON..), b.get(SOON..)) {
        (Some(a), Some(b)) => a.cmp(b),
        _ => a.len().cmp(&b.len()),
    }
}

impl<'a> Page<'a> {
    /// The map that these bytes are, if they are one.
    pub fn of(bytes: &'a [u8]) -> Option<Self> {
        let at = &mut 1;
        match *bytes.first()? {
            tag::MAP8 => Self::read::<1>(bytes, at).ok(),
            tag::MAP16 => Self::read::<2>(bytes, at).ok(),
            tag::MAP32 => Self::read::<4>(bytes, at).ok(),
            _ => None,
        }
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.offsets.len() / self.width
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The entries' bytes: key, value, key, value.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The bytes of a map with this number of entries, whose keys and values take `body` bytes.
    pub fn size(count: usize, body: usize) -> usize {
        1 + (2 + count) * width_for(body) + body
    }

    /// Key and value of entry `index`, as one run of bytes.
    fn entry(&self, index: usize) -> Option<&'a [u8]> {
        let from = number(self.width, self.offsets, index * self.width)?;
        let to = number(self.width, self.offsets, (index + 1) * self.width);
        self.body.get(from..to.unwrap_or(self.body.len()))
    }

    /// `Ok(index)` of the entry with this key, `Err(index)` where it would have to stand.
    fn position(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let entry = self.entry(middle).unwrap_or_default();
            // No encoding is the beginning of another, so the entry's key is `key` exactly if the
            // entry begins with it, and any other key differs from it within its length.
            let head = &entry[..key.len().min(entry.len())];
            match compare(head, key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// The value of this key.
    pub fn find(&self, key: &[u8]) -> Option<&'a [u8]> {
        let index = self.position(key).ok()?;
        self.entry(index)?.get(key.len()..)
    }

    /// All entries, in the order of their keys' bytes.
    pub fn entries(&self) -> Entries<'a> {
        self.entries_from(0)
    }

    /// The entries from this index on.
    pub fn entries_from(&self, next: usize) -> Entries<'a> {
        Entries { page: *self, next }
    }

    /// The bytes of this map with one entry more, or another value for a key it has.
    pub fn with(&self, key: &[u8], value: &[u8]) -> Box<[u8]> {
        let mut out = Vec::new();
        self.put_into(key, value, &mut out);
        out.into_boxed_slice()
    }

    /// The same in place of what is in `out`. The value that the key had.
    pub(crate) fn put_into(&self, key: &[u8], value: &[u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
        let (index, old) = match self.position(key) {
            Ok(index) => (
                index,
                self.entry(index).and_then(|entry| entry.get(key.len()..)),
            ),
            Err(index) => (index, None),
        };
        self.splice(index, usize::from(old.is_some()), &[key, value], out);
        old
    }

    /// The bytes of this map without this key; `None` if it has no such key.
    pub fn without(&self, key: &[u8]) -> Option<Box<[u8]>> {
        let index = self.position(key).ok()?;
        let mut out = Vec::new();
        self.splice(index, 1, &[], &mut out);
        Some(out.into_boxed_slice())
    }

    /// The bytes of this map with other entries, sorted by key, in place of what is in `out`. Calls
    /// `replaced` with each value that goes.
    pub(crate) fn merge_into(
        &self,
        others: &[Entry<'_>],
        out: &mut Vec<u8>,
        mut replaced: impl FnMut(&'a [u8]),
    ) {
        let mut merged: SmallVec<[&[u8]; 32]> = SmallVec::new();
        let mut next = 0;
        for other in others {
            let key = other.key();
            let (index, old) = match self.position(key) {
                Ok(index) => (index, self.entry(index)),
                Err(index) => (index, None),
            };
            merged.extend((next..index).filter_map(|index| self.entry(index)));
            merged.push(other.bytes);
            if let Some(value) = old.and_then(|entry| entry.get(key.len()..)) {
                replaced(value);
            }
            next = index + usize::from(old.is_some());
        }
        merged.extend((next..self.len()).filter_map(|index| self.entry(index)));
        build_into(out, merged.iter().map(|entry| [*entry]));
    }

    /// Replaces `removed` entries (0 or 1) from `index` on by the entry of these parts, if any.
    /// Writes the bytes in place of what is in `out`.
    fn splice(&self, index: usize, removed: usize, parts: &[&[u8]], out: &mut Vec<u8>) {
        let added: usize = parts.iter().map(|part| part.len()).sum();
        let inserted = usize::from(!parts.is_empty());
        let start =
            |i: usize| number(self.width, self.offsets, i * self.width).unwrap_or(self.body.len());
        let (cut_from, cut_to) = (start(index), start(index + removed));
        let body_len = self.body.len() - (cut_to - cut_from) + added;
        let count = self.len() - removed + inserted;
        header(out, count, body_len);
        let width = width_for(body_len);
        if (width, self.width) == (1, 1) {
            // Nearly all pages: no offset is over 255.
            let (before, behind) = (&self.offsets[..index], &self.offsets[index + removed..]);
            let moved = added.wrapping_sub(cut_to - cut_from) as u8;
            out.extend_from_slice(before);
            out.extend((0..inserted).map(|_| cut_from as u8));
            out.extend(behind.iter().map(|offset| offset.wrapping_add(moved)));
        } else {
            for i in 0..index {
                push_number(out, width, start(i));
            }
            if inserted == 1 {
                push_number(out, width, cut_from);
            }
            for i in index + removed..self.len() {
                push_number(out, width, start(i) - (cut_to - cut_from) + added);
            }
        }
        out.extend_from_slice(&self.body[..cut_from]);
        for part in parts {
            out.extend_from_slice(part);
        }
        out.extend_from_slice(&self.body[cut_to..]);
    }

    /// The bytes of a map of these entries, which must be sorted by key.
    pub fn build<'b>(entries: impl Iterator<Item = (&'b [u8], &'b [u8])> + Clone) -> Box<[u8]> {
        let mut out = Vec::new();
        build_into(&mut out, entries.map(|(key, value)| [key, value]));
        out.into_boxed_slice()
    }
}

/// Writes a map of entries in these parts, sorted by key, in place of what is in `out`.
pub(crate) fn build_into<'b, const PARTS: usize>(
    out: &mut Vec<u8>,
    entries: impl Iterator<Item = [&'b [u8]; PARTS]> + Clone,
) {
    let len = |parts: [&[u8]; PARTS]| parts.iter().map(|part| part.len()).sum::<usize>();
    let (mut count, mut body_len) = (0, 0);
    for parts in entries.clone() {
        count += 1;
        body_len += len(parts);
    }
    header(out, count, body_len);
    let width = width_for(body_len);
    let mut offset = 0;
    for parts in entries.clone() {
        push_number(out, width, offset);
        offset += len(parts);
    }
    for part in entries.flatten() {
        out.extend_from_slice(part);
    }
}

/// The tag, the count and the length of a map, in place of what is in `out`. What has no memory yet
/// gets room for exactly the whole of it: the BEAM's allocator cannot shrink a block in place.
fn header(out: &mut Vec<u8>, count: usize, body_len: usize) {
    out.clear();
    out.reserve_exact(Page::size(count, body_len));
    push_header(out, count, body_len);
}

/// Writes the tag, the count and the length of a map.
fn push_header(out: &mut Vec<u8>, count: usize, body_len: usize) {
    let width = width_for(body_len);
    out.push(map_tag(width));
    push_number(out, width, count);
    push_number(out, width, body_len);
}

/// A key and its value, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    bytes: &'a [u8],
    key: usize,
}

impl<'a> Entry<'a> {
    /// The first `key` bytes are the key.
    pub fn new(bytes: &'a [u8], key: usize) -> Self {
        debug_assert!(key <= bytes.len());
        Entry { bytes, key }
    }

    /// The key.
    pub fn key(&self) -> &'a [u8] {
        &self.bytes[..self.key]
    }

    /// The value.
    pub fn value(&self) -> &'a [u8] {
        &self.bytes[self.key..]
    }

    /// Both.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// The entries of a map.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    page: Page<'a>,
    next: usize,
}

impl<'a> Entries<'a> {
    /// The next key and its value in one piece.
    pub fn next_whole(&mut self) -> Option<Entry<'a>> {
        let entry = self.page.entry(self.next)?;
        if self.next >= self.page.len() {
            return None;
        }
        self.next += 1;
        let mut at = 0;
        skip(entry, &mut at).ok()?;
        Some(Entry::new(entry, at))
    }
}

impl<'a> Iterator for Entries<'a> {
    /// Key and value.
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.next_whole().map(|entry| (entry.key(), entry.value()))
    }
}
