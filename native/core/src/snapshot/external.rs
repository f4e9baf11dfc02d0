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
mod tests {
    use super::*;
    use crate::packed::{MAX_DEPTH, MAX_FUNS, MAX_KEYS, Packed};
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// Knows the atoms `a` to `j`, and no function of arity 9.
    struct Host;

    impl Import for Host {
        type Anchor = Infallible;
        type Fields = Packed<Infallible>;

        fn atom(&mut self, name: &str) -> Result<u64, SnapshotError> {
            match name.as_bytes() {
                [letter @ b'a'..=b'j'] => Ok(u64::from(*letter)),
                _ => Err(SnapshotError::UnknownAtom(name.into())),
            }
        }

        fn float_key(&mut self, float: f64) -> f64 {
            float + 0.0
        }

        fn external(
            &mut self,
            external: &[u8],
            writer: &mut Writer<Infallible>,
        ) -> Result<(), SnapshotError> {
            assert!(etf::flat(external).is_some());
            writer.opaque(external);
            Ok(())
        }

        fn export(&mut self, _: u64, _: u64, arity: u8) -> Result<(), SnapshotError> {
            match arity {
                9 => Err(SnapshotError::UnknownAtom(b"a:b/9".into())),
                _ => Ok(()),
            }
        }

        fn share(
            &mut self,
            content: Packed<Infallible>,
        ) -> Result<(u64, Infallible), SnapshotError> {
            unreachable!("{content:?}")
        }

        fn fields(
            &mut self,
            fields: Packed<Infallible>,
        ) -> Result<Packed<Infallible>, SnapshotError> {
            Ok(fields)
        }
    }

    /// The packed form of a term without its version byte.
    fn translated(term: &[u8]) -> Result<Vec<u8>, SnapshotError> {
        let place = Place {
            depth: 0,
            keys: 0,
            funs: 0,
        };
        let mut writer = Writer::new();
        let external = [&[etf::VERSION], term].concat();
        translate(&external, place, false, &mut Host, &mut writer)?;
        Ok(writer.bytes().to_vec())
    }

    #[derive(Debug, Clone)]
    enum Term {
        Int(i64),
        Float(f64),
        Atom(u8),
        Bytes(Vec<u8>),
        Text(Vec<u8>),
        Big(u8),
        Pid(u8),
        Export(u8),
        List(Vec<Term>),
        Improper(Vec<Term>, u8),
        Tuple(Vec<Term>),
        Map(Vec<(Term, Term)>),
        Fun(Vec<Term>),
    }

    const UNIQ: &[u8; 16] = b"uniq-of-the-code";

    fn pid(number: u8) -> Vec<u8> {
        let head = [88, 119, 3, b'n', b'@', b'h', 0, 0, 0, number];
        [&head[..], &[0; 8]].concat()
    }

    fn big(last: u8) -> [u8; 11] {
        [110, 8, 0, 1, 2, 3, 4, 5, 6, 7, last | 0x80]
    }

