//! Snapshots: a whole state as bytes that another node can read.
//!
//! Version 2, the one that is written:
//!
//! ```text
//! byte 0      version, 2
//! byte 1      flags: bit 0, the body is an LZ4 block; the other bits are zero
//! bytes 2-5   CRC-32 (IEEE) of byte 1 and of everything from byte 6 on, big endian
//! bytes 6-13  length of the raw body, big endian
//! bytes 14-   the body
//! ```
//!
//! The raw body is a `Body` in bincode's standard configuration: a table of atom names, the
//! shared contents, and the map of fields, both in the packed form ([`crate::packed`]) except that
//! atoms and shares are numbers of the tables, and that what only the node itself can name (its
//! processes, ports and references) is in Erlang's external format. Who made a fun, and whether
//! its module is loaded, is not part of it. The first release wrote funs and deep terms in the
//! external format, too; these are read.
//!
//! Version 1, written by an Erlang predecessor, is read as well ([`V1`]).
//!
//! Snapshots come from outside, so nothing in them is believed: every length is checked against
//! what is there before memory is taken, nesting is bounded, and no name is made an atom here.

mod bounded;
mod export;
mod external;
mod host;
mod import;
mod v1;

pub use export::{Export, Portable, export};
pub use host::{Import, RAW_LIMIT, SnapshotError};
pub use v1::V1;

use bounded::Bounded;
use host::{ATOM_LIMIT, SHARE_LIMIT};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 2;
const HEADER: usize = 14;
const FLAG_LZ4: u8 = 1;

/// An LZ4 sequence of n bytes stands for fewer than 255 n + 64 raw bytes.
const LZ4_MAX_RATIO: usize = 255;
const LZ4_SLACK: usize = 64;

/// The raw body of version 2.
#[derive(Debug, Serialize, Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    atoms: Bounded<&'a str, ATOM_LIMIT>,
    /// Each refers to contents before it only.
    #[serde(borrow)]
    shares: Bounded<&'a serde_bytes::Bytes, SHARE_LIMIT>,
    #[serde(borrow)]
    fields: &'a serde_bytes::Bytes,
}

fn config() -> impl bincode::config::Config {
    // The limit bounds what bincode allocates ahead of the bytes it has seen.
    bincode::config::standard().with_limit::<{ 2 * RAW_LIMIT }>()
}

/// What a snapshot holds.
#[derive(Debug)]
pub enum Snapshot<P> {
    /// A state of the planned Erlang module.
    V1(V1),
    /// The fields of a state, made by the [`Import`].
    V2(P),
}

/// Writes a snapshot; with `compress`, LZ4-compressed where that makes it smaller.
pub fn encode(portable: &Portable, compress: bool) -> Result<Vec<u8>, SnapshotError> {
    let body = Body {
        atoms: Bounded(portable.atoms.iter().map(|name| &**name).collect()),
        shares: Bounded(
            portable
                .shares
                .iter()
                .map(|share| serde_bytes::Bytes::new(share))
                .collect(),
        ),
        fields: serde_bytes::Bytes::new(&portable.fields),
    };
    let raw = bincode::serde::encode_to_vec(&body, config())
        .map_err(|_| SnapshotError::TooLarge(portable.bytes() as u64))?;
    if raw.len() > RAW_LIMIT {
        return Err(SnapshotError::TooLarge(raw.len() as u64));
    }
    let compressed = compress
        .then(|| lz4_flex::block::compress(&raw))
        .filter(|compressed| compressed.len() < raw.len());
    let (flags, body) = match &compressed {
        Some(compressed) => (FLAG_LZ4, compressed),
        None => (0, &raw),
    };
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(&[VERSION, flags, 0, 0, 0, 0]);
    out.extend_from_slice(&(raw.len() as u64).to_be_bytes());
    out.extend_from_slice(body);
    let checksum = checksum(flags, &out[6..]);
    out[2..6].copy_from_slice(&checksum.to_be_bytes());
    Ok(out)
}

/// The flags are part of what is checked, though they stand before the checksum.
fn checksum(flags: u8, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[flags]);
    hasher.update(rest);
    hasher.finalize()
}

/// How many raw bytes reading this snapshot will unfold to, as far as its header tells: whether
/// reading it is a short or a long job. A pending reference of version 1 counts as 64.
pub fn claimed_bytes(snapshot: &[u8]) -> usize {
    match snapshot {
        [VERSION, _, _, _, _, _, length @ ..] if length.len() >= 8 => {
            let mut raw = [0; 8];
            raw.copy_from_slice(&length[..8]);
            usize::try_from(u64::from_be_bytes(raw)).unwrap_or(usize::MAX)
        }
        [1, .., high, low] => snapshot.len() + 64 * usize::from(u16::from_be_bytes([*high, *low])),
        _ => snapshot.len(),
    }
}

/// Reads a snapshot of any version.
pub fn decode<I: Import>(
    snapshot: &[u8],
    import: &mut I,
) -> Result<Snapshot<I::Fields>, SnapshotError> {
    match snapshot {
        [] => Err(SnapshotError::InvalidFormat),
        [1, rest @ ..] => V1::decode(rest).map(Snapshot::V1),
        [VERSION, rest @ ..] => decode_v2(rest, import).map(Snapshot::V2),
        _ => Err(SnapshotError::UnsupportedVersion),
    }
}

fn decode_v2<I: Import>(rest: &[u8], import: &mut I) -> Result<I::Fields, SnapshotError> {
    let (head, body) = rest
        .split_at_checked(HEADER - 1)
        .ok_or(SnapshotError::Corrupt)?;
    let (flags, expected) = (
        head[0],
        u32::from_be_bytes([head[1], head[2], head[3], head[4]]),
    );
    let mut raw_len = [0; 8];
    raw_len.copy_from_slice(&head[5..]);
    let claimed = u64::from_be_bytes(raw_len);
    // Before anything else: it takes no work to see that this cannot be read.
    let raw_len = usize::try_from(claimed)
        .ok()
        .filter(|len| *len <= RAW_LIMIT)
        .ok_or(SnapshotError::TooLarge(claimed))?;
    if flags & !FLAG_LZ4 != 0 || checksum(flags, &rest[5..]) != expected {
        return Err(SnapshotError::Corrupt);
    }
    if flags & FLAG_LZ4 == 0 {
        if body.len() != raw_len {
            return Err(SnapshotError::Corrupt);
        }
        return read_body(body, import);
    }
    // The checksum guards against accidents, not against a malicious writer.
    if raw_len > body.len() * LZ4_MAX_RATIO + LZ4_SLACK {
        return Err(SnapshotError::Corrupt);
    }
    let mut raw = vec![0; raw_len];
    match lz4_flex::block::decompress_into(body, &mut raw) {
        Ok(len) if len == raw_len => read_body(&raw, import),
        _ => Err(SnapshotError::Corrupt),
    }
}

fn read_body<I: Import>(raw: &[u8], import: &mut I) -> Result<I::Fields, SnapshotError> {
    let (body, used): (Body<'_>, usize) = bincode::serde::borrow_decode_from_slice(raw, config())
        .map_err(|_| SnapshotError::Corrupt)?;
    if used != raw.len() {
        return Err(SnapshotError::Corrupt);
    }
    import::import(&body.atoms.0, &body.shares.0, body.fields, import)
}
