//! The reader of the packed form, and maps of packed values.

use super::canonical::{canonical, equal};
use super::host::Kept;
use super::memory;
use super::terms::{self, Script};
use erlmcp_memory_core::map::{self, Map};
use erlmcp_memory_core::packed::{Item, Links, Packed, Page, View, item, skip};
use std::collections::BTreeMap;

/// What a map may take, in bytes for one of its packed form.
const FACTOR: usize = 64;
const FIXED: usize = 16 << 10;

pub fn run(input: &[u8]) {
    any_bytes(input);
    let links = Links::default();
    // What follows the format has one canonical form,
    let Some(value) = canonical(View::new(input, &links)) else {
        return;
    };
    let again = canonical(value.view());
    assert!(again.is_some_and(|again| equal(&again, &value)));
    // in which a map is searched and changed.
    if Page::of(value.bytes()).is_some() {
        a_map(value);
    }
}

/// What must hold of any bytes: they are read to some end.
fn any_bytes(input: &[u8]) {
    memory::at_most(0, || {
        let mut at = 0;
        while let Ok(read) = item(input, &mut at) {
            assert!(at <= input.len());
            if let Item::Map(page) = read {
                a_page(page, input);
            }
        }
        let mut end = 0;
        if skip(input, &mut end).is_ok() {
            assert!(0 < end && end <= input.len());
        }
    });
    // Links of many ids, so that bytes with links are looked through.
    let mut writer = erlmcp_memory_core::packed::Writer::new();
    for id in 0..8 {
        writer.share(id, Kept::Object([].into()));
    }
    let with_links = writer.finish();
    let view = View::new(input, with_links.links());
    let _ = view.out_of_line_bytes();
    let own = view.to_packed();
    assert!(own.links().len() <= input.len());
    let _ = view.resolve();
    // Paths of the first keys of a map, and of what is none.
    let mut path: Vec<&[u8]> = Vec::new();
    let mut here = view;
    while let Some((key, _)) = Page::of(here.bytes).and_then(|page| page.entries().next()) {
        path.push(key);
        match view.find(&path) {
            Some(below) => here = below,
            None => break,
        }
    }
    let _ = view.find(&[input]);
    memory::at_most(FIXED + FACTOR * input.len(), || {
        if let Some(map) = Map::<Kept>::from_packed(Packed::from_bytes(input)) {
            let mut entries = 0;
            map.for_each(|_, _| entries += 1);
            assert!(entries <= input.len());
            let _ = (map.len(), map.heap_bytes());
        }
    });
}

fn a_page(page: Page<'_>, input: &[u8]) {
    let mut bytes = 0;
    for (key, value) in page.entries() {
        bytes += key.len() + value.len();
        let _ = page.find(key);
    }
    assert!(bytes <= page.body().len());
    let _ = page.find(input);
    let _ = page.find(&[]);
}

/// Every entry of a map is found by its key.
pub fn find_all(map: View<'_, Kept>) {
    let mut entries = 0;
    map::for_each_of(map, |key, value| {
        entries += 1;
        let found = map.find(&[key]).expect("a key of the map");
        assert_eq!(found.bytes, value.resolve().bytes);
    });
    assert_eq!(Some(entries), map::len_of(map));
}

/// A map behaves as a sorted one does, while every second key goes, comes again, and gets another
/// value.
fn a_map(value: Packed<Kept>) {
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = Page::of(value.bytes())
        .into_iter()
        .flat_map(|page| page.entries())
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .collect();
    let whole = Page::of(value.bytes()).map_or(0, |page| page.len());
    assert_eq!(model.len(), whole, "sorted keys that differ");
    let Some(mut map) = Map::from_packed(Packed::from_bytes(value.bytes())) else {
        panic!("no map")
    };
    agree(&map, &model);
    let links = Links::default();
    let changed: Vec<_> = model
        .iter()
        .step_by(2)
        .take(32)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    for (key, _) in &changed {
        map = map
            .remove(&[View::new(key, &links)])
            .expect("a key of the map");
        model.remove(key);
        assert!(map.get(&[key]).is_none());
    }
    agree(&map, &model);
    for (key, old) in changed {
        for value in [key.clone(), old] {
            let path = [View::new(&key, &links)];
            map = map
                .put(&path, View::new(&value, &links), &[])
                .expect("a path of one key");
            model.insert(key.clone(), value);
        }
    }
    agree(&map, &model);
}

fn agree(map: &Map<Kept>, model: &BTreeMap<Vec<u8>, Vec<u8>>) {
    find_all(map.view());
    let expected = Page::build(model.iter().map(|(key, value)| (&key[..], &value[..])));
    let in_one_piece = canonical(map.view()).expect("what is stored is read");
    assert_eq!(in_one_piece.bytes(), &*expected);
}

/// A value, made as a script says, without its links.
pub fn seed(script: &[u8]) -> Vec<u8> {
    terms::value(&mut Script(script)).bytes().to_vec()
}
