//! Tests of [`external`](super).

use super::*;
use crate::packed::{MAX_DEPTH, MAX_FUNS, MAX_KEYS, Packed};
use proptest::prelude::*;
use std::convert::Infallible;

/// Knows the atoms `a` to `j`, and no function of arity 9.
struct Host;

impl Import for Host {
    type Anchor = Infallible;
    type Fields = Packed<Infallible>;

    fn atom(&mut self, name: &str) -> Result<u64, SnapshotError> {
        match name.as_bytes() {
            [letter @ b'a'..=b'j'] => Ok(u64::from(*letter)),
            _ => Err(SnapshotError::UnknownAtom(name.into())),
        }
    }

    fn float_key(&mut self, float: f64) -> f64 {
        float + 0.0
    }

    fn external(
        &mut self,
        external: &[u8],
        writer: &mut Writer<Infallible>,
    ) -> Result<(), SnapshotError> {
        assert!(etf::flat(external).is_some());
        writer.opaque(external);
        Ok(())
    }

    fn export(&mut self, _: u64, _: u64, arity: u8) -> Result<(), SnapshotError> {
        match arity {
            9 => Err(SnapshotError::UnknownAtom(b"a:b/9".into())),
            _ => Ok(()),
        }
    }

    fn share(&mut self, content: Packed<Infallible>) -> Result<(u64, Infallible), SnapshotError> {
        unreachable!("{content:?}")
    }

    fn fields(&mut self, fields: Packed<Infallible>) -> Result<Packed<Infallible>, SnapshotError> {
        Ok(fields)
    }
}

/// The packed form of a term without its version byte.
fn translated(term: &[u8]) -> Result<Vec<u8>, SnapshotError> {
    let place = Place {
        depth: 0,
        keys: 0,
        funs: 0,
    };
    let mut writer = Writer::new();
    let external = [&[etf::VERSION], term].concat();
    translate(&external, place, false, &mut Host, &mut writer)?;
    Ok(writer.bytes().to_vec())
}

#[derive(Debug, Clone)]
enum Term {
    Int(i64),
    Float(f64),
    Atom(u8),
    Bytes(Vec<u8>),
    Text(Vec<u8>),
    Big(u8),
    Pid(u8),
    Export(u8),
    List(Vec<Term>),
    Improper(Vec<Term>, u8),
    Tuple(Vec<Term>),
    Map(Vec<(Term, Term)>),
    Fun(Vec<Term>),
}

const UNIQ: &[u8; 16] = b"uniq-of-the-code";

fn pid(number: u8) -> Vec<u8> {
    let head = [88, 119, 3, b'n', b'@', b'h', 0, 0, 0, number];
    [&head[..], &[0; 8]].concat()
}

fn big(last: u8) -> [u8; 11] {
    [110, 8, 0, 1, 2, 3, 4, 5, 6, 7, last | 0x80]
}

