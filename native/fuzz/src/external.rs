//! The external term format, as far as this library reads and writes it itself.

use super::canonical::{canonical, equal};
use super::host::{Kept, reference, word};
use super::memory;
use erlmcp_memory_core::etf::{self, Flat};
use erlmcp_memory_core::packed::{Item, Writer, item};
use erlmcp_memory_core::snapshot::SnapshotError;

/// The node, with its creation, as terms of this node carry them.
const NODE: &[u8] = b"\x77\x0dnonode@nohost\0\0\0\0";

const SMALL_BIG: u8 = 110;
const LARGE_BIG: u8 = 111;
const BIT_BINARY: u8 = 77;
const NEW_PID: u8 = 88;
const NEW_PORT: u8 = 89;

/// Writes a term without parts as the NIF does, which looks at the VM's term: what has a packed
/// form of its own gets it.
pub fn read(external: &[u8], to: &mut Writer<Kept>) -> Result<(), SnapshotError> {
    match etf::flat(external).ok_or(SnapshotError::Corrupt)? {
        Flat::Number => number(external, to).ok_or(SnapshotError::Corrupt),
        Flat::OfNode(node) => {
            let name = etf::atom_name(node).ok_or(SnapshotError::Corrupt)?;
            if word(&name).is_none() {
                return Err(SnapshotError::UnknownAtom(name.into()));
            }
            of_node(external, to);
            Ok(())
        }
    }
}

fn number(external: &[u8], to: &mut Writer<Kept>) -> Option<()> {
    match external {
        [_, SMALL_BIG, _, sign, digits @ ..] | [_, LARGE_BIG, _, _, _, _, sign, digits @ ..] => {
            let zeros = digits.iter().rev().take_while(|digit| **digit == 0);
            integer(*sign, &digits[..digits.len() - zeros.count()], to);
        }
        [_, BIT_BINARY, _, _, _, _, 8, bytes @ ..] => to.binary(bytes),
        [_, BIT_BINARY, _, _, _, _, bits @ 1..8, whole @ .., last] => {
            let mut bytes = external[..6].to_vec();
            bytes.push(*bits);
            bytes.extend_from_slice(whole);
            bytes.push(last & (0xff << (8 - bits)));
            to.opaque(&bytes);
        }
        _ => return None,
    }
    Some(())
}

/// An integer of these digits to the base 256, the lowest first.
fn integer(sign: u8, digits: &[u8], to: &mut Writer<Kept>) {
    if digits.len() <= 8 {
        let magnitude = digits.iter().rev().fold(0, |n, d| n << 8 | i128::from(*d));
        let value = if sign == 0 { magnitude } else { -magnitude };
        if let Ok(value) = i64::try_from(value) {
            return to.int(value);
        }
    }
    let mut bytes = match u8::try_from(digits.len()) {
        Ok(length) => vec![etf::VERSION, SMALL_BIG, length],
        Err(_) => [
            &[etf::VERSION, LARGE_BIG][..],
            &(digits.len() as u32).to_be_bytes(),
        ]
        .concat(),
    };
    bytes.push(u8::from(sign != 0));
    bytes.extend_from_slice(digits);
    to.opaque(&bytes);
}

fn of_node(external: &[u8], to: &mut Writer<Kept>) {
    if let Some((NODE, numbers)) = etf::reference_parts(external) {
        return reference(numbers, to);
    }
    let (name, creation) = NODE.split_at(NODE.len() - 4);
    let numbers = |tag| {
        let rest = external.strip_prefix(&[etf::VERSION, tag])?;
        rest.strip_prefix(name)?.strip_suffix(creation)
    };
    let word = |numbers: &[u8]| numbers.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    if let Some(numbers) = numbers(NEW_PID) {
        to.pid(word(numbers));
    } else if let Some(numbers) = numbers(NEW_PORT) {
        to.port(word(numbers));
    } else {
        to.opaque(external);
    }
}

/// The external format of what is this node's own.
pub fn write(local: Item<'_>, anchor: Option<&Kept>) -> Vec<u8> {
    let (name, creation) = NODE.split_at(NODE.len() - 4);
    match (local, anchor) {
        (Item::Reference(numbers) | Item::Foreign { numbers, .. }, _) => {
            etf::reference(NODE, numbers)
        }
        (Item::Handle(_), Some(Kept::Object(numbers))) => etf::reference(NODE, numbers),
        (Item::Pid(word), _) => {
            let numbers = word.to_be_bytes();
            [&[etf::VERSION, NEW_PID], name, &numbers, creation].concat()
        }
        (Item::Port(word), _) => {
            let numbers = (word as u32).to_be_bytes();
            [&[etf::VERSION, NEW_PORT], name, &numbers, creation].concat()
        }
        other => unreachable!("nothing here makes {other:?}"),
    }
}

/// What reading may take: some times as much as there are bytes.
const FACTOR: usize = 8;
const FIXED: usize = 4 << 10;

/// The bytes as they are, and behind a version byte.
pub fn run(input: &[u8]) {
    check(input);
    check(&[&[etf::VERSION], input].concat());
    atoms(input);
    parts(input);
}

fn check(term: &[u8]) {
    let flat = memory::at_most(0, || etf::flat(term));
    let mut writer = Writer::new();
    let outcome = memory::at_most(FIXED + FACTOR * term.len(), || read(term, &mut writer));
    let Some(flat) = flat else {
        assert_eq!(outcome, Err(SnapshotError::Corrupt));
        return;
    };
    // One term exactly: not with a byte less or more.
    assert_eq!(etf::flat(&term[..term.len() - 1]), None);
    assert_eq!(etf::flat(&[term, &[106]].concat()), None);
    if let Flat::OfNode(node) = flat {
        // An atom exactly.
        assert!(term.windows(node.len()).any(|part| part == node));
        assert_eq!(etf::atom_name(&node[..node.len() - 1]), None);
    }
    if outcome.is_ok() {
        let packed = writer.finish();
        let again = canonical(packed.view());
        assert!(
            again.is_some_and(|again| equal(&again, &packed)),
            "what is read is canonical"
        );
        // Whether a list is one of bytes is known before its elements are read.
        let first = item(packed.bytes(), &mut 0);
        assert!(
            !matches!(first, Ok(Item::Int(0..=255))),
            "a byte in another form"
        );
    }
}

fn atoms(input: &[u8]) {
    let Some(name) = memory::at_most(FIXED + FACTOR * input.len(), || etf::atom_name(input)) else {
        return;
    };
    assert_eq!(etf::atom_name(&[input, b"x"].concat()), None);
    if etf::is_atom_name(&name) {
        assert!(name.chars().count() <= 255);
        assert_eq!(etf::atom_name(&etf::atom(&name)[1..]), Some(name));
    }
}

fn parts(input: &[u8]) {
    if let Some((node, numbers)) = memory::at_most(0, || etf::reference_parts(input)) {
        assert_eq!(etf::reference(node, numbers), input);
    }
    // Any numbers, cut to whole words.
    let numbers = &input[..input.len() / 4 * 4];
    let reference = etf::reference(NODE, numbers);
    assert_eq!(etf::reference_parts(&reference), Some((NODE, numbers)));
    assert!(matches!(etf::flat(&reference), Some(Flat::OfNode(_))));
    let pid = [&[etf::VERSION], &etf::pid(NODE)[..]].concat();
    assert!(matches!(etf::flat(&pid), Some(Flat::OfNode(_))));
    if let Some(elements) = memory::at_most(0, || etf::tuple_elements(input)) {
        assert!(input.ends_with(elements));
    }
}
