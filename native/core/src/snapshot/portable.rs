//! The packed form without what only this node knows, and back.

use super::{
    ATOM_LIMIT, DEPTH_LIMIT, EXTERNAL_LIMIT, FOREIGN_LIMIT, RAW_LIMIT, SHARE_LIMIT,
    SHARE_REFERENCE_LIMIT, SnapshotError,
};
use crate::packed::{Anchor, Item, MAX_ARITY, MAX_KEY_DEPTH, Packed, Target, View, Writer, item};
use std::collections::HashMap;

/// What the host knows of its own terms, to write them for others.
pub trait Export {
    /// What keeps things of the host alive.
    type Anchor: Anchor;

    /// The name of an atom.
    fn atom(&mut self, word: u64) -> String;
    /// The external format of a process, a port or a reference of this node.
    fn external(&mut self, local: Item<'_>) -> Vec<u8>;
    /// The external format of a term that an anchor keeps.
    fn foreign(&mut self, anchor: &Self::Anchor) -> Vec<u8>;
    /// The content that an anchor shares.
    fn content<'a>(&mut self, anchor: &'a Self::Anchor) -> Option<View<'a, Self::Anchor>>;
}

/// What the host makes of what others wrote.
pub trait Import {
    /// What keeps things of the host alive.
    type Anchor: Anchor;
    /// What becomes of the fields.
    type Fields;

    /// The word of an existing atom of this name, [`SnapshotError::UnknownAtom`] if there is none.
    /// Never makes a new one.
    fn atom(&mut self, name: &str) -> Result<u64, SnapshotError>;
    /// Writes a term in the external format. The bytes may be anything. A list, a tuple or a map is written as a foreign term where `compound` allows
    /// one, and is corrupt where it does not.
    fn external(
        &mut self,
        external: &[u8],
        compound: bool,
        writer: &mut Writer<Self::Anchor>,
    ) -> Result<(), SnapshotError>;
    /// Shares a content and gives its id and its anchor.
    fn share(
        &mut self,
        content: Packed<Self::Anchor>,
    ) -> Result<(u64, Self::Anchor), SnapshotError>;
    /// Takes the fields: a packed map.
    fn fields(&mut self, fields: Packed<Self::Anchor>) -> Result<Self::Fields, SnapshotError>;
}

/// A value without anything that only one node knows.
#[derive(Debug, Default)]
pub struct Portable {
    pub(super) atoms: Vec<Box<str>>,
    pub(super) shares: Vec<Box<[u8]>>,
    pub(super) fields: Box<[u8]>,
}

impl Portable {
    pub(super) fn bytes(&self) -> usize {
        let atoms: usize = self.atoms.iter().map(|name| name.len()).sum();
        let shares: usize = self.shares.iter().map(|share| share.len()).sum();
        atoms + shares + self.fields.len()
    }
}

/// Contents by their ids.
type Shared<'a, A> = Vec<(u64, View<'a, A>)>;

/// A content, its id, and those inside it that were not looked at yet.
type Unwritten<'a, A> = (u64, View<'a, A>, Shared<'a, A>);

/// Portable bytes have no links: nothing that an anchor could be.
type PortableWriter = Writer<std::convert::Infallible>;

struct Exporter<'e, E> {
    host: &'e mut E,
    atoms: HashMap<u64, u64>,
    /// The numbers of the contents that were written, by their ids.
    shares: HashMap<u64, u64>,
    references: usize,
    foreign: usize,
    written: usize,
    out: Portable,
}

/// The portable form of the fields of a state.
pub fn export<E: Export>(
    fields: View<'_, E::Anchor>,
    host: &mut E,
) -> Result<Portable, SnapshotError> {
    let mut exporter = Exporter {
        host,
        atoms: HashMap::new(),
        shares: HashMap::new(),
        references: 0,
        foreign: 0,
        written: 0,
        out: Portable::default(),
    };
    exporter.shares(fields)?;
    exporter.out.fields = exporter.whole(fields)?;
    let Portable { atoms, shares, .. } = &exporter.out;
    if atoms.len() > ATOM_LIMIT || shares.len() > SHARE_LIMIT {
        return Err(SnapshotError::TooLarge(exporter.written as u64));
    }
    Ok(exporter.out)
}

