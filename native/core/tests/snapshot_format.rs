//! Snapshots and the packed form, with a host that is no BEAM.
//!
//! Invariants:
//! - what is written is read back, compressed or not, shares included;
//! - the packed form is canonical: a map has the same bytes in whatever order it was written;
//! - a part of a snapshot is refused, and so is what nests too deep or is too many;
//! - no bytes make the reader panic.

use erlmcp_memory_core::map::MAX_PATH;
use erlmcp_memory_core::packed::{
    Item, MAX_ARITY, MAX_DEPTH, MAX_KEYS, Packed, Target, View, Writer, item, skip,
};
use erlmcp_memory_core::snapshot::{
    Export, Import, RAW_LIMIT, Snapshot, SnapshotError, decode, encode, export,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Atoms are numbers with a name made of them; shares hold what was shared; external terms and
/// foreign ones do not occur.
struct Host;

fn name(word: u64) -> String {
    format!("atom_{word}")
}

impl Export for Host {
    type Anchor = Kept;

    fn atom(&mut self, word: u64) -> String {
        name(word)
    }

    fn external(&mut self, local: Item<'_>, _anchor: Option<&Kept>) -> Vec<u8> {
        format!("{local:?}").into_bytes()
    }

    fn content<'a>(&mut self, anchor: &'a Kept) -> Option<View<'a, Kept>> {
        Some(anchor.0.view())
    }
}

/// A share of the test's.
#[derive(Debug, Clone)]
struct Kept(Arc<Packed<Kept>>);

impl erlmcp_memory_core::packed::Anchor for Kept {}

#[derive(Default)]
struct Reader {
    shared: Vec<Kept>,
}

impl Import for Reader {
    type Anchor = Kept;
    type Fields = Packed<Kept>;

    fn atom(&mut self, name: &str) -> Result<u64, SnapshotError> {
        name.strip_prefix("atom_")
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| SnapshotError::UnknownAtom(name.into()))
    }

    fn float_key(&mut self, float: f64) -> f64 {
        float + 0.0
    }

    fn external(
        &mut self,
        external: &[u8],
        writer: &mut Writer<Kept>,
    ) -> Result<(), SnapshotError> {
        writer.opaque(external);
        Ok(())
    }

    fn export(&mut self, _module: u64, function: u64, arity: u8) -> Result<(), SnapshotError> {
        match arity {
            9 => Err(SnapshotError::UnknownAtom(name(function).into())),
            _ => Ok(()),
        }
    }

    fn share(&mut self, content: Packed<Kept>) -> Result<(u64, Kept), SnapshotError> {
        let kept = Kept(Arc::new(content));
        self.shared.push(kept.clone());
        Ok((id(&kept), kept))
    }

    fn fields(&mut self, fields: Packed<Kept>) -> Result<Packed<Kept>, SnapshotError> {
        Ok(fields)
    }
}

fn id(kept: &Kept) -> u64 {
    Arc::as_ptr(&kept.0) as u64
}

#[derive(Debug, Clone, PartialEq)]
enum Term {
    Int(i64),
    Float(f64),
    Atom(u64),
    Bytes(Vec<u8>),
    Text(Vec<u8>),
    List(Vec<Term>),
    Improper(Vec<Term>, u64),
    Tuple(Vec<Term>),
    Map(BTreeMap<u16, Term>),
    Share(Box<Term>),
}

fn write(term: &Term, to: &mut Writer<Kept>, reversed: bool) {
    match term {
        Term::Int(value) => to.int(*value),
        Term::Float(value) => to.float(*value),
        Term::Atom(word) => to.atom(*word),
        Term::Bytes(bytes) if bytes.is_empty() => to.nil(),
        Term::Bytes(bytes) => to.byte_list(bytes.iter().copied()),
        Term::Text(text) => to.binary(text),
        // An atom in front: a list of bytes alone has another form.
        Term::List(elements) => {
            to.list(elements.len() + 1);
            to.atom(0);
            elements.iter().for_each(|e| write(e, to, reversed));
        }
        Term::Improper(elements, tail) => {
            to.improper(elements.len() + 1);
            to.atom(0);
            elements.iter().for_each(|e| write(e, to, reversed));
            to.atom(*tail);
        }
        Term::Tuple(elements) => {
            to.tuple(elements.len());
            elements.iter().for_each(|e| write(e, to, reversed));
        }
        Term::Map(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            if reversed {
                entries.reverse();
            }
            let mut map = to.begin_map();
            for (key, _) in &entries {
                to.int(i64::from(**key));
                to.end_key(&map);
            }
            assert!(to.end_keys(&map));
            while let Some(index) = to.next_value(&mut map) {
                write(entries[index].1, to, reversed);
            }
        }
        Term::Share(content) => {
            let kept = Kept(Arc::new(packed(content, reversed)));
            to.share(id(&kept), kept);
        }
    }
}

