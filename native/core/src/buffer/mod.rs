//! Message buffers: bytes arrive in any pieces, newline-terminated frames go out.
//!
//! A buffer that holds nothing has no memory but its own few words. The first bytes take a block
//! out of a [`BlockPool`]; the last frame gives it back. A block is of one of seven size classes;
//! what does not fit into the largest is allocated for that message alone.
//!
//! # Costs
//!
//! * No byte is searched for a newline twice: the buffer remembers how far it looked, and a
//!   newline that was found but whose frame is not yet taken.
//! * No byte is moved more than a constant number of times on average: a block is compacted in
//!   place only while it is at most half full of bytes that are still needed, otherwise the bytes
//!   move into one at least twice as large.
//! * A short rest of an unfinished frame does not keep a large block: it moves to a small one.
//!
//! Frames are copied out. A view over the block would save that, but its host could not know what
//! the view keeps: the BEAM paces its collections by the bytes of binaries that it made itself, so
//! views of large frames pile up unseen, each with its block, and the blocks of a busy reader no
//! longer fit into the cache. Measured, views of frames of 50,000 to 250,000 bytes took twice the
//! time of copies and many times their memory.
//!
//! # Example
//!
//! ```
//! use erlmcp_memory_core::buffer::{BlockPool, Found, MessageBuffer};
//!
//! let blocks = BlockPool::new();
//! let mut buffer = MessageBuffer::with_limit(&blocks, 1024);
//! assert_eq!(buffer.append(b"one\r\ntw"), Ok(7));
//! assert_eq!(buffer.find(usize::MAX), Found::Frame(3));
//! assert_eq!(buffer.take(<[u8]>::to_vec), Some(b"one".to_vec()));
//! assert_eq!(buffer.find(usize::MAX), Found::More);
//! assert_eq!(buffer.held(), b"tw");
//! ```

mod blocks;
mod storage;
#[cfg(test)]
mod tests;

pub use blocks::{BlockPool, BlockStats};

use blocks::Class;
use memchr::{memchr, memchr_iter, memrchr};
use smallvec::SmallVec;
use storage::Storage;

/// Bytes that one buffer may hold: 16 MiB.
pub const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;

/// A rest of more bytes is not moved to a smaller block: a search must stay short.
const SETTLED: usize = 64 * 1024;

/// The bytes would not fit under the buffer's limit; the buffer is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageTooLarge;

/// What a search for the next frame ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A frame of this many bytes, without its newline and a CR before it.
    Frame(usize),
    /// No whole frame is held.
    More,
    /// The budget is used up; the next search continues from there.
    Unfinished,
}

/// One connection's bytes that are not yet taken as frames.
pub struct MessageBuffer<'p> {
    blocks: &'p BlockPool,
    storage: Storage<'p>,
    /// Where in the storage the bytes begin that are not yet taken.
    start: usize,
    /// Up to where the storage was searched; nothing between `start` and here is a newline, but
    /// for a byte equal to `newline`.
    searched: usize,
    /// Where the newline of the next frame is, once found.
    newline: Option<usize>,
    /// Bytes that may be held.
    limit: usize,
}

/// A frame that [`MessageBuffer::take_all`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'f> {
    /// Bytes that were held, or that lay in several pieces.
    Held(&'f [u8]),
    /// Bytes of one piece: its index, where they begin in it, and how many they are.
    Given(usize, usize, usize),
}

/// Why no frames were taken; the buffer is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// A message, finished or not, would pass the buffer's limit.
    TooLarge,
    /// It is more work than the budget.
    OverBudget,
}

/// What [`MessageBuffer::take_all`] may do.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Frames that it finds.
    pub frames: usize,
    /// Bytes that it searches, and bytes that it copies.
    pub bytes: usize,
}

impl Drop for MessageBuffer<'_> {
    fn drop(&mut self) {
        self.blocks.buffers.went(0);
    }
}

impl<'p> MessageBuffer<'p> {
    /// An empty buffer that takes its blocks from `blocks`.
    pub fn new(blocks: &'p BlockPool) -> Self {
        Self::with_limit(blocks, MESSAGE_LIMIT)
    }