impl<E: Export> Exporter<'_, E> {
    /// Writes every content that `root` shares, directly or through another, each before those
    /// that refer to it. With a stack of its own: shares may nest without bound.
    fn shares<'a>(&mut self, root: View<'a, E::Anchor>) -> Result<(), SnapshotError>
    where
        E: 'a,
    {
        let mut stack: Vec<Unwritten<'a, E::Anchor>> = Vec::new();
        let inside = self.shares_inside(root);
        stack.push((0, root, inside));
        loop {
            let Some((id, content, todo)) = stack.last_mut() else {
                return Ok(());
            };
            if let Some((id, content)) = todo.pop() {
                if !self.shares.contains_key(&id) {
                    let inside = self.shares_inside(content);
                    stack.push((id, content, inside));
                }
                continue;
            }
            let (id, content) = (*id, *content);
            stack.pop();
            if !stack.is_empty() && !self.shares.contains_key(&id) {
                let bytes = self.whole(content)?;
                self.shares.insert(id, self.out.shares.len() as u64);
                self.out.shares.push(bytes);
            }
        }
    }

    /// The contents that a value refers to directly, through what lies out of line as well.
    fn shares_inside<'a>(&mut self, value: View<'a, E::Anchor>) -> Shared<'a, E::Anchor>
    where
        E: 'a,
    {
        let mut found = Vec::new();
        let mut targets: Vec<_> = value.links.iter().collect();
        while let Some((id, target)) = targets.pop() {
            match target {
                Target::Anchor(anchor) => {
                    if let Some(content) = self.host.content(anchor) {
                        found.push((*id, content));
                    }
                }
                Target::Blob(blob) => targets.extend(blob.links().iter()),
                Target::Trie(node) => {
                    node.each_page(&mut |page| targets.extend(page.links().iter()))
                }
            }
        }
        found
    }

    fn whole(&mut self, value: View<'_, E::Anchor>) -> Result<Box<[u8]>, SnapshotError> {
        let mut writer = PortableWriter::new();
        self.value(value, &mut 0, &mut writer)?;
        self.written += writer.len();
        Ok(writer.bytes().into())
    }

    fn value(
        &mut self,
        from: View<'_, E::Anchor>,
        at: &mut usize,
        to: &mut PortableWriter,
    ) -> Result<(), SnapshotError> {
        if self.written + to.len() > RAW_LIMIT {
            return Err(SnapshotError::TooLarge((self.written + to.len()) as u64));
        }
        let next = item(from.bytes, at).map_err(|_| SnapshotError::Corrupt)?;
        let follow = match next {
            Item::Int(value) => {
                to.int(value);
                0
            }
            Item::Float(value) => {
                to.float(value);
                0
            }
            Item::Nil => {
                to.nil();
                0
            }
            Item::ByteList(bytes) => {
                to.byte_list(bytes.iter().copied());
                0
            }
            Item::Binary(bytes) => {
                to.binary(bytes);
                0
            }
            Item::Atom(word) => {
                let number = self.atom(word);
                to.atom(number);
                0
            }
            Item::Pid(_) | Item::Port(_) | Item::Reference(_) => {
                to.opaque(&self.host.external(next));
                0
            }
            Item::Opaque(external) => {
                opaque(external, to)?;
                0
            }
            Item::Foreign { id, .. } => {
                let Some(Target::Anchor(anchor)) = from.links.get(id) else {
                    return Err(SnapshotError::Corrupt);
                };
                self.foreign += 1;
                if self.foreign > FOREIGN_LIMIT {
                    return Err(SnapshotError::TooLarge(self.written as u64));
                }
                opaque(&self.host.foreign(anchor), to)?;
                0
            }
            Item::Share(id) => {
                self.references += 1;
                let number = self.shares.get(&id).ok_or(SnapshotError::Corrupt)?;
                if self.references > SHARE_REFERENCE_LIMIT {
                    return Err(SnapshotError::TooLarge(self.written as u64));
                }
                to.share_number(*number);
                0
            }
            Item::Blob(id) => {
                let Some(Target::Blob(blob)) = from.links.get(id) else {
                    return Err(SnapshotError::Corrupt);
                };
                return self.value(blob.view(), &mut 0, to);
            }
            Item::Trie(_) | Item::Map(_) => return self.map(from, next, to),
            Item::List(n) => {
                to.list(n);
                n
            }
            Item::Improper(n) => {
                to.improper(n);
                n + 1
            }
            Item::Tuple(n) => {
                to.tuple(n);
                n
            }
        };
        for _ in 0..follow {
            self.value(from, at, to)?;
        }
        Ok(())
    }

    fn map(
        &mut self,
        from: View<'_, E::Anchor>,
        map: Item<'_>,
        to: &mut PortableWriter,
    ) -> Result<(), SnapshotError> {
        let mut entries = Vec::new();
        match map {
            Item::Map(page) => {
                entries.extend(page.entries().map(|(k, v)| (k, View::new(v, from.links))));
                self.entries(&entries, to)
            }
            Item::Trie(id) => match from.links.get(id) {
                Some(Target::Trie(node)) => {
                    node.for_each(&mut |key, value: View<'_, E::Anchor>| {
                        entries.push((key, value));
                    });
                    self.entries(&entries, to)
                }
                _ => Err(SnapshotError::Corrupt),
            },
            _ => Err(SnapshotError::Corrupt),
        }
    }

    fn entries(
        &mut self,
        entries: &[(&[u8], View<'_, E::Anchor>)],
        to: &mut PortableWriter,
    ) -> Result<(), SnapshotError> {
        let map = to.begin_map();
        for (key, value) in entries {
            let key_start = to.len();
            self.value(View::new(key, value.links), &mut 0, to)?;
            let value_start = to.len();
            self.value(*value, &mut 0, to)?;
            to.entry(key_start, value_start);
        }
        // The numbers of two atoms differ as the atoms do, but what only the node names may not.
        if to.end_map(map) {
            Ok(())
        } else {
            Err(SnapshotError::Corrupt)
        }
    }

    fn atom(&mut self, word: u64) -> u64 {
        if let Some(number) = self.atoms.get(&word) {
            return *number;
        }
        let number = self.atoms.len() as u64;
        self.atoms.insert(word, number);
        self.out.atoms.push(self.host.atom(word).into());
        number
    }
}

fn opaque(external: &[u8], to: &mut PortableWriter) -> Result<(), SnapshotError> {
    // What cannot be read is not written.
    check_size(external)?;
    to.opaque(external);
    Ok(())
}

/// Bit strings and big integers take as much memory as they have bytes, other terms more.
fn check_size(external: &[u8]) -> Result<(), SnapshotError> {
    const BIT_BINARY: u8 = 77;
    const SMALL_BIG: u8 = 110;
    const LARGE_BIG: u8 = 111;
    match external.get(1) {
        Some(&(BIT_BINARY | SMALL_BIG | LARGE_BIG)) => Ok(()),
        _ if external.len() <= EXTERNAL_LIMIT => Ok(()),
        _ => Err(SnapshotError::TooLarge(external.len() as u64)),
    }
}

struct Importer<'i, I: Import> {
    host: &'i mut I,
    atoms: Vec<u64>,
    shares: Vec<(u64, I::Anchor)>,
    references: usize,
    foreign: usize,
}

