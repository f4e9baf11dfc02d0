//! Native garbage that the VM does not see.
//!
//! A state takes a few words of its process's heap, whatever its size, so a process that makes one
//! large state after another would collect its garbage only after hundreds of them. This module
//! keeps an approximate sum of the bytes that each process has made recently; the call that exceeds
//! the limit tells its wrapper to collect the garbage.

use crate::reply;
use crate::terms::word;
use rustler::{Encoder, Env, Term};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Values of fewer bytes are left to the VM: a few hundred of these take little memory.
const SMALL: usize = 16 << 10;

/// Garbage is collected after this many bytes, and after at least this many times the size of the
/// last value.
const MUCH: usize = 8 << 20;
const TIMES: usize = 2;

/// The sums, by process. Two processes may share one; then the sum is that of the later one.
static MADE: [Made; 64] = [const {
    Made {
        process: AtomicU64::new(0),
        bytes: AtomicUsize::new(0),
    }
}; 64];

struct Made {
    process: AtomicU64,
    bytes: AtomicUsize,
}

/// The result of a call that made a value of this many bytes: `{collect, Result}` if garbage should
/// be collected.
pub fn made<'a>(env: Env<'a>, result: Term<'a>, bytes: usize) -> Term<'a> {
    if bytes >= SMALL && is_much(env, bytes) {
        return reply::collect(env, result);
    }
    result
}

fn is_much(env: Env<'_>, bytes: usize) -> bool {
    let process = word(env.pid().encode(env));
    // The low bits of a process's word are a tag.
    let made = &MADE[(process >> 4) as usize % MADE.len()];
    if made.process.swap(process, Ordering::Relaxed) != process {
        made.bytes.store(0, Ordering::Relaxed);
    }
    let sum = made.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
    let is_much = sum >= MUCH.max(TIMES * bytes);
    if is_much {
        made.bytes.store(0, Ordering::Relaxed);
    }
    is_much
}
