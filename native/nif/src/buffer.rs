//! Message buffers as resources.

use crate::iodata::{IoData, IoDataError};
use crate::lane::{Busy, FAST_BYTES, FAST_COPY, FAST_TERMS, Lane};
use crate::resource::ResourceRef;
use crate::stock::Stock;
use crate::{nif, reply, resource, running};
use erlmcp_memory_core::buffer::{
    BlockPool, Budget, Found, Frame, MESSAGE_LIMIT, MessageBuffer, MessageTooLarge, NotTaken,
};
use erlmcp_memory_core::threads::Usage;
use parking_lot::Mutex;
use rustler::sys::ErlNifTerm;
use rustler::types::atom::{badarg, ok};
use rustler::{Binary, Encoder, Env, Term};
use smallvec::SmallVec;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU8;

rustler::atoms! {
    message_too_large,
    more,
    not_iodata,
    not_started,
    released,
}

/// The blocks of all message buffers.
pub static BLOCKS: LazyLock<BlockPool> = LazyLock::new(BlockPool::new);

/// Zero bytes that take no memory: never written, so the system maps its one page of zeros wherever
/// they are read, and the library file stores only their number. Atomics, because a plain array of
/// zeros would be written out into the file.
static ZEROS: [AtomicU8; MESSAGE_LIMIT] = [const { AtomicU8::new(0) }; MESSAGE_LIMIT];

/// What the binaries over [`ZEROS`] refer to: nothing that could be freed or reused, so such a
/// binary does not keep alive the buffer that it came with.
struct ZeroBytes;

resource!(ZeroBytes, c"erlmcp_memory_zero_bytes");

// A binary of this many zero bytes, at most `MESSAGE_LIMIT`.
nif!(buffer_zeros => short buffer_zeros(size));

fn buffer_zeros<'a>(env: Env<'a>, size: Term<'a>) -> Term<'a> {
    let size = size.decode::<usize>().unwrap_or(0);
    let bytes = &ZEROS[..size.min(MESSAGE_LIMIT)];
    // SAFETY: `AtomicU8` has the size and the layout of `u8`; the array lives as long as the
    // library, which stays loaded while the binary's owner lives, and nothing ever writes to it.
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

fn too_large(env: Env<'_>, limit: usize) -> Term<'_> {
    env.error_tuple((message_too_large(), limit))
}

/// A message buffer in a value of this library. It refers to nothing else, so its object is kept.
#[derive(Clone)]
pub struct BufferLink(ResourceRef<BufferHandle>);

impl std::fmt::Debug for BufferLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BufferLink")
    }
}

impl Drop for BufferLink {
    fn drop(&mut self) {
        resource::count_released();
    }
}

impl BufferLink {
    /// What distinguishes this buffer from all others while it lives.
    pub fn id(&self) -> u64 {
        self.0.address().addr() as u64
    }

    /// The reference to the buffer.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        self.0.to_term(env)
    }
}

/// The link to a message buffer, if the term is one.
pub fn link(term: Term<'_>) -> Option<BufferLink> {
    ResourceRef::from_term(term).map(BufferLink)
}

/// Runs `work` on the buffer behind `handle`; returns `badarg` if that is not a buffer handle, and
/// `{error, released}` if it was released.
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
nif!(buffer_acquire => short buffer_acquire(size, limit));

