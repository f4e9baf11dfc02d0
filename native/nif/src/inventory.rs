//! What the library holds, by kind. It is counted as it comes and goes, so that nothing is walked.

use crate::profile::session;
use crate::stock::Stock;
use crate::terms::{atom_name, copied, environment_bytes, from_word};
use crate::{alloc, buffer, park, pool, share, state};
use erlmcp_memory_core::outline::outline;
use erlmcp_memory_core::profile::histogram::BOUNDS;
use erlmcp_memory_core::profile::resident::Resident;
use erlmcp_memory_core::threads::Usage;
use rustler::{Env, NifMap};

/// A part of [`Inventory`].
#[derive(NifMap)]
#[rustler(encode)]
struct Kind {
    count: usize,
    bytes: usize,
}

/// A part of [`Inventory`] of which some are kept for reuse.
#[derive(NifMap)]
#[rustler(encode)]
struct Pooled {
    count: usize,
    bytes: usize,
    idle: usize,
    idle_bytes: usize,
}

/// Everything that the library holds; each byte counted once.
#[derive(NifMap)]
#[rustler(encode)]
struct Inventory {
    pooled_states: Pooled,
    compact_states: Kind,
    parked: Kind,
    shares: Kind,
    buffers: Pooled,
    samples: Kind,
    /// Bytes that belong to no kind.
    rest: usize,
    /// The part of all these that counts among the VM's binaries, and among the heaps of its
    /// processes.
    binaries: usize,
    heaps: usize,
}

/// Divides the library's own heap into parts, one after another. No part is more than what is left,
/// so in the end what two versions have in common is counted once.
struct Heap(usize);

impl Heap {
    fn take(&mut self, bytes: usize) -> usize {
        let taken = bytes.min(self.0);
        self.0 -= taken;
        taken
    }

    fn kind(&mut self, held: Stock) -> Kind {
        Kind {
            count: held.count,
            bytes: self.take(held.heap) + held.objects,
        }
    }

    fn pooled(&mut self, (in_use, idle): (Stock, Usage)) -> Pooled {
        let Kind { count, bytes } = self.kind(in_use);
        Pooled {
            count,
            bytes,
            idle: idle.count,
            idle_bytes: self.take(idle.bytes),
        }
    }
}

/// What the library holds.
#[rustler::nif]
fn inventory() -> Inventory {
    let (pooled_states, buffers) = (pool::stock(), buffer::stock());
    let (samples, parked, shares, compact_states) = (
        session::stock(),
        park::stock(),
        share::stock(),
        state::stock(),
    );
    let kinds = [
        pooled_states.0,
        buffers.0,
        samples,
        parked,
        shares,
        compact_states,
    ];
    let terms = copied().bytes;
    let mut heap = Heap(alloc::held_bytes() + environment_bytes());
    // First the kinds that share nothing with others.
    let pooled_states = heap.pooled(pooled_states);
    let buffers = heap.pooled(buffers);
    let samples = heap.kind(samples);
    let parked = heap.kind(parked);
    let mut shares = heap.kind(shares);
    shares.bytes += terms;
    Inventory {
        pooled_states,
        compact_states: heap.kind(compact_states),
        parked,
        shares,
        buffers,
        samples,
        rest: heap.0,
        binaries: kinds.iter().map(|kind| kind.objects).sum(),
        heaps: terms,
    }
}

#[derive(NifMap)]
#[rustler(encode)]
struct LargeShare {
    bytes: usize,
    holders: usize,
    summary: String,
}

/// The largest shares, the largest one first.
#[rustler::nif]
fn largest_shares(env: Env<'_>, limit: usize) -> Vec<LargeShare> {
    let found = share::largest(limit).into_iter();
    let large = found.map(|shared| LargeShare {
        bytes: shared.heap_bytes(),
        // A share that no value holds is held by a reference.
        holders: shared.holders().max(1),
        summary: outline(shared.packed().view(), |word| {
            // SAFETY: the word is an atom's, and atoms stay.
            atom_name(unsafe { from_word(env, word) })
        }),
    });
    large.collect()
}

/// `{Total, Mapped}`: resident bytes, and the part of them that belongs to files and to machine
/// code; `{0, 0}` if the system does not tell.
#[rustler::nif]
fn resident() -> (usize, usize) {
    let statm = std::fs::read_to_string("/proc/self/statm");
    // SAFETY: the call has no preconditions.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
    let read = |(text, page): (String, usize)| Resident::of_statm(&text, page);
    match statm.ok().zip(page.ok()).and_then(read) {
        Some(resident) => (resident.total, resident.mapped),
        None => (
            memory_stats::memory_stats().map_or(0, |stats| stats.physical_mem),
            0,
        ),
    }
}

/// `{Used, Free}`: what the C library's allocator handed out, including carriers of the VM's
/// allocators, and what it keeps; `{0, 0}` if it does not tell.
#[rustler::nif]
fn c_heap() -> (usize, usize) {
    c_library::heap()
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod c_library {
    use std::mem::transmute;
    use std::sync::LazyLock;

    type MallInfo = unsafe extern "C" fn() -> libc::mallinfo2;

    /// Some C libraries in use do not have the function yet.
    static MALLINFO: LazyLock<Option<MallInfo>> = LazyLock::new(|| {
        // SAFETY: the name ends with a zero byte; a function of this name has this type.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, c"mallinfo2".as_ptr());
            (!found.is_null()).then(|| transmute::<*mut libc::c_void, MallInfo>(found))
        }
    });

    pub fn heap() -> (usize, usize) {
        MALLINFO.map_or((0, 0), |mallinfo| {
            // SAFETY: it may be called on any thread.
            let info = unsafe { mallinfo() };
            (info.uordblks + info.hblkhd, info.fordblks)
        })
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod c_library {
    pub fn heap() -> (usize, usize) {
        (0, 0)
    }
}

/// The bounds of the buckets of pauses, in nanoseconds.
#[rustler::nif]
fn pause_bounds() -> Vec<u64> {
    BOUNDS.into()
}
