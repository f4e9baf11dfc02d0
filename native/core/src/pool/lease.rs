//! The owner's side of a pooled object.

use super::Pool;
use super::recycle::{Recycle, footprint};
use std::ops::Deref;

/// An object of a [`Pool`], owned until it is dropped; then it goes back.
pub struct Lease<'p, T: Recycle> {
    pool: &'p Pool<T>,
    /// There until the lease is dropped.
    object: Option<Box<T>>,
}

impl<'p, T: Recycle> Lease<'p, T> {
    /// Changes the object and keeps the pool's live bytes true.
    pub fn modify<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> R {
        let object = self.object.as_mut().expect("a lease has its object");
        let before = footprint(&**object);
        let result = change(object);
        let bytes = footprint(&**object);
        if bytes != before {
            self.pool.resized(bytes as isize - before as isize);
        }
        result
    }

    /// Bytes of this object, its box included. Only [`modify`](Self::modify) changes them.
    pub fn bytes(&self) -> usize {
        footprint(&**self)
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
            self.pool.give_back(object);
        }
    }
}

impl<T: Recycle> Pool<T> {
    /// An object of the caller's own, empty. It goes back when the lease is dropped.
    pub fn acquire(&self) -> Lease<'_, T> {
        self.acquire_noting(|| ())
    }

    /// As [`acquire`](Self::acquire); calls `created` where the object had to be made.
    pub fn acquire_noting(&self, created: impl FnOnce()) -> Lease<'_, T> {
        Lease {
            pool: self,
            object: Some(self.take(created)),
        }
    }
}
