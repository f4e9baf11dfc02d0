//! What a packed value is, in a few words.

use crate::map::{self, Node};
use crate::packed::{Anchor, Item, Page, Target, View, item};
use std::fmt::Write;

/// Keys of a map that are named.
const KEYS: usize = 6;

/// The longest key that is named, in bytes.
const KEY: usize = 40;

/// What a value is and, for a map, what its first keys are: `map of 3: name, tools, version`.
/// Values are not shown. `atom` names an atom by the host's word for it.
pub fn outline<A: Anchor>(value: View<'_, A>, atom: impl Fn(u64) -> Option<String>) -> String {
    let value = value.resolve();
    if let Some(len) = map::len_of(value) {
        return of_map(value, len, atom);
    }
    match item(value.bytes, &mut 0) {
        Ok(Item::Int(_)) => "integer".into(),
        Ok(Item::Float(_)) => "float".into(),
        Ok(Item::Atom(word)) => atom(word).map_or("atom".into(), |name| format!("atom {name}")),
        Ok(Item::Pid(_)) => "process".into(),
        Ok(Item::Port(_)) => "port".into(),
        Ok(Item::Nil) => "empty list".into(),
        Ok(Item::ByteList(bytes)) => format!("list of {}", bytes.len()),
        Ok(Item::List(len)) => format!("list of {len}"),
        Ok(Item::Improper(len)) => format!("improper list of {len}"),
        Ok(Item::Tuple(len)) => format!("tuple of {len}"),
        Ok(Item::Fun(_) | Item::Export) => "fun".into(),
        Ok(Item::Record(len)) => format!("record of {len}"),
        Ok(Item::Binary(bytes)) => format!("binary of {} bytes", bytes.len()),
        Ok(Item::Reference(_) | Item::Foreign { .. } | Item::Handle(_)) => "reference".into(),
        Ok(Item::Share(_)) => "share".into(),
        Ok(
            Item::Opaque(_)
            | Item::Blob(_)
            | Item::Trie(_)
            | Item::Map(_)
            | Item::Entries(_)
            | Item::Part(_)
            | Item::Run { .. },
        )
        | Err(_) => "term".into(),
    }
}

fn of_map<A: Anchor>(
    value: View<'_, A>,
    len: usize,
    atom: impl Fn(u64) -> Option<String>,
) -> String {
    let mut text = format!("map of {len}");
    let first = match value.target() {
        Some(Target::Trie(node)) => first_page(node),
        _ => Page::of(value.bytes),
    };
    let entries = first.into_iter().flat_map(|page| page.entries());
    let name = |key: &[u8]| match item(key, &mut 0) {
        Ok(Item::Atom(word)) => atom(word),
        Ok(Item::Binary(bytes)) if bytes.len() <= KEY => {
            Some(String::from_utf8_lossy(bytes).escape_debug().to_string())
        }
        Ok(Item::Int(int)) => Some(int.to_string()),
        _ => None,
    };
    let names = entries.take(KEYS).filter_map(|(key, _)| name(key));
    let mut before = ": ";
    let mut named = 0;
    for name in names {
        let _ = write!(text, "{before}{name}");
        (before, named) = (", ", named + 1);
    }
    if named > 0 && named < len {
        text.push_str(", ...");
    }
    text
}

/// A page of the map.
fn first_page<A: Anchor>(mut node: &Node<A>) -> Option<Page<'_>> {
    loop {
        match node {
            Node::Leaf(page, _) => return Page::of(page.bytes()),
            Node::Branch { children, .. } => node = children.iter().flatten().next()?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Map;
    use crate::packed::{Packed, Writer};
    use std::sync::Arc;

    type Value = Packed<Arc<str>>;

    fn packed(write: impl FnOnce(&mut Writer<Arc<str>>)) -> Value {
        let mut writer = Writer::new();
        write(&mut writer);
        writer.finish()
    }

    fn map(keys: usize) -> Value {
        let key = |n: usize| packed(|writer| writer.binary(format!("key {n:04}").as_bytes()));
        let keys: Vec<_> = (0..keys).map(key).collect();
        let pairs = keys.iter().map(|key| (key.bytes(), &[7u8][..]));
        let page = Page::build(pairs);
        Map::from_packed(Packed::new(page, Default::default()))
            .map(Map::into_packed)
            .expect("a map")
    }

    fn text(value: &Value) -> String {
        outline(value.view(), |word| Some(format!("atom{word}")))
    }

    #[test]
    fn what_a_value_is_is_told_and_nothing_of_its_values() {
        assert_eq!(text(&packed(|w| w.binary(b"secret"))), "binary of 6 bytes");
        assert_eq!(text(&packed(|w| w.atom(5))), "atom atom5");
        assert_eq!(text(&map(0)), "map of 0");
        assert_eq!(text(&map(2)), "map of 2: key 0000, key 0001");
        let many = text(&map(7));
        assert!(many.starts_with("map of 7: key 0000, ") && many.ends_with(", ..."));
    }

    #[test]
    fn a_large_map_is_told_by_one_of_its_pages() {
        let many = text(&map(5_000));
        assert!(many.starts_with("map of 5000: key "), "{many}");
        assert!(many.len() < 100);
    }
}
