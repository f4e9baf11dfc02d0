//! Walks iodata with a bound.
//!
//! `enif_inspect_iolist_as_binary` is no help against hostile input: it builds the binary before
//! anybody can look at its size, and a list whose parts are shared (`L2 = [L1 | L1]`, and so on)
//! can name terabytes in a kilobyte. This walk goes cell by cell with a stack of its own and stops
//! as soon as it has seen more than it may.

use crate::lane::{FAST_BYTES, FAST_TERMS, Lane};
use erlmcp_memory_core::buffer::MESSAGE_LIMIT;
use rustler::Term;
use rustler::types::binary::Binary;

/// Why a walk ended early.
pub enum IoDataError {
    /// Something in it is neither a byte, a binary nor a list.
    NotIoData,
    /// More than the fast lane does.
    Busy,
    /// More than any message may have.
    TooLarge,
}

/// Calls `sink` with the bytes of `data`, in order, in pieces; returns how many bytes there were.
/// A walk that ends early may have called `sink` for some of them.
pub fn walk(data: Term<'_>, lane: Lane, mut sink: impl FnMut(&[u8])) -> Result<usize, IoDataError> {
    let mut walk = Walk::new(lane);
    // Rests of lists whose first part is being walked. Each is a cell of its own of the caller's
    // list, so this is never larger than the caller's own memory.
    let mut rests = Vec::new();
    let mut current = data;
    loop {
        walk.visit()?;
        if let Ok((head, tail)) = current.list_get_cell() {
            // Not decoded as u8: rustler cuts what is too large for it.
            if let Ok(integer) = head.decode::<u32>() {
                let byte = u8::try_from(integer).map_err(|_| IoDataError::NotIoData)?;
                walk.byte(byte, &mut sink)?;
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
            walk.binary(binary.as_slice(), &mut sink)?;
        }
        match rests.pop() {
            Some(rest) => current = rest,
            None => break,
        }
    }
    walk.flush(&mut sink);
    Ok(walk.bytes)
}

/// The state of one walk: what was seen, and single bytes gathered into pieces.
struct Walk {
    lane: Lane,
    terms: usize,
    bytes: usize,
    piece: [u8; 256],
    filled: usize,
}

impl Walk {
    fn new(lane: Lane) -> Self {
        Walk {
            lane,
            terms: 0,
            bytes: 0,
            piece: [0; 256],
            filled: 0,
        }
    }

    fn visit(&mut self) -> Result<(), IoDataError> {
        self.terms += 1;
        match self.lane {
            Lane::Fast if self.terms > FAST_TERMS => Err(IoDataError::Busy),
            // Empty lists and binaries add no bytes, however many there are.
            Lane::Dirty if self.terms > 4 * MESSAGE_LIMIT => Err(IoDataError::TooLarge),
            _ => Ok(()),
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), IoDataError> {
        self.bytes += bytes;
        match self.lane {
            _ if self.bytes > MESSAGE_LIMIT => Err(IoDataError::TooLarge),
            Lane::Fast if self.bytes > FAST_BYTES => Err(IoDataError::Busy),
            _ => Ok(()),
        }
    }

    fn byte(&mut self, byte: u8, sink: &mut impl FnMut(&[u8])) -> Result<(), IoDataError> {
        self.count(1)?;
        if self.filled == self.piece.len() {
            self.flush(sink);
        }
        self.piece[self.filled] = byte;
        self.filled += 1;
        Ok(())
    }

    fn binary(&mut self, bytes: &[u8], sink: &mut impl FnMut(&[u8])) -> Result<(), IoDataError> {
        self.count(bytes.len())?;
        self.flush(sink);
        sink(bytes);
        Ok(())
    }

    fn flush(&mut self, sink: &mut impl FnMut(&[u8])) {
        if self.filled > 0 {
            sink(&self.piece[..self.filled]);
            self.filled = 0;
        }
    }
}
