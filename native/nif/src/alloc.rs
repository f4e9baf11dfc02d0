//! Rust's heap is the VM's heap, and its live bytes are counted.
//!
//! The count is of what Rust code asked for and has not given back: pooled objects, states,
//! shared content, histograms, samples. It leaves out what the VM's allocators add on top of each
//! block (16 bytes or more) and the objects that the VM allocates for the library itself,
//! above all the headers of resources (about 90 bytes each, and the fields that lie in them).
//! `erlang:memory(total)` includes all of these.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::sync::atomic::{AtomicIsize, Ordering};

use erlmcp_memory_core::heap;
use erlmcp_memory_core::threads::{SHARDS, thread_shard};
use rustler::EnifAllocator;

/// The VM's allocator, with a count of live bytes.
pub struct CountingAllocator;

/// One for each scheduler, on a cache line of its own. One may go below zero: a block may be
/// freed by another thread than the one that made it; the sum is right.
#[repr(align(64))]
struct Count(AtomicIsize);

static LIVE: [Count; SHARDS] = [const { Count(AtomicIsize::new(0)) }; SHARDS];

#[inline]
fn count(bytes: isize) {
    LIVE[thread_shard()].0.fetch_add(bytes, Ordering::Relaxed);
}

/// Bytes that Rust code holds on the heap now.
pub fn live_bytes() -> u64 {
    let sum = LIVE.iter().fold(0, |sum: isize, shard| {
        sum.wrapping_add(shard.0.load(Ordering::Relaxed))
    });
    // Blocks that move between shards while they are summed up may make it dip below zero.
    sum.max(0) as u64
}

// SAFETY: every block comes from and goes back to EnifAllocator with the layout it was asked for;
// the counting touches atomics and a destructor-free thread local only, so it never allocates.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises about the layout are passed on.
        let block = unsafe { EnifAllocator.alloc(layout) };
        if !block.is_null() {
            count(layout.size() as isize);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the block came from `alloc` above with this layout, as the caller promises.
        unsafe { EnifAllocator.dealloc(block, layout) }
    }
}

/// The size of the blocks that show what the VM's allocators add to a block: so large that they
/// do not end up in gaps between others, and a few still fit side by side.
pub const SPECIMEN: usize = 16 << 10;
/// How many of them.
pub const SPECIMENS: usize = 16;

/// Finds out what the VM's allocator adds to a block; called once, when the library is loaded.
pub fn learn_overhead() {
    let blocks: [Vec<u8>; SPECIMENS] = std::array::from_fn(|_| Vec::with_capacity(SPECIMEN));
    let addresses = blocks.iter().map(|block| black_box(block.as_ptr()).addr());
    if let Some(bytes) = heap::overhead(SPECIMEN, addresses.collect()) {
        heap::set_block_overhead(bytes);
    }
}

/// Bytes the library holds: see the module's description for what is and is not in the figure.
#[rustler::nif]
fn native_bytes() -> u64 {
    live_bytes()
}
