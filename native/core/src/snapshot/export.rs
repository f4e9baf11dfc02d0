//! A value without anything that only one node knows.

use super::host::{ATOM_LIMIT, RAW_LIMIT, SHARE_LIMIT, SHARE_REFERENCE_LIMIT, SnapshotError};
use crate::packed::{Anchor, Item, Place, Rewrite, Target, View, Writer, rewrite};
use std::collections::HashMap;
use std::convert::Infallible;

/// What the host knows of its own terms, to write them for others.
pub trait Export {
    /// What keeps things of the host alive.
    type Anchor: Anchor;

    /// The name of an atom.
    fn atom(&mut self, word: u64) -> String;
    /// The external format of a process, a port or a reference of this node. `anchor` keeps what
    /// the reference refers to.
    fn external(&mut self, local: Item<'_>, anchor: Option<&Self::Anchor>) -> Vec<u8>;
    /// The content that an anchor shares.
    fn content<'a>(&mut self, anchor: &'a Self::Anchor) -> Option<View<'a, Self::Anchor>>;
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
type Contents<'a, A> = Vec<(u64, View<'a, A>)>;

/// A content, its id, and those inside it that were not looked at yet.
type Unwritten<'a, A> = (u64, View<'a, A>, Contents<'a, A>);

/// Portable bytes have no links: nothing that an anchor could be.
type PortableWriter = Writer<Infallible>;

struct Exporter<'e, E> {
    host: &'e mut E,
    atoms: HashMap<u64, u64>,
    /// The numbers of the contents that were written, by their ids.
    shares: HashMap<u64, u64>,
    references: usize,
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
    fn shares_inside<'a>(&mut self, value: View<'a, E::Anchor>) -> Contents<'a, E::Anchor>
    where
        E: 'a,
    {
        let mut found = Vec::new();
        value.links.each_anchor(&mut |id, anchor| {
            if let Some(content) = self.host.content(anchor) {
                found.push((id, content));
            }
        });
        found
    }

    fn whole(&mut self, value: View<'_, E::Anchor>) -> Result<Box<[u8]>, SnapshotError> {
        let mut writer = PortableWriter::new();
        rewrite(value, &mut writer, self)?;
        self.written += writer.len();
        Ok(writer.bytes().into())
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

impl<E: Export> Rewrite for Exporter<'_, E> {
    type From = E::Anchor;
    type To = Infallible;
    type Error = SnapshotError;

    fn leaf(
        &mut self,
        leaf: Item<'_>,
        from: View<'_, E::Anchor>,
        _place: Place,
        to: &mut PortableWriter,
    ) -> Result<(), SnapshotError> {
        if self.written + to.len() > RAW_LIMIT {
            return Err(SnapshotError::TooLarge((self.written + to.len()) as u64));
        }
        match leaf {
            Item::Atom(word) => {
                let number = self.atom(word);
                to.atom(number);
            }
            Item::Pid(_) | Item::Port(_) | Item::Reference(_) => {
                to.opaque(&self.host.external(leaf, None));
            }
            Item::Foreign { id, .. } | Item::Handle(id) => {
                let anchor = match from.links.get(id) {
                    Some(Target::Anchor(anchor)) => Some(anchor),
                    _ => None,
                };
                to.opaque(&self.host.external(leaf, anchor));
            }
            Item::Share(id) => {
                self.references += 1;
                let number = self.shares.get(&id).ok_or(SnapshotError::Corrupt)?;
                if self.references > SHARE_REFERENCE_LIMIT {
                    return Err(SnapshotError::TooLarge(self.written as u64));
                }
                to.share_number(*number);
            }
            plain => to.plain(plain)?,
        }
        Ok(())
    }

    fn head(&mut self, _head: Item<'_>, _rest: &[u8]) -> Result<(), SnapshotError> {
        Ok(())
    }

    fn tail(&mut self, _tail: Item<'_>) -> Result<(), SnapshotError> {
        Ok(())
    }
}