/// As a VM writes it.
fn write_external(term: &Term, to: &mut Vec<u8>) {
    let head = |to: &mut Vec<u8>, tag, count: usize| {
        to.push(tag);
        to.extend_from_slice(&(count as u32).to_be_bytes());
    };
    match term {
        Term::Int(value) => match (u8::try_from(*value), i32::try_from(*value)) {
            (Ok(byte), _) => to.extend([97, byte]),
            (_, Ok(value)) => head(to, 98, value.cast_unsigned() as usize),
            _ => {
                let digits = value.unsigned_abs().to_le_bytes();
                let zeros = digits.iter().rev().take_while(|digit| **digit == 0);
                let digits = &digits[..8 - zeros.count()];
                to.extend([110, digits.len() as u8, u8::from(*value < 0)]);
                to.extend_from_slice(digits);
            }
        },
        Term::Float(value) => {
            to.push(70);
            to.extend_from_slice(&value.to_be_bytes());
        }
        // In each form.
        Term::Atom(letter) => match letter % 4 {
            0 => to.extend([100, 0, 1, *letter]),
            1 => to.extend([115, 1, *letter]),
            2 => to.extend([118, 0, 1, *letter]),
            _ => to.extend([119, 1, *letter]),
        },
        Term::Bytes(bytes) if bytes.is_empty() => to.push(106),
        // Too long for a VM's short form, for once.
        Term::Bytes(bytes) if bytes.len() % 3 == 0 => {
            head(to, 108, bytes.len());
            bytes.iter().for_each(|byte| to.extend([97, *byte]));
            to.push(106);
        }
        Term::Bytes(bytes) => {
            to.extend([107, 0, bytes.len() as u8]);
            to.extend_from_slice(bytes);
        }
        Term::Text(text) => {
            head(to, 109, text.len());
            to.extend_from_slice(text);
        }
        Term::Big(last) => to.extend(big(*last)),
        Term::Pid(number) => to.extend(pid(*number)),
        Term::Export(arity) => to.extend([113, 119, 1, b'a', 119, 1, b'b', 97, *arity]),
        Term::List(elements) => {
            head(to, 108, elements.len() + 1);
            to.extend([119, 1, b'a']);
            elements.iter().for_each(|e| write_external(e, to));
            to.push(106);
        }
        Term::Improper(elements, tail) => {
            head(to, 108, elements.len() + 1);
            to.extend([97, 7]);
            elements.iter().for_each(|e| write_external(e, to));
            write_external(&Term::Atom(*tail), to);
        }
        Term::Tuple(elements) => {
            match elements.len() % 2 {
                0 => to.extend([104, elements.len() as u8]),
                _ => head(to, 105, elements.len()),
            }
            elements.iter().for_each(|e| write_external(e, to));
        }
        Term::Map(entries) => {
            head(to, 116, entries.len());
            for (key, value) in entries {
                write_external(key, to);
                write_external(value, to);
            }
        }
        Term::Fun(free) => {
            let mut values = vec![119, 1, b'c', 97, 4, 98, 5, 0, 0, 0];
            values.extend(pid(1));
            free.iter().for_each(|e| write_external(e, &mut values));
            head(to, 112, 29 + values.len());
            to.push(2);
            to.extend_from_slice(UNIQ);
            to.extend([0, 0, 0, 3, 0, 0, 0, free.len() as u8]);
            to.extend(values);
        }
    }
}

/// `None`: a key occurs twice.
fn write_packed(term: &Term, in_key: bool, to: &mut Writer<Infallible>) -> Option<()> {
    let mut elements: &[Term] = &[];
    match term {
        Term::Int(value) => to.int(*value),
        Term::Float(value) if in_key => to.float(*value + 0.0),
        Term::Float(value) => to.float(*value),
        Term::Atom(letter) => to.atom(u64::from(*letter)),
        Term::Bytes(bytes) if bytes.is_empty() => to.nil(),
        Term::Bytes(bytes) => to.byte_list(bytes.iter().copied()),
        Term::Text(text) => to.binary(text),
        Term::Big(last) => to.opaque(&[&[131], &big(*last)[..]].concat()),
        Term::Pid(number) => to.opaque(&[&[131], &pid(*number)[..]].concat()),
        Term::Export(arity) => {
            to.export();
            to.atom(u64::from(b'a'));
            to.atom(u64::from(b'b'));
            to.int(i64::from(*arity));
        }
        Term::List(some) => {
            to.list(some.len() + 1);
            to.atom(u64::from(b'a'));
            elements = some;
        }
        Term::Improper(some, _) => {
            to.improper(some.len() + 1);
            to.int(7);
            elements = some;
        }
        Term::Tuple(some) => {
            to.tuple(some.len());
            elements = some;
        }
        Term::Map(entries) => {
            let mut map = to.begin_map();
            for (key, _) in entries {
                write_packed(key, true, to)?;
                to.end_key(&map);
            }
            to.end_keys(&map).then_some(())?;
            while let Some(index) = to.next_value(&mut map) {
                write_packed(&entries[index].1, in_key, to)?;
            }
        }
        Term::Fun(free) => {
            to.fun(free.len());
            to.atom(u64::from(b'c'));
            to.int(2);
            to.binary(UNIQ);
            to.int(3);
            to.int(4);
            to.int(0x500_0000);
            elements = free;
        }
    }
    for element in elements {
        write_packed(element, in_key, to)?;
    }
    if let Term::Improper(_, tail) = term {
        to.atom(u64::from(*tail));
    }
    Some(())
}

