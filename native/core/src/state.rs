//! The state of a connection: a map of fields, some of them with a meaning of their own.

use crate::map::{self, EditError, Map};
use crate::packed::{Anchor, Item, Links, Packed, Page, Scalar, View, item, pack_int, skip};
use smallvec::SmallVec;

/// The packed atoms that have a meaning here. The host makes them once.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Names<A> {
    pub id: Packed<A>,
    pub phase: Packed<A>,
    pub transport: Packed<A>,
    pub capabilities_ref: Packed<A>,
    pub metadata: Packed<A>,
    pub pending_refs: Packed<A>,
    pub created_at: Packed<A>,
    /// The value of a field that was never set.
    pub undefined: Packed<A>,
    /// The phase of a new state.
    pub initialization: Packed<A>,
}

/// An immutable state: an update makes a new one that shares with the old what did not change.
#[derive(Debug)]
pub struct State<A> {
    fields: Map<A>,
}

/// Why a state could not be made or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldError {
    /// The id is not a binary.
    Id,
    /// The time of creation is not an integer.
    CreatedAt,
    /// The field must be a map.
    NotAMap,
    /// What should name a field does not.
    Name,
    /// The field can be set but not removed.
    Required,
    /// See [`EditError`].
    Path(EditError),
}

/// What the parts of a state take, in bytes; `total` is the sum of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Sizes {
    pub total: usize,
    /// The handle and what no single field takes: allocator overhead, the table of fields, phase
    /// and time of creation.
    pub base: usize,
    pub id: usize,
    pub transport: usize,
    pub capabilities_ref: usize,
    pub metadata: usize,
    pub pending_refs: usize,
    pub extra: usize,
    /// Entries, not bytes.
    pub metadata_len: usize,
    /// Entries, not bytes.
    pub pending_len: usize,
}

impl<A: Anchor> State<A> {
    /// A new state with an id, a packed binary.
    pub fn new(names: &Names<A>, id: View<'_, A>, created_at: i64) -> Self {
        let mut created = Scalar::default();
        let created_len = pack_int(created_at, &mut created);
        let mut entries = [
            (names.id.bytes(), id.bytes),
            (names.phase.bytes(), names.initialization.bytes()),
            (names.created_at.bytes(), &created[..created_len]),
        ];
        entries.sort_unstable();
        let fields = Packed::from_bytes(&Page::build(entries.into_iter()));
        State {
            fields: Map::from_packed(fields).unwrap_or_default(),
        }
    }

    /// A state of these fields, a packed map that has at least an id and a time of creation.
    pub fn from_fields(names: &Names<A>, fields: Packed<A>) -> Result<Self, FieldError> {
        let fields = Map::from_packed(fields).ok_or(FieldError::NotAMap)?;
        let state = State { fields };
        let checked = [
            &names.id,
            &names.created_at,
            &names.metadata,
            &names.pending_refs,
        ];
        for name in checked {
            match state.fields.get(&[name.bytes()]) {
                Some(value) => check(names, name.bytes(), value)?,
                None if name.bytes() == names.id.bytes() => return Err(FieldError::Id),
                None if name.bytes() == names.created_at.bytes() => {
                    return Err(FieldError::CreatedAt);
                }
                None => {}
            }
        }
        Ok(state)
    }

    /// The fields as a value, for the caller to free.
    pub fn into_packed(self) -> Packed<A> {
        self.fields.into_packed()
    }

    /// All fields that were set.
    pub fn fields(&self) -> &Map<A> {
        &self.fields
    }

