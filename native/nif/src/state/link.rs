//! States in values of this library.

use super::handle::{Counted, Handle, Holding};
use crate::cycles::{self, Node};
use crate::enif::owner::{Owner, Release};
use crate::lane::{Busy, Lane};
use crate::reaper;
use crate::resource::ResourceRef;
use crate::terms::{Anchor, Known};
use erlmcp_memory_core::packed::{Links, Packed};
use erlmcp_memory_core::state::State;
use parking_lot::RwLock;
use rustler::{Env, Term};
use std::sync::Arc;

/// A state that has states in it, and that values refer to. Its owners can be counted, which those
/// of a resource object cannot, and a long chain of such states is freed step by step.
#[derive(Debug)]
pub struct Linked {
    pub(super) state: Counted,
    /// The one reference that stands for it.
    known: Known,
    /// Whether it leads to a pooled state.
    cyclic: bool,
}

impl Linked {
    /// The state.
    pub fn state(&self) -> &State<Anchor> {
        &self.state
    }

    /// Whether it leads to a pooled state.
    pub fn is_cyclic(&self) -> bool {
        self.cyclic
    }
}

/// A state in a value of this library.
#[derive(Debug, Clone)]
pub enum StateLink {
    /// One that has no state in it. It stays in its handle, so that a link takes nothing.
    Handle(ResourceRef<Handle>),
    /// One that has.
    Linked(Owner<Arc<Linked>>),
}

impl Release for Arc<Linked> {
    /// What the last owner had may be the head of a long chain.
    fn release(self) {
        if self.cyclic {
            cycles::suspect(Node::State(self));
        } else if let Some(linked) = Arc::into_inner(self) {
            reaper::free_value(linked.state.into_packed());
        }
    }
}

impl StateLink {
    fn linked_to(linked: &Arc<Linked>) -> Self {
        StateLink::Linked(Owner::new(Arc::clone(linked)))
    }

    /// What distinguishes this state from all others while it lives.
    pub fn id(&self) -> u64 {
        match self {
            StateLink::Handle(handle) => handle.address().addr() as u64,
            StateLink::Linked(owner) => Arc::as_ptr(owner).addr() as u64,
        }
    }

    /// The state, if it has states in it.
    pub fn linked(&self) -> Option<&Arc<Linked>> {
        match self {
            StateLink::Handle(_) => None,
            StateLink::Linked(owner) => Some(owner),
        }
    }

    /// What the state links to, unless it was cleaned up.
    pub fn links(&self) -> Links<Anchor> {
        match self {
            // Only a cleanup writes to it.
            StateLink::Handle(handle) => {
                let held = handle.state.try_read();
                let state = held.as_ref().and_then(|held| held.state());
                state.map_or(Links::None, |state| state.fields.view().links.clone())
            }
            StateLink::Linked(owner) => owner.state.fields().view().links.clone(),
        }
    }

    /// A reference to the state.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            StateLink::Handle(handle) => handle.to_term(env),
            StateLink::Linked(linked) => {
                let new = || Handle {
                    state: RwLock::new(Holding::Linked(Arc::clone(linked))),
                };
                linked.known.find_or(env, new).to_term(env)
            }
        }
    }
}

/// The link to a state, if the term is one that was not cleaned up.
pub fn link(env: Env<'_>, term: Term<'_>, lane: Lane) -> Result<Option<StateLink>, Busy> {
    let Some(handle) = ResourceRef::<Handle>::from_term(term) else {
        return Ok(None);
    };
    let held = match lane {
        Lane::Fast => handle.state.try_read().ok_or(Busy)?,
        Lane::Dirty => handle.state.read(),
    };
    let (mut stays, mut cyclic) = (true, false);
    if let Holding::Linked(linked) = &*held {
        return Ok(Some(StateLink::linked_to(linked)));
    }
    let Some(state) = held.state() else {
        return Ok(None);
    };
    let links = state.fields.view().links;
    links.each_anchor(&mut |_, anchor| {
        cyclic |= cycles::leads_to_pooled(anchor);
        stays &= !cyclic && !matches!(anchor, Anchor::State(_));
    });
    drop(held);
    if stays {
        return Ok(Some(StateLink::Handle(handle)));
    }
    let mut held = match lane {
        Lane::Fast => handle.state.try_write().ok_or(Busy)?,
        Lane::Dirty => handle.state.write(),
    };
    let state = match std::mem::replace(&mut *held, Holding::Nothing) {
        Holding::Nothing => return Ok(None),
        Holding::Linked(linked) => {
            *held = Holding::Linked(Arc::clone(&linked));
            return Ok(Some(StateLink::linked_to(&linked)));
        }
        Holding::State(state) => state,
        Holding::Inside(mut inside) => {
            let links = inside.take_links();
            Counted::new(State::again(Packed::new(inside.bytes().into(), links)))
        }
    };
    let known = Known::default();
    known.set(env, term);
    let linked = Arc::new(Linked {
        state,
        known,
        cyclic,
    });
    *held = Holding::Linked(Arc::clone(&linked));
    Ok(Some(StateLink::linked_to(&linked)))
}
