//! The names of a state's fields.

use crate::terms::{Anchor, word};
use erlmcp_memory_core::packed::Writer;
use erlmcp_memory_core::state::Names;
use rustler::Env;
use std::sync::OnceLock;

pub(super) mod atoms {
    rustler::atoms! {
        id,
        phase,
        transport,
        capabilities_ref,
        metadata,
        pending_refs,
        created_at,
        undefined,
        initialization,
        total_bytes,
        base,
        metadata_map_size,
        pending_count,
        extra,
        shared_bytes,
    }
}

static NAMES: OnceLock<Names<Anchor>> = OnceLock::new();

/// Makes the packed names of the fields; called once, when the library is loaded.
pub fn load_names(env: Env<'_>) {
    let packed = |atom: rustler::Atom| {
        let mut name = Writer::default();
        name.atom(word(atom.to_term(env)));
        name.finish()
    };
    let _ = NAMES.set(Names {
        id: packed(atoms::id()),
        phase: packed(atoms::phase()),
        transport: packed(atoms::transport()),
        capabilities_ref: packed(atoms::capabilities_ref()),
        metadata: packed(atoms::metadata()),
        pending_refs: packed(atoms::pending_refs()),
        created_at: packed(atoms::created_at()),
        undefined: packed(atoms::undefined()),
        initialization: packed(atoms::initialization()),
    });
}

/// The packed names of the fields.
pub fn names() -> &'static Names<Anchor> {
    // The library is not loaded unless `load_names` ran.
    NAMES
        .get()
        .expect("names are made when the library is loaded")
}
