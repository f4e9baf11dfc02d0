//! Rewrites a value item by item: the walk that writers of other formats share.

use super::{
    Anchor, Item, MAX_DEPTH, MAX_FUNS, MAX_KEYS, MapBuilder, Page, ReadError, Target, View, Writer,
    item, skip,
};
use crate::map::MAX_PATH;

/// A value of the greatest depth may have been put at the end of a path.
const MAX_FRAMES: usize = MAX_DEPTH + MAX_PATH;

/// Where an item is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Values around it that are not complete yet.
    pub depth: usize,
    /// Maps with a key being written.
    pub keys: usize,
    /// Funs whose closed-over values are being written.
    pub funs: usize,
}

impl Place {
    /// Whether a value may be there.
    pub fn is_allowed(self) -> bool {
        self.depth <= MAX_FRAMES && self.keys <= MAX_KEYS && self.funs <= MAX_FUNS
    }
}

/// What a [`rewrite`] makes of the items that it meets.
pub trait Rewrite {
    /// What the value that is read keeps alive.
    type From: Anchor;
    /// What the value that is written keeps alive.
    type To: Anchor;
    /// Why it may end early. A read error: the bytes do not follow the format, nest too deep, or
    /// have a key twice.
    type Error: From<ReadError>;

    /// Writes an item that nothing follows.
    fn leaf(
        &mut self,
        leaf: Item<'_>,
        from: View<'_, Self::From>,
        place: Place,
        to: &mut Writer<Self::To>,
    ) -> Result<(), Self::Error>;

    /// Looks at an item that others follow, which stand in `rest`, before it is written.
    fn head(&mut self, head: Item<'_>, rest: &[u8]) -> Result<(), Self::Error>;

    /// Looks at the tail of an improper list before it is written.
    fn tail(&mut self, tail: Item<'_>) -> Result<(), Self::Error>;
}

/// Where the walk continues. Small, because a value of two bytes a level has one for each; what
/// maps need besides is on separate stacks.
enum Frame {
    /// This many values follow in the current bytes.
    Values(usize),
    /// The tail of an improper list is there.
    Tail,
    /// All that a fun closes over was written.
    EndFun,
    /// At the bytes that were left last.
    Resume,
    /// The keys of the innermost map, from this index on.
    Keys(usize),
    /// The values of the innermost map.
    Map,
}

/// Writes a value to `to` as `host` translates it, with values out of line in their places.
pub fn rewrite<R: Rewrite>(
    value: View<'_, R::From>,
    to: &mut Writer<R::To>,
    host: &mut R,
) -> Result<(), R::Error> {
    let (mut here, mut at) = (value, 0);
    let mut frames = vec![Frame::Values(1)];
    let mut left_at = Vec::new();
    let mut open = OpenMaps::default();
    let (mut keys, mut funs) = (0, 0);
    while let Some(frame) = frames.pop() {
        match frame {
            Frame::Values(left) => match left {
                0 => continue,
                1 => {}
                _ => frames.push(Frame::Values(left - 1)),
            },
            Frame::EndFun => {
                funs -= 1;
                continue;
            }
            Frame::Tail => host.tail(item(here.bytes, &mut { at })?)?,
            Frame::Resume => {
                (here, at) = left_at.pop().ok_or(ReadError)?;
                continue;
            }
            Frame::Keys(next) => {
                if next > 0 {
                    to.end_key(open.builder()?);
                    keys -= 1;
                }
                match open.entry(next) {
                    Some((key, _)) => {
                        keys += 1;
                        (here, at) = (key, 0);
                        frames.push(Frame::Keys(next + 1));
                    }
                    None => {
                        if !to.end_keys(open.builder()?) {
                            return Err(ReadError.into());
                        }
                        frames.push(Frame::Map);
                        continue;
                    }
                }
            }
            Frame::Map => match to.next_value(open.builder()?) {
                Some(index) => {
                    let (_, value) = open.entry(index).ok_or(ReadError)?;
                    (here, at) = (value, 0);
                    frames.push(Frame::Map);
                }
                None => {
                    open.end();
                    continue;
                }
            },
        }
        let place = Place {
            depth: frames.len(),
            keys,
            funs,
        };
        if !place.is_allowed() {
            return Err(ReadError.into());
        }
        let next = item(here.bytes, &mut at)?;
        match next {
            Item::Blob(_) | Item::Trie(_) | Item::Map(_) => {
                // Other frames go on at places of their own. So a map in a map is one frame.
                if let Some(Frame::Values(_) | Frame::Tail | Frame::EndFun) = frames.last() {
                    frames.push(Frame::Resume);
                    left_at.push((here, at));
                }
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
                            open.begin(to.begin_map());
                            let mut outcome = Ok(());
                            node.each_page(&mut |packed| {
                                if let Some(page) = Page::of(packed.bytes()) {
                                    outcome = outcome.and(open.add(page, packed.links()));
                                }
                            });
                            outcome?;
                            frames.push(Frame::Keys(0));
                        }
                        _ => return Err(ReadError.into()),
                    },
                    Item::Map(page) => {
                        open.begin(to.begin_map());
                        open.add(page, here.links)?;
                        frames.push(Frame::Keys(0));
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
                if let Item::Fun(_) = next {
                    funs += 1;
                    frames.push(Frame::EndFun);
                }
                frames.push(Frame::Values(following));
            }
            leaf => host.leaf(leaf, here, place, to)?,
        }
    }
    Ok(())
}

/// The entries of the maps that are being written, the innermost one's last.
struct OpenMaps<'a, A> {
    entries: Vec<Entry>,
    /// The bodies of the maps' pages.
    bodies: Vec<View<'a, A>>,
    maps: Vec<OpenMap>,
}

/// A map that is being written, and where its entries and bodies begin.
struct OpenMap {
    builder: MapBuilder,
    entries: usize,
    bodies: usize,
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
    fn begin(&mut self, builder: MapBuilder) {
        self.maps.push(OpenMap {
            builder,
            entries: self.entries.len(),
            bodies: self.bodies.len(),
        });
    }

    fn end(&mut self) {
        if let Some(map) = self.maps.pop() {
            self.entries.truncate(map.entries);
            self.bodies.truncate(map.bodies);
        }
    }

    /// That of the innermost map.
    fn builder(&mut self) -> Result<&mut MapBuilder, ReadError> {
        Ok(&mut self.maps.last_mut().ok_or(ReadError)?.builder)
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
            // Byte by byte: keys are short and differ early, where a call of memcmp takes longer.
            if !last.iter().lt(&bytes[key..value]) {
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
        let entry = self.entries.get(self.maps.last()?.entries + index)?;
        let body = self.bodies[entry.body as usize];
        let part =
            |from: u32, to: u32| View::new(&body.bytes[from as usize..to as usize], body.links);
        Some((part(entry.key, entry.value), part(entry.value, entry.end)))
    }
}
