//! A host that behaves as the NIF does: atoms that exist, shares that are kept once, terms that
//! only it can hold.

use super::external;
use erlmcp_memory_core::packed::{self, Item, Packed, View, Writer};
use erlmcp_memory_core::shared::{Content, Store};
use erlmcp_memory_core::snapshot::{Export, Import, SnapshotError};
use erlmcp_memory_core::state::{Names, State};
use std::cell::RefCell;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, LazyLock};

/// The atoms that exist.
pub const ATOMS: [&str; 27] = [
    "id",
    "phase",
    "transport",
    "capabilities_ref",
    "metadata",
    "pending_refs",
    "created_at",
    "undefined",
    "initialization",
    "initialized",
    "erlmcp_transport_stdio",
    "erlmcp_transport_ws",
    "true",
    "false",
    "ok",
    "error",
    "tools",
    "lists",
    "erl_eval",
    "nonode@nohost",
    "",
    "é",
    "a",
    "b",
    "c",
    "leaf",
    "日本",
];

/// The word of an atom: its place in the list.
pub fn word(name: &str) -> Option<u64> {
    let place = ATOMS.iter().position(|atom| *atom == name)?;
    Some(place as u64)
}

/// Keeps something for a packed value.
#[derive(Debug, Clone)]
pub enum Kept {
    Share(Share),
    /// A term in the external format.
    Foreign(Arc<[u8]>),
}

impl packed::Anchor for Kept {
    fn kept_bytes(&self) -> usize {
        match self {
            Kept::Share(_) => 0,
            Kept::Foreign(external) => external.len(),
        }
    }
}

type Shared = Arc<Content<Kept, ()>>;

thread_local! {
    static STORE: Store<Kept, ()> = Store::default();
    /// What this thread gives back next, while it gives back something.
    static PENDING: RefCell<Option<Vec<Shared>>> = const { RefCell::new(None) };
}

/// How many shared contents there are.
pub fn contents() -> usize {
    STORE.with(Store::len)
}

/// An owner of a shared content.
#[derive(Debug, Clone)]
pub struct Share(Option<Shared>);

impl Share {
    fn content(&self) -> &Shared {
        self.0.as_ref().expect("taken by the destructor only")
    }
}

impl Drop for Share {
    /// Flat, as in the NIF: a chain of shares may be longer than the stack.
    fn drop(&mut self) {
        let mut next = self.0.take();
        let outermost = PENDING.with_borrow_mut(|pending| match pending {
            Some(pending) => {
                pending.extend(next.take());
                false
            }
            None => {
                *pending = Some(Vec::new());
                true
            }
        });
        while let Some(content) = next {
            STORE.with(|store| store.release(content));
            next = PENDING.with_borrow_mut(|pending| pending.as_mut()?.pop());
        }
        if outermost {
            PENDING.set(None);
        }
    }
}

/// A share of this content: its id, and what keeps it.
pub fn share(content: Packed<Kept>) -> (u64, Kept) {
    let content = STORE.with(|store| store.intern(content));
    (
        Arc::as_ptr(&content) as u64,
        Kept::Share(Share(Some(content))),
    )
}

/// Writes a term that the host holds.
pub fn foreign(term: &[u8], to: &mut Writer<Kept>) {
    // Equal terms get equal ids.
    let mut hasher = DefaultHasher::new();
    hasher.write(term);
    let id = hasher.finish();
    to.foreign(id, term, Kept::Foreign(term.into()));
}

pub static NAMES: LazyLock<Names<Kept>> = LazyLock::new(|| {
    let packed = |name| {
        let mut writer = Writer::default();
        writer.atom(word(name).expect("a name of the list"));
        writer.finish()
    };
    Names {
        id: packed("id"),
        phase: packed("phase"),
        transport: packed("transport"),
        capabilities_ref: packed("capabilities_ref"),
        metadata: packed("metadata"),
        pending_refs: packed("pending_refs"),
        created_at: packed("created_at"),
        undefined: packed("undefined"),
        initialization: packed("initialization"),
    }
});

/// The host.
pub struct Host;

/// A state, and the packed fields that it was made of.
#[derive(Debug)]
pub struct Fields {
    pub state: State<Kept>,
    pub packed: Packed<Kept>,
}

impl Import for Host {
    type Anchor = Kept;
    type Fields = Fields;

    fn atom(&mut self, name: &str) -> Result<u64, SnapshotError> {
        word(name).ok_or_else(|| SnapshotError::UnknownAtom(name.into()))
    }

    fn external(
        &mut self,
        term: &[u8],
        compound: bool,
        writer: &mut Writer<Kept>,
    ) -> Result<(), SnapshotError> {
        external::read(term, compound, writer)
            .then_some(())
            .ok_or(SnapshotError::Corrupt)
    }

    fn share(&mut self, content: Packed<Kept>) -> Result<(u64, Kept), SnapshotError> {
        Ok(share(content))
    }

    fn fields(&mut self, packed: Packed<Kept>) -> Result<Fields, SnapshotError> {
        let fields = packed.view().to_packed();
        let state = State::from_fields(&NAMES, fields).map_err(|_| SnapshotError::Corrupt)?;
        Ok(Fields { state, packed })
    }
}

impl Export for Host {
    type Anchor = Kept;

    fn atom(&mut self, word: u64) -> String {
        ATOMS[word as usize].into()
    }

    fn external(&mut self, local: Item<'_>) -> Vec<u8> {
        unreachable!("nothing here makes a {local:?}")
    }

    fn foreign(&mut self, anchor: &Kept) -> Vec<u8> {
        match anchor {
            Kept::Foreign(external) => external.to_vec(),
            Kept::Share(share) => unreachable!("{share:?} as a foreign term"),
        }
    }

    fn content<'a>(&mut self, anchor: &'a Kept) -> Option<View<'a, Kept>> {
        match anchor {
            Kept::Share(share) => Some(share.content().packed().view()),
            Kept::Foreign(_) => None,
        }
    }
}
