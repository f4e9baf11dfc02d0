//! Small maps from atoms to values without parts, as most updates of several fields are.
//!
//! Their entries are written one after another and sorted in place; the packer, which is made for
//! terms of any depth, would take most of the time of such a call.

use super::kind::{Kind, kind};
use super::scratch::{give_scratch, take_scratch};
use super::words::word;
use erlmcp_memory_core::packed::{Entry, Writer};
use rustler::{Binary, MapIterator, Term};
use smallvec::SmallVec;
use std::convert::Infallible;

/// The most entries of a small map.
const FEW: usize = 8;

/// The most packed bytes of its entries: the map that they make is far below the size of a page.
const SHORT: usize = 512;

/// Where an entry begins and its key ends; the key as a number that sorts as its bytes do.
struct Place {
    order: u64,
    start: usize,
    key: usize,
    end: usize,
}

/// Calls `with` with the entries of a map, sorted by key and without links. `None` if the map is not
/// one of these, or `with` returns it.
pub fn with_flat<R>(map: Term<'_>, with: impl FnOnce(&[Entry<'_>]) -> Option<R>) -> Option<R> {
    if map.map_size().ok()? > FEW {
        return None;
    }
    let mut writer = Writer::reusing(take_scratch());
    let mut places = SmallVec::<[Place; FEW]>::new();
    let result = write(map, &mut writer, &mut places).and_then(|()| {
        let bytes = writer.bytes();
        let entry =
            |place: &Place| Entry::new(&bytes[place.start..place.end], place.key - place.start);
        let entries: SmallVec<[_; FEW]> = places.iter().map(entry).collect();
        with(&entries)
    });
    give_scratch(writer.into_parts().0);
    result
}

/// Writes the entries of a map, and where each is, sorted by key.
fn write(
    map: Term<'_>,
    writer: &mut Writer<Infallible>,
    places: &mut SmallVec<[Place; FEW]>,
) -> Option<()> {
    for (key, value) in MapIterator::new(map)? {
        let start = writer.len();
        if !key.is_atom() {
            return None;
        }
        writer.atom(word(key));
        let end_of_key = writer.len();
        match kind(value) {
            Kind::Atom => writer.atom(word(value)),
            Kind::Int(int) => writer.int(int),
            Kind::Float(float) => writer.float(float),
            Kind::Nil => writer.nil(),
            Kind::Pid => writer.pid(word(value)),
            Kind::Binary => match value.decode::<Binary>() {
                Ok(binary) if binary.len() <= SHORT => writer.binary(&binary),
                _ => return None,
            },
            _ => return None,
        }
        if writer.len() > SHORT {
            return None;
        }
        places.push(Place {
            order: order(&writer.bytes()[start..end_of_key])?,
            start,
            key: end_of_key,
            end: writer.len(),
        });
    }
    places.sort_unstable_by_key(|place| place.order);
    Some(())
}

/// `None` for a key of more than eight bytes, which no atom has before there are millions.
fn order(key: &[u8]) -> Option<u64> {
    let mut order = [0; 8];
    order.get_mut(..key.len())?.copy_from_slice(key);
    Some(u64::from_be_bytes(order))
}
