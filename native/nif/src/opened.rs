//! What the Erlang module that opens terms asks: see [`crate::terms`].

use crate::lane::{Busy, Lane, NoResult};
use crate::share::{self, SharedBytes};
use crate::terms::{Opened, PackError, unopened, walk, walk_opened};
use crate::{nif, reply};
use erlmcp_memory_core::packed::MAX_BYTES;
use rustler::schedule::consume_timeslice;
use rustler::{Encoder, Env, Term};

nif!(closed => terms_closed(opened, bytes));
nif!(new => terms_unopened(terms, opened));
nif!(size => term_size(term, opened));

/// `{Terms, Bytes}`: what must be opened still of what was just opened, and the bytes that all has
/// in the packed form at least; `bytes` are those of what was opened before.
fn closed<'a>(
    env: Env<'a>,
    opened: Term<'a>,
    bytes: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, NoResult> {
    let before: usize = bytes.decode()?;
    let seen = match walk_opened(opened, lane) {
        Ok(seen) => seen,
        Err(error) => return Ok(reply::not_packed(env, 1, error)?),
    };
    let bytes = before.saturating_add(seen.size.packed_bytes());
    if bytes > MAX_BYTES {
        return Ok(reply::not_packed(env, 1, PackError::TooLarge)?);
    }
    pause(env, lane);
    Ok((seen.closed, bytes).encode(env))
}

/// `{Terms, Opened}`: those of the terms that were not opened yet, and what was opened, each once.
fn new<'a>(
    env: Env<'a>,
    terms: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, NoResult> {
    let lists = unopened(terms, opened, lane)?;
    pause(env, lane);
    Ok(lists.encode(env))
}

/// Percent of a time slice that a call on a normal scheduler takes: the next follows at once.
const SLICE: i32 = 5;

/// Lets the caller's time slice end after a few calls.
fn pause(env: Env<'_>, lane: Lane) {
    if lane == Lane::Fast {
        consume_timeslice(env, SLICE);
    }
}

/// `{Bytes, SharedBytes}` that a term takes: on a heap, written out in full, and in binaries that
/// lie elsewhere; and in what it shares.
fn size<'a>(env: Env<'a>, term: Term<'a>, opened: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    match walk([term], lane, &mut Opened::new(opened, lane)) {
        Ok(seen) if seen.closed.is_empty() => {
            let shares = seen.references.into_iter().filter_map(share::link);
            let links: Vec<_> = shares.collect();
            let mut shared = SharedBytes::default();
            links.iter().for_each(|link| shared.add(link));
            Ok((seen.size.bytes(), shared.bytes()).encode(env))
        }
        Ok(seen) => Ok(reply::closed(env, seen.closed)),
        Err(error) => reply::not_packed(env, 1, error),
    }
}
