//! Frees what takes long to free, and looks for cycles, on a separate thread: destructors run on
//! normal schedulers, all at once, and must be short.
//!
//! The thread works and rests in turn, about equally long, in slices of a millisecond or two, so
//! that no scheduler is delayed when there are no more processors than schedulers. On a busy
//! machine a rest takes much longer than requested; then the next slice is longer. When much is
//! waiting, slices are longest and rests shortest, so that the backlog stays bounded.

use crate::cycles::{Node, Trials};
use crate::resource::{forget_released, released};
use crate::terms::Anchor;
use erlmcp_memory_core::packed::{Packed, Reclaim};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

enum Work {
    Value(Packed<Anchor>),
    Any(Box<dyn Send>),
    Suspect(Node),
    Sweep,
}

static REAPER: OnceLock<Option<Sender<Work>>> = OnceLock::new();

/// Frees a value of any size, piece by piece.
pub fn free_value(value: Packed<Anchor>) {
    hand_over(Work::Value(value));
}

/// Frees something that is freed in one piece.
pub fn free(value: impl Send + 'static) {
    hand_over(Work::Any(Box::new(value)));
}

/// Tries a suspect.
pub fn examine(suspect: Node) {
    hand_over(Work::Suspect(suspect));
}

/// Starts a sweep; see [`crate::cycles::sweep`].
pub fn sweep() {
    hand_over(Work::Sweep);
}

/// Work that waits.
static WAITING: AtomicUsize = AtomicUsize::new(0);

fn hand_over(work: Work) {
    let sent = match REAPER.get_or_init(start) {
        Some(reaper) => {
            WAITING.fetch_add(1, Ordering::Relaxed);
            reaper.send(work).map_err(|unsent| unsent.0)
        }
        None => Err(work),
    };
    // If the system cannot start a thread, everything is done by the caller.
    if let Err(work) = sent {
        let mut trials = Trials::default();
        do_now(work, &mut trials, &mut || ());
        while !trials.is_empty() {
            trials.step();
        }
    }
}

/// Starts the thread, once.
fn start() -> Option<Sender<Work>> {
    let (sender, work) = channel();
    thread::Builder::new()
        .name("erlmcp_reaper".into())
        .spawn(move || reap(work))
        .ok()
        .map(|_| sender)
}

/// How long the thread works and rests in turn.
const SLICE: Duration = Duration::from_micros(400);

/// How long it works after a long rest, or when much is waiting.
const LONG_SLICE: Duration = Duration::from_millis(2);

/// The number of waiting items that counts as much.
const MUCH: usize = 1 << 12;

/// The longest rest.
const LONG_REST: Duration = Duration::from_millis(20);

/// Steps between two readings of the clock: a few microseconds.
const STEPS: u32 = 32;

/// Objects of the VM that are released before the thread rests or waits, however long a slice is: a
/// scheduler of the VM destroys all of them at once.
const OBJECTS: u32 = 128;

/// Work that is done between two trials.
const TURNS: u32 = 256;

/// When the thread works, and when it rests.
struct Pace {
    began: Instant,
    slice: Duration,
    steps: u32,
}

impl Pace {
    fn new() -> Self {
        Pace {
            began: Instant::now(),
            slice: SLICE,
            steps: 0,
        }
    }

    /// After a short step.
    fn step(&mut self) {
        self.steps = self.steps.wrapping_add(1);
        if self.steps.is_multiple_of(STEPS) || released() >= OBJECTS {
            self.long_step();
        }
    }

    /// After a step that may have been long.
    fn long_step(&mut self) {
        let worked = self.began.elapsed();
        if worked >= self.slice || released() >= OBJECTS {
            let rest = SLICE + worked.saturating_sub(self.slice);
            let began = Instant::now();
            thread::sleep(rest.min(LONG_REST));
            self.begin(began.elapsed());
        }
    }

    /// Begins to work after a rest.
    fn begin(&mut self, rested: Duration) {
        self.slice = match WAITING.load(Ordering::Relaxed) {
            MUCH.. => LONG_SLICE,
            _ => rested.clamp(SLICE, LONG_SLICE),
        };
        self.began = Instant::now();
        forget_released();
    }

    /// Waits for work: that is a rest too, in which others could run.
    fn wait(&mut self, work: &Receiver<Work>) -> Option<Work> {
        let began = Instant::now();
        let next = work.recv().ok();
        let waited = began.elapsed();
        if waited >= SLICE {
            self.begin(waited);
        } else {
            self.began += waited;
            forget_released();
        }
        next
    }
}

fn reap(work: Receiver<Work>) {
    let mut pace = Pace::new();
    let mut trials = Trials::default();
    let mut turns = 0;
    loop {
        let next = match work.try_recv() {
            Err(_) if trials.is_empty() => match pace.wait(&work) {
                None => return,
                next => next,
            },
            next => next.ok(),
        };
        turns += 1;
        let is_idle = next.is_none();
        if let Some(next) = next {
            WAITING.fetch_sub(1, Ordering::Relaxed);
            do_now(next, &mut trials, &mut || pace.step());
        }
        if is_idle || turns >= TURNS || trials.is_due() {
            trials.step();
            pace.long_step();
            turns = 0;
        }
    }
}

fn do_now(work: Work, trials: &mut Trials, pause: &mut impl FnMut()) {
    match work {
        Work::Value(value) => {
            let mut reclaim = Reclaim::new(value);
            while reclaim.step() {
                pause();
            }
        }
        Work::Any(value) => drop(value),
        Work::Suspect(suspect) => trials.push(suspect),
        Work::Sweep => trials.sweep(),
    }
    pause();
}