    /// An empty buffer that may hold this many bytes, at most [`MESSAGE_LIMIT`].
    pub fn with_limit(blocks: &'p BlockPool, limit: usize) -> Self {
        blocks.buffers.came(0);
        MessageBuffer {
            limit: limit.min(MESSAGE_LIMIT),
            blocks,
            storage: Storage::None,
            start: 0,
            searched: 0,
            newline: None,
        }
    }

    /// Bytes that may be held.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What is held and not yet taken.
    pub fn held(&self) -> &[u8] {
        &self.storage.bytes()[self.start..]
    }

    /// Makes room for `more` bytes, which [`push`](Self::push) then copies. Nothing is copied
    /// or allocated when they would pass the limit.
    pub fn reserve(&mut self, more: usize) -> Result<(), MessageTooLarge> {
        let held = self.held().len();
        let needed = self.check(more)?;
        if !self.needs_move(more) {
            return Ok(());
        }
        let capacity = self.storage.capacity();
        if needed <= capacity && held <= capacity / 2 {
            self.storage.compact(self.start);
        } else {
            // Twice what is held, so that the next move is at least as many bytes away.
            let wanted = needed.max((2 * held).min(self.limit));
            let larger = Storage::take(self.blocks, wanted, self.held());
            self.storage = larger;
        }
        self.rebase();
        Ok(())
    }

    /// Appends bytes that [`reserve`](Self::reserve) made room for.
    pub fn push(&mut self, bytes: &[u8]) {
        self.storage.extend(bytes);
    }

    /// Appends `bytes`; returns how many are now held.
    pub fn append(&mut self, bytes: &[u8]) -> Result<usize, MessageTooLarge> {
        if !bytes.is_empty() {
            self.reserve(bytes.len())?;
            self.push(bytes);
        }
        Ok(self.held().len())
    }

    /// Bytes that would be held with `more` on top, where the limit allows them.
    fn check(&self, more: usize) -> Result<usize, MessageTooLarge> {
        match self.held().len().checked_add(more) {
            Some(needed) if needed <= self.limit => Ok(needed),
            _ => Err(MessageTooLarge),
        }
    }

    fn needs_move(&self, more: usize) -> bool {
        self.storage.bytes().len() + more > self.storage.capacity()
    }

    /// Bytes that [`append`](Self::append) of `more` would touch: those copied in, those moved to
    /// make room, and the room itself where it has to be allocated.
    pub fn append_cost(&self, more: usize) -> usize {
        match self.check(more) {
            Ok(needed) if self.needs_move(more) => needed.max(2 * self.held().len()),
            Ok(_) => more,
            Err(MessageTooLarge) => 0,
        }
    }

