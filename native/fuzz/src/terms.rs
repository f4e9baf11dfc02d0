//! Values of every kind, made as a script of any bytes says.

use super::host::{ATOMS, Kept, reference, share, word};
use erlmcp_memory_core::packed::{MAX_FUNS, MAX_KEYS, Packed, Writer};
use std::collections::{BTreeMap, BTreeSet};

/// Levels at which a script says what there is; each may be many levels of one kind.
const DEPTH: usize = 100;

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

/// Where a value stands, and how much deeper it may nest there.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// Maps in keys, and funs in funs.
    keys: usize,
    funs: usize,
    /// In a key, or in what is shared: there both zeros are one.
    in_key: bool,
}

const ROOT: Place = Place {
    depth: DEPTH,
    keys: MAX_KEYS,
    funs: MAX_FUNS,
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
            keys: self.keys - 1,
            in_key: true,
            ..self.below()
        }
    }

    fn shared(self) -> Self {
        Place {
            depth: self.depth - 1,
            in_key: true,
            ..ROOT
        }
    }

    fn closed_over(self) -> Self {
        Place {
            funs: self.funs - 1,
            ..self.below()
        }
    }
}

/// Any value.
pub fn value(script: &mut Script<'_>) -> Packed<Kept> {
    packed(script, ROOT)
}

/// In how many ways a value is nested.
pub const WAYS: usize = 9;

/// As many of these levels as there may be.
fn most_levels(way: usize, levels: usize, place: Place) -> usize {
    match way {
        5 => levels.min(place.funs),
        7 if place.keys == 0 => 0,
        8 => levels.min(place.keys),
        _ => levels,
    }
}

/// Writes a value of this many levels, in one of a few ways.
fn nested(levels: usize, way: usize, to: &mut Writer<Kept>, inner: impl FnOnce(&mut Writer<Kept>)) {
    let mut maps = Vec::new();
    for _ in 0..levels {
        match way {
            0 => to.tuple(1),
            1 => to.tuple(2),
            2 => to.list(2),
            3 => to.improper(1),
            // In the tail.
            4 => {
                to.improper(1);
                to.nil();
                to.tuple(1);
            }
            5 => fun_head(1, to),
            6 => record_head(&["a"], to),
            // In the value of a map; in its key.
            7 => {
                let mut map = to.begin_map();
                to.int(1);
                to.end_key(&map);
                assert!(to.end_keys(&map), "one key");
                assert_eq!(to.next_value(&mut map), Some(0));
                maps.push(map);
            }
            _ => maps.push(to.begin_map()),
        }
    }
    inner(to);
    for _ in 0..levels {
        match way {
            1 | 3 => to.int(1),
            2 => atom("ok", to),
            _ => {}
        }
    }
    while let Some(mut map) = maps.pop() {
        if way != 7 {
            to.end_key(&map);
            assert!(to.end_keys(&map), "one key");
            assert_eq!(to.next_value(&mut map), Some(0));
            to.int(1);
        }
        assert_eq!(to.next_value(&mut map), None);
    }
}

/// The fields of a state in which a value nests so deep, or as deep as it may.
pub fn deep(levels: usize, way: usize) -> Packed<Kept> {
    let levels = most_levels(way, levels, ROOT);
    let mut fields = BTreeMap::new();
    let mut set = |name: &str, value| {
        fields.insert(written(|to| atom(name, to)).bytes().to_vec(), value);
    };
    set("id", written(|to| to.binary(b"deep")));
    set("created_at", written(|to| to.int(1)));
    set(
        "a",
        written(|to| nested(levels, way, to, |to| atom("ok", to))),
    );
    written(|to| whole(fields, to))
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
    let mut map = to.begin_map();
    // The other way round: the writer sorts.
    let entries: Vec<_> = entries.into_iter().rev().collect();
    for (key, _) in &entries {
        to.packed(&Packed::from_bytes(key));
        to.end_key(&map);
    }
    assert!(to.end_keys(&map), "keys that differ");
    while let Some(index) = to.next_value(&mut map) {
        to.packed(&entries[index].1);
    }
}

fn map(script: &mut Script<'_>, entries: usize, place: Place, to: &mut Writer<Kept>) {
    let mut map = to.begin_map();
    let mut seen = BTreeSet::new();
    for _ in 0..entries {
        let key = packed(script, place.key());
        if seen.insert(key.bytes().to_vec()) {
            to.packed(&key);
            to.end_key(&map);
        }
    }
    assert!(to.end_keys(&map), "keys that differ");
    while to.next_value(&mut map).is_some() {
        write(script, place.below(), to);
    }
}

