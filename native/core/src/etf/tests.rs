//! Tests of [`etf`](super).

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
fn what_is_written_is_read_part_by_part() {
    let mut writer = Writer::default();
    let head = FunHead {
        arity: 2,
        uniq: &[7; UNIQ],
        index: 3,
        free: 1,
    };
    let module = [119, 1, b'm'];
    let creator = pid(&[NODE, &[0; 4]].concat());
    writer.tuple(300);
    let fun = writer.bytes().len();
    writer.fun(head);
    writer.term(&module);
    writer.int(1);
    writer.int(-300);
    writer.term(&creator);
    let inner = writer.bytes().len();
    writer.fun(FunHead { free: 0, ..head });
    writer.term(&module);
    writer.int(1);
    writer.int(i64::MAX);
    writer.term(&creator);
    writer.end_fun(inner);
    writer.end_fun(fun);
    let end = writer.bytes().len();
    let ints = [
        0,
        255,
        256,
        -1,
        i64::from(i32::MIN),
        1 << 31,
        -(1 << 40),
        i64::MIN,
    ];
    ints.iter().for_each(|int| writer.int(*int));
    writer.float(0.5);
    writer.byte_list(&[9; 3]);
    writer.byte_list(&[9; 70_000]);
    writer.binary(b"binary");
    writer.map(1);
    writer.again(fun..end);
    writer.list(1);
    writer.export();
    writer.term(&module);
    writer.term(&module);
    writer.int(4);
    writer.nil();
    let bytes = &writer.bytes()[1..];
    let mut at = 0;
    let mut next = || part(bytes, &mut at).unwrap();
    assert!(matches!(next(), Part::Tuple(300)));
    let is_fun = |part: Part<'_>, old, end| {
        let Part::Fun(fun) = part else { return false };
        fun.old == old && fun.end == end && fun.module == module
    };
    assert!(is_fun(next(), [1, -300], end - 1));
    assert!(is_fun(next(), [1, i64::MAX], end - 1));
    for int in ints {
        assert!(matches!(next(), Part::Int(read) if read == int), "{int}");
    }
    assert!(matches!(next(), Part::Float(0.5)));
    assert!(matches!(next(), Part::String(&[9, 9, 9])));
    assert!(matches!(next(), Part::List(70_000)));
    assert!((0..70_000).all(|_| matches!(next(), Part::Int(9))));
    assert!(matches!(next(), Part::Nil));
    assert!(matches!(next(), Part::Binary(b"binary")));
    assert!(matches!(next(), Part::Map(1)));
    assert!(matches!(next(), Part::Fun(_)));
    assert!(matches!(next(), Part::Fun(_)));
    assert!(matches!(next(), Part::List(1)));
    assert!(matches!(next(), Part::Export(_, _, 4)));
    assert!(matches!(next(), Part::Nil));
    assert_eq!(at, bytes.len());
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
