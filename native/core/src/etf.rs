//! The external term format: every byte of it that is read or written here
//! (<https://www.erlang.org/doc/apps/erts/erl_ext_dist>).
//!
//! The packed form holds nearly every term itself. In the external format it keeps those that have
//! no parts and that only a VM understands: big integers, bit strings, and processes, ports and
//! references that may be another node's. Funs and native records are handed to the VM in this
//! format, because it has no other door for them.

/// The first byte of every term.
pub const VERSION: u8 = 131;

mod tag {
    pub const RECORD: u8 = 67;
    pub const BIT_BINARY: u8 = 77;
    pub const NEW_PID: u8 = 88;
    pub const NEW_PORT: u8 = 89;
    pub const NEWER_REFERENCE: u8 = 90;
    pub const ATOM: u8 = 100;
    pub const REFERENCE: u8 = 101;
    pub const PORT: u8 = 102;
    pub const PID: u8 = 103;
    pub const SMALL_TUPLE: u8 = 104;
    pub const LARGE_TUPLE: u8 = 105;
    pub const SMALL_BIG: u8 = 110;
    pub const LARGE_BIG: u8 = 111;
    pub const NEW_FUN: u8 = 112;
    pub const EXPORT: u8 = 113;
    pub const NEW_REFERENCE: u8 = 114;
    pub const SMALL_ATOM: u8 = 115;
    pub const ATOM_UTF8: u8 = 118;
    pub const SMALL_ATOM_UTF8: u8 = 119;
    pub const V4_PORT: u8 = 120;
}

/// A term without parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flat<'a> {
    /// A big integer or a bit string.
    Number,
    /// A process, a port or a reference of the node whose name is the atom in these bytes.
    OfNode(&'a [u8]),
}

/// What these bytes are, version byte included, if they are exactly one term without parts.
pub fn flat(external: &[u8]) -> Option<Flat<'_>> {
    let (&[version, tag], rest) = external.split_first_chunk()?;
    if version != VERSION {
        return None;
    }
    let exactly = |length: Option<usize>| (length? == rest.len()).then_some(());
    let length = |bytes: usize| {
        let digits = rest.get(..bytes)?;
        let length = digits
            .iter()
            .fold(0, |sum, digit| sum << 8 | usize::from(*digit));
        Some(bytes + 1 + length)
    };
    let of_node = |before: usize, after: usize| {
        let end = skip_atom(rest, before)?;
        exactly(Some(end + after))?;
        Some(Flat::OfNode(&rest[before..end]))
    };
    let words = || Some(4 * usize::from(u16::from_be_bytes(*rest.first_chunk()?)));
    match tag {
        // A sign, or the number of bits in the last byte, stands between the length and the rest.
        tag::SMALL_BIG => exactly(length(1)).and_then(|()| big(&rest[2..])),
        tag::LARGE_BIG => exactly(length(4)).and_then(|()| big(&rest[5..])),
        tag::BIT_BINARY => exactly(length(4)).map(|()| Flat::Number),
        tag::PID => of_node(0, 9),
        tag::NEW_PID | tag::V4_PORT => of_node(0, 12),
        tag::PORT | tag::REFERENCE => of_node(0, 5),
        tag::NEW_PORT => of_node(0, 8),
        tag::NEW_REFERENCE => of_node(2, 1 + words()?),
        tag::NEWER_REFERENCE => of_node(2, 4 + words()?),
        _ => None,
    }
}

/// An integer of these digits to the base 256, the lowest first, if it needs so many: a smaller one
/// has another form, and would be a byte in a list that is none of bytes.
fn big(digits: &[u8]) -> Option<Flat<'static>> {
    const INTEGER: usize = size_of::<i64>();
    (digits.len() >= INTEGER && digits.last() != Some(&0)).then_some(Flat::Number)
}

/// Where the atom at `at` ends, if one stands there.
fn skip_atom(bytes: &[u8], at: usize) -> Option<usize> {
    let name = bytes.get(at..)?;
    let end = at + name_start(name)? + name_length(name)?;
    (end <= bytes.len()).then_some(end)
}

fn name_start(atom: &[u8]) -> Option<usize> {
    match *atom.first()? {
        tag::SMALL_ATOM | tag::SMALL_ATOM_UTF8 => Some(2),
        tag::ATOM | tag::ATOM_UTF8 => Some(3),
        _ => None,
    }
}

