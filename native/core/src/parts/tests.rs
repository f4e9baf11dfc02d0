use super::*;
use std::cell::RefCell;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

#[derive(Debug)]
struct Kept {
    packed: Packed<Arc<Kept>>,
    hash: u64,
    flat: usize,
}

type Value = Packed<Arc<Kept>>;

#[derive(Default)]
struct Known {
    contents: RefCell<Vec<Arc<Kept>>>,
    /// Hashes of what is common.
    common: RefCell<Vec<u64>>,
}

impl Known {
    fn len(&self) -> usize {
        self.contents.borrow().len()
    }
}

fn link(kept: &Arc<Kept>) -> (u64, Arc<Kept>) {
    (Arc::as_ptr(kept).addr() as u64, Arc::clone(kept))
}

impl Contents<Arc<Kept>> for Known {
    fn find(
        &self,
        hash: u64,
        is_equal: &mut dyn FnMut(&Value) -> bool,
    ) -> Option<(u64, Arc<Kept>)> {
        let known = self.contents.borrow();
        let mut of_hash = known.iter().filter(|kept| kept.hash == hash);
        of_hash.find(|kept| is_equal(&kept.packed)).map(link)
    }

    fn add(&self, hash: u64, flat: usize, packed: Value) -> (u64, Arc<Kept>) {
        let kept = Arc::new(Kept { packed, hash, flat });
        self.contents.borrow_mut().push(Arc::clone(&kept));
        link(&kept)
    }

    fn is_shared(&self, _: u64, own: usize) -> bool {
        own > WHOLE
    }

    fn is_common(&self, hash: u64) -> bool {
        self.common.borrow().contains(&hash)
    }

    fn hash_of(&self, anchor: &Arc<Kept>) -> Option<(u64, usize)> {
        Some((anchor.hash, anchor.flat))
    }

    fn content<'a>(&self, anchor: &'a Arc<Kept>) -> Option<&'a Value> {
        Some(&anchor.packed)
    }
}

/// Gives every value the same hash.
#[derive(Default)]
struct Same;

impl Hasher for Same {
    fn write(&mut self, _: &[u8]) {}
    fn finish(&self) -> u64 {
        7
    }
}

type AllSame = BuildHasherDefault<Same>;

fn value(write: impl FnOnce(&mut Writer<Arc<Kept>>)) -> Value {
    let mut writer = Writer::new();
    write(&mut writer);
    writer.finish()
}

/// A map of about this many bytes.
fn tool(to: &mut Writer<Arc<Kept>>, number: i64, size: usize) {
    let mut map = to.begin_map();
    for key in [b"description".as_slice(), b"name", b"number"] {
        to.binary(key);
        to.end_key(&map);
    }
    assert!(to.end_keys(&map));
    while let Some(index) = to.next_value(&mut map) {
        match index {
            // Of different sizes, as tools are.
            0 => to.binary(&vec![b'x'; size + (number as usize * 37) % 500]),
            1 => to.binary(format!("tool {number}").as_bytes()),
            _ => to.int(number),
        }
    }
}

fn state(id: i64, tools: &[i64]) -> Value {
    value(|to| {
        to.tuple(3);
        to.atom(1);
        to.int(id);
        to.list(tools.len());
        for number in tools {
            tool(to, *number, 700);
        }
    })
}

fn take(value: &Value, links: usize, known: &Known) -> Result<Value, Unfit> {
    let parts = Parts::of(value.view(), links, known, &AllSame::default())?;
    Ok(parts.take(value.view(), known))
}

/// All items of a value, with parts in their places.
fn items(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = vec![(value, 0)];
    while let Some((value, mut at)) = rest.pop() {
        while at < value.bytes().len() {
            match item(value.bytes(), &mut at).unwrap() {
                Item::Map(page) => {
                    found.push(format!("map {}", page.len()));
                    at -= page.body().len();
                }
                Item::Entries(len) => found.push(format!("map {len}")),
                Item::Part(id) => {
                    rest.push((value, at));
                    let Some(Target::Anchor(kept)) = value.links().get(id) else {
                        panic!("a part without a link");
                    };
                    rest.push((&kept.packed, 0));
                    break;
                }
                Item::Run { id, len } => {
                    rest.push((value, at));
                    let Some(Target::Anchor(kept)) = value.links().get(id) else {
                        panic!("a run without a link");
                    };
                    let mut behind_head = 0;
                    let head = item(kept.packed.bytes(), &mut behind_head);
                    assert!(matches!(head, Ok(Item::List(own)) if own == len));
                    rest.push((&kept.packed, behind_head));
                    break;
                }
                other => found.push(format!("{other:?}")),
            }
        }
    }
    found
}