    /// The value under a path whose first key is a field.
    pub fn get<K: AsRef<[u8]>>(&self, path: &[K]) -> Option<View<'_, A>> {
        self.fields.get(path)
    }

    /// This state with another value under a path. A map given for the field `metadata` itself is
    /// merged into it.
    pub fn update(
        &self,
        names: &Names<A>,
        path: &[View<'_, A>],
        value: View<'_, A>,
    ) -> Result<Self, FieldError> {
        let absent = names.undefined.bytes();
        let fields = if let [field] = path {
            check(names, field.bytes, value)?;
            if field.bytes == names.metadata.bytes() {
                self.fields.merge(path, value, absent)
            } else {
                self.fields.put(path, value, absent)
            }
        } else {
            self.fields.put(path, value, absent)
        };
        fields
            .map(|fields| State { fields })
            .map_err(FieldError::Path)
    }

    /// This state with other values, as [`update`](Self::update) puts them: the keys of the packed
    /// map `entries` are fields, and lists that are paths. Paths come last, shorter ones first.
    pub fn update_all(&self, names: &Names<A>, entries: View<'_, A>) -> Result<Self, FieldError> {
        let page = Page::of(entries.bytes).ok_or(FieldError::NotAMap)?;
        let is_field = |key: &[u8]| matches!(item(key, &mut 0), Ok(Item::Atom(_)));
        let mut paths = Vec::new();
        for (key, value) in page.entries() {
            let value = View::new(value, entries.links);
            if is_field(key) {
                check(names, key, value)?;
            } else {
                paths.push((keys(key, entries.links)?, value));
            }
        }
        let metadata = names.metadata.bytes();
        let mut state = State {
            fields: self.fields.put_all(entries, is_field, metadata),
        };
        for (path, value) in paths {
            state = state.update(names, &path, value)?;
        }
        Ok(state)
    }

    /// This state without what a path leads to. `Ok(None)` if there is nothing there.
    pub fn remove(
        &self,
        names: &Names<A>,
        path: &[View<'_, A>],
    ) -> Result<Option<Self>, FieldError> {
        if path.is_empty() || path.len() > map::MAX_PATH {
            return Err(FieldError::Path(EditError::PathLength));
        }
        if let [field] = path {
            let required = [names.id.bytes(), names.created_at.bytes()];
            if required.contains(&field.bytes) {
                return Err(FieldError::Required);
            }
        }
        Ok(self.fields.remove(path).map(|fields| State { fields }))
    }

    /// What the parts of this state take. `handle` is what the host's handle takes, this struct
    /// included.
    pub fn sizes(&self, names: &Names<A>, handle: usize) -> Sizes {
        let len = |name: &Packed<A>| self.get(&[name.bytes()]).and_then(map::len_of).unwrap_or(0);
        let mut sizes = Sizes {
            total: handle + self.fields.heap_bytes(),
            base: 0,
            id: 0,
            transport: 0,
            capabilities_ref: 0,
            metadata: 0,
            pending_refs: 0,
            extra: 0,
            metadata_len: len(&names.metadata),
            pending_len: len(&names.pending_refs),
        };
        let mut counted = 0;
        self.fields.for_each(|key, value| {
            let is = |name: &Packed<A>| name.bytes() == key;
            let part = if is(&names.id) {
                &mut sizes.id
            } else if is(&names.transport) {
                &mut sizes.transport
            } else if is(&names.capabilities_ref) {
                &mut sizes.capabilities_ref
            } else if is(&names.metadata) {
                &mut sizes.metadata
            } else if is(&names.pending_refs) {
                &mut sizes.pending_refs
            } else if is(&names.phase) || is(&names.created_at) {
                // Part of the base.
                return;
            } else {
                &mut sizes.extra
            };
            let bytes = key.len() + value.bytes.len() + value.out_of_line_bytes();
            *part += bytes;
            counted += bytes;
        });
        sizes.base = sizes.total - counted;
        sizes
    }
}

/// The keys of a path that is a packed list.
fn keys<'a, A: Anchor>(
    path: &'a [u8],
    links: &'a Links<A>,
) -> Result<SmallVec<[View<'a, A>; 4]>, FieldError> {
    let mut at = 0;
    match item(path, &mut at) {
        Ok(Item::List(len @ 1..=map::MAX_PATH)) => {
            let keys: SmallVec<[View<'a, A>; 4]> = (0..len)
                .map_while(|_| {
                    let start = at;
                    skip(path, &mut at).ok()?;
                    Some(View::new(&path[start..at], links))
                })
                .collect();
            match keys.first().map(|field| item(field.bytes, &mut 0)) {
                Some(Ok(Item::Atom(_))) => Ok(keys),
                _ => Err(FieldError::Name),
            }
        }
        _ => Err(FieldError::Name),
    }
}

/// Whether a field may have this value.
fn check<A: Anchor>(names: &Names<A>, field: &[u8], value: View<'_, A>) -> Result<(), FieldError> {
    let head = item(value.resolve().bytes, &mut 0);
    if field == names.id.bytes() {
        matches!(head, Ok(Item::Binary(_)))
            .then_some(())
            .ok_or(FieldError::Id)
    } else if field == names.created_at.bytes() {
        matches!(head, Ok(Item::Int(_)))
            .then_some(())
            .ok_or(FieldError::CreatedAt)
    } else if field == names.metadata.bytes() || field == names.pending_refs.bytes() {
        map::len_of(value).map(|_| ()).ok_or(FieldError::NotAMap)
    } else {
        Ok(())
    }
}
