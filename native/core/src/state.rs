//! The state of a connection: a map of fields, some of them with a meaning of their own.

use crate::map::{self, EditError, Map, Room};
use crate::packed::{Anchor, Entry, Item, Links, Packed, Page, Scalar, View, item, pack_int, skip};
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
    fields: Packed<A>,
}

/// The fields of a state, wherever they lie: in a [`State`], or in memory of the host's.
#[derive(Debug)]
pub struct Fields<'a, A>(View<'a, A>);

impl<A> Clone for Fields<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Fields<'_, A> {}

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
    /// A state of these fields, a packed map that was checked.
    pub fn of(fields: Packed<A>) -> Self {
        let fields = match Map::from_packed(fields) {
            Some(map) => map.into_packed(),
            None => Map::default().into_packed(),
        };
        State { fields }
    }

    /// A state of these fields, a packed map that has at least an id and a time of creation.
    pub fn from_fields(names: &Names<A>, fields: Packed<A>) -> Result<Self, FieldError> {
        Fields::checked(names, fields.view())?;
        Ok(Self::of(fields))
    }

    /// A state of fields that were those of a state.
    pub fn again(fields: Packed<A>) -> Self {
        State { fields }
    }

    /// The fields as a value, for the caller to free or to put elsewhere.
    pub fn into_packed(self) -> Packed<A> {
        self.fields
    }

    /// All fields that were set.
    pub fn fields(&self) -> Fields<'_, A> {
        Fields(self.fields.view())
    }

    /// Bytes of memory behind the state.
    pub fn heap_bytes(&self) -> usize {
        self.fields.heap_bytes()
    }
}

/// Builds the fields of a new state with an id, a packed binary. They have no links.
pub fn new_state<A: Anchor>(names: &Names<A>, id: &[u8], created_at: i64, room: &mut Room) {
    let mut created = Scalar::default();
    let created_len = pack_int(created_at, &mut created);
    let mut entries = [
        (names.id.bytes(), id),
        (names.phase.bytes(), names.initialization.bytes()),
        (names.created_at.bytes(), &created[..created_len]),
    ];
    entries.sort_unstable();
    room.build_pairs(&entries);
}

/// What a host passes for a new state, without the fields that are `undefined` and with those that
/// every state has: the phase and the time of creation. `None` if nothing is to be changed.
pub fn complete<A: Anchor>(
    names: &Names<A>,
    given: View<'_, A>,
    created_at: i64,
) -> Option<Packed<A>> {
    let page = Page::of(given.bytes)?;
    let mut created = Scalar::default();
    let created_len = pack_int(created_at, &mut created);
    let defaults = [
        (names.phase.bytes(), names.initialization.bytes()),
        (names.created_at.bytes(), &created[..created_len]),
    ];
    let is_absent = |value: &[u8]| value == names.undefined.bytes();
    let missing = |(key, _): &(&[u8], &[u8])| page.find(key).is_none();
    if !page.entries().any(|(_, value)| is_absent(value)) && !defaults.iter().any(missing) {
        return None;
    }
    let given_ones = page.entries().filter(|(_, value)| !is_absent(value));
    let mut entries: Vec<_> = given_ones.collect();
    entries.extend(defaults.into_iter().filter(missing));
    entries.sort_unstable_by_key(|(key, _)| *key);
    let bytes = Page::build(entries.into_iter());
    Some(Packed::new(bytes, given.links.clone()))
}

impl<'a, A: Anchor> Fields<'a, A> {
    /// The fields that this value is, as a [`State`] has them or a [`Room`].
    pub fn of(value: View<'a, A>) -> Self {
        Fields(value)
    }

    /// The fields that this value is, if they are those of a state: a map that has at least an id
    /// and a time of creation.
    pub fn checked(names: &Names<A>, value: View<'a, A>) -> Result<Self, FieldError> {
        let fields = Fields(value);
        map::len_of(value).ok_or(FieldError::NotAMap)?;
        let checked = [
            &names.id,
            &names.created_at,
            &names.metadata,
            &names.pending_refs,
        ];
        for name in checked {
            match fields.get(&[name.bytes()]) {
                Some(value) => check(names, name.bytes(), value)?,
                None if name.bytes() == names.id.bytes() => return Err(FieldError::Id),
                None if name.bytes() == names.created_at.bytes() => {
                    return Err(FieldError::CreatedAt);
                }
                None => {}
            }
        }
        Ok(fields)
    }

