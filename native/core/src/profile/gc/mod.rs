//! Garbage collections of all processes: how many, how long each paused its process, and how
//! much they reclaimed.
//!
//! One [`GcMonitor`] lives in a static. The tracer calls [`GcMonitor::started`] and
//! [`GcMonitor::ended`] from whatever scheduler a process collects on; a large collection may end
//! on another thread than it began on, so what is open is keyed by process.
//!
//! A minor collection that finds too little room ends at once and a major one follows in the same
//! call: the VM reports both, but counts one, and so does this. Such a minor one can not be told
//! by itself from one that found no garbage. So a minor one that reclaimed nothing waits, in a
//! place of its thread, for what comes next there: a major one of the same process at once goes
//! on from its start, anything else (a reader too) has it counted by itself.
//!
//! A session counts in windows: while one opens, trace flags are set and nothing counts; then all
//! collections count, for a time that is measured; between windows nothing does. Nothing is counted
//! while no session is on. What the last session counted stays readable until the next one begins.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::profile::histogram::{BucketCounts, Buckets, Distribution, LatencyHistogram};
use crate::profile::worst::{Pause, Worst};
use crate::threads::{SHARDS, thread_shard};

pub use crate::profile::worst::Kind;

/// Who asks for the longest pause since the last time. Each has a register of its own, so one
/// does not take the other's maximum away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumer {
    /// The process that samples periodically.
    Sampler,
    /// Whoever measures by hand.
    Caller,
}

/// Open collections a shard holds at most. Only as many can be truly open as there are
/// scheduler threads; the rest are collections whose end was never reported.
const MAX_OPEN: usize = 64;

/// A major collection that starts within this time of a fruitless minor one of its process goes
/// on from it. Between the two lie only the tracer's own few microseconds; when the operating
/// system interrupts right there, both are counted.
const AT_ONCE_NANOS: u64 = 20_000;

/// Counts collections, for every scheduler at once.
pub struct GcMonitor {
    /// The number of the session that is on; 0 while there is none.
    session: AtomicU64,
    last_session: AtomicU64,
    /// Whether trace flags are wanted: in a window, and while one opens.
    tracing: AtomicBool,
    /// Whether collections count: in a window.
    counting: AtomicBool,
    /// Held while any of these changes.
    timed: Mutex<Timed>,
    open: [Mutex<Vec<Open>>; SHARDS],
    /// By thread; never locked together with `open`.
    fruitless: [Mutex<Option<Fruitless>>; SHARDS],
    counters: [Counters; SHARDS],
    pauses: LatencyHistogram,
    buckets: Buckets,
    longest: [AtomicU64; 2],
    worst: Worst,
}

/// How long collections counted: in windows that are over, and since when in the one that is open.
struct Timed {
    nanos: u64,
    since: Option<u64>,
}

impl Timed {
    fn close(&mut self, nanos: u64) {
        if let Some(since) = self.since.take() {
            self.nanos += nanos.saturating_sub(since);
        }
    }
}

struct Open {
    process: u64,
    nanos: u64,
    bytes: u64,
}

/// A minor collection that reclaimed nothing.
struct Fruitless {
    start: Open,
    ended: u64,
}

/// Of the threads of one shard. The monitor is a static, so alignment wastes no heap.
#[repr(align(64))]
struct Counters {
    minor: AtomicU64,
    major: AtomicU64,
    reclaimed: AtomicU64,
}

/// What a session counted.
pub struct GcSummary {
    /// Minor collections.
    pub minor: u64,
    /// Major collections.
    pub major: u64,
    /// Bytes the heaps of the collected processes shrank by.
    pub reclaimed_bytes: u64,
    /// How long each collection paused its process.
    pub pauses: Distribution,
}

/// What a session counted, in short.
pub struct GcTotals {
    /// Minor collections.
    pub minor: u64,
    /// Major collections.
    pub major: u64,
    /// Bytes the heaps of the collected processes shrank by.
    pub reclaimed_bytes: u64,
    /// How long each collection paused its process.
    pub pauses: BucketCounts,
}

impl GcMonitor {
    /// A monitor with no session.
    pub const fn new() -> Self {
        GcMonitor {
            session: AtomicU64::new(0),
            last_session: AtomicU64::new(0),
            tracing: AtomicBool::new(false),
            counting: AtomicBool::new(false),
            timed: Mutex::new(Timed {
                nanos: 0,
                since: None,
            }),
            open: [const { Mutex::new(Vec::new()) }; SHARDS],
            fruitless: [const { Mutex::new(None) }; SHARDS],
            counters: [const {
                Counters {
                    minor: AtomicU64::new(0),
                    major: AtomicU64::new(0),
                    reclaimed: AtomicU64::new(0),
                }
            }; SHARDS],
            pauses: LatencyHistogram::new(),
            buckets: Buckets::new(),
            longest: [const { AtomicU64::new(0) }; 2],
            worst: Worst::new(),
        }
    }