    /// Takes every whole frame out of what is held and the `pieces` behind it, in order; what is
    /// left of them is held. A frame in one piece is not copied.
    ///
    /// The limit is on each message and on the rest, not on the pieces together.
    pub fn take_all(
        &mut self,
        pieces: &[&[u8]],
        budget: Budget,
        mut taken: impl FnMut(Frame<'_>),
    ) -> Result<(), NotTaken> {
        if let [piece] = pieces
            && self.hold(piece, budget)?
        {
            return Ok(());
        }
        let ends = self.ends(pieces, budget)?;
        while let Found::Frame(_) = self.find(usize::MAX) {
            self.take(|frame| taken(Frame::Held(frame)));
        }
        let mut ends = ends.iter().peekable();
        for (index, piece) in pieces.iter().enumerate() {
            let mut start = 0;
            while let Some((_, end)) = ends.next_if(|(of, _)| *of == index) {
                let line = &piece[start..*end];
                if self.held().is_empty() {
                    let frame = line.strip_suffix(b"\r").unwrap_or(line);
                    taken(Frame::Given(index, start, frame.len()));
                } else {
                    // Looked at before: it is under the limit.
                    let _ = self.append(&piece[start..=*end]);
                    self.newline = Some(self.storage.bytes().len() - 1);
                    self.searched = self.storage.bytes().len();
                    self.take(|frame| taken(Frame::Held(frame)));
                }
                start = end + 1;
            }
            let _ = self.append(&piece[start..]);
            // No byte of it is a newline.
            self.searched = self.storage.bytes().len();
        }
        self.settle();
        Ok(())
    }

    /// Holds a piece in the middle of a message, which is what most pieces of a long one are.
    /// `false` where a frame ends in it or before it; then nothing was done.
    fn hold(&mut self, piece: &[u8], budget: Budget) -> Result<bool, NotTaken> {
        let len = self.storage.bytes().len();
        if self.searched < len || self.newline.is_some() || piece.len() > budget.bytes {
            return Ok(false);
        }
        if memchr(b'\n', piece).is_some() {
            return Ok(false);
        }
        let needed = len - self.start + piece.len();
        if needed > self.limit {
            return Err(NotTaken::TooLarge);
        }
        if len + piece.len() > self.storage.capacity() {
            if needed > budget.bytes {
                return Err(NotTaken::OverBudget);
            }
            self.reserve(piece.len()).map_err(|_| NotTaken::TooLarge)?;
        }
        if !piece.is_empty() {
            self.storage.extend(piece);
            self.searched += piece.len();
        }
        Ok(true)
    }

    /// Where the newlines are in the pieces, if all messages and the rest are under the limit, and
    /// taking them is within the budget.
    fn ends(
        &mut self,
        pieces: &[&[u8]],
        budget: Budget,
    ) -> Result<SmallVec<[(usize, usize); 4]>, NotTaken> {
        let held = self.held().len();
        let given: usize = pieces.iter().map(|piece| piece.len()).sum();
        let unsearched = self.storage.bytes().len() - self.searched;
        if given.max(unsearched) > budget.bytes {
            return Err(NotTaken::OverBudget);
        }
        // The length of the message that is not finished.
        let mut open = held;
        if matches!(self.find(usize::MAX), Found::Frame(_)) {
            if held > budget.bytes {
                return Err(NotTaken::OverBudget);
            }
            let last = memrchr(b'\n', self.held());
            open -= last.map_or(0, |at| at + 1);
        }
        let mut ends = SmallVec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let mut start = 0;
            for end in memchr_iter(b'\n', piece) {
                if open + end + 1 - start > self.limit {
                    return Err(NotTaken::TooLarge);
                }
                if ends.len() == budget.frames {
                    return Err(NotTaken::OverBudget);
                }
                ends.push((index, end));
                (open, start) = (0, end + 1);
            }
            open += piece.len() - start;
            if open > self.limit {
                return Err(NotTaken::TooLarge);
            }
        }
        let moves = !ends.is_empty() || self.needs_move(given);
        if held.saturating_add(given) > budget.bytes && moves {
            return Err(NotTaken::OverBudget);
        }
        Ok(ends)
    }

    /// Looks for the next frame, through at most `budget` bytes.
    pub fn find(&mut self, budget: usize) -> Found {
        if self.newline.is_none() {
            let bytes = self.storage.bytes();
            let end = bytes.len().min(self.searched.saturating_add(budget));
            self.newline = memchr(b'\n', &bytes[self.searched..end]).map(|at| self.searched + at);
            self.searched = self.newline.map_or(end, |at| at + 1);
        }
        match self.newline {
            Some(at) => Found::Frame(self.frame(at).len()),
            None if self.searched < self.storage.bytes().len() => Found::Unfinished,
            None => {
                self.settle();
                Found::More
            }
        }
    }

    /// Takes the frame that [`find`](Self::find) found: `read` sees its bytes, then they are
    /// gone. `None` where none was found.
    pub fn take<R>(&mut self, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let newline = self.newline.take()?;
        let result = read(self.frame(newline));
        self.start = newline + 1;
        if self.start == self.storage.bytes().len() {
            self.storage = Storage::None;
            self.start = 0;
            self.searched = 0;
        }
        Some(result)
    }

    /// The bytes before the newline at `at`, and before a CR that precedes it.
    fn frame(&self, at: usize) -> &[u8] {
        let line = &self.storage.bytes()[self.start..at];
        line.strip_suffix(b"\r").unwrap_or(line)
    }

    /// Moves a short rest into the smallest block that holds it: at most a quarter of the bytes of
    /// the block that it leaves, and never more than a search may copy.
    fn settle(&mut self) {
        let held = self.held().len();
        let capacity = self.storage.capacity();
        if self.start > 0
            && held <= capacity / 4
            && held <= SETTLED
            && Class::of(held).is_some_and(|class| class.size() < capacity)
        {
            self.storage = Storage::take(self.blocks, held, self.held());
            self.rebase();
        }
    }

    /// The storage now begins with the first held byte.
    fn rebase(&mut self) {
        self.searched -= self.start;
        self.newline = self.newline.map(|at| at - self.start);
        self.start = 0;
    }
}
