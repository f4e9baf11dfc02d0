//! Counts and bytes of one kind of values.

/// The values of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stock {
    /// How many.
    pub count: usize,
    /// Bytes on the library's own heap. What two versions of a value have in common may be counted
    /// for both.
    pub heap: usize,
    /// Bytes of the VM's objects that stand for them, headers included: these count among the VM's
    /// binaries.
    pub objects: usize,
}
