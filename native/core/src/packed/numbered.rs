//! Values that name links by their positions among the links, not by ids: shorter if a value
//! is kept as it is, with its links beside it in order.

use super::format::{Scalar, tag, write_varint};
use super::links::Anchor;
use super::reader::{Item, item};
use super::view::View;

/// The bytes of a value with, in the place of each id, the place of the first link of that id among
/// the links. `None` where links lie in maps, whose offsets would be wrong then, or where there are
/// links to other things than shared contents.
pub fn numbered<A: Anchor>(value: View<'_, A>) -> Option<Vec<u8>> {
    let View { bytes, links } = value;
    let links = links.as_slice();
    let mut to = Vec::with_capacity(bytes.len());
    let mut found = 0;
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let (tag, len, id) = match item(bytes, &mut at).ok()? {
            Item::Part(id) => (tag::PART, None, id),
            Item::Share(id) => (tag::SHARE, None, id),
            Item::Run { len, id } => (tag::RUN, Some(len as u64), id),
            _ => {
                to.extend_from_slice(&bytes[start..at]);
                continue;
            }
        };
        let place = links.partition_point(|(known, _)| *known < id);
        if links.get(place)?.0 != id {
            return None;
        }
        found += 1;
        to.push(tag);
        for number in len.into_iter().chain([place as u64]) {
            let mut scalar = Scalar::default();
            let end = write_varint(number, &mut scalar, 0);
            to.extend_from_slice(&scalar[..end]);
        }
    }
    (found == links.len()).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::{Links, Packed, Target, Writer};
    use std::sync::Arc;

    type Value = Packed<Arc<u8>>;

    fn value(write: impl FnOnce(&mut Writer<Arc<u8>>)) -> Value {
        let mut writer = Writer::new();
        write(&mut writer);
        writer.finish()
    }

    #[test]
    fn links_are_told_by_their_places() {
        let [low, high] = [1 << 40, u64::MAX];
        let value = value(|to| {
            to.tuple(6);
            to.part(high, Arc::new(2));
            to.binary(b"between");
            to.part(low, Arc::new(1));
            to.part(high, Arc::new(2));
            to.list(300);
            to.run(300, high, Arc::new(2));
        });
        let bytes = numbered(value.view()).unwrap();
        assert!(bytes.len() < value.bytes().len() - 20);
        let anchors = value.links().iter().zip(0..);
        let links = Links::to_anchors(anchors.map(|((_, target), place)| match target {
            Target::Anchor(anchor) => (place, Arc::clone(anchor)),
            _ => panic!("a link to something else"),
        }));
        let (mut at, mut there, mut met) = (0, 0, 0);
        while at < bytes.len() {
            let (own, other) = (item(&bytes, &mut at), item(value.bytes(), &mut there));
            match (own.unwrap(), other.unwrap()) {
                (Item::Part(place), Item::Part(id)) | (Item::Share(place), Item::Share(id)) => {
                    let [own, other] = [links.get(place), value.links().get(id)];
                    let (Some(Target::Anchor(own)), Some(Target::Anchor(other))) = (own, other)
                    else {
                        panic!("a link that leads nowhere");
                    };
                    assert_eq!(own, other);
                    met += 1;
                }
                (Item::Run { len, id: place }, Item::Run { len: 300, .. }) => {
                    assert!(len == 300 && links.get(place).is_some());
                    met += 1;
                }
                (own, other) => assert_eq!(format!("{own:?}"), format!("{other:?}")),
            }
        }
        assert_eq!((met, there), (4, value.bytes().len()));
    }

    #[test]
    fn a_value_without_links_stays_as_it_is() {
        let value = value(|to| {
            to.tuple(1);
            to.int(17);
        });
        assert_eq!(numbered(value.view()).as_deref(), Some(value.bytes()));
    }

    #[test]
    fn links_in_a_map_keep_their_ids() {
        let value = value(|to| {
            let mut map = to.begin_map();
            to.int(1);
            to.end_key(&map);
            assert!(to.end_keys(&map));
            while to.next_value(&mut map).is_some() {
                to.share(u64::MAX, Arc::new(1));
            }
        });
        assert_eq!(numbered(value.view()), None);
    }
}