fn packed(term: &Term, reversed: bool) -> Packed<Kept> {
    let mut writer = Writer::new();
    write(term, &mut writer, reversed);
    writer.finish()
}

/// The term of a packed value: what the reader of the packed form makes of it.
fn read(from: View<'_, Kept>, at: &mut usize) -> Term {
    let elements = |n: usize, at: &mut usize| (0..n).map(|_| read(from, at)).collect::<Vec<_>>();
    match item(from.bytes, at).unwrap() {
        Item::Int(value) => Term::Int(value),
        Item::Float(value) => Term::Float(value),
        Item::Atom(word) => Term::Atom(word),
        Item::Nil => Term::Bytes(Vec::new()),
        Item::ByteList(bytes) => Term::Bytes(bytes.to_vec()),
        Item::Binary(bytes) => Term::Text(bytes.to_vec()),
        Item::List(n) => Term::List(elements(n, at).split_off(1)),
        Item::Improper(n) => {
            let before = elements(n, at).split_off(1);
            match read(from, at) {
                Term::Atom(tail) => Term::Improper(before, tail),
                other => panic!("tail {other:?}"),
            }
        }
        Item::Tuple(n) => Term::Tuple(elements(n, at)),
        Item::Map(page) => Term::Map(
            page.entries()
                .map(|(key, value)| {
                    let Ok(Item::Int(key)) = item(key, &mut 0) else {
                        panic!("no key")
                    };
                    let value = read(View::new(value, from.links), &mut 0);
                    (u16::try_from(key).unwrap(), value)
                })
                .collect(),
        ),
        Item::Share(id) => match from.links.get(id) {
            Some(Target::Anchor(kept)) => Term::Share(Box::new(read(kept.0.view(), &mut 0))),
            other => panic!("no share: {other:?}"),
        },
        other => panic!("not written here: {other:?}"),
    }
}

fn term() -> impl Strategy<Value = Term> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Term::Int),
        (-70i64..300).prop_map(Term::Int),
        (-1e9f64..1e9).prop_map(Term::Float),
        (0u64..50).prop_map(Term::Atom),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Term::Bytes),
        prop::collection::vec(any::<u8>(), 0..400).prop_map(Term::Text),
    ];
    leaf.prop_recursive(5, 60, 8, |below| {
        prop_oneof![
            prop::collection::vec(below.clone(), 0..6).prop_map(Term::List),
            (prop::collection::vec(below.clone(), 0..6), 0u64..9)
                .prop_map(|(elements, tail)| Term::Improper(elements, tail)),
            prop::collection::vec(below.clone(), 0..12).prop_map(Term::Tuple),
            prop::collection::btree_map(any::<u16>(), below.clone(), 0..12).prop_map(Term::Map),
            below.prop_map(|content| Term::Share(Box::new(content))),
        ]
    })
}

fn snapshot(fields: &Packed<Kept>, compress: bool) -> Vec<u8> {
    let portable = export(fields.view(), &mut Host).unwrap();
    encode(&portable, compress).unwrap()
}

fn restore(bytes: &[u8]) -> Result<Packed<Kept>, SnapshotError> {
    match decode(bytes, &mut Reader::default())? {
        Snapshot::V2(fields) => Ok(fields),
        Snapshot::V1(v1) => panic!("version 1: {v1:?}"),
    }
}

