//! Walks iodata with a bound.
//!
//! `enif_inspect_iolist_as_binary` does not help against hostile input: it builds the binary before
//! its size can be checked, and a list whose parts are shared (`L2 = [L1 | L1]`, and so on) can
//! name terabytes in a kilobyte. This walk goes cell by cell with a stack of its own and stops as
//! soon as it has seen more than the limit.

use crate::lane::{FAST_BYTES, FAST_TERMS, Lane};
use erlmcp_memory_core::buffer::MESSAGE_LIMIT;
use rustler::Term;
use rustler::types::binary::Binary;
use smallvec::SmallVec;

/// Why a walk ended early.
pub enum IoDataError {
    /// Something in it is neither a byte, a binary nor a list.
    NotIoData,
    /// More than the fast lane handles.
    Busy,
    /// More than any message may have.
    TooLarge,
}

/// Binaries of at most this many bytes are copied together with their neighbours.
const SMALL: usize = 256;

/// The bytes of iodata, found in one walk.
#[derive(Default)]
pub struct IoData<'a> {
    parts: SmallVec<[Part<'a>; 4]>,
    /// Small binaries and single bytes.
    gathered: SmallVec<[u8; SMALL]>,
    bytes: usize,
}

enum Part<'a> {
    /// A number of the gathered bytes.
    Gathered(usize),
    Binary(Term<'a>, &'a [u8]),
}

impl<'a> IoData<'a> {
    /// Walks iodata of at most this many bytes.
    pub fn of(data: Term<'a>, limit: usize, lane: Lane) -> Result<Self, IoDataError> {
        let mut found = IoData::default();
        let mut terms = 0;
        // Tails of lists whose first part is being walked. Each is a different cell of the caller's
        // list, so this is never larger than the caller's own memory.
        let mut rests = Vec::new();
        let mut current = data;
        loop {
            terms += 1;
            match lane {
                Lane::Fast if terms > FAST_TERMS => return Err(IoDataError::Busy),
                // Empty lists and binaries add no bytes, however many there are.
                Lane::Dirty if terms > 4 * MESSAGE_LIMIT => return Err(IoDataError::TooLarge),
                _ => {}
            }
            if let Ok((head, tail)) = current.list_get_cell() {
                // Not decoded as u8: rustler truncates larger integers.
                if let Ok(integer) = head.decode::<u32>() {
                    let byte = u8::try_from(integer).map_err(|_| IoDataError::NotIoData)?;
                    found.count(1, limit, lane)?;
                    found.gather(&[byte]);
                    current = tail;
                } else {
                    if !tail.is_empty_list() {
                        rests.push(tail);
                    }
                    current = head;
                }
                continue;
            }
            if !current.is_empty_list() {
                let binary = Binary::from_term(current).map_err(|_| IoDataError::NotIoData)?;
                found.count(binary.len(), limit, lane)?;
                if binary.len() <= SMALL {
                    found.gather(binary.as_slice());
                } else {
                    found.parts.push(Part::Binary(current, binary.as_slice()));
                }
            }
            match rests.pop() {
                Some(rest) => current = rest,
                None => return Ok(found),
            }
        }
    }

    fn count(&mut self, bytes: usize, limit: usize, lane: Lane) -> Result<(), IoDataError> {
        self.bytes += bytes;
        match lane {
            _ if self.bytes > limit => Err(IoDataError::TooLarge),
            Lane::Fast if self.bytes > FAST_BYTES => Err(IoDataError::Busy),
            _ => Ok(()),
        }
    }

    fn gather(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
        match self.parts.last_mut() {
            Some(Part::Gathered(length)) => *length += bytes.len(),
            _ => self.parts.push(Part::Gathered(bytes.len())),
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// All of them, in order, in pieces, each with its binary if it is one.
    pub fn pieces(&self) -> impl Iterator<Item = (Option<Term<'a>>, &[u8])> {
        let mut gathered = self.gathered.as_slice();
        self.parts.iter().map(move |part| match part {
            Part::Binary(term, bytes) => (Some(*term), *bytes),
            Part::Gathered(length) => {
                let (bytes, rest) = gathered.split_at(*length);
                gathered = rest;
                (None, bytes)
            }
        })
    }
}
