//! What a reader of snapshots needs of its host, the limits that it keeps, and its errors.

use crate::packed::{Anchor, Packed, ReadError, Writer};

/// The largest raw body that is written or read, in bytes.
pub const RAW_LIMIT: usize = 64 << 20;

// What takes far more memory than it has bytes in a snapshot is bounded by number.

/// Names of atoms in one snapshot: what a node has atoms, by default.
pub(super) const ATOM_LIMIT: usize = 1 << 20;

/// Shared contents in one snapshot.
pub(super) const SHARE_LIMIT: usize = 1 << 17;

/// References to shared contents in one snapshot.
pub(super) const SHARE_REFERENCE_LIMIT: usize = 1 << 20;

/// Bytes of one term with parts in the external format: the most that the first release wrote.
pub(super) const EXTERNAL_LIMIT: usize = 16 << 20;

/// More values than any fun closes over: the VM's own limit.
pub(super) const FREE_LIMIT: usize = 255;

/// Why a snapshot could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotError {
    /// There is no version byte.
    InvalidFormat,
    /// A version that does not exist yet.
    UnsupportedVersion,
    /// Not what a writer of this version writes.
    Corrupt,
    /// The name of an atom that this node does not have.
    UnknownAtom(Vec<u8>),
    /// The raw body has this many bytes, more than [`RAW_LIMIT`].
    TooLarge(u64),
    /// The host broke off: more work than it wants to do now.
    Busy,
}

impl From<ReadError> for SnapshotError {
    fn from(ReadError: ReadError) -> Self {
        SnapshotError::Corrupt
    }
}

/// What the host makes of what others wrote.
pub trait Import {
    /// What keeps things of the host alive.
    type Anchor: Anchor;
    /// What the fields are turned into.
    type Fields;

    /// The word of an existing atom of this name; [`SnapshotError::UnknownAtom`] without one.
    /// Never makes a new one.
    fn atom(&mut self, name: &str) -> Result<u64, SnapshotError>;
    /// A float as it is written in a key or in a content.
    fn float_key(&mut self, float: f64) -> f64;
    /// Writes a term without parts that is in the external format (see [`crate::etf::flat`]).
    fn external(
        &mut self,
        external: &[u8],
        writer: &mut Writer<Self::Anchor>,
    ) -> Result<(), SnapshotError>;
    /// Whether the host can have `fun M:F/A`, by the words of module and function.
    fn export(&mut self, module: u64, function: u64, arity: u8) -> Result<(), SnapshotError>;
    /// Shares a content and gives its id and its anchor.
    fn share(
        &mut self,
        content: Packed<Self::Anchor>,
    ) -> Result<(u64, Self::Anchor), SnapshotError>;
    /// Takes the fields: a packed map.
    fn fields(&mut self, fields: Packed<Self::Anchor>) -> Result<Self::Fields, SnapshotError>;
}

/// Bytes of a name of 255 characters, which no name of an atom is longer than.
const MAX_NAME: usize = 4 * 255;

/// The word of an existing atom.
pub(super) fn word<I: Import>(name: &str, host: &mut I) -> Result<u64, SnapshotError> {
    if name.len() > MAX_NAME {
        return Err(SnapshotError::Corrupt);
    }
    host.atom(name)
}
