//! Values of every kind, made as a script of any bytes says.

use super::host::{ATOMS, Kept, foreign, share, word};
use erlmcp_memory_core::packed::{MAX_DEPTH, MAX_KEY_DEPTH, Packed, Writer};
use std::collections::BTreeMap;

/// The deepest nesting that is made: below what a snapshot may have.
const DEPTH: usize = 200;

/// Levels below the fields of a state.
const DEEPEST: usize = 2 * MAX_DEPTH - 1;

pub struct Script<'a>(pub &'a [u8]);

impl Script<'_> {
    /// The next byte; zero at the end, which stands for the smallest value of all.
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn count(&mut self, below: u8) -> usize {
        usize::from(self.byte() % below)
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |n, _| n << 8 | u64::from(self.byte()))
    }
}

/// Where a value stands.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    in_key: bool,
}

const ROOT: Place = Place {
    depth: DEPTH,
    in_key: false,
};

impl Place {
    fn below(self) -> Self {
        Place {
            depth: self.depth - 1,
            ..self
        }
    }

    fn key(self) -> Self {
        Place {
            depth: self.below().depth.min(MAX_KEY_DEPTH),
            in_key: true,
        }
    }
}

/// Any value.
pub fn value(script: &mut Script<'_>) -> Packed<Kept> {
    packed(script, ROOT)
}

/// The fields of a state in which a value nests as deep as a snapshot may, in one way of a few:
/// `None` after the last. With long binaries beside it, the parts lie out of line.
pub fn deepest(way: usize, long: bool) -> Option<Packed<Kept>> {
    let wrap: fn(&Packed<Kept>, &mut Writer<Kept>) = match way {
        0 => |inner, to| {
            to.tuple(1);
            to.packed(inner);
        },
        1 => |inner, to| {
            to.list(1);
            to.packed(inner);
        },
        2 => |inner, to| {
            to.improper(1);
            to.packed(inner);
            to.binary(b"tail");
        },
        3 => |inner, to| {
            whole(
                BTreeMap::from([(vec![1], written(|to| to.packed(inner)))]),
                to,
            )
        },
        _ => return None,
    };
    let beside = written(|to| to.binary(&[b'x'; 300]));
    // With something beside it, a level is two.
    let levels = if long { DEEPEST / 2 } else { DEEPEST };
    let mut value = written(|to| atom("ok", to));
    for _ in 0..levels {
        value = written(|to| wrap(&value, to));
        if long {
            let both = BTreeMap::from([
                (vec![1], value),
                (vec![2], written(|to| to.packed(&beside))),
            ]);
            value = written(|to| whole(both, to));
        }
    }
    let mut fields = BTreeMap::new();
    let mut set = |name: &str, value| {
        fields.insert(written(|to| atom(name, to)).bytes().to_vec(), value);
    };
    set("id", written(|to| to.binary(b"deep")));
    set("created_at", written(|to| to.int(1)));
    set("a", value);
    Some(written(|to| whole(fields, to)))
}

/// The fields of a state.
pub fn fields(script: &mut Script<'_>) -> Packed<Kept> {
    let mut fields = BTreeMap::new();
    let mut set = |name: &str, value: Packed<Kept>| {
        let key = written(|to| atom(name, to));
        fields.insert(key.bytes().to_vec(), value);
    };
    set(
        "id",
        written(|to| to.binary(&[b'c'; 40][..script.count(41)])),
    );
    set(
        "created_at",
        written(|to| to.int(script.number().cast_signed())),
    );
    for name in ["metadata", "pending_refs"] {
        let entries = script.count(20);
        set(name, written(|to| map(script, entries, ROOT, to)));
    }
    for _ in 0..script.count(16) {
        let name = ATOMS[script.count(ATOMS.len() as u8)];
        if !matches!(name, "id" | "created_at" | "metadata" | "pending_refs") {
            set(name, packed(script, ROOT.below()));
        }
    }
    written(|to| whole(fields, to))
}

fn written(write: impl FnOnce(&mut Writer<Kept>)) -> Packed<Kept> {
    let mut writer = Writer::new();
    write(&mut writer);
    writer.finish()
}

