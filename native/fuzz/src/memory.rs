//! An allocator that counts what a thread has, and ends the program at a limit.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counted. A program that uses [`at_most`] installs it.
pub struct Counting;

#[derive(Clone, Copy)]
struct Usage {
    used: isize,
    limit: isize,
}

thread_local! {
    static USAGE: Cell<Usage> = const { Cell::new(Usage { used: 0, limit: isize::MAX }) };
}

fn count(bytes: isize) {
    let Usage { used, limit } = USAGE.get();
    let used = used + bytes;
    USAGE.set(Usage { used, limit });
    // A panic may take what it needs to say why.
    if used > limit && !std::thread::panicking() {
        USAGE.set(Usage {
            used,
            limit: isize::MAX,
        });
        eprintln!("{bytes} bytes more are {} over the limit", used - limit);
        std::process::abort();
    }
}

// SAFETY: the system's allocator does the work; counting allocates nothing and does not unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both at once: an allocator may have to copy.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// What `body` returns. If it ever holds more than this many bytes at once, the process ends.
pub fn at_most<T>(bytes: usize, body: impl FnOnce() -> T) -> T {
    let before = USAGE.get();
    let limit = before.limit.min(before.used.saturating_add_unsigned(bytes));
    USAGE.set(Usage { limit, ..before });
    let result = body();
    USAGE.set(Usage {
        limit: before.limit,
        ..USAGE.get()
    });
    result
}

/// How many bytes more there are after `body`.
pub fn growth(body: impl FnOnce()) -> isize {
    let before = USAGE.get().used;
    body();
    USAGE.get().used - before
}
