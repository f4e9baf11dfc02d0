//! Makes a value of this node of a portable one. Nothing in it is trusted.

use super::external;
use super::host::{FREE_LIMIT, Import, SHARE_REFERENCE_LIMIT, SnapshotError, word};
use crate::etf;
use crate::packed::{
    FUN_HEAD, Item, Links, MAX_ARITY, Packed, Place, RECORD_HEAD, Rewrite, View, Writer, item,
    rewrite, skip,
};
use std::collections::HashSet;
use std::convert::Infallible;

struct Importer<'i, I: Import> {
    host: &'i mut I,
    atoms: Vec<u64>,
    shares: Vec<(u64, I::Anchor)>,
    references: usize,
    /// Whether a content is read: equal ones must have equal bytes, as keys must.
    in_share: bool,
}

pub(super) fn import<I: Import>(
    atoms: &[&str],
    shares: &[&serde_bytes::Bytes],
    fields: &[u8],
    host: &mut I,
) -> Result<I::Fields, SnapshotError> {
    let mut words = Vec::with_capacity(atoms.len());
    for name in atoms {
        words.push(word(name, host)?);
    }
    let mut importer = Importer {
        host,
        atoms: words,
        shares: Vec::new(),
        references: 0,
        in_share: true,
    };
    for share in shares {
        let content = importer.whole(share)?;
        let shared = importer.host.share(content)?;
        importer.shares.push(shared);
    }
    importer.in_share = false;
    let fields = importer.whole(fields)?;
    importer.host.fields(fields)
}

impl<I: Import> Importer<'_, I> {
    fn whole(&mut self, bytes: &[u8]) -> Result<Packed<I::Anchor>, SnapshotError> {
        let mut at = 0;
        skip(bytes, &mut at)?;
        if at != bytes.len() {
            return Err(SnapshotError::Corrupt);
        }
        let mut writer = Writer::new();
        rewrite(View::new(bytes, &Links::default()), &mut writer, self)?;
        Ok(writer.finish())
    }

    /// Whether equal values must have equal bytes here.
    fn is_key(&self, place: Place) -> bool {
        self.in_share || place.keys > 0
    }

    fn atom(&self, number: u64) -> Result<u64, SnapshotError> {
        let number = usize::try_from(number).map_err(|_| SnapshotError::Corrupt)?;
        self.atoms
            .get(number)
            .copied()
            .ok_or(SnapshotError::Corrupt)
    }

    /// Reads values as what stands before those that a fun closes over.
    fn fun(&self, rest: &[u8]) -> Option<()> {
        let mut at = 0;
        let mut next = || item(rest, &mut at).ok();
        let [module, arity, uniq, index, old_index, old_uniq]: [Item<'_>; FUN_HEAD] =
            [next()?, next()?, next()?, next()?, next()?, next()?];
        matches!(
            (module, arity, uniq, index, old_index, old_uniq),
            (
                Item::Atom(_),
                Item::Int(0..=255),
                Item::Binary(uniq),
                Item::Int(0..=0xffff_ffff),
                Item::Int(_),
                Item::Int(_),
            ) if uniq.len() == etf::UNIQ
        )
        .then_some(())
    }

    fn export(&mut self, rest: &[u8]) -> Result<(), SnapshotError> {
        let mut at = 0;
        match (
            item(rest, &mut at)?,
            item(rest, &mut at)?,
            item(rest, &mut at)?,
        ) {
            (Item::Atom(module), Item::Atom(function), Item::Int(arity)) => {
                let (module, function) = (self.atom(module)?, self.atom(function)?);
                let arity = u8::try_from(arity).map_err(|_| SnapshotError::Corrupt)?;
                self.host.export(module, function, arity)
            }
            _ => Err(SnapshotError::Corrupt),
        }
    }

    /// A record's head and the names of its fields, none of which occurs twice.
    fn record(&self, fields: usize, rest: &[u8]) -> Result<(), SnapshotError> {
        let mut at = 0;
        for _ in 0..RECORD_HEAD {
            let Item::Atom(_) = item(rest, &mut at)? else {
                return Err(SnapshotError::Corrupt);
            };
        }
        let mut names = HashSet::new();
        for _ in 0..fields {
            let Item::Atom(name) = item(rest, &mut at)? else {
                return Err(SnapshotError::Corrupt);
            };
            if !names.insert(self.atom(name)?) {
                return Err(SnapshotError::Corrupt);
            }
        }
        Ok(())
    }
}

impl<I: Import> Rewrite for Importer<'_, I> {
    type From = Infallible;
    type To = I::Anchor;
    type Error = SnapshotError;

    fn leaf(
        &mut self,
        leaf: Item<'_>,
        _from: View<'_, Infallible>,
        place: Place,
        to: &mut Writer<I::Anchor>,
    ) -> Result<(), SnapshotError> {
        match leaf {
            Item::Float(value) if value.is_finite() => {
                to.float(if self.is_key(place) {
                    self.host.float_key(value)
                } else {
                    value
                });
            }
            Item::ByteList(list) if !list.is_empty() => to.byte_list(list.iter().copied()),
            Item::Int(_) | Item::Nil | Item::Binary(_) => to.plain(leaf)?,
            Item::Atom(number) => to.atom(self.atom(number)?),
            Item::Opaque(external) => {
                if etf::flat(external).is_some() {
                    self.host.external(external, to)?;
                } else {
                    let is_key = self.is_key(place);
                    external::translate(external, place, is_key, self.host, to)?;
                }
            }
            Item::Share(number) => {
                self.references += 1;
                let share = usize::try_from(number)
                    .ok()
                    .and_then(|number| self.shares.get(number));
                let (id, anchor) = share.ok_or(SnapshotError::Corrupt)?;
                if self.references > SHARE_REFERENCE_LIMIT {
                    return Err(SnapshotError::Corrupt);
                }
                to.share(*id, anchor.clone());
            }
            // What no writer writes: a float that Erlang does not have, an empty list under
            // another name, links that only one node knows.
            _ => return Err(SnapshotError::Corrupt),
        }
        Ok(())
    }

    fn head(&mut self, head: Item<'_>, rest: &[u8]) -> Result<(), SnapshotError> {
        match head {
            // A list of bytes alone has a form of its own.
            Item::List(len) => {
                let mut at = 0;
                for _ in 0..len {
                    if !matches!(item(rest, &mut at)?, Item::Int(0..=255)) {
                        return Ok(());
                    }
                }
                Err(SnapshotError::Corrupt)
            }
            Item::Improper(1..) | Item::Tuple(..=MAX_ARITY) => Ok(()),
            Item::Fun(..=FREE_LIMIT) => self.fun(rest).ok_or(SnapshotError::Corrupt),
            Item::Export => self.export(rest),
            Item::Record(fields) => self.record(fields, rest),
            _ => Err(SnapshotError::Corrupt),
        }
    }

    fn tail(&mut self, tail: Item<'_>) -> Result<(), SnapshotError> {
        match tail {
            Item::Nil | Item::ByteList(_) | Item::List(_) | Item::Improper(_) => {
                Err(SnapshotError::Corrupt)
            }
            Item::Opaque(external) if external::is_list(external) => Err(SnapshotError::Corrupt),
            _ => Ok(()),
        }
    }
}
