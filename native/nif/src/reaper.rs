//! Frees what takes long to free on a thread of its own: destructors run on normal schedulers,
//! and the memory of a hundred megabytes in small blocks takes them milliseconds to give back.

use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// From this size on, in bytes, values are freed by the thread.
const LARGE: usize = 1 << 20;

trait Garbage: Send {}

impl<T: Send> Garbage for T {}

static REAPER: OnceLock<Option<Sender<Box<dyn Garbage>>>> = OnceLock::new();

/// The name of the thread.
const NAME: &str = "erlmcp_reaper";

/// Whether this is the thread.
pub fn is_this_thread() -> bool {
    thread::current().name() == Some(NAME)
}

/// Frees a value of about so many bytes, here or on the thread.
pub fn free<T: Send + 'static>(value: T, bytes: usize) {
    if bytes < LARGE {
        drop(value);
    } else {
        hand_over(value);
    }
}

/// Frees a value on the thread.
pub fn hand_over<T: Send + 'static>(value: T) {
    if let Some(reaper) = REAPER.get_or_init(start) {
        // If the thread is gone, the value comes back with the error and is freed here.
        let _ = reaper.send(Box::new(value));
    }
}

/// Starts the thread, once. Where the system has none to give, values are freed where they are.
fn start() -> Option<Sender<Box<dyn Garbage>>> {
    let (sender, garbage) = channel::<Box<dyn Garbage>>();
    thread::Builder::new()
        .name(NAME.into())
        .spawn(move || garbage.into_iter().for_each(drop))
        .ok()
        .map(|_| sender)
}
