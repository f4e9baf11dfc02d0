//! The two lanes of a call: on a normal scheduler if the work is small, else on a dirty one.

use parking_lot::{Mutex, MutexGuard};
use rustler::Term;

/// The most bytes that a call on a normal scheduler copies, packs or searches.
pub const FAST_BYTES: usize = 256 * 1024;

/// The most bytes in a call on a normal scheduler that only copies or searches them: some 30
/// microseconds of work.
pub const FAST_COPY: usize = 256 * 1024;

/// The most terms that a call on a normal scheduler visits: some 200 microseconds of work.
/// Waking a dirty scheduler takes 10 to 30, and the work starts over there.
pub const FAST_TERMS: usize = 8_000;

/// The most entries that a call on a normal scheduler adds to a map with other entries: each may
/// have to write a separate page.
pub const FAST_ENTRIES: usize = 128;

/// Which kind of scheduler a call runs on. On the fast lane it does a bounded amount of work or
/// none: if there is more to do, the VM repeats the call on the other lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A normal scheduler: bounded work, and no waiting for a lock.
    Fast,
    /// A dirty scheduler.
    Dirty,
}

impl Lane {
    /// On the fast lane, refuses to look at a binary of this size if it is large: the VM copies a
    /// binary that does not begin at a byte boundary before it gives access to it, and the NIF
    /// interface cannot tell its size.
    pub fn admit(self, bytes: Term<'_>) -> Result<(), Busy> {
        match (self, bytes.decode::<usize>()) {
            (Lane::Dirty, _) | (Lane::Fast, Ok(..=FAST_COPY)) => Ok(()),
            _ => Err(Busy),
        }
    }

    /// Locks a handle. [`Busy`] if the fast lane would have to wait, because the lock may be held
    /// for a long call on the dirty lane.
    pub fn lock<T>(self, mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>, Busy> {
        match self {
            Lane::Fast => mutex.try_lock().ok_or(Busy),
            Lane::Dirty => Ok(mutex.lock()),
        }
    }
}

/// The work that one call may do.
#[derive(Debug)]
pub struct Budget {
    left: usize,
}

/// There is more to do than a normal scheduler should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

impl Budget {
    /// Bytes copied for one unit of the budget.
    const BYTES: usize = FAST_BYTES / FAST_TERMS;

    /// What a call in this lane may do.
    pub fn new(lane: Lane) -> Self {
        Budget {
            left: match lane {
                Lane::Fast => FAST_TERMS,
                Lane::Dirty => usize::MAX,
            },
        }
    }

    /// As [`new`](Self::new), for a call that may do this many times as much on a normal scheduler.
    pub fn times(lane: Lane, times: usize) -> Self {
        let Budget { left } = Self::new(lane);
        Budget {
            left: left.saturating_mul(times),
        }
    }

    /// Whether this is the budget of a normal scheduler.
    pub fn is_bounded(&self) -> bool {
        self.left != usize::MAX
    }

    /// Takes a unit for one term, and those for copying this number of bytes.
    #[inline]
    pub fn spend(&mut self, bytes: usize) -> Result<(), Busy> {
        let units = 1 + bytes / Self::BYTES;
        if self.is_bounded() {
            self.left = self.left.checked_sub(units).ok_or(Busy)?;
        }
        Ok(())
    }
}

/// Why the body of a NIF has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoResult {
    /// There is more to do than a normal scheduler should.
    Busy,
    /// An argument is not of the right type.
    BadArg,
}

impl From<Busy> for NoResult {
    fn from(Busy: Busy) -> Self {
        NoResult::Busy
    }
}

impl From<rustler::Error> for NoResult {
    fn from(_: rustler::Error) -> Self {
        NoResult::BadArg
    }
}
