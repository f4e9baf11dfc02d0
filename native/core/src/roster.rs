//! Who is to be told something later, when there is time for it.
//!
//! An owner puts itself down with whom to tell, and takes itself out when it goes or when it no
//! longer wants to be told. Whoever has time takes some out and tells them. An owner that is not
//! there any more when it looks has been told: it is told under the lock that it looks under.
//!
//! Owners are notified from the highest address to the lowest. What an owner moves goes to the lowest
//! free address, so nothing is put where others have not moved away yet.

use crate::threads::SHARDS;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Owners, by a number that no two have at a time, and whom to tell.
///
/// Trees, because they give their memory back while they are emptied.
#[derive(Debug)]
pub struct Roster {
    shards: [Mutex<BTreeMap<usize, u64>>; SHARDS],
    len: AtomicUsize,
}

impl Roster {
    /// Of nobody.
    pub const fn new() -> Self {
        Roster {
            shards: [const { Mutex::new(BTreeMap::new()) }; SHARDS],
            len: AtomicUsize::new(0),
        }
    }

    fn shard(&self, owner: usize) -> &Mutex<BTreeMap<usize, u64>> {
        // Addresses: their lowest bits are all the same.
        &self.shards[(owner >> 6) % SHARDS]
    }

    /// How many there are, about.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there is none, about.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts an owner down.
    pub fn add(&self, owner: usize, who: u64) {
        if self.shard(owner).lock().insert(owner, who).is_none() {
            self.len.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes an owner out; `false` if it is not there.
    pub fn remove(&self, owner: usize) -> bool {
        let is_there = self.shard(owner).lock().remove(&owner).is_some();
        if is_there {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        is_there
    }

    /// Takes at most `most` servers out, the highest numbers first, and calls `tell` for each.
    pub fn take(&self, most: usize, mut tell: impl FnMut(u64)) {
        for _ in 0..most {
            let last = |shard: &Mutex<BTreeMap<usize, u64>>| {
                let shard = shard.lock();
                shard.last_key_value().map(|(owner, _)| *owner)
            };
            let Some(owner) = self.shards.iter().filter_map(last).max() else {
                return;
            };
            let mut shard = self.shard(owner).lock();
            if let Some(who) = shard.remove(&owner) {
                self.len.fetch_sub(1, Ordering::Relaxed);
                tell(who);
            }
        }
    }
}

impl Default for Roster {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_or_takes_itself_out() {
        let roster = Roster::new();
        for owner in 1..=100 {
            roster.add(owner * 64, owner as u64);
        }
        roster.add(64, 1);
        assert_eq!(roster.len(), 100);
        assert!(roster.remove(50 * 64));
        assert!(!roster.remove(50 * 64));
        let mut told = Vec::new();
        roster.take(30, |who| told.push(who));
        assert_eq!(told, (71..=100).rev().collect::<Vec<u64>>());
        assert_eq!(roster.len(), 69);
        roster.take(1000, |who| told.push(who));
        told.sort_unstable();
        let expected: Vec<u64> = (1..=100).filter(|who| *who != 50).collect();
        assert_eq!(told, expected);
        assert!(roster.is_empty());
        assert!(!roster.remove(64));
    }

    #[test]
    fn threads_miss_nobody() {
        let roster = Roster::new();
        let (told, removed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (roster, removed) = (&roster, &removed);
                scope.spawn(move || {
                    for number in 0..500 {
                        let owner = (thread * 500 + number) * 64;
                        roster.add(owner, 0);
                        if number % 2 == 0 && roster.remove(owner) {
                            removed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..500 {
                    roster.take(2, |_| {
                        told.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        });
        roster.take(1500, |_| {
            told.fetch_add(1, Ordering::Relaxed);
        });
        let (told, removed) = (told.into_inner(), removed.into_inner());
        assert_eq!(told + removed, 1500);
        assert!(removed <= 750);
        assert!(roster.is_empty());
    }
}