fn name_length(atom: &[u8]) -> Option<usize> {
    match name_start(atom)? {
        2 => Some(usize::from(*atom.get(1)?)),
        _ => Some(usize::from(u16::from_be_bytes([
            *atom.get(1)?,
            *atom.get(2)?,
        ]))),
    }
}

/// The name of an atom, which these bytes (without a version byte) are.
pub fn atom_name(atom: &[u8]) -> Option<String> {
    let name = atom.get(name_start(atom)?..)?;
    if name.len() != name_length(atom)? {
        return None;
    }
    match atom[0] {
        // Latin-1, as older releases write it.
        tag::ATOM | tag::SMALL_ATOM => Some(name.iter().map(|byte| char::from(*byte)).collect()),
        _ => String::from_utf8(name.to_vec()).ok(),
    }
}

/// Whether a name can be that of an atom: at most 255 characters.
pub fn is_atom_name(name: &str) -> bool {
    name.len() <= 255 || name.chars().count() <= 255
}

/// An atom of this name, version byte included. It must be a name of one, see [`is_atom_name`].
pub fn atom(name: &str) -> Vec<u8> {
    let mut out = vec![VERSION, tag::ATOM_UTF8];
    out.extend_from_slice(&(name.len() as u16).to_be_bytes());
    out.extend_from_slice(name.as_bytes());
    out
}

/// The elements of a tuple one behind the other, from its external format.
pub fn tuple_elements(external: &[u8]) -> Option<&[u8]> {
    match *external.get(1)? {
        tag::SMALL_TUPLE => external.get(3..),
        tag::LARGE_TUPLE => external.get(6..),
        _ => None,
    }
}

/// What the VM must be told of a fun besides the values that stand in its external format.
#[derive(Debug, Clone, Copy)]
pub struct FunHead<'a> {
    /// Its arity.
    pub arity: u8,
    /// The checksum of the code that made it, 16 bytes.
    pub uniq: &'a [u8],
    /// Which fun of its module.
    pub index: u32,
    /// How many values it closes over.
    pub free: u32,
}

/// A fun. `values` has, in the external format without version bytes: module, old index, old uniq,
/// the process that made it, and the values that it closes over.
pub fn fun(head: FunHead<'_>, values: &[u8]) -> Vec<u8> {
    // The size counts itself and all that follows.
    let size = 4 + 1 + head.uniq.len() + 4 + 4 + values.len();
    let mut out = Vec::with_capacity(2 + size);
    out.extend_from_slice(&[VERSION, tag::NEW_FUN]);
    out.extend_from_slice(&(size as u32).to_be_bytes());
    out.push(head.arity);
    out.extend_from_slice(head.uniq);
    out.extend_from_slice(&head.index.to_be_bytes());
    out.extend_from_slice(&head.free.to_be_bytes());
    out.extend_from_slice(values);
    out
}

/// `fun M:F/A`. `values` has module, function and arity in the external format without version
/// bytes.
pub fn export(values: &[u8]) -> Vec<u8> {
    let mut out = vec![VERSION, tag::EXPORT];
    out.extend_from_slice(values);
    out
}

/// A native record of so many fields, as OTP 29 and later write it. `values` has module, name, the
/// names of all fields, then their values, in the external format without version bytes.
pub fn record(fields: u32, exported: bool, values: &[u8]) -> Vec<u8> {
    let mut out = vec![VERSION, tag::RECORD];
    out.extend_from_slice(&fields.to_be_bytes());
    out.push(u8::from(exported));
    out.extend_from_slice(values);
    out
}

/// A process, without a version byte, that the node with this name and creation (see
/// [`reference_parts`]) has never had: the VM numbers them from 1.
pub fn pid(node: &[u8]) -> Vec<u8> {
    let (name, creation) = node.split_at(node.len().saturating_sub(4));
    let mut out = vec![tag::NEW_PID];
    out.extend_from_slice(name);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(creation);
    out
}

/// Bytes of a word of a reference.
const WORD: usize = 4;

/// Node name with creation, and numbers, of a reference in the external format
/// `131, 90, number of words:16, node, creation:32, words`. Node and creation change when the node
/// gets a name, the numbers do not.
pub fn reference_parts(external: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[VERSION, tag::NEWER_REFERENCE, high, low], rest) = external.split_first_chunk()? else {
        return None;
    };
    let words = usize::from(u16::from_be_bytes([high, low]));
    rest.split_at_checked(rest.len().checked_sub(words * WORD)?)
}

