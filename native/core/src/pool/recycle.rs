//! What a pool can hold.

use crate::heap;

/// What a pool can hold.
pub trait Recycle: Default + Send {
    /// An empty object that is made in advance, with the memory that its first owner will want.
    fn prepared() -> Self {
        Self::default()
    }

    /// Empties the object for its next owner. Nothing of the last owner's data may stay readable
    /// through the object. Capacity that it grew may stay, within a bound of the type's choice.
    fn recycle(&mut self);

    /// Bytes on the heap that this object owns, without the object itself: the same number until
    /// the object is changed. Called on every acquisition and release, so it must not walk the
    /// content.
    fn heap_bytes(&self) -> usize;
}

/// Bytes of an object in its box.
pub(super) fn footprint<T: Recycle>(object: &T) -> usize {
    heap::block(size_of::<T>()) + object.heap_bytes()
}
