//! The reader of snapshots.

use super::canonical::{canonical, equal};
use super::host::{ATOMS, Fields, Host};
use super::terms::{self, Script};
use super::{memory, packed};
use erlmcp_memory_core::packed::{Packed, Writer};
use erlmcp_memory_core::snapshot::{
    RAW_LIMIT, Snapshot, SnapshotError, V1, claimed_bytes, decode, encode, export,
};

use std::convert::Infallible;

const HEADER: usize = 14;
const FLAG_LZ4: u8 = 1;

/// A first byte that no version has stands for fields behind a table of all atoms,
const FIELDS: u8 = b'F';
/// or for a script by which a state is made that is written and read.
const SCRIPT: u8 = b'S';

/// What reading may take: this many times the raw bytes, and what a few small things
/// take in any case.
const FACTOR: usize = 64;
const FIXED: usize = 64 << 10;

/// What a shared content and a reference to one may take, however few bytes they have: their numbers
/// are bounded.
const SHARE: usize = 512;
const REFERENCE: usize = 64;

/// The bytes as they are, and in the form that their first byte stands for.
pub fn run(input: &[u8]) {
    check(input);
    match input {
        // With a checksum and a length that fit: damage that the checksum does not show.
        [2, flags, ..] if input.len() >= HEADER => {
            check(&sealed(flags & FLAG_LZ4, &input[HEADER..]));
        }
        [FIELDS, fields @ ..] => check(&sealed(0, &body(fields))),
        [SCRIPT, script @ ..] => {
            let fields = terms::fields(&mut Script(script));
            let state = State::of(fields);
            for compress in [false, true] {
                state.written_and_read(compress);
            }
        }
        _ => {}
    }
}

struct State(Fields);

impl State {
    fn of(packed: Packed<super::host::Kept>) -> Self {
        use erlmcp_memory_core::snapshot::Import;
        State(Host.fields(packed).expect("fields of a state"))
    }

    /// A snapshot of this state is read as an equal state.
    fn written_and_read(&self, compress: bool) {
        match read(&self.snapshot(compress)) {
            Ok(Snapshot::V2(again)) => {
                assert!(equal(&again.packed, &self.0.packed), "another state");
            }
            other => panic!("what is written is read: {:?}", other.err()),
        }
    }

    fn snapshot(&self, compress: bool) -> Vec<u8> {
        let fields = self.0.state.fields().view();
        let portable = export(fields, &mut Host).expect("what is read is written");
        encode(&portable, compress).expect("what is read is written")
    }
}

fn read(snapshot: &[u8]) -> Result<Snapshot<Fields>, SnapshotError> {
    let raw = claimed_bytes(snapshot);
    // A claim over the limit, or of more than LZ4 can unfold to, takes nothing.
    let raw = if raw > RAW_LIMIT { 0 } else { raw };
    let raw = raw.min(255 * snapshot.len());
    memory::at_most(FIXED + FACTOR * raw.max(snapshot.len()), || {
        decode(snapshot, &mut Host)
    })
}

fn check(snapshot: &[u8]) {
    match read(snapshot) {
        Ok(Snapshot::V1(v1)) => assert_eq!(v1_bytes(&v1), snapshot),
        Ok(Snapshot::V2(fields)) => {
            let Fields { state, packed } = &fields;
            let written_anew = canonical(packed.view());
            assert!(
                written_anew.is_some_and(|again| equal(&again, packed)),
                "what is read is canonical"
            );
            let in_one_piece = canonical(state.fields().view());
            assert!(
                in_one_piece.is_some_and(|again| equal(&again, packed)),
                "a state is its fields"
            );
            packed::find_all(state.fields());
            let sizes = state.sizes(&super::host::NAMES, 100);
            let parts = [
                sizes.base,
                sizes.id,
                sizes.transport,
                sizes.capabilities_ref,
                sizes.metadata,
                sizes.pending_refs,
                sizes.extra,
            ];
            assert_eq!(parts.iter().sum::<usize>(), sizes.total);
            let state = State(fields);
            // Compression is looked at by the scripts.
            state.written_and_read(false);
        }
        Err(SnapshotError::Busy) => panic!("this host is never busy"),
        Err(_) => {}
    }
}

