//! The contents that parked terms are taken apart into.

use super::link::ShareLink;
use super::part::{COUNTED_LATER, part_built};
use super::slot::{STORE, known};
use crate::lane::{Busy, Lane};
use crate::terms::{Anchor, word};
use erlmcp_memory_core::packed::Packed;
use erlmcp_memory_core::parts::{self, Contents, Path as Place};
use rustler::{Encoder, Env, Term};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// The store, for values that are taken apart.
pub struct Parts {
    /// The process that parks.
    process: u64,
}

impl Parts {
    /// The store for the calling process.
    pub fn of(env: Env<'_>) -> Self {
        Parts {
            process: word(env.pid().encode(env)),
        }
    }

    /// What parts are hashed with.
    pub fn hasher() -> &'static impl BuildHasher {
        STORE.hasher()
    }
}

/// Hashes of recently parked terms: one that is parked a second time is worth storing as a content.
static WHOLES: [AtomicU64; 4096] = [const { AtomicU64::new(0) }; 4096];

/// The hashes of recently parked small values, each with the first process that parked it, or 0 if
/// another process did too.
static COMMON: [Seen; 4096] = [const {
    Seen {
        hash: AtomicU64::new(0),
        process: AtomicU64::new(0),
    }
}; 4096];

struct Seen {
    hash: AtomicU64,
    process: AtomicU64,
}

/// The hashes of the contents that were the last parts of parked terms, by their places there.
static HINTS: [Hint; 1024] = [const {
    Hint {
        path: AtomicU64::new(0),
        hash: AtomicU64::new(0),
    }
}; 1024];

struct Hint {
    path: AtomicU64,
    hash: AtomicU64,
}

impl Hint {
    fn of(path: Place) -> &'static Self {
        &HINTS[(path.number() >> 16) as usize % HINTS.len()]
    }
}

/// Notes where the parts of a parked term are: the next one may have the same there.
pub fn note_parts(packed: &Packed<Anchor>, contents: &Parts) {
    parts::each_outer(packed, contents, |path, anchor| {
        let Anchor::Share(share) = anchor else {
            return false;
        };
        // One that is smaller is a part in some values only.
        if share.shared().host.part.flat.load(Ordering::Relaxed) < parts::SMALLEST {
            return false;
        }
        let hint = Hint::of(path);
        let hash = share.shared().hash();
        let is_new = hint.hash.load(Ordering::Relaxed) != hash
            || hint.path.load(Ordering::Relaxed) != path.number();
        if is_new {
            hint.path.store(path.number(), Ordering::Relaxed);
            hint.hash.store(hash, Ordering::Relaxed);
        }
        is_new
    });
}

/// The content that equals a term, if it was the last one in this place and is kept as a term: the
/// VM compares two terms faster than one can be taken apart. `admit` is called first, with the size
/// of that term.
pub fn part_at(
    path: Place,
    term: Term<'_>,
    lane: Lane,
    mut admit: impl FnMut(usize) -> Result<(), Busy>,
) -> Result<Option<ShareLink>, Busy> {
    let hint = Hint::of(path);
    if hint.path.load(Ordering::Relaxed) != path.number() {
        return Ok(None);
    }
    let mut outcome = Ok(());
    let found = STORE.find(hint.hash.load(Ordering::Relaxed), |shared| {
        if outcome.is_err() {
            return false;
        }
        let part = &shared.host;
        let kept =
            admit(part_built(shared).bytes()).and_then(|()| part.part_term(shared, Some(lane)));
        match kept {
            Ok(Some(kept)) => kept.is_identical(term),
            Ok(None) => false,
            Err(Busy) => {
                outcome = Err(Busy);
                false
            }
        }
    });
    outcome?;
    Ok(found.map(|shared| ShareLink::new(&known(shared))))
}

impl Contents<Anchor> for Parts {
    fn find(
        &self,
        hash: u64,
        is_equal: &mut dyn FnMut(&Packed<Anchor>) -> bool,
    ) -> Option<(u64, Anchor)> {
        let link = ShareLink::new(&known(STORE.find(hash, |known| is_equal(known.packed()))?));
        Some((link.id(), Anchor::Share(link)))
    }

    fn add(&self, hash: u64, flat: usize, packed: Packed<Anchor>) -> (u64, Anchor) {
        let shared = known(STORE.intern_hashed(hash, packed));
        shared.host.part.flat.store(flat, Ordering::Relaxed);
        // A later caller may be on a normal scheduler.
        if flat > COUNTED_LATER {
            part_built(&shared);
        }
        let link = ShareLink::new(&shared);
        (link.id(), Anchor::Share(link))
    }

    fn is_shared(&self, hash: u64, own: usize) -> bool {
        let last = &WHOLES[hash as usize % WHOLES.len()];
        own >= parts::WHOLE || last.swap(hash, Ordering::Relaxed) == hash
    }

    fn is_common(&self, hash: u64) -> bool {
        let seen = &COMMON[hash as usize % COMMON.len()];
        if seen.hash.load(Ordering::Relaxed) != hash {
            seen.hash.store(hash, Ordering::Relaxed);
            seen.process.store(self.process, Ordering::Relaxed);
            return false;
        }
        let is_common = seen.process.load(Ordering::Relaxed) != self.process;
        if is_common {
            seen.process.store(0, Ordering::Relaxed);
        }
        is_common
    }

    fn hash_of(&self, anchor: &Anchor) -> Option<(u64, usize)> {
        let Anchor::Share(share) = anchor else {
            return None;
        };
        let flat = match share.shared().host.part.flat.load(Ordering::Relaxed) {
            // Shared by a call that takes nothing apart.
            0 => share.shared().packed().bytes().len(),
            flat => flat,
        };
        Some((share.shared().hash(), flat))
    }

    fn content<'a>(&self, anchor: &'a Anchor) -> Option<&'a Packed<Anchor>> {
        match anchor {
            Anchor::Share(share) => Some(share.shared().packed()),
            _ => None,
        }
    }
}