fn atom(name: &str, to: &mut Writer<Kept>) {
    to.atom(word(name).expect("a name of the list"));
}

fn packed(script: &mut Script<'_>, place: Place) -> Packed<Kept> {
    written(|to| write(script, place, to))
}

/// A map of keys in the packed form, and values.
fn whole(entries: BTreeMap<Vec<u8>, Packed<Kept>>, to: &mut Writer<Kept>) {
    let map = to.begin_map();
    // The other way round: the writer sorts.
    for (key, value) in entries.iter().rev() {
        let key_start = to.len();
        to.packed(&Packed::from_bytes(key));
        let value_start = to.len();
        to.packed(value);
        to.entry(key_start, value_start);
    }
    assert!(to.end_map(map), "keys that differ");
}

fn map(script: &mut Script<'_>, entries: usize, place: Place, to: &mut Writer<Kept>) {
    let map = to.begin_map();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..entries {
        let key = packed(script, place.key());
        if seen.insert(key.bytes().to_vec()) {
            let key_start = to.len();
            to.packed(&key);
            let value_start = to.len();
            write(script, place.below(), to);
            to.entry(key_start, value_start);
        }
    }
    assert!(to.end_map(map), "keys that differ");
}

fn write(script: &mut Script<'_>, place: Place, to: &mut Writer<Kept>) {
    let kind = script.byte();
    match kind % 20 {
        0 => to.int(i64::from(script.byte().cast_signed())),
        1 => to.int(script.number().cast_signed()),
        2 => match f64::from_bits(script.number()) {
            float if float.is_finite() => to.float(float),
            _ => to.float(-0.0),
        },
        3 => atom(ATOMS[script.count(ATOMS.len() as u8)], to),
        4 => to.nil(),
        5 => to.byte_list((0..=script.byte()).rev()),
        6 => to.binary(&[kind; 40][..script.count(41)]),
        7 => to.binary(&vec![kind; script.count(255) * 3]),
        8 => big_integer(script, to),
        9 if !place.in_key => shared(script, place, to),
        10 if !place.in_key => foreign(&[131, 104, 1, 97, script.byte()], to),
        _ if place.depth == 0 => to.nil(),
        11 | 12 => {
            let len = script.count(16) + 1;
            let elements: Vec<_> = (0..len).map(|_| packed(script, place.below())).collect();
            to.list(len + 1);
            elements.iter().for_each(|element| to.packed(element));
            // No list of bytes.
            atom("ok", to);
        }
        13 => {
            let len = script.count(16) + 1;
            to.improper(len);
            (0..len).for_each(|_| write(script, place.below(), to));
            to.binary(b"tail");
        }
        14 | 15 => {
            let arity = script.count(16);
            to.tuple(arity);
            (0..arity).for_each(|_| write(script, place.below(), to));
        }
        16 | 17 => {
            let entries = script.count(16);
            map(script, entries, place, to);
        }
        18 => {
            let entries = (0..script.count(255)).map(|number| {
                let key = written(|to| to.int(number as i64));
                let value = written(|to| {
                    to.binary(&vec![kind; if number % 16 == 7 { 300 } else { number % 9 }])
                });
                (key.bytes().to_vec(), value)
            });
            whole(entries.collect(), to);
        }
        _ => {
            let depth = script.count(255).min(place.depth);
            (0..depth).for_each(|_| to.tuple(1));
            let depth = place.depth - depth;
            write(script, Place { depth, ..place }, to);
        }
    }
}

fn shared(script: &mut Script<'_>, place: Place, to: &mut Writer<Kept>) {
    if place.depth == 0 {
        return to.nil();
    }
    let (id, kept) = share(packed(script, place.below()));
    to.share(id, kept);
}

fn big_integer(script: &mut Script<'_>, to: &mut Writer<Kept>) {
    let digits = 9 + script.count(200);
    let mut term = vec![131, 110, digits as u8, script.byte() & 1];
    term.extend((0..digits).map(|_| script.byte() | 1));
    to.opaque(&term);
}
