//! The map against a model.
//!
//! Invariants:
//! - after any sequence of puts, merges and removals, on any paths, the map holds what a tree of
//!   `BTreeMap`s holds after the same sequence;
//! - no change of a map changes an older version of it;
//! - the links of every value are exactly those that occur in its bytes;
//! - when all versions are gone, so is every anchor.

use erlmcp_memory_core::map::{EditError, Map, MapBuf, Room};
use erlmcp_memory_core::packed::{self, Item, Links, Packed, Page, Target, View, Writer, item};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Stands for what the NIF keeps alive; counted by `Arc`.
type Anchor = Arc<u64>;

#[derive(Debug, Clone, PartialEq)]
enum Term {
    Int(i64),
    Text(Vec<u8>),
    List(Vec<Term>),
    Share(u64),
    Map(BTreeMap<u16, Term>),
}

const ABSENT: i64 = -1;

fn write(term: &Term, anchor: &Anchor, to: &mut Writer<Anchor>) {
    match term {
        Term::Int(value) => to.int(*value),
        Term::Text(text) => to.binary(text),
        Term::List(elements) if elements.is_empty() => to.nil(),
        Term::List(elements) => {
            to.list(elements.len());
            elements
                .iter()
                .for_each(|element| write(element, anchor, to));
        }
        Term::Share(id) => to.share(*id, anchor.clone()),
        Term::Map(entries) => {
            let mut map = to.begin_map();
            for key in entries.keys() {
                write_key(*key, anchor, to);
                to.end_key(&map);
            }
            assert!(to.end_keys(&map));
            let values: Vec<_> = entries.values().collect();
            while let Some(index) = to.next_value(&mut map) {
                write(values[index], anchor, to);
            }
        }
    }
}

/// Keys of different lengths, and some that hold a link.
fn write_key(key: u16, anchor: &Anchor, to: &mut Writer<Anchor>) {
    if key.is_multiple_of(7) {
        to.share(u64::from(key), anchor.clone());
    } else {
        to.binary(&vec![b'k'; usize::from(key % 40)]);
        // The same length for several keys: the number tells them apart.
    }
}

fn packed(term: &Term, anchor: &Anchor) -> Packed<Anchor> {
    let mut writer = Writer::new();
    write(term, anchor, &mut writer);
    writer.finish()
}

fn key(key: u16, anchor: &Anchor) -> Packed<Anchor> {
    let mut writer = Writer::new();
    write_key(key, anchor, &mut writer);
    writer.finish()
}

fn views(keys: &[Packed<Anchor>]) -> Vec<View<'_, Anchor>> {
    keys.iter().map(Packed::view).collect()
}

/// Keys by the bytes that [`write_key`] gives them: several numbers may name the same key.
fn canonical(key: u16) -> u16 {
    if key.is_multiple_of(7) {
        key
    } else {
        // The least number that is no multiple of 7 and has the same remainder.
        (0..=u16::MAX)
            .find(|n| !n.is_multiple_of(7) && n % 40 == key % 40)
            .unwrap_or(key)
    }
}

fn normal(term: &Term) -> Term {
    match term {
        Term::List(elements) => Term::List(elements.iter().map(normal).collect()),
        Term::Map(entries) => Term::Map(
            entries
                .iter()
                .map(|(key, value)| (canonical(*key), normal(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

fn same(view: View<'_, Anchor>, expected: &Term, anchor: &Anchor) -> bool {
    let view = view.resolve();
    match (item(view.bytes, &mut 0).unwrap(), expected) {
        (Item::Map(_) | Item::Trie(_), Term::Map(entries)) => {
            let mut count = 0;
            erlmcp_memory_core::map::for_each_of(view, |_, _| count += 1);
            count == entries.len()
                && entries.iter().all(|(k, value)| {
                    view.find(&[key(*k, anchor)])
                        .is_some_and(|found| same(found, value, anchor))
                })
        }
        (Item::Map(_) | Item::Trie(_), _) => false,
        _ => view.bytes == packed(expected, anchor).bytes(),
    }
}

/// Every link that occurs in the bytes is in the links, and no other.
fn links_fit(bytes: &[u8], links: &Links<Anchor>) {
    let mut ids = Vec::new();
    collect(bytes, &mut ids);
    ids.sort_unstable();
    assert!(
        ids.iter().copied().eq(links.ids()),
        "links and bytes differ"
    );
    for (_, target) in links.iter() {
        match target {
            Target::Anchor(_) => {}
            Target::Blob(blob) => links_fit(blob.bytes(), blob.links()),
            Target::Trie(node) => node.each_page(&mut |page| links_fit(page.bytes(), page.links())),
        }
    }
}

fn collect(bytes: &[u8], ids: &mut Vec<u64>) {
    let mut at = 0;
    while at < bytes.len() {
        match item(bytes, &mut at).unwrap() {
            Item::Share(id) | Item::Blob(id) | Item::Trie(id) => ids.push(id),
            Item::Map(page) => {
                for (key, value) in page.entries() {
                    collect(key, ids);
                    collect(value, ids);
                }
            }
            _ => {}
        }
    }
}

fn term() -> impl Strategy<Value = Term> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Term::Int),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Term::Text),
        prop::collection::vec(any::<u8>(), 200..600).prop_map(Term::Text),
        (1u64..50).prop_map(|n| Term::Share(n * 1_000_003)),
    ];
    leaf.prop_recursive(3, 60, 12, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Term::List),
            prop::collection::btree_map(0u16..300, inner, 0..12).prop_map(Term::Map),
        ]
    })
}

