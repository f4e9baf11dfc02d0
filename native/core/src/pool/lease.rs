//! The owner's side of a pooled object.

use super::{Pool, Recycle, footprint};
use std::ops::Deref;

/// An object of a [`Pool`], owned until it is dropped; then it goes back.
pub struct Lease<'p, T: Recycle> {
    pool: &'p Pool<T>,
    /// There until the lease is dropped.
    object: Option<Box<T>>,
    /// What the pool's live bytes hold for this object.
    bytes: usize,
}

impl<'p, T: Recycle> Lease<'p, T> {
    pub(super) fn new(pool: &'p Pool<T>, object: Box<T>, bytes: usize) -> Self {
        Lease {
            pool,
            object: Some(object),
            bytes,
        }
    }

    /// Changes the object and keeps the pool's live bytes true.
    pub fn modify<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> R {
        let object = self.object.as_mut().expect("a lease has its object");
        let result = change(object);
        let bytes = footprint(&**object);
        if bytes != self.bytes {
            self.pool.resized(bytes as isize - self.bytes as isize);
            self.bytes = bytes;
        }
        result
    }

    /// Bytes of this object, its box included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<T: Recycle> Deref for Lease<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.object.as_ref().expect("a lease has its object")
    }
}

impl<T: Recycle> Drop for Lease<'_, T> {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            self.pool.give_back(object, self.bytes);
        }
    }
}