#[test]
fn equal_parts_of_two_values_are_one_content() {
    let known = Known::default();
    let tools: Vec<i64> = (1..40).collect();
    let first = take(&state(1, &tools), 0, &known).unwrap();
    let contents = known.len();
    // The tools, the list, and runs of it.
    assert!((42..=48).contains(&contents), "{contents}");
    assert_eq!(first.links().len(), 1);
    let second = take(&state(2, &tools), 0, &known).unwrap();
    assert_eq!(known.len(), contents);
    assert_eq!(items(&first), items(&state(1, &tools)));
    assert_eq!(items(&second), items(&state(2, &tools)));
}

#[test]
fn a_value_that_differs_in_one_part_has_the_others_in_common() {
    let known = Known::default();
    let mut tools: Vec<i64> = (1..40).collect();
    let _first = take(&state(1, &tools), 0, &known).unwrap();
    let contents = known.len();
    let long = |known: &Known| {
        let lens = known.contents.borrow();
        lens[contents..]
            .iter()
            .map(|kept| kept.packed.bytes().len())
            .sum::<usize>()
    };
    for change in 0..3 {
        let before = known.len();
        match change {
            0 => tools[17] = 1000,
            1 => tools.insert(3, 1001),
            _ => drop(tools.remove(30)),
        }
        let other = take(&state(1, &tools), 0, &known).unwrap();
        // The tool, the list, and one run or two.
        assert!((2..=4).contains(&(known.len() - before)), "{change}");
        assert_eq!(items(&other), items(&state(1, &tools)));
    }
    // Three tools, and little else.
    assert!(long(&known) < 3 * 2500 + 1500, "{}", long(&known));
}

#[test]
fn a_map_that_differs_in_one_entry_has_the_others_in_common() {
    let known = Known::default();
    let map = |keys: &[i64]| {
        value(|to| {
            let mut map = to.begin_map();
            for key in keys {
                to.int(*key);
                to.end_key(&map);
            }
            assert!(to.end_keys(&map));
            while let Some(index) = to.next_value(&mut map) {
                tool(to, keys[index], 700);
            }
        })
    };
    let mut keys: Vec<i64> = (1..90).collect();
    let first = take(&map(&keys), 0, &known).unwrap();
    assert!(first.links().len() < 20);
    for key in [1000, 1001] {
        let before = known.len();
        keys.push(key);
        let other = take(&map(&keys), 0, &known).unwrap();
        assert_eq!(items(&other), items(&map(&keys)));
        // Without a run or with one. The map itself has one owner, and is no content.
        assert!((1..=2).contains(&(known.len() - before)));
        keys.pop();
    }
    // In another order: the same.
    keys.reverse();
    let before = known.len();
    let other = take(&map(&keys), 0, &known).unwrap();
    assert_eq!((other.bytes(), known.len()), (first.bytes(), before));
}

#[test]
fn a_link_in_the_place_of_a_part_gives_the_same() {
    let known = Known::default();
    let tools: Vec<i64> = (1..40).collect();
    let flat = state(1, &tools);
    let first = take(&flat, 0, &known).unwrap();
    let (id, target) = first.links().iter().next().unwrap();
    let Target::Anchor(kept) = target else {
        panic!("a part is an anchor");
    };
    let linked = value(|to| {
        to.tuple(3);
        to.atom(1);
        to.int(1);
        to.part(*id, Arc::clone(kept));
    });
    let contents = known.len();
    let second = take(&linked, 1, &known).unwrap();
    assert_eq!(second.bytes(), first.bytes());
    assert_eq!(known.len(), contents);
    // In a map, whose offsets are others then.
    let in_map = |write: &dyn Fn(&mut Writer<Arc<Kept>>)| {
        value(|to| {
            let mut map = to.begin_map();
            for key in 1..9 {
                to.int(key);
                to.end_key(&map);
            }
            assert!(to.end_keys(&map));
            while let Some(index) = to.next_value(&mut map) {
                match index {
                    3 => write(to),
                    other => tool(to, other as i64, 4000),
                }
            }
        })
    };
    let whole = in_map(&|to| {
        to.list(tools.len());
        tools.iter().for_each(|number| tool(to, *number, 700));
    });
    let first = take(&whole, 0, &known).unwrap();
    let contents = known.len();
    let linked = in_map(&|to| to.part(*id, Arc::clone(kept)));
    let second = take(&linked, 1, &known).unwrap();
    assert_eq!(second.bytes(), first.bytes());
    assert_eq!(known.len(), contents);
    assert_eq!(items(&second), items(&whole));
}