#[derive(Debug, Clone)]
enum Change {
    Put(Vec<u16>, Term),
    Merge(Vec<u16>, BTreeMap<u16, Term>),
    Remove(Vec<u16>),
}

fn change() -> impl Strategy<Value = Change> {
    let path = || prop::collection::vec(0u16..60, 1..4);
    let map = prop::collection::btree_map(0u16..300, term(), 0..20);
    prop_oneof![
        4 => (path(), term()).prop_map(|(path, value)| Change::Put(path, value)),
        2 => (path(), map).prop_map(|(path, entries)| Change::Merge(path, entries)),
        3 => path().prop_map(Change::Remove),
    ]
}

fn model_put(map: &mut BTreeMap<u16, Term>, path: &[u16], value: Term) -> bool {
    let key = canonical(path[0]);
    if path.len() == 1 {
        map.insert(key, value);
        return true;
    }
    match map.get_mut(&key) {
        Some(Term::Map(below)) => model_put(below, &path[1..], value),
        Some(other) if *other != Term::Int(ABSENT) => false,
        _ => {
            let mut below = BTreeMap::new();
            model_put(&mut below, &path[1..], value);
            map.insert(key, Term::Map(below));
            true
        }
    }
}

fn model_get<'m>(map: &'m BTreeMap<u16, Term>, path: &[u16]) -> Option<&'m Term> {
    let found = map.get(&canonical(path[0]))?;
    match (&path[1..], found) {
        ([], _) => Some(found),
        (rest, Term::Map(below)) => model_get(below, rest),
        _ => None,
    }
}

fn model_remove(map: &mut BTreeMap<u16, Term>, path: &[u16]) -> bool {
    let key = canonical(path[0]);
    if path.len() == 1 {
        return map.remove(&key).is_some();
    }
    match map.get_mut(&key) {
        Some(Term::Map(below)) => model_remove(below, &path[1..]),
        _ => false,
    }
}

/// What was built in a room is what the map became, byte for byte.
fn built_alike(room: &Room, links: Option<Links<Anchor>>, changed: Option<&Map<Anchor>>) {
    if let Some(links) = links {
        let changed = changed
            .expect("a change that is refused is not built")
            .view();
        assert_eq!(room.bytes(), changed.bytes);
        assert!(links.ids().eq(changed.links.ids()));
    }
}