    /// As a VM writes it.
    fn write_external(term: &Term, to: &mut Vec<u8>) {
        let head = |to: &mut Vec<u8>, tag, count: usize| {
            to.push(tag);
            to.extend_from_slice(&(count as u32).to_be_bytes());
        };
        match term {
            Term::Int(value) => match (u8::try_from(*value), i32::try_from(*value)) {
                (Ok(byte), _) => to.extend([97, byte]),
                (_, Ok(value)) => head(to, 98, value.cast_unsigned() as usize),
                _ => {
                    let digits = value.unsigned_abs().to_le_bytes();
                    let zeros = digits.iter().rev().take_while(|digit| **digit == 0);
                    let digits = &digits[..8 - zeros.count()];
                    to.extend([110, digits.len() as u8, u8::from(*value < 0)]);
                    to.extend_from_slice(digits);
                }
            },
            Term::Float(value) => {
                to.push(70);
                to.extend_from_slice(&value.to_be_bytes());
            }
            // In each form.
            Term::Atom(letter) => match letter % 4 {
                0 => to.extend([100, 0, 1, *letter]),
                1 => to.extend([115, 1, *letter]),
                2 => to.extend([118, 0, 1, *letter]),
                _ => to.extend([119, 1, *letter]),
            },
            Term::Bytes(bytes) if bytes.is_empty() => to.push(106),
            // Too long for a VM's short form, for once.
            Term::Bytes(bytes) if bytes.len() % 3 == 0 => {
                head(to, 108, bytes.len());
                bytes.iter().for_each(|byte| to.extend([97, *byte]));
                to.push(106);
            }
            Term::Bytes(bytes) => {
                to.extend([107, 0, bytes.len() as u8]);
                to.extend_from_slice(bytes);
            }
            Term::Text(text) => {
                head(to, 109, text.len());
                to.extend_from_slice(text);
            }
            Term::Big(last) => to.extend(big(*last)),
            Term::Pid(number) => to.extend(pid(*number)),
            Term::Export(arity) => to.extend([113, 119, 1, b'a', 119, 1, b'b', 97, *arity]),
            Term::List(elements) => {
                head(to, 108, elements.len() + 1);
                to.extend([119, 1, b'a']);
                elements.iter().for_each(|e| write_external(e, to));
                to.push(106);
            }
            Term::Improper(elements, tail) => {
                head(to, 108, elements.len() + 1);
                to.extend([97, 7]);
                elements.iter().for_each(|e| write_external(e, to));
                write_external(&Term::Atom(*tail), to);
            }
            Term::Tuple(elements) => {
                match elements.len() % 2 {
                    0 => to.extend([104, elements.len() as u8]),
                    _ => head(to, 105, elements.len()),
                }
                elements.iter().for_each(|e| write_external(e, to));
            }
            Term::Map(entries) => {
                head(to, 116, entries.len());
                for (key, value) in entries {
                    write_external(key, to);
                    write_external(value, to);
                }
            }
            Term::Fun(free) => {
                let mut values = vec![119, 1, b'c', 97, 4, 98, 5, 0, 0, 0];
                values.extend(pid(1));
                free.iter().for_each(|e| write_external(e, &mut values));
                head(to, 112, 29 + values.len());
                to.push(2);
                to.extend_from_slice(UNIQ);
                to.extend([0, 0, 0, 3, 0, 0, 0, free.len() as u8]);
                to.extend(values);
            }
        }
    }

    /// `None`: a key occurs twice.
    fn write_packed(term: &Term, in_key: bool, to: &mut Writer<Infallible>) -> Option<()> {
        let mut elements: &[Term] = &[];
        match term {
            Term::Int(value) => to.int(*value),
            Term::Float(value) if in_key => to.float(*value + 0.0),
            Term::Float(value) => to.float(*value),
            Term::Atom(letter) => to.atom(u64::from(*letter)),
            Term::Bytes(bytes) if bytes.is_empty() => to.nil(),
            Term::Bytes(bytes) => to.byte_list(bytes.iter().copied()),
            Term::Text(text) => to.binary(text),
            Term::Big(last) => to.opaque(&[&[131], &big(*last)[..]].concat()),
            Term::Pid(number) => to.opaque(&[&[131], &pid(*number)[..]].concat()),
            Term::Export(arity) => {
                to.export();
                to.atom(u64::from(b'a'));
                to.atom(u64::from(b'b'));
                to.int(i64::from(*arity));
            }
            Term::List(some) => {
                to.list(some.len() + 1);
                to.atom(u64::from(b'a'));
                elements = some;
            }
            Term::Improper(some, _) => {
                to.improper(some.len() + 1);
                to.int(7);
                elements = some;
            }
            Term::Tuple(some) => {
                to.tuple(some.len());
                elements = some;
            }
            Term::Map(entries) => {
                let mut map = to.begin_map();
                for (key, _) in entries {
                    write_packed(key, true, to)?;
                    to.end_key(&map);
                }
                to.end_keys(&map).then_some(())?;
                while let Some(index) = to.next_value(&mut map) {
                    write_packed(&entries[index].1, in_key, to)?;
                }
            }
            Term::Fun(free) => {
                to.fun(free.len());
                to.atom(u64::from(b'c'));
                to.int(2);
                to.binary(UNIQ);
                to.int(3);
                to.int(4);
                to.int(0x500_0000);
                elements = free;
            }
        }
        for element in elements {
            write_packed(element, in_key, to)?;
        }
        if let Term::Improper(_, tail) = term {
            to.atom(u64::from(*tail));
        }
        Some(())
    }