/// With length and checksum that fit the body.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut rest = (body.len() as u64).to_be_bytes().to_vec();
    rest.extend_from_slice(body);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[0]);
    hasher.update(&rest);
    let mut out = vec![2, 0];
    out.extend_from_slice(&hasher.finalize().to_be_bytes());
    out.extend_from_slice(&rest);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_packed_form_is_read_back_and_canonical(term in term()) {
        let value = packed(&term, false);
        prop_assert_eq!(&read(value.view(), &mut 0), &term);
        let mut end = 0;
        prop_assert_eq!(skip(value.bytes(), &mut end), Ok(()));
        prop_assert_eq!(end, value.bytes().len());
        // Shares are made anew, so ids differ where there are any.
        if value.links().is_empty() {
            let reversed = packed(&term, true);
            prop_assert_eq!(value.bytes(), reversed.bytes());
        }
    }

    #[test]
    fn no_bytes_make_the_reader_of_items_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut at = 0;
        while at < bytes.len() && item(&bytes, &mut at).is_ok() {}
        let _ = skip(&bytes, &mut 0);
        if let Ok(Item::Map(page)) = item(&bytes, &mut 0) {
            let _ = page.find(&[1]);
            prop_assert!(page.entries().count() <= bytes.len());
        }
    }

    #[test]
    fn a_snapshot_is_read_back(term in term(), compress in any::<bool>()) {
        let value = packed(&term, false);
        let fields = restore(&snapshot(&value, compress)).unwrap();
        prop_assert_eq!(read(fields.view(), &mut 0), term);
    }

    #[test]
    fn damaged_snapshots_do_not_panic(
        term in term(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = snapshot(&packed(&term, false), false);
        let at = at.index(bytes.len());
        bytes[at] ^= byte;
        let _ = decode(&bytes, &mut Reader::default());
        let _ = decode(&sealed(&bytes[14..]), &mut Reader::default());
    }
}

#[test]
fn every_truncation_is_refused() {
    let map = Term::Map((0..40).map(|n| (n, Term::Text(vec![7; 9]))).collect());
    for compress in [false, true] {
        let whole = snapshot(&packed(&map, false), compress);
        for length in 0..whole.len() {
            assert!(restore(&whole[..length]).is_err(), "{length}");
            if length >= 14 && !compress {
                let fitted = sealed(&whole[14..length]);
                assert_eq!(restore(&fitted).unwrap_err(), SnapshotError::Corrupt);
            }
        }
    }
}

fn written(write: impl FnOnce(&mut Writer<Kept>)) -> Packed<Kept> {
    let mut writer = Writer::new();
    write(&mut writer);
    writer.finish()
}

/// `wrap` writes the head of a tuple of two or of an improper list; the second element, or the
/// tail, follows what is inside.
fn nested(depth: usize, wrap: impl Fn(&mut Writer<Kept>)) -> Packed<Kept> {
    written(|to| {
        (0..depth).for_each(|_| wrap(to));
        (0..=depth).for_each(|_| to.int(1));
    })
}

fn nested_maps(depth: usize) -> Packed<Kept> {
    written(|to| {
        let mut maps = Vec::new();
        for _ in 0..depth {
            let mut map = to.begin_map();
            to.int(1);
            to.end_key(&map);
            assert!(to.end_keys(&map));
            assert_eq!(to.next_value(&mut map), Some(0));
            maps.push(map);
        }
        to.int(2);
        while let Some(mut map) = maps.pop() {
            assert_eq!(to.next_value(&mut map), None);
        }
    })
}

#[test]
fn deep_values_are_followed_without_the_stack_of_the_thread_and_bounded() {
    let again = |value: &Packed<Kept>| restore(&snapshot(value, false));
    for value in [
        nested(MAX_DEPTH / 2, |to| to.tuple(2)),
        nested(MAX_DEPTH / 4, |to| to.improper(1)),
        nested_maps(MAX_DEPTH / 8),
    ] {
        assert_eq!(again(&value).unwrap().bytes(), value.bytes());
    }
    let deeper = nested(MAX_DEPTH + MAX_PATH + 1, |to| to.tuple(2));
    assert_eq!(
        export(deeper.view(), &mut Host).map(|_| ()),
        Err(SnapshotError::Corrupt)
    );
}

#[test]
fn a_deep_key_is_a_key() {
    let value = written(|to| {
        let mut map = to.begin_map();
        (0..10_000).for_each(|_| to.tuple(1));
        to.float(-0.0);
        to.end_key(&map);
        assert!(to.end_keys(&map));
        while to.next_value(&mut map).is_some() {
            to.float(-0.0);
        }
    });
    let again = restore(&snapshot(&value, false)).unwrap();
    let Ok(Item::Map(page)) = item(again.bytes(), &mut 0) else {
        panic!("no map")
    };
    let (key, value) = page.entries().next().unwrap();
    assert!(key.ends_with(&0.0f64.to_le_bytes()));
    assert!(value.ends_with(&(-0.0f64).to_le_bytes()));
}

