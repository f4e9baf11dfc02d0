//! What the Erlang module that opens terms asks: see [`crate::terms`].

use crate::lane::{Busy, Lane};
use crate::share::{self, SharedBytes};
use crate::terms::{Opened, closed_in, walk};
use crate::{nif, reply};
use rustler::{Encoder, Env, Term};
use std::collections::HashSet;

nif!(closed => terms_closed(opened, known));
nif!(size => term_size(term, opened));

/// `{closed, Terms}`: what must be opened still of what was just opened; `known` is all of it.
fn closed<'a>(
    env: Env<'a>,
    opened: Term<'a>,
    known: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    match closed_in(opened, known, lane) {
        Ok(terms) => Ok(reply::closed(env, terms)),
        Err(error) => reply::not_packed(env, 1, error),
    }
}

/// `{Bytes, SharedBytes}` that a term takes: on a heap, written out in full, and in binaries that
/// lie elsewhere; and in what it shares.
fn size<'a>(env: Env<'a>, term: Term<'a>, opened: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    match walk([term], lane, &HashSet::new(), &mut Opened::new(opened)) {
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
