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

mod blocks;
mod storage;
#[cfg(test)]
mod tests;

pub use blocks::{BlockPool, BlockStats};

use memchr::memchr;
use storage::Storage;

/// Bytes that one buffer may hold: 16 MiB.
pub const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;

/// A rest of more bytes is not moved to a smaller block: a search must stay short.
const SETTLED: usize = 64 * 1024;

/// The bytes would not fit under [`MESSAGE_LIMIT`]; the buffer is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageTooLarge;

/// What a search for the next frame ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A frame of so many bytes, its newline and a CR before it not counted.
    Frame(usize),
    /// No whole frame is held.
    More,
    /// The budget is used up; searching again goes on from there.
    Unfinished,
}

/// One connection's bytes that are not yet taken as frames.
pub struct MessageBuffer<'p> {
    blocks: &'p BlockPool,
    storage: Storage<'p>,
    /// Where in the storage the bytes begin that are not yet taken.
    start: usize,
    /// Up to where the storage was searched; nothing between `start` and here is a newline, but
    /// for the one of `newline`.
    searched: usize,
    /// Where the newline of the next frame is, once found.
    newline: Option<usize>,
}

impl Drop for MessageBuffer<'_> {
    fn drop(&mut self) {
        self.blocks.buffers.went(0);
    }
}

impl<'p> MessageBuffer<'p> {
    /// An empty buffer that takes its blocks from `blocks`.
    pub fn new(blocks: &'p BlockPool) -> Self {
        blocks.buffers.came(0);
        MessageBuffer {
            blocks,
            storage: Storage::None,
            start: 0,
            searched: 0,
            newline: None,
        }
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
            let wanted = needed.max(2 * held).min(MESSAGE_LIMIT);
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
            Some(needed) if needed <= MESSAGE_LIMIT => Ok(needed),
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
            && storage::class(held).is_some_and(|class| class < capacity)
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
