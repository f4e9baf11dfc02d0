//! The primitives that the concurrent parts are built of, named in one place so that a model
//! checker's can stand in for them.

pub(crate) use parking_lot::{Mutex, MutexGuard};
pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use crate::threads::thread_number;