/// Where a value stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    depth: usize,
    /// How deep inside a key, if it is inside one.
    in_key: Option<usize>,
}

impl Place {
    const ROOT: Place = Place {
        depth: 0,
        in_key: None,
    };

    /// An element, or a value of a map.
    fn below(self) -> Self {
        Place {
            depth: self.depth + 1,
            in_key: self.in_key.map(|depth| depth + 1),
        }
    }

    /// A key of a map.
    fn key(self) -> Self {
        Place {
            depth: self.depth + 1,
            in_key: Some(self.in_key.map_or(0, |depth| depth + 1)),
        }
    }

    /// Whether lists, tuples and maps are written in full here. A key must be written one way only.
    fn in_full(self) -> bool {
        self.in_key.is_none_or(|depth| depth < MAX_KEY_DEPTH)
    }
}

/// An atom has at most 255 characters.
const MAX_ATOM_BYTES: usize = 255 * 4;

pub(super) fn import<I: Import>(
    atoms: &[&str],
    shares: &[&serde_bytes::Bytes],
    fields: &[u8],
    host: &mut I,
) -> Result<I::Fields, SnapshotError> {
    let mut words = Vec::with_capacity(atoms.len());
    for name in atoms {
        if name.len() > MAX_ATOM_BYTES {
            return Err(SnapshotError::Corrupt);
        }
        words.push(host.atom(name)?);
    }
    let mut importer = Importer {
        host,
        atoms: words,
        shares: Vec::new(),
        references: 0,
        foreign: 0,
    };
    for share in shares {
        let content = importer.whole(share)?;
        let shared = importer.host.share(content)?;
        importer.shares.push(shared);
    }
    let fields = importer.whole(fields)?;
    importer.host.fields(fields)
}