fn v1_bytes(v1: &V1) -> Vec<u8> {
    let mut bytes = vec![1, v1.phase, v1.transport];
    bytes.extend_from_slice(&(v1.id.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&v1.id);
    bytes.extend_from_slice(&v1.created_at.to_be_bytes());
    bytes.extend_from_slice(&v1.pending.to_be_bytes());
    bytes
}

/// A snapshot with this body, and a length and a checksum that fit it.
fn sealed(flags: u8, body: &[u8]) -> Vec<u8> {
    /// The largest raw body that a compressed one is unfolded to here.
    const MOST: usize = 64 << 10;
    let raw = if flags & FLAG_LZ4 == 0 {
        Ok(body.len())
    } else {
        let mut raw = vec![0; MOST.min(body.len() * 255)];
        lz4_flex::block::decompress_into(body, &mut raw)
    };
    let mut rest = (raw.unwrap_or(0) as u64).to_be_bytes().to_vec();
    rest.extend_from_slice(body);
    checksummed(flags, &rest)
}

fn checksummed(flags: u8, rest: &[u8]) -> Vec<u8> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[flags]);
    hasher.update(rest);
    let mut snapshot = vec![2, flags];
    snapshot.extend_from_slice(&hasher.finalize().to_be_bytes());
    snapshot.extend_from_slice(rest);
    snapshot
}

/// The body of a snapshot with all atoms, three shared contents and these fields.
fn body(fields: &[u8]) -> Vec<u8> {
    /// An empty map; a tuple of the share before it and a binary; a fun that closes over both.
    const SHARES: [&[u8]; 3] = [
        &[0x79, 0, 0],
        &[0x72, 0x4c, 0, 0x51, b'x'],
        b"\x7c\x02\x42\x12\x01\x60uniq-of-the-code\x03\x04\x05\x4c\x00\x4c\x01",
    ];
    let mut body = vec![ATOMS.len() as u8];
    for name in ATOMS {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
    }
    body.push(SHARES.len() as u8);
    for share in SHARES {
        body.push(share.len() as u8);
        body.extend_from_slice(share);
    }
    push_length(&mut body, fields.len());
    body.extend_from_slice(fields);
    body
}

/// A snapshot of a state with a value that nests so deep, which must be read.
pub fn deep(levels: usize, way: usize) -> Vec<u8> {
    let snapshot = State::of(terms::deep(levels, way)).snapshot(false);
    assert!(
        matches!(read(&snapshot), Ok(Snapshot::V2(_))),
        "nesting that is allowed"
    );
    snapshot
}

/// A snapshot that is not read: a map of this many entries that all have one key. What reading it
/// takes must not depend on how many there are.
pub fn equal_keys(entries: usize) {
    let mut fields = vec![0x7b];
    fields.extend_from_slice(&(entries as u32).to_le_bytes());
    fields.extend_from_slice(&(2 * entries as u32).to_le_bytes());
    for entry in 0..entries {
        fields.extend_from_slice(&(2 * entry as u32).to_le_bytes());
    }
    fields.resize(fields.len() + 2 * entries, 1);
    let snapshot = sealed(0, &body(&fields));
    drop(fields);
    let outcome = memory::at_most(FIXED, || decode(&snapshot, &mut Host));
    assert!(matches!(outcome, Err(SnapshotError::Corrupt)));
}

/// A snapshot of this many shared contents, and of references to them.
pub fn many(shares: usize, references: usize) {
    let mut fields = Writer::<Infallible>::new();
    let names = ["id", "created_at", "a"];
    let mut map = fields.begin_map();
    for number in 0..names.len() {
        fields.atom(number as u64);
        fields.end_key(&map);
    }
    assert!(fields.end_keys(&map), "keys that differ");
    while let Some(index) = fields.next_value(&mut map) {
        match index {
            0 => fields.binary(b"many"),
            1 => fields.int(1),
            _ => {
                fields.list(references);
                (0..references).for_each(|n| fields.share_number((n % shares) as u64));
            }
        }
    }
    let mut body = Vec::new();
    push_length(&mut body, names.len());
    for name in names {
        push_length(&mut body, name.len());
        body.extend_from_slice(name.as_bytes());
    }
    push_length(&mut body, shares);
    for share in 0..shares {
        let mut content = Writer::<Infallible>::new();
        content.int(share as i64);
        push_length(&mut body, content.len());
        body.extend_from_slice(content.bytes());
    }
    push_length(&mut body, fields.len());
    body.extend_from_slice(fields.bytes());
    drop(fields);
    let snapshot = sealed(0, &body);
    drop(body);
    let most = FIXED + FACTOR * snapshot.len() + SHARE * shares + REFERENCE * references;
    let outcome = memory::at_most(most, || decode(&snapshot, &mut Host));
    assert!(matches!(outcome, Ok(Snapshot::V2(_))));
}

/// A length as bincode writes it.
fn push_length(body: &mut Vec<u8>, length: usize) {
    body.push(252);
    body.extend_from_slice(&(length as u32).to_le_bytes());
}

