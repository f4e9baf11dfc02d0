//! Small parked states in one piece with the object that stands for them: for a hundred thousand
//! servers, the headers of three blocks each are most of what their own state takes.
//!
//! ```text
//!   Slot │ link │ link │ packed bytes        one object of the VM
//! ```

use crate::share::ShareLink;
use crate::terms::Anchor;
use erlmcp_memory_core::packed::{Links, Packed, Target, View, numbered};
use erlmcp_memory_core::parts::Built;
use erlmcp_memory_core::threads::{Tally, Usage};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::ptr::{self, NonNull};
use std::slice;

/// Packed bytes of the largest value that is folded. For a larger value the headers matter
/// little, and the VM finds room for it less well than Rust's allocator.
const MOST_BYTES: usize = 2 << 10;

/// The most links that are folded: the thread that destroys the object drops them.
const MOST_LINKS: usize = 32;

/// All that is folded, and its bytes.
static FOLDED: Tally = Tally::new();

/// What is folded, and the bytes that it takes in objects.
pub fn folded() -> Usage {
    FOLDED.sum()
}

/// A packed value behind its owner, in the same object. Its links are to shared contents alone.
pub struct Folded {
    start: NonNull<ShareLink>,
    /// What it takes when it is built, in bytes, and how many 255ths of these are on a heap.
    built: u32,
    on_heap: u8,
    /// How many links, and [`NUMBERED`].
    links: u8,
    bytes: u16,
}

/// The bit for bytes that refer to links by their positions.
const NUMBERED: u8 = 0x80;

// SAFETY: it owns what lies there, links and bytes, which are `Send` and `Sync`.
unsafe impl Send for Folded {}
// SAFETY: as above.
unsafe impl Sync for Folded {}

/// A value before it is folded.
pub struct Unfolded<'v> {
    bytes: Cow<'v, [u8]>,
    links: SmallVec<[ShareLink; 8]>,
    is_numbered: bool,
    built: u32,
    on_heap: u8,
}

impl<'v> Unfolded<'v> {
    /// A value that takes this as a term; `None` if it cannot be folded.
    pub fn of(value: &'v Packed<Anchor>, built: Built) -> Option<Self> {
        let links = value.links().as_slice();
        if value.bytes().len() > MOST_BYTES || links.len() > MOST_LINKS {
            return None;
        }
        let share = |target: &Target<Anchor>| match target {
            Target::Anchor(Anchor::Share(share)) => Some(share.clone()),
            _ => None,
        };
        let numbered = numbered(value.view());
        Some(Unfolded {
            is_numbered: numbered.is_some(),
            bytes: numbered.map_or(value.bytes().into(), Cow::Owned),
            links: links
                .iter()
                .map(|(_, target)| share(target))
                .collect::<Option<_>>()?,
            built: u32::try_from(built.bytes()).ok()?,
            on_heap: (255 * built.words * size_of::<usize>()).div_ceil(built.bytes().max(1)) as u8,
        })
    }

    /// A value that is folded already, for another place.
    pub fn again(folded: &'v Folded) -> Self {
        Unfolded {
            bytes: folded.bytes().into(),
            links: folded.links().iter().cloned().collect(),
            is_numbered: folded.is_numbered(),
            built: folded.built,
            on_heap: folded.on_heap,
        }
    }

    /// The bytes that it takes.
    pub fn size(&self) -> usize {
        self.links.len() * size_of::<ShareLink>() + self.bytes.len()
    }

    /// Writes the value to `to`.
    ///
    /// # Safety
    ///
    /// There are [`size`](Self::size) bytes at `to`, aligned for a word, which are valid for as
    /// long as the returned value lives, and which nothing else uses.
    pub unsafe fn fold(self, to: NonNull<u8>) -> Folded {
        FOLDED.came(self.size());
        let Unfolded {
            bytes,
            links,
            is_numbered,
            built,
            on_heap,
        } = self;
        let folded = Folded {
            start: to.cast(),
            built,
            on_heap,
            links: links.len() as u8 | if is_numbered { NUMBERED } else { 0 },
            bytes: bytes.len() as u16,
        };
        // SAFETY: the caller promises the room.
        unsafe {
            for (index, link) in links.into_iter().enumerate() {
                folded.start.add(index).write(link);
            }
            let start = folded.bytes_start();
            ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), bytes.len());
        }
        folded
    }
}

impl Folded {
    /// About what it takes when it is built.
    pub fn built(&self) -> Built {
        let bytes = self.built as usize;
        let on_heap = bytes * usize::from(self.on_heap) / 255;
        Built {
            words: on_heap / size_of::<usize>(),
            off_heap: bytes - on_heap,
        }
    }

    fn is_numbered(&self) -> bool {
        self.links & NUMBERED != 0
    }

    fn links_len(&self) -> usize {
        usize::from(self.links & !NUMBERED)
    }

    /// Calls `with` with the packed value.
    pub fn with<R>(&self, with: impl FnOnce(View<'_, Anchor>) -> R) -> R {
        let links = Links::to_anchors(self.links().iter().zip(0..).map(|(link, place)| {
            let id = if self.is_numbered() { place } else { link.id() };
            (id, Anchor::Share(link.clone()))
        }));
        with(View::new(self.bytes(), &links))
    }

    fn links(&self) -> &[ShareLink] {
        // SAFETY: `fold` wrote this many, and they live as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.links_len()) }
    }

    fn bytes_start(&self) -> NonNull<u8> {
        // SAFETY: the bytes begin where the links end.
        unsafe { self.start.add(self.links_len()).cast() }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `fold` wrote this many, and they live as long as `self`.
        unsafe { slice::from_raw_parts(self.bytes_start().as_ptr(), self.bytes.into()) }
    }
}

impl Drop for Folded {
    fn drop(&mut self) {
        FOLDED.went(self.links_len() * size_of::<ShareLink>() + usize::from(self.bytes));
        let links = ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.links_len());
        // SAFETY: `fold` wrote this many, and nothing uses them afterwards.
        unsafe { links.drop_in_place() };
    }
}
