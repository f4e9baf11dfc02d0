//! The object behind a reference to a state, and where the state lies.

use super::link::Linked;
use crate::enif::owner::Release;
use crate::resource::ResourceRef;
use crate::stock::Stock;
use crate::terms::{Anchor, with_room};
use crate::{reaper, resource};
use erlmcp_memory_core::heap;
use erlmcp_memory_core::map::Room;
use erlmcp_memory_core::packed::{Links, Packed, View};
use erlmcp_memory_core::state::{FieldError, Fields, State};
use erlmcp_memory_core::threads::Tally;
use parking_lot::RwLock;
use rustler::{Env, Term};
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

/// The resource behind a state. A state never changes; the lock is for `cleanup_state`, which
/// removes it, and for the first value that refers to a state with states in it.
///
/// A small state lies behind its handle in the same object, so that a new version takes one block:
///
/// ```text
///   Handle │ packed fields        one object of the VM
/// ```
pub struct Handle {
    pub(super) state: RwLock<Holding>,
}

resource!(Handle, c"erlmcp_memory_state");

/// The most packed bytes of a state in the object of its handle. These are freed with the last
/// reference; `cleanup_state` frees everything else.
const INSIDE: usize = 512;

pub(super) enum Holding {
    /// A state behind the handle.
    Inside(Inside),
    State(Counted),
    /// A state that has states in it, and that other values refer to.
    Linked(Arc<Linked>),
    /// It was cleaned up.
    Nothing,
}

impl Holding {
    pub(super) fn state(&self) -> Option<Held<'_>> {
        match self {
            Holding::Inside(inside) => Some(Held {
                fields: Fields::of(View::new(inside.bytes(), &inside.links)),
                is_inside: true,
            }),
            Holding::State(state) => Some(Held::apart(state)),
            Holding::Linked(linked) => Some(Held::apart(&linked.state)),
            Holding::Nothing => None,
        }
    }
}

/// A state that is read, wherever it lies.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// Its fields.
    pub fields: Fields<'a, Anchor>,
    /// Whether it is part of the object of its handle.
    is_inside: bool,
}

impl<'a> Held<'a> {
    fn apart(state: &'a State<Anchor>) -> Self {
        Held {
            fields: state.fields(),
            is_inside: false,
        }
    }

    /// Bytes of memory besides the object of its handle.
    pub fn heap_bytes(self) -> usize {
        let View { bytes, links } = self.fields.view();
        let block = if self.is_inside {
            0
        } else {
            heap::block(bytes.len())
        };
        block + links.heap_bytes()
    }

    /// Bytes of the object of its handle.
    pub(super) fn object_bytes(self) -> usize {
        let bytes = self.fields.view().bytes.len();
        let inside = if self.is_inside { room_for(bytes) } else { 0 };
        resource::overhead() + size_of::<Handle>() + inside
    }
}

/// The bytes that a number of packed bytes adds to an object.
fn room_for(bytes: usize) -> usize {
    bytes.next_multiple_of(size_of::<usize>())
}

/// Packed fields behind a handle, and what they link to.
pub(super) struct Inside {
    start: NonNull<u8>,
    len: u16,
    links: Links<Anchor>,
}

// SAFETY: the bytes behind the handle never change, and are as much its own as the links are.
unsafe impl Send for Inside {}
// SAFETY: as above.
unsafe impl Sync for Inside {}

/// Packed bytes in the objects of handles.
static INSIDES: Tally = Tally::new();

impl Inside {
    /// # Safety
    ///
    /// There is room for the bytes, which are at most [`INSIDE`], at `start`, for as long as what is
    /// returned lives, and nothing else uses it.
    unsafe fn new(bytes: &[u8], links: Links<Anchor>, start: NonNull<u8>) -> Self {
        // SAFETY: the caller promises the room, so it is not part of `bytes`.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        STATES.came(links.heap_bytes());
        INSIDES.came(room_for(bytes.len()));
        Inside {
            start,
            len: bytes.len() as u16,
            links,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `new` wrote `len` bytes, which stay as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len.into()) }
    }

    /// The links, for another owner of a copy of the bytes.
    pub(super) fn take_links(&mut self) -> Links<Anchor> {
        let links = std::mem::take(&mut self.links);
        STATES.add(0, -(links.heap_bytes() as isize));
        links
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        STATES.went(self.links.heap_bytes());
        INSIDES.went(room_for(self.len.into()));
        if self.links.heap_bytes() > FREED_AT_ONCE {
            let links = std::mem::take(&mut self.links);
            reaper::free_value(Packed::new(Box::default(), links));
        }
    }
}