    /// Begins a session with all counts at zero and no window, instead of the one that may be on.
    /// Returns its number.
    pub fn begin(&self) -> u64 {
        let mut timed = self.timed.lock();
        self.clear(&mut timed);
        let session = self.last_session.fetch_add(1, Ordering::SeqCst) + 1;
        self.session.store(session, Ordering::SeqCst);
        session
    }

    /// Forgets what was counted, and ends the session that may be on.
    pub fn reset(&self) {
        self.clear(&mut self.timed.lock());
    }

    /// A window of that session opens: flags may be set. Does nothing when another one has taken
    /// its place.
    pub fn open(&self, session: u64) {
        let _timed = self.timed.lock();
        if self.session.load(Ordering::SeqCst) == session {
            self.tracing.store(true, Ordering::SeqCst);
        }
    }

    /// All flags of the window are set: collections count from now on.
    pub fn count_from(&self, session: u64, nanos: u64) {
        let mut timed = self.timed.lock();
        let is_open = self.tracing.load(Ordering::SeqCst);
        if is_open && self.session.load(Ordering::SeqCst) == session && timed.since.is_none() {
            self.forget_open();
            timed.since = Some(nanos);
            self.counting.store(true, Ordering::SeqCst);
        }
    }

    /// Nothing counts any more, and the window of that session is over once its flags are taken
    /// away. What is open is forgotten with the next one.
    pub fn count_until(&self, session: u64, nanos: u64) {
        let mut timed = self.timed.lock();
        if self.session.load(Ordering::SeqCst) == session {
            self.counting.store(false, Ordering::SeqCst);
            timed.close(nanos);
        }
    }

    /// The window of that session is over: no flags are wanted. A tracer that wants none gives its
    /// processes to the next one that asks, with the flags they have; so these go first.
    pub fn close(&self, session: u64, nanos: u64) {
        let mut timed = self.timed.lock();
        if self.session.load(Ordering::SeqCst) == session {
            self.close_window(&mut timed, nanos);
        }
    }

    fn close_window(&self, timed: &mut Timed, nanos: u64) {
        self.counting.store(false, Ordering::SeqCst);
        self.tracing.store(false, Ordering::SeqCst);
        timed.close(nanos);
    }

    /// For how many nanoseconds collections counted until now.
    pub fn timed(&self, nanos: u64) -> u64 {
        let timed = self.timed.lock();
        let open = timed.since.map_or(0, |since| nanos.saturating_sub(since));
        timed.nanos + open
    }

    fn forget_open(&self) {
        for open in &self.open {
            open.lock().clear();
        }
    }

    fn clear(&self, timed: &mut Timed) {
        self.session.store(0, Ordering::SeqCst);
        self.counting.store(false, Ordering::SeqCst);
        self.tracing.store(false, Ordering::SeqCst);
        *timed = Timed {
            nanos: 0,
            since: None,
        };
        self.forget_open();
        for fruitless in &self.fruitless {
            fruitless.lock().take();
        }
        self.worst.clear();
        for counters in &self.counters {
            counters.minor.store(0, Ordering::Relaxed);
            counters.major.store(0, Ordering::Relaxed);
            counters.reclaimed.store(0, Ordering::Relaxed);
        }
        self.pauses.clear();
        self.buckets.clear();
        for longest in &self.longest {
            longest.store(0, Ordering::Relaxed);
        }
    }

    /// Ends that session; does nothing when another one has taken its place.
    pub fn end(&self, session: u64, nanos: u64) {
        let mut timed = self.timed.lock();
        if self.session.load(Ordering::SeqCst) == session {
            self.session.store(0, Ordering::SeqCst);
            self.close_window(&mut timed, nanos);
        }
    }

    /// Whether trace flags are wanted.
    #[inline]
    pub fn is_tracing(&self) -> bool {
        self.tracing.load(Ordering::Relaxed)
    }

    #[inline]
    fn is_counting(&self) -> bool {
        self.counting.load(Ordering::Relaxed)
    }

    /// The worst pauses of the last windows.
    pub fn worst(&self) -> &Worst {
        &self.worst
    }

