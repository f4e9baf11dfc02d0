//! Reading packed bytes, one item after the other. Safe on any bytes: what does not follow the
//! format is a [`ReadError`], never a panic.

use super::writer::{Scalar, write_varint};
use super::{
    Anchor, EXPORT_VALUES, FUN_HEAD, LinkVec, Links, MAX_BYTES, Packed, Page, RECORD_HEAD, Target,
    tag,
};

/// The bytes do not follow the packed format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadError;

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the bytes do not follow the packed format")
    }
}

impl std::error::Error for ReadError {}

/// One item: a whole value, or the head of one whose elements follow.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Item<'a> {
    Int(i64),
    Float(f64),
    Atom(u64),
    Pid(u64),
    Port(u64),
    Nil,
    /// A proper list of bytes.
    ByteList(&'a [u8]),
    /// So many elements follow.
    List(usize),
    /// So many elements follow, then the tail.
    Improper(usize),
    /// So many elements follow.
    Tuple(usize),
    /// [`FUN_HEAD`] values follow, then this many that the fun closes over.
    Fun(usize),
    /// Module, function and arity follow.
    Export,
    /// [`RECORD_HEAD`] values follow, then this many names of fields, then their values.
    Record(usize),
    Binary(&'a [u8]),
    Reference(&'a [u8]),
    Opaque(&'a [u8]),
    Foreign {
        id: u64,
        numbers: &'a [u8],
    },
    Handle(u64),
    Share(u64),
    Blob(u64),
    Trie(u64),
    /// A map; its entries are inside and do not follow.
    Map(Page<'a>),
    /// A map of this many entries, which follow: key, value, key, value.
    Entries(usize),
    /// A content of its own.
    Part(u64),
    /// So many of the values that follow, which are a content of their own: a list of them.
    Run {
        len: usize,
        id: u64,
    },
}

impl Item<'_> {
    /// How many values follow that belong to this item.
    pub fn following(&self) -> usize {
        match *self {
            Item::List(n) | Item::Tuple(n) => n,
            Item::Improper(n) => n + 1,
            Item::Fun(n) => FUN_HEAD + n,
            Item::Export => EXPORT_VALUES,
            Item::Record(n) => RECORD_HEAD + 2 * n,
            Item::Entries(n) => 2 * n,
            _ => 0,
        }
    }
}

fn byte(bytes: &[u8], at: &mut usize) -> Result<u8, ReadError> {
    let byte = *bytes.get(*at).ok_or(ReadError)?;
    *at += 1;
    Ok(byte)
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, len: usize) -> Result<&'a [u8], ReadError> {
    let end = at.checked_add(len).ok_or(ReadError)?;
    let taken = bytes.get(*at..end).ok_or(ReadError)?;
    *at = end;
    Ok(taken)
}

fn varint(bytes: &[u8], at: &mut usize) -> Result<u64, ReadError> {
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
fn length(bytes: &[u8], at: &mut usize) -> Result<usize, ReadError> {
    let length = usize::try_from(varint(bytes, at)?).map_err(|_| ReadError)?;
    if length > bytes.len() - *at {
        return Err(ReadError);
    }
    Ok(length)
}

/// As [`length`], of values of which some may lie in runs.
fn count(bytes: &[u8], at: &mut usize) -> Result<usize, ReadError> {
    match usize::try_from(varint(bytes, at)?) {
        Ok(count) if count <= MAX_BYTES => Ok(count),
        _ => Err(ReadError),
    }
}

fn sized<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], ReadError> {
    let len = length(bytes, at)?;
    take(bytes, at, len)
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// The item at `at`, which moves behind it.
#[inline]
pub fn item<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Item<'a>, ReadError> {
    item_here(bytes, at)
}

/// As [`item`], for the one loop that all reads go through: an item that is not returned from a
/// call is not written to memory and read back, which took a fourth of the time there.
#[inline(always)]
#[allow(clippy::inline_always)]
pub fn item_here<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Item<'a>, ReadError> {
    let tag = byte(bytes, at)?;
    Ok(match tag {
        0..tag::SMALL_END => Item::Int(i64::from(tag)),
        tag::INT => Item::Int(unzigzag(varint(bytes, at)?)),
        tag::FLOAT => {
            let raw = take(bytes, at, 8)?.try_into().map_err(|_| ReadError)?;
            Item::Float(f64::from_le_bytes(raw))
        }
        tag::ATOM => Item::Atom(varint(bytes, at)?),
        tag::PID => Item::Pid(varint(bytes, at)?),
        tag::PORT => Item::Port(varint(bytes, at)?),
        tag::NIL => Item::Nil,
        tag::BYTES => Item::ByteList(sized(bytes, at)?),
        tag::LIST => Item::List(count(bytes, at)?),
        tag::IMPROPER => Item::Improper(length(bytes, at)?),
        tag::TUPLE => Item::Tuple(length(bytes, at)?),
        tag::BINARY => Item::Binary(sized(bytes, at)?),
        tag::REFERENCE => {
            let len = usize::from(byte(bytes, at)?);
            Item::Reference(take(bytes, at, len)?)
        }
        tag::OPAQUE => Item::Opaque(sized(bytes, at)?),
        tag::FOREIGN => Item::Foreign {
            id: varint(bytes, at)?,
            numbers: sized(bytes, at)?,
        },
        tag::HANDLE => Item::Handle(varint(bytes, at)?),
        tag::SHARE => Item::Share(varint(bytes, at)?),
        tag::BLOB => Item::Blob(varint(bytes, at)?),
        tag::TRIE => Item::Trie(varint(bytes, at)?),
        tag::SHORT_BINARY..tag::SHORT_TUPLE => {
            Item::Binary(take(bytes, at, usize::from(tag - tag::SHORT_BINARY))?)
        }
        tag::SHORT_TUPLE..tag::TUPLE => Item::Tuple(usize::from(tag - tag::SHORT_TUPLE)),
        tag::MAP8 => Item::Map(Page::read::<1>(bytes, at)?),
        tag::MAP16 => Item::Map(Page::read::<2>(bytes, at)?),
        tag::MAP32 => Item::Map(Page::read::<4>(bytes, at)?),
        tag::FUN => Item::Fun(length(bytes, at)?),
        tag::EXPORT => Item::Export,
        tag::RECORD => Item::Record(length(bytes, at)?),
        tag::ENTRIES => Item::Entries(count(bytes, at)?),
        tag::PART => Item::Part(varint(bytes, at)?),
        tag::RUN => Item::Run {
            len: count(bytes, at)?,
            id: varint(bytes, at)?,
        },
        _ => return Err(ReadError),
    })
}

/// Moves `at` behind the whole value there. Flat: it needs no stack, however deep the value.
pub fn skip(bytes: &[u8], at: &mut usize) -> Result<(), ReadError> {
    let mut left = 1usize;
    while left > 0 {
        left -= 1;
        left += item(bytes, at)?.following();
    }
    Ok(())
}

/// Whether these bytes contain a varint, or bytes that look like one.
fn contains_varint(bytes: &[u8], value: u64) -> bool {
    let mut pattern = Scalar::default();
    let len = write_varint(value, &mut pattern, 0);
    memchr::memchr_iter(pattern[0], bytes)
        .any(|at| bytes.get(at..at + len) == Some(&pattern[..len]))
}

/// Calls `found` with every link id in these bytes, which hold whole values one after another; but
/// for those of parts, which are none of a value that was not taken apart.
pub(crate) fn each_link(bytes: &[u8], found: &mut impl FnMut(u64)) -> Result<(), ReadError> {
    let mut at = 0;
    while at < bytes.len() {
        match item(bytes, &mut at)? {
            Item::Foreign { id, .. }
            | Item::Handle(id)
            | Item::Share(id)
            | Item::Blob(id)
            | Item::Trie(id) => found(id),
            // Back to the first entry: keys and values follow one another.
            Item::Map(page) => at -= page.body().len(),
            _ => {}
        }
    }
    Ok(())
}

/// A value to be read: its bytes, and the links of what it is part of.
#[derive(Debug)]
pub struct View<'a, A> {
    /// Exactly the bytes of the value.
    pub bytes: &'a [u8],
    /// Where the links in these bytes lead, and maybe others.
    pub links: &'a Links<A>,
}