fn term() -> impl Strategy<Value = Term> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Term::Int),
        (-300i64..300).prop_map(Term::Int),
        any::<(i64, u8)>().prop_map(|(value, bits)| Term::Int(value >> (bits % 64))),
        prop_oneof![Just(-0.0), Just(0.0), -1e9f64..1e9].prop_map(Term::Float),
        (b'a'..=b'j').prop_map(Term::Atom),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Term::Bytes),
        prop::collection::vec(any::<u8>(), 0..200).prop_map(Term::Text),
        any::<u8>().prop_map(Term::Big),
        any::<u8>().prop_map(Term::Pid),
        (0u8..9).prop_map(Term::Export),
    ];
    leaf.prop_recursive(5, 60, 8, |below| {
        let some = || prop::collection::vec(below.clone(), 0..6);
        prop_oneof![
            some().prop_map(Term::List),
            (some(), b'a'..=b'j').prop_map(|(elements, tail)| Term::Improper(elements, tail)),
            some().prop_map(Term::Tuple),
            some().prop_map(Term::Fun),
            prop::collection::vec((below.clone(), below.clone()), 0..8).prop_map(Term::Map),
        ]
    })
}

/// In a tuple, so that it has parts.
fn external(term: &Term) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_external(&Term::Tuple(vec![term.clone()]), &mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_term_is_read_as_what_the_packer_writes(term in term()) {
        let mut writer = Writer::new();
        writer.tuple(1);
        let expected = match write_packed(&term, false, &mut writer) {
            Some(()) => Ok(writer.bytes().to_vec()),
            None => Err(SnapshotError::Corrupt),
        };
        prop_assert_eq!(translated(&external(&term)), expected);
    }

    #[test]
    fn damaged_terms_do_not_panic(
        term in term(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = external(&term);
        let at = at.index(bytes.len());
        prop_assert_eq!(translated(&bytes[..at]), Err(SnapshotError::Corrupt));
        prop_assert_eq!(
            translated(&[&bytes, &[106][..]].concat()),
            Err(SnapshotError::Corrupt)
        );
        bytes[at] ^= byte;
        let _ = translated(&bytes);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = translated(&bytes);
        let _ = is_list(&bytes);
    }
}

/// This many heads, a leaf, and as many ends.
fn nested(levels: usize, head: &[u8], end: &[u8]) -> Vec<u8> {
    [&head.repeat(levels), &[106][..], &end.repeat(levels)].concat()
}

const LIST: &[u8] = &[108, 0, 0, 0, 1];
const MAP: &[u8] = &[116, 0, 0, 0, 1];

/// The values of a map are not looked through once more in each map around them.
#[test]
fn deep_terms_are_followed_without_the_stack_of_the_thread_and_once() {
    let value = [MAP, &[97, 5]].concat();
    for bytes in [
        nested(EXTERNAL_LIMIT / 7, LIST, &[106]),
        nested(EXTERNAL_LIMIT / 3, &[104, 1], &[]),
        nested(MAX_DEPTH / 2, LIST, &[97, 1]),
        nested(MAX_DEPTH, &[104, 2], &[97, 1]),
        nested(MAX_DEPTH / 3, &value, &[]),
    ] {
        assert!(translated(&bytes).is_ok(), "{:?}", &bytes[..7]);
    }
}

#[test]
fn what_is_whole_and_too_large_or_too_deep_is_not_called_corrupt() {
    let fun = |levels| {
        let fun = (0..levels).fold(Term::Int(1), |inside, _| Term::Fun(vec![inside]));
        let mut bytes = Vec::new();
        write_external(&fun, &mut bytes);
        bytes
    };
    assert!(translated(&nested(MAX_KEYS, MAP, &[106])).is_ok());
    assert!(translated(&fun(MAX_FUNS)).is_ok());
    for bytes in [
        nested(EXTERNAL_LIMIT / 5, LIST, &[106]),
        nested(MAX_DEPTH + 1000, &[104, 2], &[97, 1]),
        nested(MAX_KEYS + 1, MAP, &[106]),
        fun(MAX_FUNS + 1),
    ] {
        let refused = translated(&bytes).map(|packed| packed.len());
        assert!(
            matches!(refused, Err(SnapshotError::TooLarge(_))),
            "{:?}: {refused:?}",
            &bytes[..7]
        );
    }
}

#[test]
fn names_that_are_no_atoms_are_named() {
    let unknown = Err(SnapshotError::UnknownAtom(b"what".into()));
    let what = [119, 4, b'w', b'h', b'a', b't'];
    let export = [&[113], &what[..], &[119, 1, b'a', 97, 1]].concat();
    assert_eq!(translated(&export), unknown);
    assert_eq!(translated(&[&[104, 1], &what[..]].concat()), unknown);
    let arity = [113, 119, 1, b'a', 119, 1, b'b', 97, 9];
    let unknown = Err(SnapshotError::UnknownAtom(b"a:b/9".into()));
    assert_eq!(translated(&arity), unknown);
}
