//! Values whose last moment is a step of its own.

use std::mem::ManuallyDrop;
use std::ops::Deref;

/// What can be owned by an [`Owner`].
pub trait Release {
    /// Takes the value of an owner that ends.
    fn release(self);
}

/// An owner that passes its value on when it ends, where `Drop` would only lend it.
#[derive(Debug, Clone)]
pub struct Owner<T: Release>(ManuallyDrop<T>);

impl<T: Release> Owner<T> {
    /// Owns a value.
    pub fn new(value: T) -> Self {
        Owner(ManuallyDrop::new(value))
    }
}

impl<T: Release> Deref for Owner<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Release> Drop for Owner<T> {
    fn drop(&mut self) {
        // SAFETY: this is the end of the owner, so nothing takes its value a second time.
        unsafe { ManuallyDrop::take(&mut self.0) }.release();
    }
}
