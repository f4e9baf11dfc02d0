//! A map inside packed bytes: sorted entries behind a table of offsets.

use super::format::{map_tag, number, push_number, tag, width_for};
use super::reader::{Page, skip};

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
        let (index, replaced) = match self.position(key) {
            Ok(index) => (index, 1),
            Err(index) => (index, 0),
        };
        self.splice(index, replaced, &[key, value])
    }

    /// The bytes of this map without this key; `None` if it has no such key.
    pub fn without(&self, key: &[u8]) -> Option<Box<[u8]>> {
        let index = self.position(key).ok()?;
        Some(self.splice(index, 1, &[]))
    }

    /// Replaces `removed` entries (0 or 1) from `index` on by the entry of these parts, if any.
    fn splice(&self, index: usize, removed: usize, parts: &[&[u8]]) -> Box<[u8]> {
        let added: usize = parts.iter().map(|part| part.len()).sum();
        let inserted = usize::from(!parts.is_empty());
        let start =
            |i: usize| number(self.width, self.offsets, i * self.width).unwrap_or(self.body.len());
        let (cut_from, cut_to) = (start(index), start(index + removed));
        let body_len = self.body.len() - (cut_to - cut_from) + added;
        let count = self.len() - removed + inserted;
        let mut out = header(count, body_len);
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
                push_number(&mut out, width, start(i));
            }
            if inserted == 1 {
                push_number(&mut out, width, cut_from);
            }
            for i in index + removed..self.len() {
                push_number(&mut out, width, start(i) - (cut_to - cut_from) + added);
            }
        }
        out.extend_from_slice(&self.body[..cut_from]);
        for part in parts {
            out.extend_from_slice(part);
        }
        out.extend_from_slice(&self.body[cut_to..]);
        debug_assert_eq!(out.len(), out.capacity());
        out.into_boxed_slice()
    }

    /// The bytes of a map of these entries, which must be sorted by key.
    pub fn build<'b>(entries: impl Iterator<Item = (&'b [u8], &'b [u8])> + Clone) -> Box<[u8]> {
        let (mut count, mut body_len) = (0, 0);
        for (key, value) in entries.clone() {
            count += 1;
            body_len += key.len() + value.len();
        }
        let mut out = header(count, body_len);
        let width = width_for(body_len);
        let mut offset = 0;
        for (key, value) in entries.clone() {
            push_number(&mut out, width, offset);
            offset += key.len() + value.len();
        }
        for (key, value) in entries {
            out.extend_from_slice(key);
            out.extend_from_slice(value);
        }
        out.into_boxed_slice()
    }
}

/// The tag, the count and the length of a map, in a vector with room for exactly the whole of it:
/// the BEAM's allocator cannot shrink a block in place.
fn header(count: usize, body_len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(Page::size(count, body_len));
    push_header(&mut out, count, body_len);
    out
}

/// Writes the tag, the count and the length of a map.
fn push_header(out: &mut Vec<u8>, count: usize, body_len: usize) {
    let width = width_for(body_len);
    out.push(map_tag(width));
    push_number(out, width, count);
    push_number(out, width, body_len);
}

/// The entries of a map.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    page: Page<'a>,
    next: usize,
}

impl<'a> Iterator for Entries<'a> {
    /// Key and value.
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.page.entry(self.next)?;
        if self.next >= self.page.len() {
            return None;
        }
        self.next += 1;
        let mut at = 0;
        skip(entry, &mut at).ok()?;
        Some(entry.split_at(at))
    }
}
