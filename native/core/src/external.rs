//! The external term format, as far as bytes of unknown origin are looked through before a VM
//! reads them (<https://www.erlang.org/doc/apps/erts/erl_ext_dist>).
//!
//! The VM checks nearly everything itself. What it takes on trust is that the creator of a fun is
//! a process: a fun with another term in that place is made, and takes the node down when it is
//! written out again.

const VERSION: u8 = 131;

/// Whether bytes hold one term, version byte included, in tags that a snapshot may have, and each
/// fun in it names a process as its creator. The compressed form is none of these.
pub fn is_sound(external: &[u8]) -> bool {
    match external.split_first() {
        Some((&VERSION, term)) => Reader { rest: term }
            .term()
            .is_some_and(|rest| rest.is_empty()),
        _ => false,
    }
}

/// Where the atom at `at` ends, by what it says of its length.
pub fn skip_atom(external: &[u8], at: usize) -> Option<usize> {
    const ATOM: u8 = 100;
    const SMALL_ATOM: u8 = 115;
    const ATOM_UTF8: u8 = 118;
    const SMALL_ATOM_UTF8: u8 = 119;
    let length = *external.get(at + 1)?;
    match *external.get(at)? {
        SMALL_ATOM | SMALL_ATOM_UTF8 => Some(at + 2 + usize::from(length)),
        ATOM | ATOM_UTF8 => {
            let low = *external.get(at + 2)?;
            Some(at + 3 + usize::from(u16::from_be_bytes([length, low])))
        }
        _ => None,
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads one term, and returns what follows it. Terms inside are counted, not descended into,
    /// so that no nesting is too deep.
    fn term(mut self) -> Option<&'a [u8]> {
        let mut left: u64 = 1;
        while left > 0 {
            left -= 1;
            left += self.item()?;
        }
        Some(self.rest)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.rest = self.rest.get(bytes..)?;
        Some(())
    }

    fn number<const N: usize>(&mut self) -> Option<usize> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
        )
    }

    fn atom(&mut self) -> Option<()> {
        self.skip(skip_atom(self.rest, 0)?)
    }

    fn node_and(&mut self, bytes: usize) -> Option<()> {
        self.atom()?;
        self.skip(bytes)
    }

    /// Reads one item; how many terms of it follow.
    fn item(&mut self) -> Option<u64> {
        let tag = *self.rest.first()?;
        if matches!(tag, 100 | 115 | 118 | 119) {
            self.atom()?;
            return Some(0);
        }
        self.skip(1)?;
        let mut terms = 0;
        match tag {
            // SMALL_INTEGER, INTEGER, NEW_FLOAT, FLOAT, NIL
            97 => self.skip(1)?,
            98 => self.skip(4)?,
            70 => self.skip(8)?,
            99 => self.skip(31)?,
            106 => {}
            // SMALL_BIG, LARGE_BIG: a sign before the digits
            110 => {
                let digits = self.number::<1>()?;
                self.skip(1 + digits)?;
            }
            111 => {
                let digits = self.number::<4>()?;
                self.skip(1 + digits)?;
            }
            // STRING, BINARY, BIT_BINARY
            107 => {
                let length = self.number::<2>()?;
                self.skip(length)?;
            }
            109 => {
                let length = self.number::<4>()?;
                self.skip(length)?;
            }
            77 => {
                let length = self.number::<4>()?;
                self.skip(1 + length)?;
            }
            // SMALL_TUPLE, LARGE_TUPLE, LIST and its tail, MAP
            104 => terms = self.number::<1>()? as u64,
            105 => terms = self.number::<4>()? as u64,
            108 => terms = self.number::<4>()? as u64 + 1,
            116 => terms = 2 * self.number::<4>()? as u64,
            // PID, NEW_PID, PORT, NEW_PORT, V4_PORT
            103 => self.node_and(9)?,
            88 => self.node_and(12)?,
            102 => self.node_and(5)?,
            89 => self.node_and(8)?,
            120 => self.node_and(12)?,
            // REFERENCE, NEW_REFERENCE, NEWER_REFERENCE
            101 => self.node_and(5)?,
            114 => {
                let words = self.number::<2>()?;
                self.node_and(1 + 4 * words)?;
            }
            90 => {
                let words = self.number::<2>()?;
                self.node_and(4 + 4 * words)?;
            }
            // EXPORT: module, function, arity
            113 => terms = 3,
            // NEW_FUN: size, arity, uniq, index, number of free variables, module, old index, old
            // uniq, creator, free variables
            112 => {
                self.skip(4 + 1 + 16 + 4)?;
                terms = self.number::<4>()? as u64;
                self.atom()?;
                self.small_integer()?;
                self.small_integer()?;
                if !matches!(self.rest.first(), Some(88 | 103)) {
                    return None;
                }
                self.item()?;
            }
            _ => return None,
        }
        Some(terms)
    }

    fn small_integer(&mut self) -> Option<()> {
        match self.rest.first()? {
            97 | 98 | 110 => self.item().map(drop),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_sound;
    use proptest::prelude::*;

    const PID: &[u8] = &[88, 119, 1, b'n', 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

    /// A fun with this creator and one free variable.
    fn fun(creator: &[u8], free: &[u8]) -> Vec<u8> {
        let mut bytes = vec![112, 0, 0, 0, 0, 1];
        bytes.extend([7; 16]);
        bytes.extend([0, 0, 0, 2, 0, 0, 0, 1]);
        bytes.extend([119, 1, b'm', 97, 2, 98, 1, 2, 3, 4]);
        bytes.extend(creator);
        bytes.extend(free);
        bytes
    }

    fn sound(term: &[u8]) -> bool {
        is_sound(&[&[131], term].concat())
    }

    #[test]
    fn terms_of_every_tag() {
        for term in [
            &[97, 1][..],
            &[98, 0, 0, 1, 0],
            &[70, 0, 0, 0, 0, 0, 0, 0, 0],
            &[106],
            &[110, 2, 0, 1, 1],
            &[111, 0, 0, 0, 1, 1, 9],
            &[107, 0, 2, 1, 2],
            &[109, 0, 0, 0, 1, 5],
            &[77, 0, 0, 0, 1, 3, 0xe0],
            &[104, 2, 97, 1, 106],
            &[105, 0, 0, 0, 1, 106],
            &[108, 0, 0, 0, 1, 97, 1, 106],
            &[116, 0, 0, 0, 1, 97, 1, 106],
            PID,
            &[103, 119, 1, b'n', 0, 0, 0, 1, 0, 0, 0, 0, 0],
            &[102, 119, 1, b'n', 0, 0, 0, 1, 0],
            &[89, 100, 0, 1, b'n', 0, 0, 0, 1, 0, 0, 0, 0],
            &[120, 118, 0, 1, b'n', 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
            &[90, 0, 1, 115, 1, b'n', 0, 0, 0, 0, 0, 0, 0, 1],
            &[114, 0, 1, 115, 1, b'n', 0, 0, 0, 0, 1],
            &[113, 119, 1, b'm', 119, 1, b'f', 97, 0],
            &fun(PID, &[106]),
            &fun(PID, &fun(PID, &[97, 1])),
        ] {
            assert!(sound(term), "{term:?}");
            for length in 0..term.len() {
                assert!(!sound(&term[..length]), "{length} of {term:?}");
            }
            assert!(!sound(&[term, &[0]].concat()), "a byte more: {term:?}");
        }
    }

    #[test]
    fn a_creator_that_is_no_process_is_refused_wherever_the_fun_stands() {
        let forged = fun(&[97, 5], &[106]);
        assert!(!sound(&forged));
        assert!(!sound(&[&[104, 1][..], &forged].concat()));
        assert!(!sound(&[&[116, 0, 0, 0, 1, 97, 1][..], &forged].concat()));
        assert!(!sound(&fun(PID, &forged)));
        assert!(!sound(&fun(&forged, &[106])));
    }

    #[test]
    fn compressed_local_cached_and_old_tags_are_refused() {
        for tag in [80, 121, 82, 117, 68, 0, 255] {
            assert!(!sound(&[tag, 0, 0, 0, 0, 0, 0, 0, 0]));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = sound(&bytes);
        }
    }
}
