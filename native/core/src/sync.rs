//! The primitives that the concurrent parts are built of, named in one place so that a model
//! checker's stand in for them where the crate is built with `--cfg loom`.

#[cfg(not(loom))]
mod real {
    pub(crate) use crate::threads::pool_thread_number as thread_number;
    pub(crate) use parking_lot::{Mutex, MutexGuard};
    pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};
}

#[cfg(not(loom))]
pub(crate) use real::*;

#[cfg(loom)]
mod model {
    pub(crate) use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};

    /// Loom's mutex without poisoning: a model ends with its first panic.
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("loom's mutex is never poisoned")
        }
    }

    /// A modelled thread's number is its name, and 0 without one: the model says which thread has
    /// which home shard, and it is the same in every execution.
    pub(crate) fn thread_number() -> usize {
        let thread = loom::thread::current();
        let number = |name: &str| name.parse().expect("a thread is named by its number");
        thread.name().map_or(0, number)
    }
}

#[cfg(loom)]
pub(crate) use model::*;