    /// The map of the fields.
    pub fn view(self) -> View<'a, A> {
        self.0
    }

    /// How many there are.
    pub fn len(self) -> usize {
        map::len_of(self.0).unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The value under a path whose first key is a field.
    pub fn get<K: AsRef<[u8]>>(self, path: &[K]) -> Option<View<'a, A>> {
        self.0.find(path)
    }

    /// The fields with another value under a path. A map given for the field `metadata` itself is
    /// merged into it.
    pub fn update(
        self,
        names: &Names<A>,
        path: &[View<'_, A>],
        value: View<'_, A>,
    ) -> Result<State<A>, FieldError> {
        let absent = names.undefined.bytes();
        let fields = if is_merged(names, path, value)? {
            map::merge(self.0, path, value, absent)
        } else {
            map::put(self.0, path, value, absent)
        };
        fields
            .map(|fields| State { fields })
            .map_err(FieldError::Path)
    }

    /// The same in a room, and its links; `None` if that is not the place for it: see [`Room::put`].
    pub fn update_in(
        self,
        names: &Names<A>,
        path: &[View<'_, A>],
        value: View<'_, A>,
        room: &mut Room,
    ) -> Result<Option<Links<A>>, FieldError> {
        let is_merged = is_merged(names, path, value)?;
        Ok(match path {
            [field] if is_merged => room.merge(self.0, *field, value),
            _ => room.put(self.0, path, value),
        })
    }

    /// The fields with other values, as [`update`](Self::update) puts them: the keys of the packed
    /// map `entries` are fields, and lists that are paths. Paths come last, shorter ones first.
    pub fn update_all(
        self,
        names: &Names<A>,
        entries: View<'_, A>,
    ) -> Result<State<A>, FieldError> {
        let page = Page::of(entries.bytes).ok_or(FieldError::NotAMap)?;
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
            fields: map::put_some(self.0, entries, is_field, metadata),
        };
        for (path, value) in paths {
            state = state.fields().update(names, &path, value)?;
        }
        Ok(state)
    }

    /// The same in a room, for entries whose keys are fields, sorted, and that have no links; its
    /// links. `None` if that is not the place for it, because there is metadata among them or for
    /// the reasons of [`Room::put`].
    pub fn update_all_in(
        self,
        names: &Names<A>,
        entries: &[Entry<'_>],
        room: &mut Room,
    ) -> Result<Option<Links<A>>, FieldError> {
        for entry in entries {
            if is(entry.key(), &names.metadata) {
                return Ok(None);
            }
            check(names, entry.key(), View::new(entry.value(), &Links::None))?;
        }
        Ok(room.put_all(self.0, entries))
    }

    /// The fields without what a path leads to. `Ok(None)` if there is nothing there.
    pub fn remove(
        self,
        names: &Names<A>,
        path: &[View<'_, A>],
    ) -> Result<Option<State<A>>, FieldError> {
        if path.is_empty() || path.len() > map::MAX_PATH {
            return Err(FieldError::Path(EditError::PathLength));
        }
        if let [field] = path {
            let required = [names.id.bytes(), names.created_at.bytes()];
            if required.contains(&field.bytes) {
                return Err(FieldError::Required);
            }
        }
        Ok(map::remove(self.0, path).map(|fields| State { fields }))
    }

    /// What the parts of the state take, which takes `total` bytes with the host's handle.
    pub fn sizes(self, names: &Names<A>, total: usize) -> Sizes {
        let len = |name: &Packed<A>| self.get(&[name.bytes()]).and_then(map::len_of).unwrap_or(0);
        let mut sizes = Sizes {
            total,
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
        map::for_each_of(self.0, |key, value| {
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

fn is_field(key: &[u8]) -> bool {
    matches!(item(key, &mut 0), Ok(Item::Atom(_)))
}

/// Whether a value is put into the map that is under the path; an error if it cannot be there.
fn is_merged<A: Anchor>(
    names: &Names<A>,
    path: &[View<'_, A>],
    value: View<'_, A>,
) -> Result<bool, FieldError> {
    match path {
        [field] => {
            check(names, field.bytes, value)?;
            Ok(is(field.bytes, &names.metadata))
        }
        _ => Ok(false),
    }
}

/// Whether a field has this name. Byte by byte: a call of the C library takes longer.
fn is<A: Anchor>(field: &[u8], name: &Packed<A>) -> bool {
    let name = name.bytes();
    field.len() == name.len() && field.iter().zip(name).all(|(one, other)| one == other)
}

/// Whether a field may have this value.
fn check<A: Anchor>(names: &Names<A>, field: &[u8], value: View<'_, A>) -> Result<(), FieldError> {
    let head = || item(value.resolve().bytes, &mut 0);
    if is(field, &names.id) {
        matches!(head(), Ok(Item::Binary(_)))
            .then_some(())
            .ok_or(FieldError::Id)
    } else if is(field, &names.created_at) {
        matches!(head(), Ok(Item::Int(_)))
            .then_some(())
            .ok_or(FieldError::CreatedAt)
    } else if is(field, &names.metadata) || is(field, &names.pending_refs) {
        map::len_of(value).map(|_| ()).ok_or(FieldError::NotAMap)
    } else {
        Ok(())
    }
}
