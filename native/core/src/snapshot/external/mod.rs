//! Terms with parts in the external format, as the first release of this library kept some: funs,
//! and what nested deeper than it looked. Nothing in them is trusted.

use super::host::{EXTERNAL_LIMIT, FREE_LIMIT, Import, SnapshotError, word};
use crate::etf::{self, Fun, FunHead, Part, part};
use crate::packed::{MAX_ARITY, MapBuilder, Place, Writer};
use std::collections::HashMap;

/// Whether these bytes claim to be a list.
pub(super) fn is_list(external: &[u8]) -> bool {
    matches!(
        part(external, &mut 1),
        Some(Part::Nil | Part::String(_) | Part::List(_))
    )
}

/// Writes a term with parts that lies at `place` as what it is in the packed form; `is_key` where
/// equal terms must have equal bytes.
pub(super) fn translate<I: Import>(
    external: &[u8],
    place: Place,
    is_key: bool,
    host: &mut I,
    to: &mut Writer<I::Anchor>,
) -> Result<(), SnapshotError> {
    let (&etf::VERSION, term) = external.split_first().ok_or(SnapshotError::Corrupt)? else {
        return Err(SnapshotError::Corrupt);
    };
    // What has no parts has another form, even the integers in a list that would be one of bytes.
    match part(term, &mut 0) {
        Some(
            Part::String(_)
            | Part::List(_)
            | Part::Tuple(_)
            | Part::Map(_)
            | Part::Fun(_)
            | Part::Export(..),
        ) => {}
        _ => return Err(SnapshotError::Corrupt),
    }
    if external.len() > EXTERNAL_LIMIT {
        return Err(SnapshotError::TooLarge(external.len() as u64));
    }
    let ends = ends(term).ok_or(SnapshotError::Corrupt)?;
    let translator = Translator {
        term,
        at: 0,
        ends,
        is_key,
        host,
        atoms: HashMap::new(),
        frames: vec![Frame::Parts(1)],
        free_frames: 0,
        maps: Vec::new(),
        values: Vec::new(),
        place,
    };
    translator.run(to)
}

/// Where something ends, by where it begins: each value of a map, and the elements of each list.
/// No number is over [`EXTERNAL_LIMIT`].
type Ends = Vec<(u32, u32)>;

/// Looks through the bytes of a whole term once, so that the values of a map can be passed over
/// without looking through them again in each map that they are in.
fn ends(term: &[u8]) -> Option<Ends> {
    enum Step {
        /// This many terms follow.
        Parts(usize),
        /// This many keys follow, each with its value.
        Entries(usize),
        /// A value follows.
        Value,
        /// What has this number ended.
        End(usize),
        /// The tail of a list follows, whose elements have this number.
        Tail(usize),
    }
    let mut ends = Ends::new();
    let mut steps = vec![Step::Parts(1)];
    let mut at = 0;
    while let Some(step) = steps.pop() {
        match step {
            Step::Parts(0) | Step::Entries(0) => continue,
            Step::Parts(1) => {}
            Step::Parts(left) => steps.push(Step::Parts(left - 1)),
            Step::Entries(left) => steps.extend([Step::Entries(left - 1), Step::Value]),
            Step::Value => {
                steps.push(Step::End(ends.len()));
                ends.push((at as u32, 0));
            }
            Step::End(number) => {
                ends[number].1 = at as u32;
                continue;
            }
            Step::Tail(number) => ends[number].1 = at as u32,
        }
        match part(term, &mut at)? {
            Part::List(len) => {
                steps.extend([Step::Tail(ends.len()), Step::Parts(len)]);
                ends.push((at as u32, 0));
            }
            Part::Map(len) => steps.push(Step::Entries(len)),
            other => steps.push(Step::Parts(other.following())),
        }
    }
    (at == term.len()).then_some(ends)
}

/// Where the translation continues. Nesting uses no stack of the thread.
enum Frame {
    /// This many terms follow.
    Parts(usize),
    /// The tail of an improper list follows.
    Tail,
    /// The end of a proper list follows.
    Nil,
    /// This many keys of the innermost map follow, each with its value.
    Keys(usize),
    /// A key of the innermost map was written; this many follow.
    EndKey(usize),
    /// The values of the innermost map.
    Values,
    /// All that a fun closes over was written, and it ends there.
    EndFun(usize),
}

/// A map that is being written.
struct OpenMap {
    builder: MapBuilder,
    /// Where its values stand begins there among those of all maps.
    first: usize,
    /// Where it ends, when its keys were written.
    end: usize,
}

struct Translator<'t, I> {
    term: &'t [u8],
    at: usize,
    ends: Ends,
    is_key: bool,
    host: &'t mut I,
    /// The words of atoms, by their bytes.
    atoms: HashMap<&'t [u8], u64>,
    frames: Vec<Frame>,
    /// Frames that another writer of the same value has no need of.
    free_frames: usize,
    maps: Vec<OpenMap>,
    /// Where the values of the maps that are open stand, the innermost one's last.
    values: Vec<u32>,
    /// Where the whole term is, with the keys and funs around it that are being written.
    place: Place,
}