fn check(changes: Vec<Change>) {
    let mut room = Room::default();
    let anchor: Anchor = Arc::new(0);
    let absent = packed(&Term::Int(ABSENT), &anchor);
    let mut model = BTreeMap::new();
    let mut map: Map<Anchor> = Map::default();
    let mut versions = Vec::new();
    for change in changes {
        let keys = |path: &[u16]| path.iter().map(|k| key(*k, &anchor)).collect::<Vec<_>>();
        let before = model.clone();
        let changed = match change {
            Change::Put(path, value) => {
                let value = normal(&value);
                let fits = model_put(&mut model, &path, value.clone());
                let value = packed(&value, &anchor);
                let keys = keys(&path);
                let result = map.put(&views(&keys), value.view(), absent.bytes());
                assert_eq!(result.is_ok(), fits, "{result:?}");
                let links = room.put(map.view(), &views(&keys), value.view());
                built_alike(&room, links, result.as_ref().ok());
                result.ok()
            }
            Change::Merge(path, entries) => {
                let Term::Map(entries) = normal(&Term::Map(entries)) else {
                    unreachable!()
                };
                let merged = match model_get(&model, &path) {
                    Some(Term::Map(below)) => {
                        let mut merged = below.clone();
                        merged.extend(entries.clone());
                        Some(merged)
                    }
                    Some(other) if *other != Term::Int(ABSENT) => None,
                    _ => Some(entries.clone()),
                };
                let fits = merged.is_some_and(|m| model_put(&mut model, &path, Term::Map(m)));
                let entries = packed(&Term::Map(entries), &anchor);
                let keys = keys(&path);
                let result = map.merge(&views(&keys), entries.view(), absent.bytes());
                assert_eq!(result.is_ok(), fits, "{result:?}");
                let links = match views(&keys).as_slice() {
                    [] if entries.links().is_empty() => {
                        let mut rest = Page::of(entries.bytes()).unwrap().entries();
                        let whole: Vec<_> = std::iter::from_fn(|| rest.next_whole()).collect();
                        room.put_all(map.view(), &whole)
                    }
                    [key] => room.merge(map.view(), *key, entries.view()),
                    _ => None,
                };
                built_alike(&room, links, result.as_ref().ok());
                result.ok()
            }
            Change::Remove(path) => {
                let there = model_remove(&mut model, &path);
                let result = map.remove(&views(&keys(&path)));
                assert_eq!(result.is_some(), there);
                result
            }
        };
        match changed {
            Some(changed) => versions.push((std::mem::replace(&mut map, changed), before)),
            None => assert_eq!(model, before, "a refused change changed the model"),
        }
        links_fit(map.view().bytes, map.view().links);
    }
    versions.push((map, model));
    for (map, model) in &versions {
        assert_eq!(map.len(), model.len());
        assert!(same(map.view(), &Term::Map(model.clone()), &anchor));
    }
    drop(versions);
    assert_eq!(Arc::strong_count(&anchor), 1, "an anchor was left behind");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn agrees_with_the_model(changes in prop::collection::vec(change(), 1..40)) {
        check(changes);
    }
}

/// A packed map of numbers; `write` writes the value of each.
fn numbered<A: packed::Anchor>(
    keys: impl IntoIterator<Item = u32>,
    mut write: impl FnMut(u32, &mut Writer<A>),
) -> Packed<A> {
    let mut writer = Writer::new();
    let mut map = writer.begin_map();
    let keys: Vec<_> = keys.into_iter().collect();
    for n in &keys {
        writer.binary(&n.to_be_bytes());
        writer.end_key(&map);
    }
    assert!(writer.end_keys(&map));
    while let Some(index) = writer.next_value(&mut map) {
        write(keys[index], &mut writer);
    }
    writer.finish()
}

fn contents<A: packed::Anchor>(map: View<'_, A>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    erlmcp_memory_core::map::for_each_of(map, |key, value| {
        let value = value.resolve().bytes.to_vec();
        assert!(found.insert(key.to_vec(), value).is_none(), "a key twice");
    });
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Maps of any size, in line and out of line, with values in line, out of line and with links.
    #[test]
    fn a_merge_is_what_its_entries_put_one_by_one_are(
        old in prop::collection::btree_map(0u32..4_000, 0usize..400, 0..1_500),
        new in prop::collection::btree_map(0u32..4_000, 0usize..400, 0..1_500),
    ) {
        let anchor: Anchor = Arc::new(0);
        let map_of = |values: &BTreeMap<u32, usize>, byte: u8| {
            numbered(values.keys().copied(), |key, to| match values[&key] {
                size if size % 5 == 0 => to.share(size as u64 + u64::from(byte), anchor.clone()),
                size => to.binary(&vec![byte; size / (1 + size % 3 * 20)]),
            })
        };
        let (old, new) = (map_of(&old, 1), map_of(&new, 2));
        let before = Map::from_packed(old.view().to_packed()).unwrap();
        let mut one_by_one = Map::from_packed(old.view().to_packed()).unwrap();
        for (key, value) in Page::of(new.bytes()).unwrap().entries() {
            let (key, value) = (View::new(key, new.links()), View::new(value, new.links()));
            one_by_one = one_by_one.put(&[key], value, b"").unwrap();
        }
        let merged = before.merge(&[], new.view(), b"").unwrap();
        let mut buffer = MapBuf::default();
        buffer.merge(old.view());
        buffer.merge(new.view());
        let expected = contents(one_by_one.view());
        prop_assert_eq!(merged.len(), expected.len());
        prop_assert_eq!(&contents(merged.view()), &expected);
        prop_assert_eq!(&buffer.view().map(contents).unwrap_or_default(), &expected);
        prop_assert_eq!(contents(before.view()), contents(old.view()), "an older version changed");
        links_fit(merged.view().bytes, merged.view().links);
        if let Some(view) = buffer.view() {
            links_fit(view.bytes, view.links);
        }
        drop((old, new, before, one_by_one, merged, buffer));
        prop_assert_eq!(Arc::strong_count(&anchor), 1, "an anchor was left behind");
    }
}