    /// A process begins a collection at `nanos` of any monotonic clock, with a heap of `bytes`.
    /// A start that was open for it is forgotten: its end was not reported.
    pub fn started(&self, process: u64, kind: Kind, nanos: u64, bytes: u64) {
        if !self.is_counting() {
            return;
        }
        let mut start = Open {
            process,
            nanos,
            bytes,
        };
        let before = self.fruitless[thread_shard()].lock().take();
        match before {
            Some(minor)
                if kind == Kind::Major
                    && minor.start.process == process
                    && nanos.saturating_sub(minor.ended) <= AT_ONCE_NANOS =>
            {
                // Its heap is as the major one found it; only the pause began earlier.
                start.nanos = minor.start.nanos;
            }
            Some(minor) => self.count_fruitless(&minor),
            None => {}
        }
        let mut open = self.shard_of(process).lock();
        if let Some(known) = open.iter_mut().find(|known| known.process == process) {
            *known = start;
        } else if open.len() < MAX_OPEN {
            open.push(start);
        } else if let Some(oldest) = open.iter_mut().min_by_key(|known| known.nanos) {
            *oldest = start;
        }
    }

    /// The collection that the process has open ends at `nanos`, with a heap of `bytes`. An end
    /// whose start was not seen is ignored.
    pub fn ended(&self, process: u64, kind: Kind, nanos: u64, bytes: u64) {
        if !self.is_counting() {
            return;
        }
        let start = {
            let mut open = self.shard_of(process).lock();
            match open.iter().position(|known| known.process == process) {
                Some(at) => open.swap_remove(at),
                None => return,
            }
        };
        if kind == Kind::Minor && bytes >= start.bytes {
            let minor = Fruitless {
                start,
                ended: nanos,
            };
            let before = self.fruitless[thread_shard()].lock().replace(minor);
            if let Some(before) = before {
                self.count_fruitless(&before);
            }
        } else {
            self.count(kind, &start, nanos, start.bytes.saturating_sub(bytes));
        }
    }

    fn count_fruitless(&self, minor: &Fruitless) {
        self.count(Kind::Minor, &minor.start, minor.ended, 0);
    }

    fn count(&self, kind: Kind, start: &Open, ended: u64, reclaimed: u64) {
        let pause = ended.saturating_sub(start.nanos);
        let counters = &self.counters[thread_shard()];
        match kind {
            Kind::Minor => counters.minor.fetch_add(1, Ordering::Relaxed),
            Kind::Major => counters.major.fetch_add(1, Ordering::Relaxed),
        };
        counters.reclaimed.fetch_add(reclaimed, Ordering::Relaxed);
        self.pauses.record(pause);
        self.buckets.record(pause);
        for longest in &self.longest {
            // Read before the write: nearly every pause is shorter, and a read shares the line.
            if longest.load(Ordering::Relaxed) < pause {
                longest.fetch_max(pause, Ordering::Relaxed);
            }
        }
        self.worst.note(pause, ended, || Pause {
            process: start.process,
            kind,
            nanos: pause,
            at: ended,
            named: None,
        });
    }

    /// Counts the fruitless minor collections that nothing has followed yet.
    fn settle(&self) {
        for fruitless in &self.fruitless {
            let minor = fruitless.lock().take();
            if let Some(minor) = minor {
                self.count_fruitless(&minor);
            }
        }
    }

    /// The longest pause in nanoseconds since this consumer asked last; 0 while no session is
    /// on.
    pub fn take_longest(&self, consumer: Consumer) -> u64 {
        self.settle();
        let longest = self.longest[consumer as usize].swap(0, Ordering::Relaxed);
        match self.session.load(Ordering::Relaxed) {
            0 => 0,
            _ => longest,
        }
    }

    /// What the session that is on, or the last one, counted so far.
    pub fn summary(&self) -> GcSummary {
        let totals = self.totals();
        GcSummary {
            minor: totals.minor,
            major: totals.major,
            reclaimed_bytes: totals.reclaimed_bytes,
            pauses: self.pauses.read(),
        }
    }

    /// The same with pauses in a few buckets, which takes no time.
    pub fn totals(&self) -> GcTotals {
        self.settle();
        let sum = |of: fn(&Counters) -> &AtomicU64| {
            self.counters
                .iter()
                .map(|counters| of(counters).load(Ordering::Relaxed))
                .fold(0, u64::wrapping_add)
        };
        GcTotals {
            minor: sum(|counters| &counters.minor),
            major: sum(|counters| &counters.major),
            reclaimed_bytes: sum(|counters| &counters.reclaimed),
            pauses: self.buckets.read(),
        }
    }

    fn shard_of(&self, process: u64) -> &Mutex<Vec<Open>> {
        // Fibonacci hashing: the low bits of a pid are a tag, equal for all of them.
        let hash = process.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        &self.open[hash as usize % SHARDS]
    }
}

impl Default for GcMonitor {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