fn write(script: &mut Script<'_>, place: Place, to: &mut Writer<Kept>) {
    let kind = script.byte();
    match kind % 25 {
        0 => to.int(i64::from(script.byte().cast_signed())),
        1 => to.int(script.number().cast_signed()),
        2 => match f64::from_bits(script.number()) {
            float if float.is_finite() && !(float == 0.0 && place.in_key) => to.float(float),
            _ => to.float(0.0),
        },
        3 => atom(ATOMS[script.count(ATOMS.len() as u8)], to),
        4 => to.nil(),
        5 => to.byte_list((0..=script.byte()).rev()),
        6 => to.binary(&[kind; 40][..script.count(41)]),
        7 => to.binary(&vec![kind; script.count(255) * 3]),
        8 => big_integer(script, to),
        // Plain references, and those to what is kept.
        9 => reference(&[script.byte(), 0, 0, script.byte() % 3], to),
        10 => match script.byte() % 2 {
            0 => to.pid(script.number()),
            _ => to.port(u64::from(script.byte())),
        },
        11 => {
            to.export();
            atom("lists", to);
            atom(ATOMS[script.count(ATOMS.len() as u8)], to);
            to.int(script.count(200) as i64);
        }
        _ if place.depth == 0 => to.nil(),
        12 => {
            let (id, kept) = share(packed(script, place.shared()));
            to.share(id, kept);
        }
        13 | 14 => {
            let len = script.count(16) + 1;
            let elements: Vec<_> = (0..len).map(|_| packed(script, place.below())).collect();
            to.list(len + 1);
            elements.iter().for_each(|element| to.packed(element));
            // No list of bytes.
            atom("ok", to);
        }
        15 => {
            let len = script.count(16) + 1;
            to.improper(len);
            (0..len).for_each(|_| write(script, place.below(), to));
            to.binary(b"tail");
        }
        16 | 17 => {
            let arity = script.count(16);
            to.tuple(arity);
            (0..arity).for_each(|_| write(script, place.below(), to));
        }
        18 | 19 if place.keys > 0 => {
            let entries = script.count(16);
            map(script, entries, place, to);
        }
        20 if place.keys > 0 => {
            let entries = (0..script.count(255)).map(|number| {
                let key = written(|to| to.int(number as i64));
                let value = written(|to| {
                    to.binary(&vec![kind; if number % 16 == 7 { 300 } else { number % 9 }])
                });
                (key.bytes().to_vec(), value)
            });
            whole(entries.collect(), to);
        }
        21 if place.funs > 0 => {
            let free = script.count(6);
            fun_head(free, to);
            (0..free).for_each(|_| write(script, place.closed_over(), to));
        }
        22 => {
            let names = &ATOMS[..script.count(ATOMS.len() as u8)];
            record_head(names, to);
            names.iter().for_each(|_| write(script, place.below(), to));
        }
        _ => {
            // Hundreds at the root alone: a script may say this often.
            let levels = match script.count(64) {
                many if place.depth == DEPTH => many * 8,
                few => few,
            };
            let way = script.count(WAYS as u8);
            let levels = most_levels(way, levels, place);
            let mut place = place.below();
            match way {
                5 => place.funs -= levels,
                8 => {
                    place.keys -= levels;
                    place.in_key = true;
                }
                _ => {}
            }
            nested(levels, way, to, |to| {
                // Neither a tail nor the end of a list of bytes.
                to.tuple(1);
                write(script, place, to);
            });
        }
    }
}

fn fun_head(free: usize, to: &mut Writer<Kept>) {
    to.fun(free);
    atom("erl_eval", to);
    to.int(2);
    to.binary(&[7; 16]);
    to.int(3);
    to.int(4);
    to.int(5);
}

/// Everything of a record but the values of its fields.
fn record_head(names: &[&str], to: &mut Writer<Kept>) {
    to.record(names.len());
    for name in ["lists", "tools", "true"].iter().chain(names) {
        atom(name, to);
    }
}

fn big_integer(script: &mut Script<'_>, to: &mut Writer<Kept>) {
    let digits = 9 + script.count(200);
    let mut term = vec![131, 110, digits as u8, script.byte() & 1];
    term.extend((0..digits).map(|_| script.byte() | 1));
    to.opaque(&term);
}