#[test]
fn a_link_to_what_is_no_part_there_is_not_taken() {
    let known = Known::default();
    let large = value(|to| {
        to.tuple(9);
        (0..9).for_each(|number| tool(to, number, 700));
    });
    let taken = take(&large, 0, &known).unwrap();
    let (id, target) = taken.links().iter().next().unwrap();
    let Target::Anchor(kept) = target else {
        panic!("a part is an anchor");
    };
    // A tuple that is small enough to be a part as a whole.
    let small = value(|to| {
        to.tuple(2);
        to.tuple(2);
        to.part(*id, Arc::clone(kept));
        to.int(1);
        tool(to, 1, 700);
    });
    assert_eq!(take(&small, 1, &known).map(|_| ()), Err(Unfit));
}

#[test]
fn a_small_value_is_a_content_where_others_have_it() {
    let known = Known::default();
    let state = |id: i64| {
        value(|to| {
            to.tuple(5);
            to.int(id);
            // In a list that is small itself.
            to.list(2);
            to.binary(&[1; 100]);
            to.int(1);
            tool(to, 1, 700);
            to.binary(&[2; 100]);
            to.binary(&[3; COMMON / 2]);
        })
    };
    let own = take(&state(1), 0, &known).unwrap();
    assert_eq!((own.links().len(), known.len()), (1, 1));
    let hash = AllSame::default().hash_one(1);
    known.common.borrow_mut().push(hash);
    let common = take(&state(2), 0, &known).unwrap();
    assert_eq!((common.links().len(), known.len()), (3, 3));
    let other = take(&state(3), 0, &known).unwrap();
    assert_eq!((other.links().len(), known.len()), (3, 3));
    for (id, taken) in [(1, own), (2, common), (3, other)] {
        assert_eq!(items(&taken), items(&state(id)));
    }
}

#[test]
fn values_with_the_same_hash_are_told_apart() {
    let known = Known::default();
    let all: Vec<_> = (0..9)
        .map(|number| state(number, &[number, 5, 6, 7, number + 1, 8, 9]))
        .map(|value| (items(&value), take(&value, 0, &known).unwrap()))
        .collect();
    for (expected, taken) in all {
        assert_eq!(items(&taken), expected);
    }
}

#[test]
fn deep_nesting_takes_no_stack_and_few_parts() {
    let levels = if cfg!(miri) { 2_000 } else { 200_000 };
    let known = Known::default();
    let deep = value(|to| {
        for level in 0..levels {
            to.list(2);
            to.int(level);
        }
        tool(to, 1, 700);
    });
    let taken = take(&deep, 0, &known).unwrap();
    assert!(known.len() < levels as usize / 50);
    assert!(items(&taken) == items(&deep));
    // From above to below, as a host does it.
    let mut rest: Vec<_> = known.contents.take();
    while let Some(kept) = rest.pop() {
        drop(kept);
    }
}

#[test]
fn a_value_of_many_parts_is_taken_apart_into_larger_ones() {
    let known = Known::default();
    let tools: Vec<i64> = (0..2 * MANY as i64).collect();
    let many = state(1, &tools);
    let taken = take(&many, 0, &known).unwrap();
    assert!(known.len() <= MANY);
    assert!(items(&taken) == items(&many));
}

#[test]
fn a_small_value_is_left_as_it_is() {
    let known = Known::default();
    let small = value(|to| tool(to, 1, SMALLEST / 2));
    assert_eq!(take(&small, 0, &known).unwrap().bytes(), small.bytes());
    assert_eq!(known.len(), 0);
}

#[test]
fn places_are_told_as_they_are_counted_on_the_way() {
    let known = Known::default();
    let mut places = Vec::new();
    let taken = take(&state(1, &(1..40).collect::<Vec<_>>()), 0, &known).unwrap();
    each_outer(&taken, &known, |path, _| {
        places.push(path);
        false
    });
    assert_eq!(places, [Path::of_tuple(3, Some(1)).element(0)]);
}
