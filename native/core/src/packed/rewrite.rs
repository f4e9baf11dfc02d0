//! Writing a value anew, item by item: the walk that writers of other formats have in common.

use super::{Anchor, Item, MAX_DEPTH, MapBuilder, Page, ReadError, Target, View, Writer, item, skip};

/// What a [`rewrite`] makes of the items that it meets.
pub trait Rewrite {
    /// What the value that is read keeps alive.
    type From: Anchor;
    /// What the value that is written keeps alive.
    type To: Anchor;
    /// Why it may end early. A read error: the bytes do not follow the format, nest too deep, or
    /// have a key twice.
    type Error: From<ReadError>;

    /// Writes an item that nothing follows; `in_key` inside a key of a map.
    fn leaf(
        &mut self,
        leaf: Item<'_>,
        from: View<'_, Self::From>,
        in_key: bool,
        to: &mut Writer<Self::To>,
    ) -> Result<(), Self::Error>;

    /// Looks at an item that others follow, which stand in `rest`, before it is written.
    fn head(&mut self, head: Item<'_>, rest: &[u8]) -> Result<(), Self::Error>;

    /// Looks at the tail of an improper list before it is written.
    fn tail(&mut self, tail: Item<'_>) -> Result<(), Self::Error>;
}

/// Where the walk goes on.
enum Frame<'a, A> {
    /// So many values stand in the bytes at hand.
    Values(usize),
    /// The tail of an improper list stands there.
    Tail,
    /// At other bytes.
    Resume(View<'a, A>, usize),
    /// The keys of a map, from the one of this number on. Its entries are the topmost ones.
    Keys(MapBuilder, usize),
    /// The values of a map.
    Map(MapBuilder),
}

/// Writes a value to `to` as `host` has it. Values out of line come in their place.
pub fn rewrite<R: Rewrite>(
    value: View<'_, R::From>,
    to: &mut Writer<R::To>,
    host: &mut R,
) -> Result<(), R::Error> {
    let (mut here, mut at) = (value, 0);
    let mut frames = vec![Frame::Values(1)];
    // The entries of the maps that are open, and where those of each begin.
    let mut entries: Vec<(View<'_, R::From>, View<'_, R::From>)> = Vec::new();
    let mut first: Vec<usize> = Vec::new();
    // Maps of which a key is being written.
    let mut keys = 0;
    while let Some(frame) = frames.pop() {
        match frame {
            Frame::Values(left) => match left {
                0 => continue,
                1 => {}
                _ => frames.push(Frame::Values(left - 1)),
            },
            Frame::Tail => host.tail(item(here.bytes, &mut { at })?)?,
            Frame::Resume(view, from) => {
                (here, at) = (view, from);
                continue;
            }
            Frame::Keys(map, next) => {
                let own = &entries[first.last().copied().unwrap_or(0)..];
                if next > 0 {
                    to.end_key(&map);
                    keys -= 1;
                }
                match own.get(next) {
                    Some((key, _)) => {
                        keys += 1;
                        (here, at) = (*key, 0);
                        frames.push(Frame::Keys(map, next + 1));
                    }
                    None => {
                        if !to.end_keys(&map) {
                            return Err(ReadError.into());
                        }
                        frames.push(Frame::Map(map));
                        continue;
                    }
                }
            }
            Frame::Map(mut map) => {
                let own = first.last().copied().unwrap_or(0);
                match to.next_value(&mut map) {
                    Some(index) => {
                        (here, at) = (entries[own + index].1, 0);
                        frames.push(Frame::Map(map));
                    }
                    None => {
                        entries.truncate(own);
                        first.pop();
                        continue;
                    }
                }
            }
        }
        if frames.len() > MAX_DEPTH {
            return Err(ReadError.into());
        }
        let next = item(here.bytes, &mut at)?;
        match next {
            Item::Blob(_) | Item::Trie(_) | Item::Map(_) => {
                frames.push(Frame::Resume(here, at));
                match next {
                    Item::Blob(id) => match here.links.get(id) {
                        Some(Target::Blob(blob)) => {
                            (here, at) = (blob.view(), 0);
                            frames.push(Frame::Values(1));
                        }
                        _ => return Err(ReadError.into()),
                    },
                    Item::Trie(id) => match here.links.get(id) {
                        Some(Target::Trie(node)) => {
                            first.push(entries.len());
                            let mut outcome = Ok(());
                            node.each_page(&mut |packed| {
                                if let Some(page) = Page::of(packed.bytes()) {
                                    let page = View::new(page.body(), packed.links());
                                    outcome = outcome.and(each_entry(page, &mut entries));
                                }
                            });
                            outcome?;
                            frames.push(Frame::Keys(to.begin_map(), 0));
                        }
                        _ => return Err(ReadError.into()),
                    },
                    Item::Map(page) => {
                        first.push(entries.len());
                        let count = entries.len() + page.len();
                        each_entry(View::new(page.body(), here.links), &mut entries)?;
                        if entries.len() != count {
                            return Err(ReadError.into());
                        }
                        frames.push(Frame::Keys(to.begin_map(), 0));
                    }
                    _ => {}
                }
            }
            Item::List(_)
            | Item::Improper(_)
            | Item::Tuple(_)
            | Item::Fun(_)
            | Item::Export
            | Item::Record(_) => {
                host.head(next, &here.bytes[at..])?;
                to.head(next);
                let mut following = next.following();
                if let Item::Improper(_) = next {
                    frames.push(Frame::Tail);
                    following -= 1;
                }
                frames.push(Frame::Values(following));
            }
            leaf => host.leaf(leaf, here, keys > 0, to)?,
        }
    }
    Ok(())
}

/// The entries in the body of a map: one key and one value behind the other. Their order, and
/// what the map says of where they begin, is not believed.
fn each_entry<'a, A: Anchor>(
    body: View<'a, A>,
    entries: &mut Vec<(View<'a, A>, View<'a, A>)>,
) -> Result<(), ReadError> {
    let mut at = 0;
    while at < body.bytes.len() {
        let key = at;
        skip(body.bytes, &mut at)?;
        let value = at;
        skip(body.bytes, &mut at)?;
        entries.push((
            View::new(&body.bytes[key..value], body.links),
            View::new(&body.bytes[value..at], body.links),
        ));
    }
    Ok(())
}