impl<'t, I: Import> Translator<'t, I> {
    fn run(mut self, to: &mut Writer<I::Anchor>) -> Result<(), SnapshotError> {
        let corrupt = SnapshotError::Corrupt;
        let outside = self.place.depth;
        while let Some(frame) = self.frames.pop() {
            match frame {
                Frame::Parts(0) => continue,
                Frame::Parts(1) | Frame::Tail => {}
                Frame::Parts(left) => self.frames.push(Frame::Parts(left - 1)),
                Frame::Nil => {
                    self.at += 1;
                    self.free_frames -= 1;
                    continue;
                }
                Frame::Keys(0) => {
                    let map = self.maps.last_mut().ok_or(corrupt.clone())?;
                    map.end = self.at;
                    if !to.end_keys(&map.builder) {
                        return Err(corrupt);
                    }
                    self.frames.push(Frame::Values);
                    continue;
                }
                Frame::Keys(left) => {
                    self.place.keys += 1;
                    self.frames.push(Frame::EndKey(left - 1));
                }
                Frame::EndKey(left) => {
                    self.place.keys -= 1;
                    let map = self.maps.last().ok_or(corrupt.clone())?;
                    to.end_key(&map.builder);
                    self.values.push(self.at as u32);
                    self.at = self.end()?;
                    self.frames.push(Frame::Keys(left));
                    continue;
                }
                Frame::Values => {
                    let map = self.maps.last_mut().ok_or(corrupt.clone())?;
                    match to.next_value(&mut map.builder) {
                        Some(index) => {
                            self.at = self.values[map.first + index] as usize;
                            self.frames.push(Frame::Values);
                        }
                        None => {
                            self.at = map.end;
                            self.values.truncate(map.first);
                            self.maps.pop();
                            continue;
                        }
                    }
                }
                Frame::EndFun(end) if end == self.at => {
                    self.place.funs -= 1;
                    continue;
                }
                Frame::EndFun(_) => return Err(corrupt),
            }
            self.place.depth = outside + self.frames.len() - self.free_frames + self.maps.len();
            if !self.place.is_allowed() {
                return Err(SnapshotError::TooLarge(self.term.len() as u64));
            }
            let next = part(self.term, &mut self.at).ok_or(corrupt.clone())?;
            self.part(next, to)?;
        }
        Ok(())
    }

    /// Where that ends which begins here.
    fn end(&self) -> Result<usize, SnapshotError> {
        let found = self
            .ends
            .binary_search_by_key(&(self.at as u32), |(begin, _)| *begin);
        let number = found.map_err(|_| SnapshotError::Corrupt)?;
        Ok(self.ends[number].1 as usize)
    }

    /// Writes a part.
    fn part(&mut self, part: Part<'t>, to: &mut Writer<I::Anchor>) -> Result<(), SnapshotError> {
        match part {
            Part::Int(value) => to.int(value),
            Part::Float(value) if !value.is_finite() => return Err(SnapshotError::Corrupt),
            Part::Float(value) if self.is_key || self.place.keys > 0 => {
                to.float(self.host.float_key(value));
            }
            Part::Float(value) => to.float(value),
            Part::Atom(atom) => to.atom(self.atom(atom)?),
            Part::Nil => to.nil(),
            Part::String(bytes) => to.byte_list(bytes.iter().copied()),
            Part::Binary(bytes) => to.binary(bytes),
            Part::Flat(flat) => self.host.external(&[&[etf::VERSION], flat].concat(), to)?,
            Part::List(len) => return self.list(len, to),
            Part::Tuple(arity) if arity <= MAX_ARITY => {
                to.tuple(arity);
                self.frames.push(Frame::Parts(arity));
            }
            Part::Tuple(_) => return Err(SnapshotError::Corrupt),
            Part::Map(len) => {
                self.maps.push(OpenMap {
                    builder: to.begin_map(),
                    first: self.values.len(),
                    end: 0,
                });
                self.frames.push(Frame::Keys(len));
            }
            Part::Fun(fun) => return self.fun(fun, to),
            Part::Export(module, function, arity) => {
                let (module, function) = (self.atom(module)?, self.atom(function)?);
                self.host.export(module, function, arity)?;
                to.export();
                to.atom(module);
                to.atom(function);
                to.int(arity.into());
            }
        }
        Ok(())
    }

    fn list(&mut self, len: usize, to: &mut Writer<I::Anchor>) -> Result<(), SnapshotError> {
        let end = self.end()?;
        match part(self.term, &mut { end }) {
            Some(Part::Nil) => {
                if let Some(bytes) = etf::bytes_of(&self.term[self.at..end], len) {
                    to.byte_list(bytes);
                    self.at = end + 1;
                    return Ok(());
                }
                to.list(len);
                self.frames.push(Frame::Nil);
                self.free_frames += 1;
            }
            Some(Part::List(_) | Part::String(_)) | None => return Err(SnapshotError::Corrupt),
            Some(_) => {
                to.improper(len);
                self.frames.push(Frame::Tail);
            }
        }
        self.frames.push(Frame::Parts(len));
        Ok(())
    }

    fn fun(&mut self, fun: Fun<'t>, to: &mut Writer<I::Anchor>) -> Result<(), SnapshotError> {
        let FunHead {
            arity,
            uniq,
            index,
            free,
        } = fun.head;
        let free = free as usize;
        if free > FREE_LIMIT {
            return Err(SnapshotError::Corrupt);
        }
        to.fun(free);
        to.atom(self.atom(fun.module)?);
        to.int(arity.into());
        to.binary(uniq);
        to.int(index.into());
        fun.old.iter().for_each(|old| to.int(*old));
        self.place.funs += 1;
        self.frames.push(Frame::EndFun(fun.end));
        self.frames.push(Frame::Parts(free));
        Ok(())
    }

    fn atom(&mut self, atom: &'t [u8]) -> Result<u64, SnapshotError> {
        if let Some(word) = self.atoms.get(atom) {
            return Ok(*word);
        }
        let name = etf::atom_name(atom).ok_or(SnapshotError::Corrupt)?;
        let word = word(&name, self.host)?;
        self.atoms.insert(atom, word);
        Ok(word)
    }
}

#[cfg(test)]
mod tests;
