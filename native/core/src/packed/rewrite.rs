//! Writing a value anew, item by item: the walk that writers of other formats have in common.

use super::{
    Anchor, Item, MAX_DEPTH, MAX_MOVED, MapBuilder, Page, ReadError, Target, View, Writer, item,
    skip,
};

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
    let mut open = OpenMaps::default();
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
                if next > 0 {
                    to.end_key(&map);
                    keys -= 1;
                }
                match open.entry(next) {
                    Some((key, _)) => {
                        keys += 1;
                        (here, at) = (key, 0);
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
            Frame::Map(mut map) => match to.next_value(&mut map) {
                Some(index) => {
                    let (_, value) = open.entry(index).ok_or(ReadError)?;
                    (here, at) = (value, 0);
                    frames.push(Frame::Map(map));
                }
                None => {
                    open.end();
                    continue;
                }
            },
        }
        if frames.len() > MAX_DEPTH || to.moved() > MAX_MOVED {
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
                            open.begin();
                            let mut outcome = Ok(());
                            node.each_page(&mut |packed| {
                                if let Some(page) = Page::of(packed.bytes()) {
                                    outcome = outcome.and(open.add(page, packed.links()));
                                }
                            });
                            outcome?;
                            frames.push(Frame::Keys(to.begin_map(), 0));
                        }
                        _ => return Err(ReadError.into()),
                    },
                    Item::Map(page) => {
                        open.begin();
                        open.add(page, here.links)?;
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

/// The entries of the maps that are being written, the innermost one's last.
struct OpenMaps<'a, A> {
    entries: Vec<Entry>,
    /// The bodies of the maps' pages.
    bodies: Vec<View<'a, A>>,
    /// Where the entries and the bodies of each map begin.
    maps: Vec<(usize, usize)>,
}

/// Where a key, its value and what follows begin in a body. No number is over
/// [`super::MAX_BYTES`].
struct Entry {
    body: u32,
    key: u32,
    value: u32,
    end: u32,
}

impl<A> Default for OpenMaps<'_, A> {
    fn default() -> Self {
        OpenMaps {
            entries: Vec::new(),
            bodies: Vec::new(),
            maps: Vec::new(),
        }
    }
}

impl<'a, A: Anchor> OpenMaps<'a, A> {
    fn begin(&mut self) {
        self.maps.push((self.entries.len(), self.bodies.len()));
    }

    fn end(&mut self) {
        if let Some((entries, bodies)) = self.maps.pop() {
            self.entries.truncate(entries);
            self.bodies.truncate(bodies);
        }
    }

    /// Adds the entries of a page: one key and one value behind the other, sorted by key. What the
    /// page says of where they begin is not believed.
    fn add(&mut self, page: Page<'a>, links: &'a super::Links<A>) -> Result<(), ReadError> {
        let bytes = page.body();
        let body = self.bodies.len() as u32;
        let count = self.entries.len() + page.len();
        let (mut at, mut last): (usize, &[u8]) = (0, &[]);
        while at < bytes.len() {
            let key = at;
            skip(bytes, &mut at)?;
            let value = at;
            if bytes[key..value] <= *last {
                return Err(ReadError);
            }
            last = &bytes[key..value];
            skip(bytes, &mut at)?;
            self.entries.push(Entry {
                body,
                key: key as u32,
                value: value as u32,
                end: at as u32,
            });
        }
        self.bodies.push(View::new(bytes, links));
        if self.entries.len() == count {
            Ok(())
        } else {
            Err(ReadError)
        }
    }

    /// Key and value of an entry of the innermost map.
    fn entry(&self, index: usize) -> Option<(View<'a, A>, View<'a, A>)> {
        let entry = self.entries.get(self.maps.last()?.0 + index)?;
        let body = self.bodies[entry.body as usize];
        let part =
            |from: u32, to: u32| View::new(&body.bytes[from as usize..to as usize], body.links);
        Some((part(entry.key, entry.value), part(entry.value, entry.end)))
    }
}
