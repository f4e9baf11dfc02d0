//! The store of contents, and what is kept beside each.

use super::link::{Kept, Share};
use super::part::Part;
use super::reader::{READERS, Reader, Readers};
use crate::cycles;
use crate::resource::{self, ResourceRef};
use crate::stock::Stock;
use crate::terms::{Anchor, ENVIRONMENT, Known, copied};
use erlmcp_memory_core::packed::Packed;
use erlmcp_memory_core::shared::{self, Host, Store};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

/// A content with what this crate keeps beside it.
pub type Shared = shared::Shared<Anchor, Slot>;

/// One of many owners of a content.
pub type Holder = shared::Holder<Anchor, Slot>;

pub(super) static STORE: LazyLock<Store<Anchor, Slot>> = LazyLock::new(Store::default);

/// What is kept beside a content.
#[derive(Default)]
pub struct Slot {
    /// The one reference that stands for the content.
    pub(super) known: Known,
    /// The object it refers to, kept while states and contents hold the content, so that reading
    /// the reference out of one of these makes no new object.
    pub(super) kept: Mutex<Option<ResourceRef<Share>>>,
    /// Whether there is one, to be read without the lock.
    pub(super) is_kept: AtomicBool,
    /// Whether the content leads to a pooled state.
    pub(super) cyclic: OnceLock<bool>,
    pub(super) readers: OnceLock<Box<Readers>>,
    /// Of a content that is part of parked terms.
    pub(super) part: Part,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Host for Slot {
    fn unheld(&self, holders: &AtomicUsize) {
        let mut kept = self.kept.lock();
        let object = match holders.load(Ordering::Acquire) {
            0 => kept.take(),
            _ => None,
        };
        self.is_kept.store(kept.is_some(), Ordering::Relaxed);
        // Dropped after the lock: it may be the last owner of the content, and of this slot.
        drop(kept);
        if object.is_some() {
            resource::count_released();
        }
        drop(object);
    }

    fn is_counted(&self) -> bool {
        self.is_cyclic()
    }

    fn heap_bytes(&self) -> usize {
        self.readers().map(Reader::heap_bytes).sum::<usize>() + self.part.heap_bytes()
    }
}

impl Slot {
    pub(super) fn readers(&self) -> impl Iterator<Item = &Reader> {
        let readers = self.readers.get().into_iter().flat_map(|all| all.0.iter());
        readers.filter_map(|reader| reader.get().map(Box::as_ref))
    }

    /// Whether the content leads to a pooled state.
    pub fn is_cyclic(&self) -> bool {
        self.cyclic.get().copied().unwrap_or(false)
    }
}

/// Shared contents, with what is kept for their readers.
pub fn stock() -> Stock {
    let contents = STORE.usage();
    let readers = READERS.sum().bytes + copied().count * ENVIRONMENT;
    Stock {
        count: contents.count,
        heap: contents.bytes + readers,
        objects: resource::objects::<Share>().bytes + resource::objects::<Kept>().bytes,
    }
}

/// The largest contents, the largest one first.
pub fn largest(limit: usize) -> Vec<Arc<Shared>> {
    STORE.largest(limit)
}

/// The content that equals a value.
pub fn intern(packed: Packed<Anchor>) -> Arc<Shared> {
    known(STORE.intern(packed))
}

/// A content of the store, with a note whether it leads to a pooled state.
pub(super) fn known(shared: Arc<Shared>) -> Arc<Shared> {
    shared
        .host
        .cyclic
        .get_or_init(|| cycles::lead_to_pooled(shared.packed().links()));
    shared
}
