//! What a value takes as a term on a heap.

use crate::packed::{Anchor, Item, Packed, Target, item};

/// A binary of at most this size is on the heap of its process.
const HEAP_BINARY: usize = 64;

/// What a value takes when it is built, about, written out in full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Built {
    /// Words on a heap.
    pub words: usize,
    /// Bytes of binaries off the heap.
    pub off_heap: usize,
}

impl Built {
    /// Bytes on the heap and off it.
    pub fn bytes(self) -> usize {
        self.words * size_of::<usize>() + self.off_heap
    }
}

impl std::ops::AddAssign for Built {
    fn add_assign(&mut self, other: Self) {
        self.words += other.words;
        self.off_heap += other.off_heap;
    }
}

/// About how many words a map of `len` entries takes on a heap, without the keys and values. A small
/// map has its keys in a tuple, a large one is a trie.
pub fn map_words(len: usize) -> usize {
    match len {
        ..=32 => 4 + 2 * len,
        _ => 4 * len,
    }
}

/// What a value takes when it is built. `part` tells what a part takes.
pub fn built<A>(value: &Packed<A>, mut part: impl FnMut(&A) -> Built) -> Built
where
    A: Anchor,
{
    let bytes = value.bytes();
    let (mut built, mut at) = (Built::default(), 0);
    while at < bytes.len() {
        let Ok(next) = item(bytes, &mut at) else {
            break;
        };
        match next {
            Item::Int(value) if (-(1 << 59)..1 << 59).contains(&value) => {}
            Item::Nil | Item::Atom(_) | Item::Pid(_) | Item::Port(_) => {}
            Item::Int(_) | Item::Float(_) => built.words += 2,
            Item::ByteList(list) => built.words += 2 * list.len(),
            Item::List(len) | Item::Improper(len) => built.words += 2 * len,
            Item::Tuple(len) => built.words += 1 + len,
            Item::Fun(free) => built.words += 7 + free,
            Item::Export => built.words += 3,
            Item::Record(len) => built.words += 2 + 2 * len,
            Item::Binary(binary) if binary.len() > HEAP_BINARY => {
                built.words += 8;
                built.off_heap += binary.len();
            }
            Item::Binary(binary) => built.words += 2 + binary.len().div_ceil(size_of::<usize>()),
            Item::Opaque(external) => {
                built.words += 2 + external.len().div_ceil(size_of::<usize>())
            }
            Item::Map(page) => {
                built.words += map_words(page.len());
                at -= page.body().len();
            }
            Item::Entries(len) => built.words += map_words(len),
            Item::Part(id) => {
                if let Some(Target::Anchor(anchor)) = value.links().get(id) {
                    built += part(anchor);
                }
            }
            Item::Run { len, id } => {
                if let Some(Target::Anchor(anchor)) = value.links().get(id) {
                    built += part(anchor);
                    // Without the list that they are kept as.
                    built.words = built.words.saturating_sub(2 * len);
                }
            }
            Item::Reference(_)
            | Item::Foreign { .. }
            | Item::Handle(_)
            | Item::Share(_)
            | Item::Blob(_)
            | Item::Trie(_) => built.words += 5,
        }
    }
    built
}
