//! A host that behaves as the NIF does: atoms that exist, shares that are kept once, terms that
//! only it can hold.

use super::external;
use erlmcp_memory_core::packed::Reclaim;
use erlmcp_memory_core::packed::{self, Item, Packed, View, Writer};
use erlmcp_memory_core::shared::{self, Holder, Store};
use erlmcp_memory_core::snapshot::{Export, Import, SnapshotError};
use erlmcp_memory_core::state::{Names, State};
use std::cell::RefCell;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::AtomicUsize;
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
    Share(Holder<Kept, Nothing>),
    /// What a reference refers to; its numbers.
    Object(Arc<[u8]>),
}

impl packed::Anchor for Kept {
    fn kept_bytes(&self) -> usize {
        match self {
            Kept::Share(_) => 0,
            Kept::Object(numbers) => numbers.len(),
        }
    }

    /// Flat, as in the NIF: a chain of shares may be longer than the stack.
    fn free(garbage: Packed<Self>) {
        let mut next = Some(garbage);
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
        while let Some(garbage) = next {
            let mut freeing = Reclaim::new(garbage);
            while freeing.step() {}
            next = PENDING.with_borrow_mut(|pending| pending.as_mut()?.pop());
        }
        if outermost {
            PENDING.set(None);
        }
    }
}

/// This host keeps nothing beside a content.
#[derive(Debug, Default)]
pub struct Nothing;

impl shared::Host for Nothing {
    fn unheld(&self, _holders: &AtomicUsize) {}

    fn is_counted(&self) -> bool {
        false
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

thread_local! {
    static STORE: RefCell<Store<Kept, Nothing>> = RefCell::default();
    /// What this thread frees next, while it frees something.
    static PENDING: RefCell<Option<Vec<Packed<Kept>>>> = const { RefCell::new(None) };
}

/// How many shared contents are left at the end of a run. The next one begins with a new store:
/// tables keep a little memory for contents to come.
pub fn contents_left() -> usize {
    STORE.take().len()
}

/// A share of this content: its id, and what keeps it.
pub fn share(content: Packed<Kept>) -> (u64, Kept) {
    let shared = STORE.with_borrow(|store| store.intern(content));
    (Arc::as_ptr(&shared) as u64, Kept::Share(shared.holder()))
}

/// Writes the reference of this node with these numbers: a plain one, or one to something that is
/// kept. Equal ones get equal ids.
pub fn reference(numbers: &[u8], to: &mut Writer<Kept>) {
    let mut hasher = DefaultHasher::new();
    hasher.write(numbers);
    let id = hasher.finish();
    match numbers.last() {
        Some(1) => to.foreign(id, numbers, Kept::Object(numbers.into())),
        Some(2) => to.handle(id, Kept::Object(numbers.into())),
        _ => to.reference(numbers),
    }
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

    fn float_key(&mut self, float: f64) -> f64 {
        // Both zeros are one key, as before OTP 27.
        float + 0.0
    }

    fn external(
        &mut self,
        external: &[u8],
        writer: &mut Writer<Kept>,
    ) -> Result<(), SnapshotError> {
        external::read(external, writer)
    }

    fn export(&mut self, module: u64, function: u64, arity: u8) -> Result<(), SnapshotError> {
        let names = [module, function].map(|word| ATOMS[word as usize]);
        // As if no code named a function of this arity.
        match arity {
            200.. => Err(SnapshotError::UnknownAtom(names.concat().into())),
            _ => Ok(()),
        }
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

    fn external(&mut self, local: Item<'_>, anchor: Option<&Kept>) -> Vec<u8> {
        external::write(local, anchor)
    }

    fn content<'a>(&mut self, anchor: &'a Kept) -> Option<View<'a, Kept>> {
        match anchor {
            Kept::Share(share) => Some(share.shared().packed().view()),
            Kept::Object(_) => None,
        }
    }
}