/// Tells the VM of the type; called once, when the library is loaded.
pub fn register(env: Env<'_>) -> bool {
    resource::register::<Handle>(env)
}

impl Drop for Handle {
    fn drop(&mut self) {
        free(std::mem::replace(self.state.get_mut(), Holding::Nothing));
    }
}

/// The most bytes of a state that is freed in one piece.
pub(super) const FREED_AT_ONCE: usize = 256 << 10;

/// Drops a state, or hands it to the reaper if it is large.
pub(super) fn free(held: Holding) {
    match held {
        Holding::State(state) if state.heap_bytes() > FREED_AT_ONCE => {
            reaper::free_value(state.into_packed());
        }
        // What its links lead to is freed elsewhere.
        Holding::Inside(_) | Holding::State(_) | Holding::Nothing => {}
        Holding::Linked(linked) => linked.release(),
    }
}

impl Handle {
    /// A handle without a state.
    pub fn example() -> Self {
        Handle {
            state: RwLock::new(Holding::Nothing),
        }
    }
}

/// The states of the node, and what their values take. What two versions have in common is counted
/// for both.
static STATES: Tally = Tally::new();

/// Compact states.
pub fn stock() -> Stock {
    let states = STATES.sum();
    Stock {
        count: states.count,
        heap: states.bytes,
        objects: resource::objects::<Handle>().bytes + INSIDES.sum().bytes,
    }
}

/// A state that is counted while it is there.
#[derive(Debug)]
pub(super) struct Counted(Option<State<Anchor>>);

impl Counted {
    pub(super) fn new(state: State<Anchor>) -> Self {
        STATES.came(state.heap_bytes());
        Counted(Some(state))
    }

    pub(super) fn into_packed(mut self) -> Packed<Anchor> {
        self.take()
            .map_or_else(|| Packed::from_bytes(&[]), State::into_packed)
    }

    fn take(&mut self) -> Option<State<Anchor>> {
        let state = self.0.take()?;
        STATES.went(state.heap_bytes());
        Some(state)
    }
}

impl Deref for Counted {
    type Target = State<Anchor>;

    fn deref(&self) -> &State<Anchor> {
        self.0.as_ref().expect("it is taken at its end")
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// A term for a new state.
pub fn to_term(env: Env<'_>, state: State<Anchor>) -> Term<'_> {
    let packed = state.into_packed();
    if packed.bytes().len() <= INSIDE {
        let (bytes, links) = packed.into_parts();
        return small(env, &bytes, links);
    }
    let handle = Handle {
        state: RwLock::new(Holding::State(Counted::new(State::again(packed)))),
    };
    resource::make(env, handle)
}

/// A term for a new state of at most [`INSIDE`] packed bytes.
fn small<'a>(env: Env<'a>, bytes: &[u8], links: Links<Anchor>) -> Term<'a> {
    debug_assert!(bytes.len() <= INSIDE);
    let handle = |behind| {
        // SAFETY: there is room for the bytes behind the handle, which owns what is made here.
        let inside = unsafe { Inside::new(bytes, links, behind) };
        Handle {
            state: RwLock::new(Holding::Inside(inside)),
        }
    };
    ResourceRef::with_tail(handle, room_for(bytes.len())).to_term(env)
}

/// A term for a new state of these fields, which were checked.
pub(super) fn to_term_of<'a>(env: Env<'a>, fields: View<'_, Anchor>) -> Term<'a> {
    if fields.bytes.len() <= INSIDE {
        return small(env, fields.bytes, fields.links.clone());
    }
    let packed = Packed::new(fields.bytes.into(), fields.links.clone());
    to_term(env, State::of(packed))
}

/// A term for the state that `build` builds in the room; `None` if it does not, or if that is not
/// small.
pub(super) fn built<'a>(
    env: Env<'a>,
    build: impl FnOnce(&mut Room) -> Result<Option<Links<Anchor>>, FieldError>,
) -> Result<Option<Term<'a>>, FieldError> {
    with_room(|room| {
        let links = build(room)?;
        let fits = room.bytes().len() <= INSIDE;
        Ok(links
            .filter(|_| fits)
            .map(|links| small(env, room.bytes(), links)))
    })
}