    fn term() -> impl Strategy<Value = Term> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Term::Int),
            (-300i64..300).prop_map(Term::Int),
            any::<(i64, u8)>().prop_map(|(value, bits)| Term::Int(value >> (bits % 64))),
            prop_oneof![Just(-0.0), Just(0.0), -1e9f64..1e9].prop_map(Term::Float),
            (b'a'..=b'j').prop_map(Term::Atom),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Term::Bytes),
            prop::collection::vec(any::<u8>(), 0..200).prop_map(Term::Text),
            any::<u8>().prop_map(Term::Big),
            any::<u8>().prop_map(Term::Pid),
            (0u8..9).prop_map(Term::Export),
        ];
        leaf.prop_recursive(5, 60, 8, |below| {
            let some = || prop::collection::vec(below.clone(), 0..6);
            prop_oneof![
                some().prop_map(Term::List),
                (some(), b'a'..=b'j').prop_map(|(elements, tail)| Term::Improper(elements, tail)),
                some().prop_map(Term::Tuple),
                some().prop_map(Term::Fun),
                prop::collection::vec((below.clone(), below.clone()), 0..8).prop_map(Term::Map),
            ]
        })
    }

    /// In a tuple, so that it has parts.
    fn external(term: &Term) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_external(&Term::Tuple(vec![term.clone()]), &mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn a_term_is_read_as_what_the_packer_writes(term in term()) {
            let mut writer = Writer::new();
            writer.tuple(1);
            let expected = match write_packed(&term, false, &mut writer) {
                Some(()) => Ok(writer.bytes().to_vec()),
                None => Err(SnapshotError::Corrupt),
            };
            prop_assert_eq!(translated(&external(&term)), expected);
        }

        #[test]
        fn damaged_terms_do_not_panic(
            term in term(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut bytes = external(&term);
            let at = at.index(bytes.len());
            prop_assert_eq!(translated(&bytes[..at]), Err(SnapshotError::Corrupt));
            prop_assert_eq!(
                translated(&[&bytes, &[106][..]].concat()),
                Err(SnapshotError::Corrupt)
            );
            bytes[at] ^= byte;
            let _ = translated(&bytes);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = translated(&bytes);
            let _ = is_list(&bytes);
        }
    }

    /// This many heads, a leaf, and as many ends.
    fn nested(levels: usize, head: &[u8], end: &[u8]) -> Vec<u8> {
        [&head.repeat(levels), &[106][..], &end.repeat(levels)].concat()
    }

    const LIST: &[u8] = &[108, 0, 0, 0, 1];
    const MAP: &[u8] = &[116, 0, 0, 0, 1];

    /// The values of a map are not looked through once more in each map around them.
    #[test]
    fn deep_terms_are_followed_without_the_stack_of_the_thread_and_once() {
        let value = [MAP, &[97, 5]].concat();
        for bytes in [
            nested(EXTERNAL_LIMIT / 7, LIST, &[106]),
            nested(EXTERNAL_LIMIT / 3, &[104, 1], &[]),
            nested(MAX_DEPTH / 2, LIST, &[97, 1]),
            nested(MAX_DEPTH, &[104, 2], &[97, 1]),
            nested(MAX_DEPTH / 3, &value, &[]),
        ] {
            assert!(translated(&bytes).is_ok(), "{:?}", &bytes[..7]);
        }
    }

    #[test]
    fn what_is_whole_and_too_large_or_too_deep_is_not_called_corrupt() {
        let fun = |levels| {
            let fun = (0..levels).fold(Term::Int(1), |inside, _| Term::Fun(vec![inside]));
            let mut bytes = Vec::new();
            write_external(&fun, &mut bytes);
            bytes
        };
        assert!(translated(&nested(MAX_KEYS, MAP, &[106])).is_ok());
        assert!(translated(&fun(MAX_FUNS)).is_ok());
        for bytes in [
            nested(EXTERNAL_LIMIT / 5, LIST, &[106]),
            nested(MAX_DEPTH + 1000, &[104, 2], &[97, 1]),
            nested(MAX_KEYS + 1, MAP, &[106]),
            fun(MAX_FUNS + 1),
        ] {
            let refused = translated(&bytes).map(|packed| packed.len());
            assert!(
                matches!(refused, Err(SnapshotError::TooLarge(_))),
                "{:?}: {refused:?}",
                &bytes[..7]
            );
        }
    }

    #[test]
    fn names_that_are_no_atoms_are_named() {
        let unknown = Err(SnapshotError::UnknownAtom(b"what".into()));
        let what = [119, 4, b'w', b'h', b'a', b't'];
        let export = [&[113], &what[..], &[119, 1, b'a', 97, 1]].concat();
        assert_eq!(translated(&export), unknown);
        assert_eq!(translated(&[&[104, 1], &what[..]].concat()), unknown);
        let arity = [113, 119, 1, b'a', 119, 1, b'b', 97, 9];
        let unknown = Err(SnapshotError::UnknownAtom(b"a:b/9".into()));
        assert_eq!(translated(&arity), unknown);
    }
}