/// Fields that follow the packed format, and that no writer writes.
pub fn forged() -> Vec<Vec<u8>> {
    const OK: [u8; 2] = [0x42, 14];
    let values: &[&[u8]] = &[
        // Lists of bytes and of nothing under other names, and other forms that are not the only one.
        &[0x45, 1, 5],
        &[0x45, 2, 0x40, 0x80, 1, 0x40, 0xfe, 3],
        &[0x45, 1, 0x4a, 5, 131, 110, 1, 0, 5],
        &[0x45, 1, 0x4a, 3, 131, 97, 5],
        &[0x45, 0],
        &[0x44, 0],
        &[0x46, 0, 5],
        &[0x46, 1, 5, 0x43],
        &[0x46, 1, 5, 0x44, 1, 5],
        &[0x46, 1, 5, 0x4a, 2, 131, 106],
        &[0x78, 1, 5],
        &[0x40, 0x80, 0x80, 0x00],
        // Not a number; the same key twice; links that only one node knows.
        &[0x41, 0, 0, 0, 0, 0, 0, 0xf8, 0x7f],
        &[0x79, 2, 4, 0, 2, 1, 1, 1, 2],
        &[0x47, 1],
        &[0x4d, 1],
        &[0x4e, 1],
        &[0x7f, 1],
        &[0x4b, 1, 1, 1],
        // Funs, exports and records whose parts are something else.
        &[0x7c, 0, 5, 5, 5, 5, 5, 5],
        b"\x7c\x00\x42\x12\x01\x5funiq-of-the-cod\x03\x04\x05",
        b"\x7c\x00\x42\x12\x43\x60uniq-of-the-code\x03\x04\x05",
        &[0x7d, 0x42, 17, 0x42, 17, 0x40, 0x80, 4],
        &[0x7d, 0x42, 17, 5, 2],
        &[0x7e, 0, 5, 0x42, 1, 0x42, 1],
        &[0x7e, 2, 0x42, 1, 0x42, 1, 0x42, 12, 0x42, 3, 0x42, 3, 5, 5],
        // Terms with parts in the external format, as the first release wrote them: a fun that
        // closes over a map, a function, lists of each kind, a string, and numbers of all sizes.
        b"\x4a\x50\x83\x70\0\0\0\x4e\x01uniq-of-the-code\0\0\0\x03\0\0\0\x02\x77\x05lists\x61\x04\
          \x62\x01\x02\x03\x04\x58\x77\x03n@h\0\0\0\x01\0\0\0\0\0\0\0\0\
          \x74\0\0\0\x02\x77\x01a\x61\x01\x64\0\x01b\x6a\x68\0",
        b"\x4a\x0f\x83\x71\x77\x05lists\x73\x02ok\x61\x02",
        b"\x4a\x10\x83\x6c\0\0\0\x01\x6c\0\0\0\x01\x61\x05\x61\x06\x6a",
        b"\x4a\x0b\x83\x6c\0\0\0\x02\x61\x05\x61\x06\x6a",
        b"\x4a\x06\x83\x6b\0\x02ab",
        b"\x4a\x1e\x83\x68\x03\x6e\x04\0\0\0\0\x80\x6e\x08\x01\0\0\0\0\0\0\0\x80\
          \x46\x3f\xf8\0\0\0\0\0\0",
        &[0x4a, 4, 131, 104, 1, 106],
        // And what is none.
        &[
            0x4a, 16, 131, 116, 0, 0, 0, 2, 97, 1, 106, 97, 1, 106, 97, 2, 97, 3,
        ],
        &[0x4a, 8, 131, 108, 0, 0, 0, 0, 106, 5],
        &[0x4a, 3, 131, 80, 0],
    ];
    let mut forged = Vec::new();
    for value in values {
        let entries: [&[u8]; 6] = [&[0x42, 0], &[0x50], &[0x42, 6], &[1], &OK, value];
        let entries = entries.concat();
        let head = [FIELDS, 0x79, 3, entries.len() as u8, 0, 3, 6];
        forged.push([&head, &entries[..]].concat());
    }
    // A claim of much more than there is.
    let mut rest = (RAW_LIMIT as u64).to_be_bytes().to_vec();
    rest.extend([0x1f, 0, 1, 0]);
    forged.push(checksummed(FLAG_LZ4, &rest));
    forged
}

/// Snapshots in each of the forms, made as a script says.
pub fn seeds(script: &[u8], number: u32) -> Vec<(&'static str, String, Vec<u8>)> {
    let fields = terms::fields(&mut Script(script));
    let portable = export(fields.view(), &mut Host).expect("a state of a script");
    let snapshot = encode(&portable, number % 2 == 1).expect("a state of a script");
    let mut seeds = vec![
        ("snapshot", format!("snapshot-{number}"), snapshot),
        (
            "snapshot",
            format!("script-{number}"),
            [&[SCRIPT], script].concat(),
        ),
    ];
    // The words of the host are the numbers of the table.
    if fields.links().is_empty() {
        let fields = [&[FIELDS], fields.bytes()].concat();
        seeds.push(("snapshot", format!("fields-{number}"), fields));
    }
    seeds
}
