//! Rust's heap is the VM's heap, and its live bytes are counted.
//!
//! It counts what Rust code has allocated and not freed: pooled objects, states, shared content,
//! histograms, samples. It leaves out what the VM's allocators add to each block (16 bytes or more)
//! and the objects that the VM allocates for the library, mainly the headers of resources (about 90
//! bytes each, and the fields in them). `erlang:memory(total)` includes all of these.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;

use erlmcp_memory_core::heap;
use erlmcp_memory_core::threads::Tally;
use rustler::EnifAllocator;
use rustler::sys::{enif_alloc, enif_free, enif_realloc};

/// The VM's allocator, with a count of live bytes.
pub struct CountingAllocator;

/// Live blocks, and the bytes that were asked for.
static LIVE: Tally = Tally::new();

/// The VM's blocks are aligned for any type of the C language, thus for a word; larger alignments
/// are left to rustler, which puts a header before the block.
fn is_plain(layout: Layout) -> bool {
    layout.align() <= align_of::<usize>()
}

/// Bytes that Rust code holds on the heap now.
pub fn live_bytes() -> u64 {
    LIVE.sum().bytes as u64
}

/// The same, including about what the VM's allocators add to each block.
pub fn held_bytes() -> usize {
    let live = LIVE.sum();
    live.bytes + live.count * heap::overhead_of_a_block()
}

// SAFETY: a block of a plain layout comes from enif_alloc or enif_realloc and goes to enif_realloc
// or enif_free; any other comes from EnifAllocator and goes back to it with its layout. The caller
// promises that a block always comes with the layout that it has. The counting touches atomics and
// a thread local without destructor only, so it never allocates.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = if is_plain(layout) {
            // SAFETY: the call takes any size, and returns null where there is no memory.
            unsafe { enif_alloc(layout.size()).cast() }
        } else {
            // SAFETY: the caller's promises about the layout are passed on.
            unsafe { EnifAllocator.alloc(layout) }
        };
        if !block.is_null() {
            LIVE.came(layout.size());
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.went(layout.size());
        if is_plain(layout) {
            // SAFETY: a plain block is the VM's own, as above.
            unsafe { enif_free(block.cast()) }
        } else {
            // SAFETY: the block is EnifAllocator's, with this layout.
            unsafe { EnifAllocator.dealloc(block, layout) }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if is_plain(layout) {
            // SAFETY: a plain block is the VM's own. If there is no memory for the new size, the
            // call returns null and leaves the block as it was.
            let moved: *mut u8 = unsafe { enif_realloc(block.cast(), new_size).cast() };
            if !moved.is_null() {
                LIVE.add(0, new_size as isize - layout.size() as isize);
            }
            return moved;
        }
        // SAFETY: the caller promises that the new size fits a layout of this alignment and is not
        // zero; both blocks have the smaller of both sizes, and do not overlap; the old one is not
        // used after it was freed.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// The size of the blocks that show what the VM's allocators add to a block: so large that they
/// do not end up in gaps between others, and a few still fit side by side.
pub const SPECIMEN: usize = 16 << 10;
/// How many of them.
pub const SPECIMENS: usize = 16;

/// Measures what the VM's allocator adds to a block; called once, when the library is loaded.
pub fn learn_overhead() {
    let blocks: [Vec<u8>; SPECIMENS] = std::array::from_fn(|_| Vec::with_capacity(SPECIMEN));
    let addresses = blocks.iter().map(|block| black_box(block.as_ptr()).addr());
    if let Some(bytes) = heap::overhead(SPECIMEN, addresses.collect()) {
        heap::set_block_overhead(bytes);
    }
}

/// Bytes that the library holds: see the module's description for what the figure includes.
#[rustler::nif]
fn native_bytes() -> u64 {
    live_bytes()
}
