//! Reads a map of a state or of shared content without building all of it.

use crate::lane::{Busy, Lane};
use crate::terms::{Anchor, Path, Source, unpack};
use crate::{nif, reply, share, state};
use erlmcp_memory_core::map;
use erlmcp_memory_core::packed::{Target, View};
use rustler::{Encoder, Env, Term};

mod atoms {
    rustler::atoms! {
        done,
        large,
        map,
        share,
        value,
    }
}

nif!(len => inside_len(root, path, opened));
nif!(entries => inside_entries(root, path, from, opened));
nif!(outline => state_outline(state, bytes));

/// Calls `with` with what a path in a state, or a list of keys in shared content, leads to. A share
/// at its end is followed, too.
fn with_found<'a>(
    env: Env<'a>,
    root: Term<'a>,
    path: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
    with: impl Fn(Option<View<'_, Anchor>>, Source<'_>) -> Result<Term<'a>, Busy>,
) -> Result<Term<'a>, Busy> {
    let found = |path: &[View<'_, Anchor>], root: View<'_, Anchor>, source: Source<'_>| {
        with(root.find(path).map(View::content), source)
    };
    if share::is(root) {
        let path = match Path::keys(path, opened, lane) {
            Ok(path) => path,
            Err(error) => return share::no_path(env, error),
        };
        let found = share::with_content(root, |root, source| {
            path.with(|path| found(path, root, source))
        });
        return found.unwrap_or_else(|| Ok(reply::badarg(env, 1, share::NO_SHARE)));
    }
    state::at_field(env, path, opened, lane, |path| {
        state::with_state(env, root, lane, |state| {
            found(path, state.fields.view(), Source::Owned)
        })
    })
}

// `{ok, Entries}`; `none` if it is not a map.
fn len<'a>(
    env: Env<'a>,
    root: Term<'a>,
    path: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    with_found(env, root, path, opened, lane, |found, _| {
        Ok(match found.and_then(map::len_of) {
            Some(len) => reply::ok_value(env, len.encode(env)),
            None => reply::none(env),
        })
    })
}

/// Entries that are built in one call, and their packed bytes. These do not include a value out of
/// line, which ends the call.
const BUILT: usize = 64;
const BUILT_BYTES: usize = 8 << 10;

// `{[{Key, Value}], Next | done}` of the entries beginning with this number; `none` if it is not a
// map.
fn entries<'a>(
    env: Env<'a>,
    root: Term<'a>,
    path: Term<'a>,
    from: Term<'a>,
    opened: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let from = from.decode::<usize>().unwrap_or(0);
    with_found(env, root, path, opened, lane, |found, source| {
        let Some((found, len)) = found.and_then(|map| Some((map, map::len_of(map)?))) else {
            return Ok(reply::none(env));
        };
        let (mut built, mut bytes) = (Vec::new(), 0);
        let mut busy = Ok(());
        map::each_from(found, from, |key, value| {
            bytes += key.len() + value.bytes.len();
            let entry = unpack(env, View::new(key, value.links), source, lane)
                .and_then(|key| Ok((key, unpack(env, value, source, lane)?)));
            match entry {
                Ok(entry) => built.push(entry),
                // The entries before it are a result. It comes first in the next call.
                Err(Busy) if built.is_empty() => busy = Err(Busy),
                Err(Busy) => return false,
            }
            built.len() < BUILT && bytes < BUILT_BYTES && !is_out_of_line(value) && busy.is_ok()
        });
        busy?;
        let next = from + built.len();
        Ok(if next < len {
            (built, next).encode(env)
        } else {
            (built, atoms::done()).encode(env)
        })
    })
}

fn is_out_of_line(value: View<'_, Anchor>) -> bool {
    matches!(value.target(), Some(Target::Blob(_) | Target::Trie(_)))
}

/// The most fields that an outline has.
const OUTLINED: usize = 1_000;

// `{Fields, Others}`: `{Field, Bytes, What}` of the first fields, and how many other fields there
// are. `What` is `{value, Term}` for a value of at most this many bytes, `{map, Entries}` for a
// larger map, `{share, Bytes}` or `large`. All values together have at most this many bytes.
fn outline<'a>(
    env: Env<'a>,
    state: Term<'a>,
    bytes: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let mut left = bytes.decode::<usize>().unwrap_or(0);
    state::with_state(env, state, lane, |state| {
        let fields = state.fields;
        let mut outlined = Vec::new();
        let mut busy = Ok(());
        map::each_from(fields.view(), 0, |key, value| {
            let value = value.resolve();
            let bytes = value.bytes.len() + value.out_of_line_bytes();
            let what = match (value.target(), map::len_of(value)) {
                (Some(Target::Anchor(Anchor::Share(share))), _) => {
                    (atoms::share(), share.shared().heap_bytes()).encode(env)
                }
                _ if bytes <= left => match unpack(env, value, Source::Owned, lane) {
                    Ok(term) => {
                        left -= bytes;
                        (atoms::value(), term).encode(env)
                    }
                    Err(why) => {
                        busy = Err(why);
                        return false;
                    }
                },
                (_, Some(len)) => (atoms::map(), len).encode(env),
                (_, None) => atoms::large().encode(env),
            };
            match unpack(env, View::new(key, value.links), Source::Owned, lane) {
                Ok(name) => outlined.push((name, bytes, what)),
                Err(why) => busy = Err(why),
            }
            busy.is_ok() && outlined.len() < OUTLINED
        });
        busy?;
        let others = fields.len() - outlined.len();
        Ok((outlined, others).encode(env))
    })
}