/// A map whose key is a map whose key is one, and so on, in a snapshot.
fn maps_in_keys(levels: usize) -> Vec<u8> {
    let mut value = vec![0];
    // The heads from the innermost one on, each backwards.
    for level in 0..levels {
        let body = value.len() + level + 1;
        value.extend_from_slice(&[0; 4]);
        match body {
            0..=0xff => {
                value.truncate(value.len() - 3);
                value.extend([body as u8, 1, 0x79]);
            }
            _ => {
                value.truncate(value.len() - 2);
                value.extend((body as u16).to_be_bytes());
                value.extend([0, 1, 0x7a]);
            }
        }
    }
    value.reverse();
    value.extend(std::iter::repeat_n(1, levels));
    let mut body = vec![0, 0, 252];
    body.extend_from_slice(&(value.len() as u32).to_le_bytes());
    body.extend_from_slice(&value);
    sealed(&body)
}

#[test]
fn maps_are_keys_of_maps_in_a_bounded_number_of_levels() {
    assert!(restore(&maps_in_keys(MAX_KEYS)).is_ok());
    let refused = restore(&maps_in_keys(MAX_KEYS + 1));
    assert_eq!(refused.map(|_| ()), Err(SnapshotError::Corrupt));
}

/// A fun of atom 1's module that closes over two values.
fn fun(uniq: &[u8], arity: i64, index: i64) -> Packed<Kept> {
    written(|to| {
        to.fun(2);
        to.atom(1);
        to.int(arity);
        to.binary(uniq);
        to.int(index);
        to.int(0);
        to.int(12_345);
        to.binary(b"free");
        to.tuple(0);
    })
}

#[test]
fn funs_and_records_are_written_and_read_with_what_is_in_them() {
    let export = |arity| {
        written(|to| {
            to.export();
            to.atom(1);
            to.atom(2);
            to.int(arity);
        })
    };
    let record = |names: &[u64]| {
        written(|to| {
            to.record(names.len());
            (0..3).for_each(|word| to.atom(word));
            names.iter().for_each(|name| to.atom(*name));
            names.iter().for_each(|_| to.nil());
        })
    };
    let again = |value: &Packed<Kept>| restore(&snapshot(value, false)).map(|v| v.bytes().to_vec());
    for value in [fun(&[7; 16], 2, 3), export(4), record(&[]), record(&[4, 5])] {
        assert_eq!(again(&value), Ok(value.bytes().to_vec()));
    }
    let unknown = SnapshotError::UnknownAtom(name(2).into());
    assert_eq!(again(&export(9)), Err(unknown));
    for value in [
        fun(&[7; 15], 2, 3),
        fun(&[7; 16], 256, 3),
        fun(&[7; 16], -1, 3),
        fun(&[7; 16], 2, 1 << 32),
        export(256),
        record(&[4, 4]),
    ] {
        assert_eq!(again(&value), Err(SnapshotError::Corrupt));
    }
}

#[test]
fn a_tuple_has_at_most_so_many_elements() {
    let tuple = |arity: usize| {
        let mut writer = Writer::<Kept>::new();
        writer.tuple(arity);
        (0..arity).for_each(|_| writer.int(0));
        restore(&snapshot(&writer.finish(), true)).map(|_| ())
    };
    assert_eq!(tuple(MAX_ARITY), Ok(()));
    assert_eq!(tuple(MAX_ARITY + 1), Err(SnapshotError::Corrupt));
}

#[test]
fn what_is_over_the_limit_is_not_written() {
    let large = packed(&Term::Text(vec![0; RAW_LIMIT]), false);
    let refused = export(large.view(), &mut Host).and_then(|p| encode(&p, true));
    assert!(matches!(refused, Err(SnapshotError::TooLarge(_))));
}

#[test]
fn a_claim_over_the_limit_is_refused_before_anything_else() {
    for claim in [RAW_LIMIT as u64 + 1, 1 << 32, 1 << 43, u64::MAX] {
        let mut bytes = vec![2, 1, 0, 0, 0, 0];
        bytes.extend_from_slice(&claim.to_be_bytes());
        bytes.resize(30, 0);
        assert_eq!(restore(&bytes).unwrap_err(), SnapshotError::TooLarge(claim));
    }
}

#[test]
fn one_content_under_many_references_is_written_once() {
    let content = Kept(Arc::new(packed(&Term::Text(vec![7; 10_000]), false)));
    let mut writer = Writer::new();
    writer.tuple(100);
    (0..100).for_each(|_| writer.share(id(&content), content.clone()));
    let bytes = snapshot(&writer.finish(), false);
    assert!(bytes.len() < 12_000);
    assert_eq!(restore(&bytes).unwrap().links().len(), 100);
}