impl<I: Import> Importer<'_, I> {
    fn whole(&mut self, bytes: &[u8]) -> Result<Packed<I::Anchor>, SnapshotError> {
        let mut writer = Writer::new();
        let mut at = 0;
        self.value(bytes, &mut at, Place::ROOT, &mut writer)?;
        if at != bytes.len() {
            return Err(SnapshotError::Corrupt);
        }
        Ok(writer.finish())
    }

    fn value(
        &mut self,
        bytes: &[u8],
        at: &mut usize,
        place: Place,
        to: &mut Writer<I::Anchor>,
    ) -> Result<(), SnapshotError> {
        if place.depth > DEPTH_LIMIT {
            return Err(SnapshotError::Corrupt);
        }
        let follow = match item(bytes, at).map_err(|_| SnapshotError::Corrupt)? {
            Item::Int(value) => {
                to.int(value);
                0
            }
            Item::Float(value) if value.is_finite() => {
                to.float(value);
                0
            }
            Item::Nil => {
                to.nil();
                0
            }
            Item::ByteList(list) if !list.is_empty() => {
                to.byte_list(list.iter().copied());
                0
            }
            Item::Binary(binary) => {
                to.binary(binary);
                0
            }
            Item::Atom(number) => {
                let word = usize::try_from(number).ok().and_then(|n| self.atoms.get(n));
                to.atom(*word.ok_or(SnapshotError::Corrupt)?);
                0
            }
            Item::Opaque(external) => return self.opaque(external, place, to),
            Item::Share(number) => {
                self.references += 1;
                let share = usize::try_from(number)
                    .ok()
                    .and_then(|n| self.shares.get(n));
                let (id, anchor) = share.ok_or(SnapshotError::Corrupt)?;
                if self.references > SHARE_REFERENCE_LIMIT {
                    return Err(SnapshotError::Corrupt);
                }
                to.share(*id, anchor.clone());
                0
            }
            Item::Map(page) if place.in_full() => {
                return self.map(page.len(), page.body(), place, to);
            }
            Item::List(n) if n > 0 && place.in_full() => {
                to.list(n);
                return self.list(n, bytes, at, place, to);
            }
            Item::Improper(n) if n > 0 && place.in_full() => {
                to.improper(n);
                for _ in 0..n {
                    self.value(bytes, at, place.below(), to)?;
                }
                return self.tail(bytes, at, place.below(), to);
            }
            Item::Tuple(n) if n <= MAX_ARITY && place.in_full() => {
                to.tuple(n);
                n
            }
            // What no writer writes: a float that Erlang does not have, an empty list under
            // another name, a tuple of too many elements, links that only one node knows.
            _ => return Err(SnapshotError::Corrupt),
        };
        for _ in 0..follow {
            self.value(bytes, at, place.below(), to)?;
        }
        Ok(())
    }

    /// The elements of a proper list. One of bytes only has a form of its own.
    fn list(
        &mut self,
        len: usize,
        bytes: &[u8],
        at: &mut usize,
        place: Place,
        to: &mut Writer<I::Anchor>,
    ) -> Result<(), SnapshotError> {
        let mut only_bytes = true;
        for _ in 0..len {
            let start = to.len();
            self.value(bytes, at, place.below(), to)?;
            only_bytes &= matches!(item(to.bytes(), &mut { start }), Ok(Item::Int(0..=255)));
        }
        if only_bytes {
            return Err(SnapshotError::Corrupt);
        }
        Ok(())
    }

    /// The tail of an improper list, which is no list.
    fn tail(
        &mut self,
        bytes: &[u8],
        at: &mut usize,
        place: Place,
        to: &mut Writer<I::Anchor>,
    ) -> Result<(), SnapshotError> {
        let start = to.len();
        self.value(bytes, at, place, to)?;
        match item(to.bytes(), &mut { start }) {
            Ok(Item::Nil | Item::ByteList(_) | Item::List(_) | Item::Improper(_)) => {
                Err(SnapshotError::Corrupt)
            }
            _ => Ok(()),
        }
    }

    fn opaque(
        &mut self,
        external: &[u8],
        place: Place,
        to: &mut Writer<I::Anchor>,
    ) -> Result<(), SnapshotError> {
        check_size(external)?;
        let compound = place.in_key.is_none() || !place.in_full();
        let links = to.links();
        self.host.external(external, compound, to)?;
        self.foreign += to.links() - links;
        if self.foreign > FOREIGN_LIMIT {
            return Err(SnapshotError::Corrupt);
        }
        Ok(())
    }

    /// A map. Its order was that of another node's bytes, so only its entries count.
    fn map(
        &mut self,
        len: usize,
        body: &[u8],
        place: Place,
        to: &mut Writer<I::Anchor>,
    ) -> Result<(), SnapshotError> {
        // A key and a value take a byte each at least.
        if len > body.len() / 2 {
            return Err(SnapshotError::Corrupt);
        }
        let mut at = 0;
        let map = to.begin_map();
        for _ in 0..len {
            let key_start = to.len();
            self.value(body, &mut at, place.key(), to)?;
            let value_start = to.len();
            self.value(body, &mut at, place.below(), to)?;
            to.entry(key_start, value_start);
        }
        if at != body.len() || !to.end_map(map) {
            return Err(SnapshotError::Corrupt);
        }
        Ok(())
    }
}
