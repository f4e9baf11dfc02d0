//! Snapshots of connection states.

use crate::lane::{Budget, Busy, Lane};
use crate::share::{self, ShareLink};
use crate::state::{names, state_from, to_term, with_state};
use crate::terms::{
    Anchor, Keeper, LocalReferences, atom_name, existing_atom, float_key, from_external_safe,
    from_word, pack, pack_flat, to_external, unknown_node, word,
};
use crate::{garbage, nif, reply};
use erlmcp_memory_core::etf;
use erlmcp_memory_core::packed::{Item, Packed, View, Writer};
use erlmcp_memory_core::snapshot::{
    self, Export, Import, RAW_LIMIT, Snapshot, SnapshotError, V1, claimed_bytes, encode, export,
};
use erlmcp_memory_core::state::State;
use parking_lot::Mutex;
use rustler::{Binary, Encoder, Env, OwnedEnv, Term};
use std::collections::BTreeSet;

mod atoms {
    rustler::atoms! {
        error,
        invalid_format,
        unsupported_version,
        corrupt_data,
        unknown_atom,
        too_large,
        undefined,
        initialization,
        initialized,
        closed,
        unknown,
        erlmcp_transport_tcp,
        erlmcp_transport_stdio,
        erlmcp_transport_http,
        erlmcp_transport_ws,
        id,
        phase,
        transport,
        created_at,
        pending_refs,
    }
}

/// Snapshots of more raw bytes are written and read on a dirty scheduler.
const SHORT: usize = 16 << 10;

nif!(compress => state_compress(state, compressed));
nif!(decompress => sized state_decompress(snapshot));

fn compress<'a>(
    env: Env<'a>,
    state: Term<'a>,
    compressed: Term<'a>,
    lane: Lane,
) -> Result<Term<'a>, Busy> {
    let Ok(compressed) = compressed.decode::<bool>() else {
        return Ok(reply::badarg(env, 2, "not a boolean"));
    };
    with_state(env, state, lane, |state| {
        let fields = state.fields.view();
        // Shared content is written as well and may be large, so a state with a link counts as
        // long.
        let short = state.heap_bytes() <= SHORT && fields.links.is_empty();
        if lane == Lane::Fast && !short {
            return Err(Busy);
        }
        let mut host = Host::new(env, lane);
        let written = export(fields, &mut host).and_then(|portable| encode(&portable, compressed));
        Ok(match written {
            Ok(bytes) => reply::binary(env, &bytes),
            Err(error) => {
                let text = match error {
                    SnapshotError::TooLarge(bytes) => format!(
                        "too large for a snapshot, which holds {RAW_LIMIT} bytes: {bytes} so far"
                    ),
                    other => format!("no snapshot can be written: {other}"),
                };
                reply::badarg(env, 1, &text)
            }
        })
    })
}

fn decompress<'a>(env: Env<'a>, term: Term<'a>, lane: Lane) -> Result<Term<'a>, Busy> {
    let Ok(bytes) = term.decode::<Binary>() else {
        return failed(env, SnapshotError::InvalidFormat);
    };
    let claimed = claimed_bytes(&bytes);
    let read = bytes.len().max(claimed);
    // A claimed length over the limit is refused at once, whatever follows.
    if lane == Lane::Fast && read > SHORT && claimed <= RAW_LIMIT {
        return Err(Busy);
    }
    match snapshot::decode(&bytes, &mut Host::new(env, lane)) {
        Ok(Snapshot::V1(v1)) => from_v1(env, &v1),
        Ok(Snapshot::V2(state)) => Ok(garbage::made(env, to_term(env, state), read)),
        Err(error) => failed(env, error),
    }
}

fn failed(env: Env<'_>, error: SnapshotError) -> Result<Term<'_>, Busy> {
    let reason = match error {
        SnapshotError::Busy => return Err(Busy),
        SnapshotError::InvalidFormat => atoms::invalid_format().encode(env),
        SnapshotError::UnsupportedVersion => atoms::unsupported_version().encode(env),
        SnapshotError::Corrupt => atoms::corrupt_data().encode(env),
        SnapshotError::UnknownAtom(name) => {
            (atoms::unknown_atom(), reply::binary(env, &name)).encode(env)
        }
        SnapshotError::TooLarge(bytes) => (atoms::too_large(), bytes).encode(env),
    };
    Ok((atoms::error(), reason).encode(env))
}

fn from_v1<'a>(env: Env<'a>, v1: &V1) -> Result<Term<'a>, Busy> {
    let phase = match v1.phase {
        0 => atoms::initialization(),
        1 => atoms::initialized(),
        2 => atoms::closed(),
        _ => atoms::unknown(),
    };
    let transport = match v1.transport {
        1 => atoms::erlmcp_transport_tcp(),
        2 => atoms::erlmcp_transport_stdio(),
        3 => atoms::erlmcp_transport_http(),
        4 => atoms::erlmcp_transport_ws(),
        _ => atoms::undefined(),
    };
    let pending: Vec<(Term<'_>, u16)> = (1..=v1.pending)
        .map(|number| (env.make_ref().into(), number))
        .collect();
    let pending = Term::map_from_pairs(env, &pending);
    let fields = pending.and_then(|pending| {
        let pairs = [
            (atoms::id(), reply::binary(env, &v1.id)),
            (atoms::phase(), phase.encode(env)),
            (atoms::transport(), transport.encode(env)),
            (atoms::created_at(), v1.created_at.encode(env)),
            (atoms::pending_refs(), pending),
        ];
        Term::map_from_pairs(env, &pairs)
    });
    let state = fields
        .ok()
        .and_then(|fields| pack(fields, Term::list_new_empty(env), Lane::Dirty).ok())
        .and_then(|packed| State::from_fields(names(), packed).ok());
    match state {
        Some(state) => Ok(to_term(env, state)),
        // Not reached: a state may have all these fields.
        None => failed(env, SnapshotError::Corrupt),
    }
}

