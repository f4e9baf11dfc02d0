//! Reading packed bytes, one item after the other. Safe on any bytes: what does not follow the
//! format is a [`ReadError`], never a panic.

use super::format::{
    EXPORT_VALUES, FUN_HEAD, RECORD_HEAD, ReadError, byte, count, length, number, sized, tag, take,
    unzigzag, varint,
};

/// A map in packed bytes, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    pub(super) width: usize,
    pub(super) offsets: &'a [u8],
    pub(super) body: &'a [u8],
}

impl<'a> Page<'a> {
    pub(super) fn read<const W: usize>(bytes: &'a [u8], at: &mut usize) -> Result<Self, ReadError> {
        let count = number(W, bytes, *at).ok_or(ReadError)?;
        let body_len = number(W, bytes, *at + W).ok_or(ReadError)?;
        let offsets_at = *at + 2 * W;
        let body_at = offsets_at + count * W;
        let end = body_at + body_len;
        if end > bytes.len() {
            return Err(ReadError);
        }
        *at = end;
        Ok(Page {
            width: W,
            offsets: &bytes[offsets_at..body_at],
            body: &bytes[body_at..end],
        })
    }
}

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
    /// This many elements follow.
    List(usize),
    /// This many elements follow, then the tail.
    Improper(usize),
    /// This many elements follow.
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
    /// This many of the values that follow, as a content of their own: a list of them.
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
            Item::Int(_)
            | Item::Float(_)
            | Item::Atom(_)
            | Item::Pid(_)
            | Item::Port(_)
            | Item::Nil
            | Item::ByteList(_)
            | Item::Binary(_)
            | Item::Reference(_)
            | Item::Opaque(_)
            | Item::Foreign { .. }
            | Item::Handle(_)
            | Item::Share(_)
            | Item::Blob(_)
            | Item::Trie(_)
            | Item::Map(_)
            | Item::Part(_)
            | Item::Run { .. } => 0,
        }
    }

    /// The id of the link that this item is. Those of parts are not among them: a value that was
    /// not taken apart has none.
    #[inline]
    pub fn link(&self) -> Option<u64> {
        match *self {
            Item::Foreign { id, .. }
            | Item::Handle(id)
            | Item::Share(id)
            | Item::Blob(id)
            | Item::Trie(id) => Some(id),
            Item::Int(_)
            | Item::Float(_)
            | Item::Atom(_)
            | Item::Pid(_)
            | Item::Port(_)
            | Item::Nil
            | Item::ByteList(_)
            | Item::List(_)
            | Item::Improper(_)
            | Item::Tuple(_)
            | Item::Fun(_)
            | Item::Export
            | Item::Record(_)
            | Item::Binary(_)
            | Item::Reference(_)
            | Item::Opaque(_)
            | Item::Map(_)
            | Item::Entries(_)
            | Item::Part(_)
            | Item::Run { .. } => None,
        }
    }
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

/// Calls `found` with every link id in these bytes, which hold whole values one after another.
pub(crate) fn each_link(bytes: &[u8], found: &mut impl FnMut(u64)) -> Result<(), ReadError> {
    let mut at = 0;
    while at < bytes.len() {
        match item(bytes, &mut at)? {
            // Back to the first entry: keys and values follow one another.
            Item::Map(page) => at -= page.body().len(),
            item => item.link().into_iter().for_each(&mut *found),
        }
    }
    Ok(())
}
