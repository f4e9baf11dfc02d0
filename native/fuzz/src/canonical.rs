//! The one packed form that a value has.

use super::host::Kept;
use erlmcp_memory_core::packed::{Item, MAX_DEPTH, Packed, Target, View, Writer, item};

/// The deepest nesting that is looked at: what a snapshot may have.
pub const DEPTH: usize = 2 * MAX_DEPTH;

/// A value read and written anew, in one piece: parts that lie out of line lie in it. `None` if it
/// does not follow the format.
pub fn canonical(value: View<'_, Kept>) -> Option<Packed<Kept>> {
    let mut writer = Writer::new();
    let mut at = 0;
    write(value, &mut at, DEPTH, &mut writer)?;
    (at == value.bytes.len()).then(|| writer.finish())
}

/// Whether two values are equal: packed bytes are, and so are the ids of the links in them.
pub fn equal(a: &Packed<Kept>, b: &Packed<Kept>) -> bool {
    a.bytes() == b.bytes() && a.links().ids().eq(b.links().ids())
}

fn write(from: View<'_, Kept>, at: &mut usize, depth: usize, to: &mut Writer<Kept>) -> Option<()> {
    let below = depth.checked_sub(1);
    let follow = match item(from.bytes, at).ok()? {
        Item::Int(value) => {
            to.int(value);
            0
        }
        Item::Float(value) => {
            to.float(value);
            0
        }
        Item::Atom(word) => {
            to.atom(word);
            0
        }
        Item::Pid(word) => {
            to.pid(word);
            0
        }
        Item::Port(word) => {
            to.port(word);
            0
        }
        Item::Nil => {
            to.nil();
            0
        }
        Item::ByteList(bytes) if !bytes.is_empty() => {
            to.byte_list(bytes.iter().copied());
            0
        }
        Item::Binary(bytes) => {
            to.binary(bytes);
            0
        }
        Item::Reference(numbers) => {
            to.reference(numbers);
            0
        }
        Item::Opaque(external) => {
            to.opaque(external);
            0
        }
        Item::Foreign { id, likeness } => {
            let Some(Target::Anchor(anchor)) = from.links.get(id) else {
                return None;
            };
            to.foreign(id, likeness, anchor.clone());
            0
        }
        Item::Share(id) => {
            let Some(Target::Anchor(anchor)) = from.links.get(id) else {
                return None;
            };
            to.share(id, anchor.clone());
            0
        }
        Item::Blob(id) => {
            let Some(Target::Blob(blob)) = from.links.get(id) else {
                return None;
            };
            write(blob.view(), &mut 0, depth, to)?;
            0
        }
        Item::Trie(id) => {
            let Some(Target::Trie(node)) = from.links.get(id) else {
                return None;
            };
            let mut entries = Vec::with_capacity(node.len());
            node.for_each(&mut |key, value| entries.push((key, value)));
            map(&entries, below?, to)?;
            0
        }
        Item::Map(page) => {
            let entries: Vec<_> = page
                .entries()
                .map(|(key, value)| (key, View::new(value, from.links)))
                .collect();
            if entries.len() != page.len() {
                return None;
            }
            map(&entries, below?, to)?;
            0
        }
        Item::List(n) => {
            to.list(n);
            let mut only_bytes = true;
            for _ in 0..n {
                only_bytes &= matches!(item(from.bytes, &mut at.clone()), Ok(Item::Int(0..=255)));
                write(from, at, below?, to)?;
            }
            // These have a form of their own, and so has the empty list.
            return (!only_bytes).then_some(());
        }
        Item::Improper(n) if n > 0 => {
            to.improper(n);
            for _ in 0..n {
                write(from, at, below?, to)?;
            }
            let tail = item(from.bytes, &mut at.clone()).ok()?;
            if matches!(
                tail,
                Item::Nil | Item::ByteList(_) | Item::List(_) | Item::Improper(_)
            ) {
                return None;
            }
            1
        }
        Item::Tuple(n) => {
            to.tuple(n);
            n
        }
        Item::ByteList(_) | Item::Improper(_) => return None,
    };
    for _ in 0..follow {
        write(from, at, below?, to)?;
    }
    Some(())
}

fn map(entries: &[(&[u8], View<'_, Kept>)], depth: usize, to: &mut Writer<Kept>) -> Option<()> {
    let map = to.begin_map();
    for (key, value) in entries {
        let key_start = to.len();
        whole(View::new(key, value.links), depth, to)?;
        let value_start = to.len();
        whole(*value, depth, to)?;
        to.entry(key_start, value_start);
    }
    to.end_map(map).then_some(())
}

fn whole(value: View<'_, Kept>, depth: usize, to: &mut Writer<Kept>) -> Option<()> {
    let mut at = 0;
    write(value, &mut at, depth, to)?;
    (at == value.bytes.len()).then_some(())
}
