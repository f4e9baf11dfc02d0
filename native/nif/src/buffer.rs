//! Message buffers as resources.

use crate::inventory::Stock;
use crate::iodata::{IoData, IoDataError};
use crate::lane::{Busy, FAST_BYTES, FAST_COPY, Lane};
use crate::pool::{badarg, not_started, released, started};
use crate::resource::ResourceRef;
use crate::{nif, reply, resource};
use erlmcp_memory_core::buffer::{BlockPool, Found, MESSAGE_LIMIT, MessageBuffer, MessageTooLarge};
use erlmcp_memory_core::threads::Usage;
use parking_lot::Mutex;
use rustler::types::atom::ok;
use rustler::{Binary, Encoder, Env, Term};
use std::sync::LazyLock;
use std::sync::atomic::AtomicU8;

rustler::atoms! {
    message_too_large,
    more,
    not_iodata,
}

/// The blocks of all message buffers.
pub static BLOCKS: LazyLock<BlockPool> = LazyLock::new(BlockPool::new);

/// Zero bytes that take no memory: never written, so the system maps its one page of zeros for
/// whatever part is read, and the library file has only their number. Atomics, because a plain
/// array of zeros would be written out into the file.
static ZEROS: [AtomicU8; MESSAGE_LIMIT] = [const { AtomicU8::new(0) }; MESSAGE_LIMIT];

/// What the binaries over [`ZEROS`] refer to: nothing that could be freed or reused, so such a
/// binary does not keep the buffer alive that it came with.
struct ZeroBytes;

resource!(ZeroBytes, c"erlmcp_memory_zero_bytes");

// A binary of so many zero bytes, at most `MESSAGE_LIMIT`.
nif!(buffer_zeros => short buffer_zeros(size));

fn buffer_zeros<'a>(env: Env<'a>, size: Term<'a>) -> Term<'a> {
    let size = size.decode::<usize>().unwrap_or(0);
    let bytes = &ZEROS[..size.min(MESSAGE_LIMIT)];
    // SAFETY: `AtomicU8` has the size and the layout of `u8`; the array lives as long as the
    // library, which stays loaded while the binary's owner lives, and nobody ever writes to it.
    unsafe {
        let bytes = std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), bytes.len());
        ResourceRef::new(ZeroBytes).binary(env, bytes)
    }
}

/// A message buffer's owner: released explicitly, or when the last reference is collected. Either
/// way the buffer is dropped and its block goes back.
struct BufferHandle(Mutex<Option<MessageBuffer<'static>>>);

resource!(BufferHandle, c"erlmcp_memory_buffer");

/// Tells the VM of the types; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<ZeroBytes>(env) && resource::register::<BufferHandle>(env)
}

/// Message buffers, and idle blocks.
pub fn stock() -> (Stock, Usage) {
    let stats = BLOCKS.stats();
    let in_use = Stock {
        count: BLOCKS.buffers(),
        heap: stats.live_bytes as usize,
        objects: resource::objects::<BufferHandle>().bytes,
    };
    let idle = Usage {
        count: stats.idle as usize,
        bytes: stats.idle_bytes as usize,
    };
    (in_use, idle)
}

fn too_large(env: Env<'_>) -> Term<'_> {
    env.error_tuple((message_too_large(), MESSAGE_LIMIT))
}

/// Runs `work` on the buffer behind `handle`; returns `badarg` where that is no buffer handle, and
/// `{error, released}` where it was released.
fn with_buffer<'a>(
    env: Env<'a>,
    handle: Term<'a>,
    lane: Lane,
    work: impl FnOnce(&mut MessageBuffer<'static>) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    let Some(handle) = resource::get::<BufferHandle>(handle) else {
        return Ok(badarg().encode(env));
    };
    match lane.lock(&handle.0)?.as_mut() {
        None => Ok(env.error_tuple(released())),
        Some(buffer) => work(buffer),
    }
}

// A reference, or an error tuple. An integer beyond 64 bits is too large as well.
nif!(buffer_acquire => short buffer_acquire(size));

fn buffer_acquire<'a>(env: Env<'a>, size: Term<'a>) -> Term<'a> {
    if !started() {
        return env.error_tuple(not_started());
    }
    match size.decode::<usize>() {
        Ok(size) if size <= MESSAGE_LIMIT => {
            let buffer = MessageBuffer::new(&BLOCKS);
            resource::make(env, BufferHandle(Mutex::new(Some(buffer))))
        }
        _ => too_large(env),
    }
}

fn release<'a>(env: Env<'a>, handle: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let Some(handle) = resource::get::<BufferHandle>(handle) else {
        return Ok(badarg().encode(env));
    };
    let buffer = lane.lock(&handle.0)?.take();
    drop(buffer);
    Ok(ok().encode(env))
}

// `ok`, also when it was released before.
nif!(release => buffer_release(handle));

fn append<'a>(
    env: Env<'a>,
    handle: Term<'a>,
    data: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    with_buffer(env, handle, lane, |buffer| {
        if let Ok(binary) = Binary::from_term(data) {
            // The common case, without a walk.
            let bytes = binary.as_slice();
            if lane == Lane::Fast && buffer.append_cost(bytes.len()) > FAST_COPY {
                return Err(Busy);
            }
            return Ok(match buffer.append(bytes) {
                Ok(held) => (ok(), held).encode(env),
                Err(MessageTooLarge) => too_large(env),
            });
        }
        // Known whole, so that the limit is checked before a byte is appended.
        let data = match IoData::of(data, lane) {
            Ok(data) => data,
            Err(why) => return refusal(env, why),
        };
        if lane == Lane::Fast && buffer.append_cost(data.len()) > FAST_BYTES {
            return Err(Busy);
        }
        if data.len() > 0 {
            if buffer.reserve(data.len()).is_err() {
                return Ok(too_large(env));
            }
            data.each(|piece| buffer.push(piece));
        }
        Ok((ok(), buffer.held().len()).encode(env))
    })
}

fn refusal(env: Env<'_>, why: IoDataError) -> Result<Term<'_>, Busy> {
    match why {
        IoDataError::NotIoData => Ok(not_iodata().encode(env)),
        IoDataError::Busy => Err(Busy),
        IoDataError::TooLarge => Ok(too_large(env)),
    }
}

// `{ok, Held}` or an error tuple.
nif!(append => sized buffer_append(handle, data));

fn next<'a>(env: Env<'a>, handle: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let budget = match lane {
        Lane::Fast => FAST_COPY,
        Lane::Dirty => usize::MAX,
    };
    with_buffer(env, handle, lane, |buffer| match buffer.find(budget) {
        Found::More => Ok(more().encode(env)),
        Found::Unfinished => Err(Busy),
        Found::Frame(bytes) if bytes > budget => Err(Busy),
        // A copy, so that it stays as it is whatever happens to the buffer, and keeps no block
        // alive.
        Found::Frame(_) => Ok(match buffer.take(|frame| reply::binary(env, frame)) {
            Some(frame) => (ok(), frame).encode(env),
            None => more().encode(env),
        }),
    })
}

// `{ok, Frame}`, `more` or an error tuple.
nif!(next => buffer_next(handle));

fn held<'a>(env: Env<'a>, handle: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_buffer(env, handle, lane, |buffer| {
        if lane == Lane::Fast && buffer.held().len() > FAST_COPY {
            return Err(Busy);
        }
        Ok(reply::ok_value(env, reply::binary(env, buffer.held())))
    })
}

// `{ok, Held}` or an error tuple.
nif!(held => buffer_held(handle));