impl<A> Clone for View<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for View<'_, A> {}

impl<A> AsRef<[u8]> for View<'_, A> {
    fn as_ref(&self) -> &[u8] {
        self.bytes
    }
}

impl<'a, A: Anchor> View<'a, A> {
    /// A view of these bytes.
    pub fn new(bytes: &'a [u8], links: &'a Links<A>) -> Self {
        View { bytes, links }
    }

    /// The value itself where it is out of line, this view otherwise.
    pub fn resolve(self) -> Self {
        match self.bytes.first() {
            Some(&tag::BLOB) => match self.target() {
                Some(Target::Blob(blob)) => blob.view(),
                _ => self,
            },
            _ => self,
        }
    }

    /// The target of a value that is nothing but a link.
    pub fn target(self) -> Option<&'a Target<A>> {
        // Most values are none, and need not be read.
        if self.links.is_empty() {
            return None;
        }
        match item(self.bytes, &mut 0).ok()? {
            Item::Foreign { id, .. }
            | Item::Handle(id)
            | Item::Share(id)
            | Item::Blob(id)
            | Item::Trie(id) => self.links.get(id),
            _ => None,
        }
    }

    /// Memory bytes of what is out of line below this value.
    pub fn out_of_line_bytes(self) -> usize {
        if self.links.is_empty() {
            return 0;
        }
        let mut sum = 0;
        let _ = each_link(self.bytes, &mut |id| {
            if let Some(target) = self.links.get(id) {
                sum += target.heap_bytes();
            }
        });
        sum
    }

    /// The links that occur in these bytes, one an occurrence.
    pub(crate) fn own_links(self) -> LinkVec<A> {
        let mut own = LinkVec::new();
        if !self.links.is_empty() {
            let _ = each_link(self.bytes, &mut |id| {
                if let Some(target) = self.links.get(id) {
                    own.push((id, target.clone()));
                }
            });
        }
        own
    }

    /// Whether a link occurs in these bytes.
    pub(crate) fn has_links(self) -> bool {
        let mut found = false;
        match self.links {
            Links::None => {}
            // Mostly it is somewhere else, and a search for its id tells that sooner.
            Links::One((id, _)) if !contains_varint(self.bytes, *id) => {}
            _ => {
                let _ = each_link(self.bytes, &mut |_| found = true);
            }
        }
        found
    }

    /// An independent copy of this value. Out-of-line parts are shared, not copied.
    pub fn to_packed(self) -> Packed<A> {
        Packed::new(self.bytes.into(), Links::from_unsorted(self.own_links()))
    }

    /// The content where this value is nothing but a share, the value itself otherwise.
    pub fn content(self) -> Self {
        let mut here = self;
        while here.bytes.first() == Some(&tag::SHARE)
            && let Some(Target::Anchor(anchor)) = here.target()
            && let Some(content) = anchor.shared_content()
        {
            here = content.view();
        }
        here
    }

    /// The value under a path of packed keys, through maps inline and out of line, and through the
    /// content of shares.
    pub fn find<K: AsRef<[u8]>>(self, path: &[K]) -> Option<View<'a, A>> {
        let mut here = self;
        for key in path {
            here = here.content();
            here = match Page::of(here.bytes) {
                Some(page) => View::new(page.find(key.as_ref())?, here.links),
                None => match here.target()? {
                    Target::Trie(node) => node.get(key.as_ref())?,
                    _ => return None,
                },
            };
        }
        Some(here.resolve())
    }
}
