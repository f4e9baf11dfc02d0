//! Shared content: equal values once, freed with the last handle.
//!
//! [`Store`] is addressed by content: [`Store::intern`] gives the same [`Content`] for equal
//! packed values. It holds weak references only; who holds a content gives it back through
//! [`Store::release`], so that the store forgets it when it was the last.
//!
//! A content has a slot for its host: the NIF keeps there what it needs to find the one reference
//! term that stands for this content, so that equal terms share one reference, too.

use crate::packed::{Anchor, Packed};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Weak};

const SHARDS: usize = 16;

/// A value that is kept once.
#[derive(Debug)]
pub struct Content<A, H> {
    packed: Packed<A>,
    hash: u64,
    /// Free for the host.
    pub host: Mutex<Option<H>>,
}

impl<A: Anchor, H> Content<A, H> {
    /// The value.
    pub fn packed(&self) -> &Packed<A> {
        &self.packed
    }

    /// Bytes of memory behind it, without what it shares in turn.
    pub fn heap_bytes(&self) -> usize {
        crate::heap::arc::<Self>() + self.packed.heap_bytes()
    }
}

type Shard<A, H> = Mutex<HashMap<u64, Vec<Weak<Content<A, H>>>, foldhash::fast::RandomState>>;

/// All shared content of a node.
#[derive(Debug)]
pub struct Store<A, H> {
    hasher: foldhash::quality::RandomState,
    shards: [Shard<A, H>; SHARDS],
}

impl<A: Anchor, H> Default for Store<A, H> {
    fn default() -> Self {
        Store {
            hasher: Default::default(),
            shards: Default::default(),
        }
    }
}

impl<A: Anchor, H> Store<A, H> {
    fn shard(&self, hash: u64) -> &Shard<A, H> {
        // The tables below choose their buckets by other bits.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    fn hash(&self, packed: &Packed<A>) -> u64 {
        self.hasher.hash_one(packed.bytes())
    }

    /// The content that equals this value: an existing one, or a new one.
    pub fn intern(&self, packed: Packed<A>) -> Arc<Content<A, H>> {
        let hash = self.hash(&packed);
        // Those of this hash that were found to differ.
        let mut others: Vec<Arc<Content<A, H>>> = Vec::new();
        loop {
            let mut shard = self.shard(hash).lock();
            let same_hash = shard.entry(hash).or_default();
            let known = same_hash
                .iter()
                .filter_map(Weak::upgrade)
                .find(|known| !others.iter().any(|other| Arc::ptr_eq(other, known)));
            let Some(known) = known else {
                let content = Arc::new(Content {
                    packed,
                    hash,
                    host: Mutex::new(None),
                });
                same_hash.push(Arc::downgrade(&content));
                drop(shard);
                others.into_iter().for_each(|other| self.release(other));
                return content;
            };
            // Compared after the lock, which others wait for: the values may be large.
            drop(shard);
            if equal(&known.packed, &packed) {
                others.into_iter().for_each(|other| self.release(other));
                return known;
            }
            others.push(known);
        }
    }

    /// Gives a content back; the last one to do so frees it.
    pub fn release(&self, content: Arc<Content<A, H>>) {
        let hash = content.hash;
        // Its memory goes before the lock is taken: that may take long, and may release others.
        drop(content);
        let mut shard = self.shard(hash).lock();
        if let Some(same_hash) = shard.get_mut(&hash) {
            same_hash.retain(|known| known.strong_count() > 0);
            if same_hash.is_empty() {
                shard.remove(&hash);
            }
            // A table that shrank to nothing gives its memory back.
            if shard.is_empty() {
                shard.shrink_to_fit();
            }
        }
    }

    /// How many contents there are.
    pub fn len(&self) -> usize {
        let live = |shard: &Shard<A, H>| shard.lock().values().map(Vec::len).sum::<usize>();
        self.shards.iter().map(live).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Packed bytes are canonical, so equal bytes and equal link ids mean equal terms.
fn equal<A: Anchor>(a: &Packed<A>, b: &Packed<A>) -> bool {
    a.bytes() == b.bytes() && a.links().ids().eq(b.links().ids())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::Writer;

    type TestStore = Store<Arc<str>, u8>;

    fn text(s: &str) -> Packed<Arc<str>> {
        let mut writer = Writer::new();
        writer.binary(s.as_bytes());
        writer.finish()
    }

    #[test]
    fn equal_content_is_kept_once() {
        let store = TestStore::default();
        let a = store.intern(text("tools"));
        let b = store.intern(text("tools"));
        let c = store.intern(text("prompts"));
        assert!(Arc::ptr_eq(&a, &b));
        assert!(!Arc::ptr_eq(&a, &c));
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn the_last_release_frees_it() {
        let store = TestStore::default();
        let a = store.intern(text("tools"));
        let b = store.intern(text("tools"));
        store.release(a);
        assert_eq!(store.len(), 1);
        store.release(b);
        assert!(store.is_empty());
    }

    #[test]
    fn a_share_inside_is_part_of_what_is_compared() {
        let store = TestStore::default();
        let with = |id| {
            let mut writer = Writer::new();
            writer.share(id, Arc::from("inner"));
            writer.finish()
        };
        let a = store.intern(with(1));
        assert!(!Arc::ptr_eq(&a, &store.intern(with(2))));
        assert!(Arc::ptr_eq(&a, &store.intern(with(1))));
    }

    #[test]
    fn threads_that_share_the_same_meet_at_one_content() {
        let store = TestStore::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..2_000 {
                        let value = format!("value {}", round % 7);
                        let content = store.intern(text(&value));
                        assert_eq!(content.packed().bytes(), text(&value).bytes());
                        let again = store.intern(text(&value));
                        assert!(Arc::ptr_eq(&content, &again));
                        store.release(content);
                        store.release(again);
                    }
                });
            }
        });
        assert!(store.is_empty());
    }
}
