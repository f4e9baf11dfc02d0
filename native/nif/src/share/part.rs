//! What is kept of a content that is part of parked terms.

use super::reader::{FREED_AT_ONCE, KEPT_AS_TERM};
use super::slot::{Shared, Slot};
use crate::lane::{Busy, Lane};
use crate::reaper;
use crate::terms::{Anchor, Copied, Source};
use erlmcp_memory_core::heap;
use erlmcp_memory_core::packed::Target;
use erlmcp_memory_core::parts::{self, Built};
use erlmcp_memory_core::threads::{SHARDS, thread_shard};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// What is kept of a content that is part of parked terms.
#[derive(Default)]
pub(super) struct Part {
    /// What the term takes when it is built, as [`packed_built`] writes it; 0 before it was counted.
    built: AtomicU64,
    /// Packed bytes that it has with all its parts in place.
    pub(super) flat: AtomicUsize,
    /// How often it was read in the packed form.
    reads: AtomicU32,
    /// The shards of threads that want a term made for them.
    wanted: AtomicU32,
    /// The content as a term for each shard of threads, once that pays.
    terms: OnceLock<Box<[OnceLock<Copied>; SHARDS]>>,
    /// What these take of [`FEW_TERMS`].
    few: AtomicUsize,
}

/// Building the term of a part pays after this many reads.
const PART_READS: u32 = 4;

/// The most bytes of a part's term that is made on a normal scheduler.
const MADE_AT_ONCE: usize = 256 << 10;

/// Bytes of the terms that are kept of parts with few owners: such a term takes three times what
/// the packed form does, and a node may have a part for each server.
const FEW_TERMS: usize = 8 << 20;

/// What these take now.
static FEW: AtomicUsize = AtomicUsize::new(0);

impl Part {
    fn terms(&self) -> impl Iterator<Item = &Copied> {
        let terms = self.terms.get().into_iter().flat_map(|all| all.iter());
        terms.filter_map(OnceLock::get)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let table = match self.terms.get() {
            Some(_) => heap::block(SHARDS * size_of::<OnceLock<Copied>>()),
            None => 0,
        };
        table + self.terms().map(Copied::bytes).sum::<usize>()
    }

    /// Whether a term may be kept for a part: one that many have, or one of a few others.
    fn is_worth(&self, shared: &Shared, bytes: usize) -> bool {
        if shared.has_many_owners() {
            return true;
        }
        let admitted = FEW.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| {
            (sum + bytes <= FEW_TERMS).then_some(sum + bytes)
        });
        if admitted.is_ok() {
            self.few.fetch_add(bytes, Ordering::Relaxed);
        }
        admitted.is_ok()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        FEW.fetch_sub(*self.few.get_mut(), Ordering::Relaxed);
        if let Some(terms) = self.terms.take()
            && terms
                .iter()
                .filter_map(OnceLock::get)
                .any(|term| term.bytes() > FREED_AT_ONCE)
        {
            reaper::free(terms);
        }
    }
}

impl Slot {
    /// The term of a content that is part of parked terms, if there is one for this thread. If a
    /// parked term is read in a lane, it may be made.
    pub fn part_term(&self, shared: &Shared, lane: Option<Lane>) -> Result<Option<&Copied>, Busy> {
        let part = &self.part;
        let shard = thread_shard();
        if let Some(term) = part.terms.get().and_then(|terms| terms[shard].get()) {
            return Ok(Some(term));
        }
        let Some(lane) = lane else {
            return Ok(None);
        };
        if part.reads.load(Ordering::Relaxed) < PART_READS {
            part.reads.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let bytes = part_built(shared).bytes();
        if !KEPT_AS_TERM.contains(&shared.packed().bytes().len())
            || bytes > MOST_KEPT
            || self.is_cyclic()
        {
            return Ok(None);
        }
        if lane == Lane::Fast && bytes > MADE_AT_ONCE {
            part.wanted.fetch_or(1 << shard, Ordering::Relaxed);
            return Err(Busy);
        }
        let wanted = part.wanted.swap(0, Ordering::Relaxed) | 1 << shard;
        for shard in (0..SHARDS).filter(|shard| wanted & 1 << shard != 0) {
            if !part.is_worth(shared, bytes) {
                part.reads.store(0, Ordering::Relaxed);
                break;
            }
            let view = shared.packed().view();
            if let Some(term) = Copied::whole(view, Source::Owned, bytes / size_of::<usize>()) {
                let _ = part.terms.get_or_init(Box::default)[shard].set(term);
            }
        }
        Ok(part.terms.get().and_then(|terms| terms[shard].get()))
    }
}

/// The most bytes of a term that is kept.
const MOST_KEPT: usize = 16 << 20;

/// What the term of a part takes, in one word that is not 0: words on a heap, and bytes off it in
/// units of 16, as many as there are numbers for.
fn packed_built(built: Built) -> u64 {
    let number = |count: usize| u64::from(u32::try_from(count).unwrap_or(u32::MAX));
    number(built.words.max(1)) << 32 | number(built.off_heap.div_ceil(OFF_HEAP_UNIT))
}

const OFF_HEAP_UNIT: usize = 16;

/// The most packed bytes of a part that is measured when its size is first asked for, not when it
/// is made: about 50 microseconds of work.
pub(super) const COUNTED_LATER: usize = 256 << 10;

/// About what the term of a part takes when it is built. This is measured on the first call, with
/// an explicit stack, because parts may nest.
pub fn part_built(shared: &Shared) -> Built {
    let counted = |shared: &Shared| match shared.host.part.built.load(Ordering::Relaxed) {
        0 => None,
        built => Some(Built {
            words: (built >> 32) as usize,
            off_heap: built as u32 as usize * OFF_HEAP_UNIT,
        }),
    };
    if let Some(built) = counted(shared) {
        return built;
    }
    let mut rest = vec![shared];
    while let Some(next) = rest.last().copied() {
        if counted(next).is_some() {
            rest.pop();
            continue;
        }
        let before = rest.len();
        let links = next.packed().links().iter();
        rest.extend(links.filter_map(|(_, target)| match target {
            Target::Anchor(Anchor::Share(share)) => {
                let inner: &Shared = share.shared();
                counted(inner).is_none().then_some(inner)
            }
            _ => None,
        }));
        if rest.len() == before {
            let built = parts::built(next.packed(), |anchor| match anchor {
                Anchor::Share(share) => counted(share.shared()).unwrap_or_default(),
                _ => Built::default(),
            });
            let built = packed_built(built);
            next.host.part.built.store(built, Ordering::Relaxed);
        }
    }
    counted(shared).unwrap_or_default()
}
