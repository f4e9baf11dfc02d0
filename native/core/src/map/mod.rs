//! An immutable map of packed terms. An update makes a new map; what did not change, the two have
//! in common.
//!
//! A small map is one packed run of bytes ([`Page`]), rewritten by an update: that costs less than
//! following pointers would. A larger one is a hash trie ([`Node`]) of such pages, 16-way, in the
//! manner of Bagwell's hash array mapped tries ("Ideal Hash Trees", 2001): an update rewrites one
//! page and the branches above it. Values over [`INLINE`] bytes are out of line, so that neither
//! copies them; maps among them are tries of their own, so that a path of keys is followed, and one
//! key changed, without touching anything beside it.
//!
//! # Example
//!
//! ```
//! use erlmcp_memory_core::map::Map;
//! use erlmcp_memory_core::packed::{Packed, Writer};
//! use std::convert::Infallible;
//!
//! let packed = |write: &dyn Fn(&mut Writer<Infallible>)| -> Packed<Infallible> {
//!     let mut writer = Writer::new();
//!     write(&mut writer);
//!     writer.finish()
//! };
//! let (key, absent) = (packed(&|to| to.binary(b"key")), packed(&|to| to.nil()));
//! let [one, two] = [1, 2].map(|n| packed(&|to| to.int(n)));
//!
//! let first = Map::default().put(&[key.view()], one.view(), absent.bytes()).unwrap();
//! let second = first.put(&[key.view()], two.view(), absent.bytes()).unwrap();
//! // A version is never changed.
//! assert_eq!(first.get(&[key.bytes()]).unwrap().bytes, one.bytes());
//! assert_eq!(second.get(&[key.bytes()]).unwrap().bytes, two.bytes());
//! ```

mod buf;
mod digest;
mod edit;
mod node;

pub use buf::MapBuf;
pub use digest::{digest, equal};
pub use edit::EditError;
pub use node::{INLINE, MAX_PATH, PAGE};

pub use crate::packed::{Node, Sum};

use crate::packed::{Anchor, Packed, Page, View};
use node::store;

/// An immutable map of packed keys and values.
#[derive(Debug)]
pub struct Map<A> {
    /// A packed map, or a link to a trie.
    root: Packed<A>,
}

impl<A: Anchor> Default for Map<A> {
    fn default() -> Self {
        Map {
            root: edit::empty_map(),
        }
    }
}

impl<A: Anchor> Map<A> {
    /// The map that this packed value is; `None` if it is not a map.
    pub fn from_packed(value: Packed<A>) -> Option<Self> {
        Page::of(value.bytes())?;
        let root = if value.bytes().len() <= PAGE {
            value
        } else {
            store(value.view(), PAGE)
        };
        Some(Map { root })
    }

    /// The map as a value.
    pub fn into_packed(self) -> Packed<A> {
        self.root
    }

    /// The whole map as a value.
    pub fn view(&self) -> View<'_, A> {
        self.root.view()
    }

    /// The number of its entries.
    pub fn len(&self) -> usize {
        edit::len(self.view()).unwrap_or(0)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value under a path of packed keys; the map itself under the empty path.
    pub fn get<K: AsRef<[u8]>>(&self, path: &[K]) -> Option<View<'_, A>> {
        self.view().find(path)
    }

    /// Every entry: key, value.
    pub fn for_each<'a>(&'a self, mut entry: impl FnMut(&'a [u8], View<'a, A>)) {
        node::for_each(self.view(), &mut entry);
    }

    /// This map with another value under a path of keys. Maps that are missing on the way are
    /// made; `absent` is the value that counts as missing.
    pub fn put(
        &self,
        path: &[View<'_, A>],
        value: View<'_, A>,
        absent: &[u8],
    ) -> Result<Self, EditError> {
        edit::put_path(self.view(), path, value, absent).map(|root| Map { root })
    }

    /// This map with all entries of the packed map `entries` put into the map under a path.
    pub fn merge(
        &self,
        path: &[View<'_, A>],
        entries: View<'_, A>,
        absent: &[u8],
    ) -> Result<Self, EditError> {
        edit::merge_path(self.view(), path, entries, absent).map(|root| Map { root })
    }

    /// This map with those entries of the packed map `entries` put in whose key is `taken`. The
    /// map under `merged` is put into the one that is there.
    pub(crate) fn put_all(
        &self,
        entries: View<'_, A>,
        taken: impl Fn(&[u8]) -> bool,
        merged: &[u8],
    ) -> Self {
        let root = edit::put_all(self.view(), entries, taken, merged);
        Map { root }
    }

    /// This map without what a path leads to; `None` if the path leads nowhere.
    pub fn remove(&self, path: &[View<'_, A>]) -> Option<Self> {
        edit::delete_path(self.view(), path).map(|root| Map { root })
    }

    /// Bytes of memory behind the map.
    pub fn heap_bytes(&self) -> usize {
        self.root.heap_bytes()
    }
}

/// The number of entries of a map inside a map; `None` if the value is not a map.
pub fn len_of<A: Anchor>(value: View<'_, A>) -> Option<usize> {
    edit::len(value)
}

/// A value that is changed at the cost of a path: a map of more than `whole` bytes as a trie.
pub fn in_parts<A: Anchor>(value: Packed<A>, whole: usize) -> Packed<A> {
    if value.bytes().len() > whole && Page::of(value.bytes()).is_some() {
        store(value.view(), PAGE)
    } else {
        value
    }
}

/// An independent map with a new value under a path of keys; see [`Map::put`].
pub fn put<A: Anchor>(
    map: &Packed<A>,
    path: &[View<'_, A>],
    value: View<'_, A>,
    absent: &[u8],
) -> Result<Packed<A>, EditError> {
    len_of(map.view()).ok_or(EditError::NotAMap(0))?;
    edit::put_path(map.view(), path, value, absent)
}

/// An independent map without what a path leads to; `None` if the path leads nowhere.
pub fn remove<A: Anchor>(map: &Packed<A>, path: &[View<'_, A>]) -> Option<Packed<A>> {
    len_of(map.view())?;
    edit::delete_path(map.view(), path)
}

/// Calls `entry` with every entry of a map inside a map.
pub fn for_each_of<'a, A: Anchor>(
    value: View<'a, A>,
    mut entry: impl FnMut(&'a [u8], View<'a, A>),
) {
    node::for_each(value, &mut entry);
}

/// Calls `entry` with the entries of a map from this index on, in an order that is the
/// same for each walk over it, until it returns `false`.
pub fn each_from<'a, A: Anchor>(
    map: View<'a, A>,
    from: usize,
    mut entry: impl FnMut(&'a [u8], View<'a, A>) -> bool,
) {
    node::each_from(map, from, &mut entry);
}