/// An anchor that counts how often anchors are cloned: once whenever a page with its link is
/// written.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Clone for Counted {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(&self.0))
    }
}

impl packed::Anchor for Counted {}

#[test]
fn a_merge_writes_no_page_once_for_each_of_its_entries() {
    let clones = Arc::new(AtomicUsize::new(0));
    let linked = |keys: std::ops::Range<u32>| {
        numbered(keys, |n, to| {
            to.share(u64::from(n), Counted(Arc::clone(&clones)));
        })
    };
    let (old, new) = (linked(0..8_000), linked(4_000..12_000));
    let mut buffer = MapBuf::default();
    buffer.merge(old.view());
    let map = Map::from_packed(old).unwrap();
    for merge in [0, 1] {
        let before = clones.load(Ordering::Relaxed);
        if merge == 0 {
            buffer.merge(new.view());
        } else {
            assert_eq!(map.merge(&[], new.view(), b"").unwrap().len(), 12_000);
        }
        // Into the merged page, and into the pages that it is split into.
        let cloned = clones.load(Ordering::Relaxed) - before;
        assert!(cloned <= 3 * 12_000, "{cloned}");
    }
}

#[test]
fn a_large_map_grows_and_shrinks_by_single_keys() {
    let anchor: Anchor = Arc::new(0);
    let numbered = |n: u32| {
        let mut writer = Writer::<Anchor>::new();
        writer.binary(&n.to_be_bytes());
        writer.finish()
    };
    let mut map = Map::default();
    for n in 0..5_000 {
        let value = packed(&Term::Int(i64::from(n)), &anchor);
        map = map.put(&[numbered(n).view()], value.view(), b"").unwrap();
    }
    assert_eq!(map.len(), 5_000);
    for n in 0..5_000u32 {
        let found = map.get(&[numbered(n)]).unwrap();
        assert_eq!(
            found.bytes,
            packed(&Term::Int(i64::from(n)), &anchor).bytes()
        );
    }
    let large = map.heap_bytes();
    for n in (1..5_000).rev() {
        map = map.remove(&[numbered(n).view()]).unwrap();
        assert_eq!(map.len(), n as usize);
    }
    // What is left is small, and takes what a small map takes.
    let one = packed(&Term::Int(0), &anchor);
    let fresh = Map::default()
        .put(&[numbered(0).view()], one.view(), b"")
        .unwrap();
    assert_eq!(map.heap_bytes(), fresh.heap_bytes());
    assert!(large > 50 * map.heap_bytes());
}

#[test]
fn a_map_made_at_once_equals_one_made_by_single_keys() {
    let anchor: Anchor = Arc::new(0);
    let entries: BTreeMap<u16, Term> = (0..280)
        .filter(|n| n % 7 == 0)
        .map(|n| (n, Term::Text(vec![b'v'; usize::from(n)])))
        .collect();
    let whole = Map::from_packed(packed(&Term::Map(entries.clone()), &anchor)).unwrap();
    assert_eq!(whole.len(), entries.len());
    assert!(same(whole.view(), &Term::Map(entries), &anchor));
}

#[test]
fn a_path_through_what_is_no_map_says_where() {
    let anchor: Anchor = Arc::new(0);
    let one = packed(&Term::Int(1), &anchor);
    let keys = [1, 2, 3].map(|k| key(k, &anchor));
    let path = views(&keys);
    let map = Map::default().put(&path[..2], one.view(), b"").unwrap();
    assert_eq!(
        map.put(&path, one.view(), b"").unwrap_err(),
        EditError::NotAMap(1)
    );
    assert_eq!(
        map.put(&[], one.view(), b"").unwrap_err(),
        EditError::PathLength
    );
}

#[test]
fn page_of_what_is_no_map() {
    assert!(Page::of(b"").is_none());
    assert!(Page::of(&[5]).is_none());
}

proptest! {
    /// Whatever the bytes, reading them ends without a panic.
    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut at = 0;
        while at < bytes.len() && item(&bytes, &mut at).is_ok() {}
        let mut at = 0;
        let _ = erlmcp_memory_core::packed::skip(&bytes, &mut at);
        if let Some(page) = Page::of(&bytes) {
            let _ = page.entries().count();
            let _ = page.find(&[1]);
        }
    }
}