struct Host<'a> {
    env: Env<'a>,
    budget: Budget,
    /// Keeps the references in what is read.
    keeper: Keeper,
}

impl<'a> Host<'a> {
    fn new(env: Env<'a>, lane: Lane) -> Self {
        Host {
            env,
            budget: Budget::new(lane),
            keeper: Keeper::default(),
        }
    }

    /// Takes the budget for work that costs as much as copying this many bytes.
    fn spend(&mut self, bytes: usize) -> Result<(), SnapshotError> {
        self.budget.spend(bytes).map_err(|Busy| SnapshotError::Busy)
    }
}

/// What making a share and what reading the external format cost, as bytes copied.
const SHARE_COST: usize = 2_000;
const EXTERNAL_COST: usize = 1_000;

/// The most functions of modules that are not loaded that snapshots may name. The VM keeps an entry
/// for each until it ends, in a table of limited size.
const UNKNOWN_FUNCTIONS: usize = 1 << 14;

/// Those that were named: the words of module and function, and the arity.
static FUNCTIONS: Mutex<BTreeSet<(u64, u64, u8)>> = Mutex::new(BTreeSet::new());

/// Notes a function that is not loaded; `false` if there were too many.
fn is_noted(function: (u64, u64, u8)) -> bool {
    let mut functions = FUNCTIONS.lock();
    if functions.len() < UNKNOWN_FUNCTIONS {
        functions.insert(function);
    }
    functions.contains(&function)
}

impl Export for Host<'_> {
    type Anchor = Anchor;

    fn atom(&mut self, word: u64) -> String {
        // SAFETY: the packer wrote the word of an atom.
        atom_name(unsafe { from_word(self.env, word) }).unwrap_or_default()
    }

    fn external(&mut self, local: Item<'_>, anchor: Option<&Anchor>) -> Vec<u8> {
        let term = match (local, anchor) {
            (Item::Reference(numbers) | Item::Foreign { numbers, .. }, _) => {
                return LocalReferences::new(self.env).external(numbers);
            }
            // SAFETY: the packer wrote the word of a process or a port.
            (Item::Pid(word) | Item::Port(word), _) => Some(unsafe { from_word(self.env, word) }),
            (_, Some(anchor)) => Some(anchor.to_term(self.env)),
            _ => None,
        };
        term.map(|term| to_external(term).to_vec())
            .unwrap_or_default()
    }

    fn content<'s>(&mut self, anchor: &'s Anchor) -> Option<View<'s, Anchor>> {
        match anchor {
            Anchor::Share(share) => Some(share.shared().packed().view()),
            Anchor::State(_)
            | Anchor::Pooled(_)
            | Anchor::Parked(_)
            | Anchor::Buffer(_)
            | Anchor::Foreign(_) => None,
        }
    }
}

impl Import for Host<'_> {
    type Anchor = Anchor;
    type Fields = State<Anchor>;

    fn atom(&mut self, name: &str) -> Result<u64, SnapshotError> {
        self.spend(0)?;
        existing_atom(self.env, name)
            .map(word)
            .ok_or_else(|| SnapshotError::UnknownAtom(name.into()))
    }

    fn float_key(&mut self, float: f64) -> f64 {
        float_key(float)
    }

    fn external(
        &mut self,
        external: &[u8],
        writer: &mut Writer<Anchor>,
    ) -> Result<(), SnapshotError> {
        self.spend(EXTERNAL_COST + 16 * external.len())?;
        let keeper = &mut self.keeper;
        // Terms that are built on the way to the packed form are freed at once, and not with the
        // caller's heap.
        let read = OwnedEnv::new().run(|own| {
            let term = from_external_safe(own, external).ok_or(())?;
            pack_flat(term, keeper, writer)
        });
        read.map_err(|()| match unknown_node(self.env, external) {
            Some(name) => SnapshotError::UnknownAtom(name.into()),
            None => SnapshotError::Corrupt,
        })
    }

    fn export(&mut self, module: u64, function: u64, arity: u8) -> Result<(), SnapshotError> {
        self.spend(EXTERNAL_COST)?;
        let words = (module, function, arity);
        // SAFETY: both are words that `atom` returned.
        let (module, function) =
            unsafe { (from_word(self.env, module), from_word(self.env, function)) };
        OwnedEnv::new().run(|own| {
            let parts = (module.in_env(own), function.in_env(own), arity).encode(own);
            let parts = to_external(parts);
            let external = etf::tuple_elements(&parts).map(etf::export);
            let external = external.ok_or(SnapshotError::Corrupt)?;
            if from_external_safe(own, &external).is_some() || is_noted(words) {
                return Ok(());
            }
            let name = |term| atom_name(term).unwrap_or_default();
            let name = format!("{}:{}/{arity}", name(module), name(function));
            Err(SnapshotError::UnknownAtom(name.into()))
        })
    }

    fn share(&mut self, content: Packed<Anchor>) -> Result<(u64, Anchor), SnapshotError> {
        self.spend(SHARE_COST)?;
        let link = ShareLink::new(&share::intern(content));
        Ok((link.id(), Anchor::Share(link)))
    }

    fn fields(&mut self, fields: Packed<Anchor>) -> Result<State<Anchor>, SnapshotError> {
        state_from(fields).map_err(|_| SnapshotError::Corrupt)
    }
}