/// The reference with these parts.
pub fn reference(node: &[u8], numbers: &[u8]) -> Vec<u8> {
    let mut out = vec![VERSION, tag::NEWER_REFERENCE];
    out.extend_from_slice(&((numbers.len() / WORD) as u16).to_be_bytes());
    out.extend_from_slice(node);
    out.extend_from_slice(numbers);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NODE: &[u8] = &[119, 1, b'n'];

    fn example(tag: u8, before: &[u8], after: usize) -> Vec<u8> {
        let mut bytes = vec![VERSION, tag];
        bytes.extend_from_slice(before);
        bytes.extend_from_slice(NODE);
        bytes.extend(std::iter::repeat_n(0, after));
        bytes
    }

    #[test]
    fn terms_without_parts_are_known_and_nothing_else_is() {
        let named = [
            example(103, &[], 9),
            example(88, &[], 12),
            example(102, &[], 5),
            example(89, &[], 8),
            example(120, &[], 12),
            example(101, &[], 5),
            example(114, &[0, 2], 9),
            example(90, &[0, 3], 16),
        ];
        let numbers = [
            vec![131, 110, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0x80],
            [&[131, 111, 0, 0, 1, 0, 1][..], &[9; 256]].concat(),
            vec![131, 77, 0, 0, 0, 1, 3, 0xe0],
        ];
        for bytes in &named {
            assert_eq!(flat(bytes), Some(Flat::OfNode(NODE)), "{bytes:?}");
        }
        for bytes in &numbers {
            assert_eq!(flat(bytes), Some(Flat::Number), "{bytes:?}");
        }
        for bytes in named.iter().chain(&numbers) {
            for length in 0..bytes.len() {
                assert_eq!(flat(&bytes[..length]), None, "{length} of {bytes:?}");
            }
            assert_eq!(
                flat(&[bytes, &[0][..]].concat()),
                None,
                "a byte more: {bytes:?}"
            );
        }
        // Compressed, of the distribution, with parts, and what no release writes.
        for tag in [
            80, 121, 82, 117, 68, 0, 255, 97, 104, 108, 109, 112, 113, 116, 67,
        ] {
            assert_eq!(flat(&[131, tag, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        }
    }

    #[test]
    fn a_small_integer_in_the_form_of_a_big_one_is_refused() {
        for bytes in [
            &[131, 110, 0, 0][..],
            &[131, 110, 1, 0, 5],
            &[131, 110, 7, 1, 1, 1, 1, 1, 1, 1, 1],
            &[131, 110, 9, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0],
            &[131, 111, 0, 0, 0, 1, 0, 5],
        ] {
            assert_eq!(flat(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn names_of_atoms_in_every_form() {
        for (bytes, name) in [
            (&[100, 0, 2, b'o', 0xe4][..], "o\u{e4}"),
            (&[115, 2, b'o', 0xe4], "o\u{e4}"),
            (&[118, 0, 3, b'o', 0xc3, 0xa4], "o\u{e4}"),
            (&[119, 3, b'o', 0xc3, 0xa4], "o\u{e4}"),
        ] {
            assert_eq!(atom_name(bytes).as_deref(), Some(name));
        }
        assert_eq!(atom_name(&[119, 2, 0xc3, 0x28]), None);
        assert_eq!(atom_name(&atom("ok")[1..]).as_deref(), Some("ok"));
        assert!(is_atom_name(&"\u{10348}".repeat(255)));
        assert!(!is_atom_name(&"\u{10348}".repeat(256)));
        assert!(!is_atom_name(&"a".repeat(256)));
    }

    #[test]
    fn a_reference_is_put_together_as_it_was_taken_apart() {
        let bytes = example(90, &[0, 3], 16);
        let (node, numbers) = reference_parts(&bytes).unwrap();
        assert_eq!((node.len(), numbers.len()), (NODE.len() + 4, 12));
        assert_eq!(reference(node, numbers), bytes);
        assert_eq!(reference_parts(&bytes[..6]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = (flat(&bytes), atom_name(&bytes), reference_parts(&bytes));
            let _ = tuple_elements(&bytes);
        }
    }
}
