//! The functions for the Erlang module that opens terms: see [`crate::terms`].

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

/// `{Terms, Bytes}`: the terms in what was just opened that must be opened as well, and the least
/// size of everything in the packed form, in bytes; `bytes` is that size for what was opened
/// before.
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

/// `{Terms, Opened}`: the terms that were not opened yet, and what was opened, each once.
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

/// Percent of a time slice that a call on a normal scheduler consumes: the next call follows at
/// once.
const SLICE: i32 = 5;

/// Lets the caller's time slice end after a few calls.
fn pause(env: Env<'_>, lane: Lane) {
    if lane == Lane::Fast {
        consume_timeslice(env, SLICE);
    }
}

/// `{Bytes, SharedBytes}` that a term takes: on a heap with nothing shared, and in binaries off the
/// heap; and in the shared content that it refers to.
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
