//! Frees what takes long to free, and looks for cycles, on a thread of its own: destructors run on
//! normal schedulers, all at once, and must be short.
//!
//! The thread works for half of the time at most, in pieces of less than a millisecond, so that no
//! scheduler is held up where there are no more processors than schedulers.

use crate::cycles::{self, Suspect};
use crate::terms::Anchor;
use erlmcp_memory_core::packed::Packed;
use erlmcp_memory_core::reclaim::Reclaim;
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

enum Work {
    Value(Packed<Anchor>),
    Any(Box<dyn Send>),
    Suspect(Suspect),
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

/// Has [`cycles::examine`] called.
pub fn examine(suspect: Suspect) {
    hand_over(Work::Suspect(suspect));
}

fn hand_over(work: Work) {
    let sent = match REAPER.get_or_init(start) {
        Some(reaper) => reaper.send(work).map_err(|unsent| unsent.0),
        None => Err(work),
    };
    // Where the system has no thread to give, everything is done where it is.
    if let Err(work) = sent {
        do_now(work, &mut || ());
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

/// Steps between two looks at the clock: some microseconds.
const STEPS: u32 = 32;

/// Objects of the VM that are let go before the thread rests: the VM has a scheduler destroy them.
const OBJECTS: u32 = 128;

thread_local! {
    static LET_GO: Cell<u32> = const { Cell::new(0) };
}

/// Says that the thread, if it is this one, let an object of the VM go.
pub fn count_object() {
    LET_GO.set(LET_GO.get().wrapping_add(1));
}

fn reap(work: Receiver<Work>) {
    let (mut steps, mut began) = (0u32, Instant::now());
    for work in work {
        do_now(work, &mut || {
            steps = steps.wrapping_add(1);
            let is_over = steps % STEPS == 0 && began.elapsed() >= SLICE;
            if is_over || LET_GO.get() >= OBJECTS {
                thread::sleep(SLICE);
                began = Instant::now();
                LET_GO.set(0);
            }
        });
    }
}

fn do_now(work: Work, pause: &mut impl FnMut()) {
    match work {
        Work::Value(value) => {
            let mut reclaim = Reclaim::new(value);
            while reclaim.step() {
                pause();
            }
        }
        Work::Any(value) => drop(value),
        Work::Suspect(suspect) => cycles::examine(suspect),
    }
    pause();
}