fn buffer_acquire<'a>(env: Env<'a>, size: Term<'a>, limit: Term<'a>) -> Term<'a> {
    let limit = limit.decode::<usize>().unwrap_or(MESSAGE_LIMIT);
    if !running::started() {
        return env.error_tuple(not_started());
    }
    match size.decode::<usize>() {
        Ok(size) if size <= limit => {
            let buffer = MessageBuffer::with_limit(&BLOCKS, limit);
            resource::make(env, BufferHandle(Mutex::new(Some(buffer))))
        }
        _ => too_large(env, limit),
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
                Err(MessageTooLarge) => too_large(env, buffer.limit()),
            });
        }
        // Measured first, so that the limit is checked before a byte is appended.
        let data = match IoData::of(data, MESSAGE_LIMIT, lane) {
            Ok(data) => data,
            Err(why) => return refusal(env, why, buffer.limit()),
        };
        if lane == Lane::Fast && buffer.append_cost(data.len()) > FAST_BYTES {
            return Err(Busy);
        }
        if data.len() > 0 {
            if buffer.reserve(data.len()).is_err() {
                return Ok(too_large(env, buffer.limit()));
            }
            data.pieces().for_each(|(_, piece)| buffer.push(piece));
        }
        Ok((ok(), buffer.held().len()).encode(env))
    })
}

fn refusal(env: Env<'_>, why: IoDataError, limit: usize) -> Result<Term<'_>, Busy> {
    match why {
        IoDataError::NotIoData => Ok(not_iodata().encode(env)),
        IoDataError::Busy => Err(Busy),
        IoDataError::TooLarge => Ok(too_large(env, limit)),
    }
}

// `{ok, Held}` or an error tuple.
nif!(append => sized buffer_append(handle, data));

/// The most bytes of iodata in many parts that frames are taken from in one call: the same part may
/// occur again and again.
const TAKEN_AT_ONCE: usize = 16 * MESSAGE_LIMIT;

/// Frames of at most this many bytes are copied: they are on the heap, and keep nothing else alive.
const SMALL: usize = 64;

fn take<'a>(env: Env<'a>, handle: Term<'a>, data: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    with_buffer(env, handle, lane, |buffer| {
        if let Ok(binary) = Binary::from_term(data) {
            // The common case, without a walk.
            return take_from(env, buffer, &[binary.as_slice()], &[Some(data)], lane);
        }
        let data = match IoData::of(data, TAKEN_AT_ONCE, lane) {
            Ok(data) => data,
            Err(why) => return refusal(env, why, buffer.limit()),
        };
        let (terms, pieces): (Vec<_>, Vec<_>) = data.pieces().unzip();
        take_from(env, buffer, &pieces, &terms, lane)
    })
}

// `{ok, Frames}` or an error tuple.
nif!(take => sized buffer_take(handle, data));

fn take_from<'a>(
    env: Env<'a>,
    buffer: &mut MessageBuffer<'static>,
    pieces: &[&[u8]],
    terms: &[Option<Term<'a>>],
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let budget = match lane {
        Lane::Fast => Budget {
            frames: FAST_TERMS,
            bytes: FAST_COPY,
        },
        Lane::Dirty => Budget {
            frames: usize::MAX,
            bytes: usize::MAX,
        },
    };
    let mut frames: SmallVec<[ErlNifTerm; 16]> = SmallVec::new();
    let taken = buffer.take_all(pieces, budget, |frame| {
        let frame = match frame {
            Frame::Held(bytes) => reply::binary(env, bytes),
            Frame::Given(piece, start, len) => match terms[piece] {
                Some(binary) if len > SMALL => reply::part(env, binary, start, len),
                _ => reply::binary(env, &pieces[piece][start..start + len]),
            },
        };
        frames.push(frame.as_c_arg());
    });
    match taken {
        Ok(()) => Ok(reply::ok_value(env, reply::list(env, &frames))),
        Err(NotTaken::TooLarge) => Ok(too_large(env, buffer.limit())),
        Err(NotTaken::OverBudget) => Err(Busy),
    }
}

fn next<'a>(env: Env<'a>, handle: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let budget = match lane {
        Lane::Fast => FAST_COPY,
        Lane::Dirty => usize::MAX,
    };
    with_buffer(env, handle, lane, |buffer| match buffer.find(budget) {
        Found::More => Ok(more().encode(env)),
        Found::Unfinished => Err(Busy),
        Found::Frame(bytes) if bytes > budget => Err(Busy),
        // A copy, so that it does not change with the buffer, and keeps no block alive.
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
