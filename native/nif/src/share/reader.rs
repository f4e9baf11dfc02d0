//! What the threads of one shard read a content from.

use super::link::Kept;
use super::slot::Shared;
use crate::reaper;
use crate::resource::{self, ResourceRef};
use crate::terms::{Anchor, Copied, Source};
use erlmcp_memory_core::heap;
use erlmcp_memory_core::packed::{Packed, Target, View};
use erlmcp_memory_core::threads::{SHARDS, Tally, thread_shard};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The reader in each shard of threads.
pub(super) struct Readers(pub(super) [OnceLock<Box<Reader>>; SHARDS]);

/// Readers, and what they take on the library's own heap.
pub(super) static READERS: Tally = Tally::new();

impl Default for Readers {
    fn default() -> Self {
        READERS.add(0, heap::block(size_of::<Self>()) as isize);
        Readers(Default::default())
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        READERS.add(0, -(heap::block(size_of::<Self>()) as isize));
    }
}

/// What the readers on one scheduler read from.
pub(super) struct Reader {
    /// What large binaries refer to.
    pub(super) content: ResourceRef<Kept>,
    /// Bytes that were read in the packed form.
    pub(super) read: AtomicUsize,
    /// The content as a term, once that pays.
    pub(super) term: OnceLock<Copied>,
}

/// The packed bytes of a content that may be kept as a term. Building a smaller one is
/// cheap anyway; for a larger one, which is rarely read as a whole, the second form would take too
/// much memory.
pub(super) const KEPT_AS_TERM: RangeInclusive<usize> = 97..=4 << 20;

/// Building the term pays after this many bytes were read, and this many times the content's bytes.
const READ_BYTES: usize = 16 << 10;
const READ_TIMES: usize = 4;

impl Reader {
    fn new(shared: &Shared) -> Box<Self> {
        READERS.came(heap::block(size_of::<Self>()));
        Box::new(Reader {
            content: ResourceRef::new(Kept(Arc::clone(shared.content()))),
            read: AtomicUsize::new(0),
            term: OnceLock::new(),
        })
    }

    /// Whether the term would pay and does not exist.
    pub(super) fn is_due(&self, shared: &Shared) -> bool {
        let len = len_of(shared.packed().view());
        self.read.load(Ordering::Relaxed) >= READ_BYTES.max(READ_TIMES * len)
            && KEPT_AS_TERM.contains(&len)
            && self.term.get().is_none()
            // A reference in the term would keep a pooled state alive unnoticed.
            && !shared.host.is_cyclic()
    }

    pub(super) fn make_term(&self, packed: &Packed<Anchor>) {
        // Reset first, so that a failure is not retried before as many bytes were read again.
        self.read.store(0, Ordering::Relaxed);
        if let Some(term) = Copied::of(packed.view(), Source::Shared(&self.content)) {
            // Another thread may have been faster.
            let _ = self.term.set(term);
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let term = self.term.get().map_or(0, Copied::bytes);
        resource::overhead() + size_of::<Kept>() + heap::block(size_of::<Self>()) + term
    }
}

/// Terms of more bytes are freed by the reaper.
pub(super) const FREED_AT_ONCE: usize = 64 << 10;

impl Drop for Reader {
    fn drop(&mut self) {
        READERS.went(heap::block(size_of::<Self>()));
        if let Some(term) = self.term.take()
            && term.bytes() > FREED_AT_ONCE
        {
            reaper::free(term);
        }
    }
}

/// About the packed bytes of a value, also if it is a map out of line.
pub(super) fn len_of(value: View<'_, Anchor>) -> usize {
    match value.target() {
        Some(Target::Trie(node)) => node.heap_bytes(),
        _ => value.bytes.len(),
    }
}

pub(super) fn reader(shared: &Shared) -> &Reader {
    let readers = shared.host.readers.get_or_init(Box::default);
    readers.0[thread_shard()].get_or_init(|| Reader::new(shared))
}
