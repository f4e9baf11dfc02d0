//! The one packed form that a value has: a second reader of it, which shares no code with the
//! first but that of single items.

use super::host::Kept;
use erlmcp_memory_core::packed::{Item, MapBuilder, Packed, Page, Target, View, Writer, item};

/// A value read and written anew, in one piece: parts that lie out of line lie in it. `None` if it
/// does not follow the format.
pub fn canonical(value: View<'_, Kept>) -> Option<Packed<Kept>> {
    let mut writer = Writer::new();
    write(value, &mut writer)?;
    Some(writer.finish())
}

/// Whether two values are equal: packed bytes are, and so are the ids of the links in them.
pub fn equal(a: &Packed<Kept>, b: &Packed<Kept>) -> bool {
    a.bytes() == b.bytes() && a.links().ids().eq(b.links().ids())
}

type Pair<'a> = (View<'a, Kept>, View<'a, Kept>);

/// What is written next. A value may nest deeper than the stack of a thread.
enum Next<'a> {
    /// This many values from the current bytes.
    Values(usize),
    /// The tail of an improper list.
    Tail,
    /// The bytes at hand must be read to their end, and reading goes on at others.
    End(View<'a, Kept>, usize),
    /// The keys of a map, from this one on, and its values then.
    Keys(MapBuilder, Vec<Pair<'a>>, usize),
    Entries(MapBuilder, Vec<Pair<'a>>),
}

fn write(value: View<'_, Kept>, to: &mut Writer<Kept>) -> Option<()> {
    let (mut here, mut at) = (value, 0);
    let mut stack = vec![Next::Values(1)];
    while let Some(next) = stack.pop() {
        match next {
            Next::Values(0) => {}
            Next::Values(left) => {
                stack.push(Next::Values(left - 1));
                one(&mut here, &mut at, &mut stack, to)?;
            }
            Next::Tail => {
                let tail = item(here.bytes, &mut { at }).ok()?;
                if matches!(
                    tail,
                    Item::Nil | Item::ByteList(_) | Item::List(_) | Item::Improper(_)
                ) {
                    return None;
                }
                one(&mut here, &mut at, &mut stack, to)?;
            }
            Next::End(outer, outer_at) => {
                if at != here.bytes.len() {
                    return None;
                }
                (here, at) = (outer, outer_at);
            }
            Next::Keys(map, entries, next) => {
                if next > 0 {
                    to.end_key(&map);
                }
                if let Some((key, _)) = entries.get(next) {
                    let key = *key;
                    stack.push(Next::Keys(map, entries, next + 1));
                    inside(key, &mut here, &mut at, &mut stack);
                } else {
                    to.end_keys(&map).then_some(())?;
                    stack.push(Next::Entries(map, entries));
                }
            }
            Next::Entries(mut map, entries) => {
                if let Some(index) = to.next_value(&mut map) {
                    let value = entries[index].1;
                    stack.push(Next::Entries(map, entries));
                    inside(value, &mut here, &mut at, &mut stack);
                }
            }
        }
    }
    (at == here.bytes.len()).then_some(())
}

/// Goes on with one value, and returns to where it was.
fn inside<'a>(
    value: View<'a, Kept>,
    here: &mut View<'a, Kept>,
    at: &mut usize,
    stack: &mut Vec<Next<'a>>,
) {
    stack.push(Next::End(*here, *at));
    stack.push(Next::Values(1));
    (*here, *at) = (value, 0);
}

/// Writes an item, or the head of one.
fn one<'a>(
    here: &mut View<'a, Kept>,
    at: &mut usize,
    stack: &mut Vec<Next<'a>>,
    to: &mut Writer<Kept>,
) -> Option<()> {
    let anchor = |id| match here.links.get(id) {
        Some(Target::Anchor(anchor)) => Some(anchor.clone()),
        _ => None,
    };
    let read = item(here.bytes, at).ok()?;
    match read {
        Item::Int(value) => to.int(value),
        Item::Float(value) => to.float(value),
        Item::Atom(word) => to.atom(word),
        Item::Pid(word) => to.pid(word),
        Item::Port(word) => to.port(word),
        Item::Nil => to.nil(),
        Item::ByteList(bytes) if !bytes.is_empty() => to.byte_list(bytes.iter().copied()),
        Item::Binary(bytes) => to.binary(bytes),
        Item::Reference(numbers) => to.reference(numbers),
        Item::Opaque(external) => to.opaque(external),
        Item::Foreign { id, numbers } => to.foreign(id, numbers, anchor(id)?),
        Item::Handle(id) => to.handle(id, anchor(id)?),
        Item::Share(id) => to.share(id, anchor(id)?),
        Item::Blob(id) => match here.links.get(id) {
            Some(Target::Blob(blob)) => inside(blob.view(), here, at, stack),
            _ => return None,
        },
        Item::Trie(id) => match here.links.get(id) {
            Some(Target::Trie(node)) => {
                let mut entries = Vec::with_capacity(node.len());
                node.for_each(&mut |key, value: View<'a, Kept>| {
                    entries.push((View::new(key, value.links), value));
                });
                stack.push(Next::Keys(to.begin_map(), entries, 0));
            }
            _ => return None,
        },
        Item::Map(page) => {
            let entries = entries(page, *here)?;
            stack.push(Next::Keys(to.begin_map(), entries, 0));
        }
        Item::List(n) => {
            let mut ahead = *at;
            let only_bytes =
                (0..n).all(|_| matches!(item(here.bytes, &mut ahead), Ok(Item::Int(0..=255))));
            // These have a form of their own, and so has the empty list.
            (!only_bytes).then_some(())?;
            to.list(n);
        }
        Item::Improper(n) if n > 0 => {
            to.improper(n);
            stack.extend([Next::Tail, Next::Values(n)]);
            return Some(());
        }
        Item::Tuple(n) => to.tuple(n),
        Item::Fun(free) => to.fun(free),
        Item::Export => to.export(),
        Item::Record(fields) => to.record(fields),
        Item::ByteList(_)
        | Item::Improper(_)
        | Item::Entries(_)
        | Item::Part(_)
        | Item::Run { .. } => {
            return None;
        }
    }
    if read.following() > 0 {
        stack.push(Next::Values(read.following()));
    }
    Some(())
}

fn entries<'a>(page: Page<'a>, of: View<'a, Kept>) -> Option<Vec<Pair<'a>>> {
    let pairs: Vec<_> = page
        .entries()
        .map(|(key, value)| (View::new(key, of.links), View::new(value, of.links)))
        .collect();
    (pairs.len() == page.len()).then_some(pairs)
}
