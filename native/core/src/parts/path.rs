//! Places of parts in a value, to guess the parts of the next value of that shape.

use super::{Contents, part_of};
use crate::packed::{Anchor, Item, Packed, Target, item};
use smallvec::SmallVec;

/// A place in a value, through tuples and maps, as seen from its end: of a tuple that it is the
/// last element of, nothing is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path(u64);

/// The depth down to which places are distinguished.
pub const PATH: usize = 6;

impl Path {
    /// The root of a tuple, with its first element if that is an atom.
    pub fn of_tuple(arity: usize, first: Option<u64>) -> Self {
        Path(1)
            .step(arity)
            .step(first.map_or(0, |word| word as usize))
    }

    /// The root of a map.
    pub fn of_map() -> Self {
        Path(2)
    }

    /// A value that is a tuple or a map; `None` for any other.
    fn of(bytes: &[u8]) -> Option<Self> {
        let mut at = 0;
        match item(bytes, &mut at) {
            Ok(Item::Tuple(arity)) => Some(match item(bytes, &mut at) {
                Ok(Item::Atom(word)) => Path::of_tuple(arity, Some(word)),
                _ => Path::of_tuple(arity, None),
            }),
            Ok(Item::Entries(_) | Item::Map(_)) => Some(Path::of_map()),
            _ => None,
        }
    }

    /// The value itself.
    #[must_use]
    pub fn whole(self) -> Self {
        self.step(5)
    }

    /// In a tuple, with this many elements after it.
    #[must_use]
    pub fn element(self, behind: usize) -> Self {
        match behind {
            0 => self,
            _ => self.step(3).step(behind),
        }
    }

    /// In a map, the value of the entry of this number, from 1.
    #[must_use]
    pub fn value(self, number: usize) -> Self {
        self.step(4).step(number)
    }

    fn step(self, number: usize) -> Self {
        let mixed = (self.0 ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Path(mixed ^ mixed >> 32)
    }

    /// A number for it.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Calls `found` with the parts of a value that was taken apart, and where they are, if that can
/// be told. Where it returns `true` of a part that was long, those in that part come next.
pub fn each_outer<A: Anchor>(
    value: &Packed<A>,
    contents: &impl Contents<A>,
    mut found: impl FnMut(Path, &A) -> bool,
) {
    enum In {
        Tuple,
        /// Whether a value comes next.
        Map(bool),
        Other,
    }
    // Where it goes on in values that were left.
    let mut left: SmallVec<[(&Packed<A>, usize); 4]> = SmallVec::new();
    let (mut here, mut at) = (value, 0);
    let mut root = None;
    let mut open: Vec<(In, usize, usize)> = Vec::new();
    // What comes next was counted, as the part that it is.
    let mut is_counted = true;
    loop {
        if at >= here.bytes().len() {
            let Some(outer) = left.pop() else {
                return;
            };
            (here, at) = outer;
            continue;
        }
        let Ok(next) = item(here.bytes(), &mut at) else {
            return;
        };
        if let Item::Run { id, .. } = next {
            let Some(run) = part_of(here.links(), id, contents) else {
                return;
            };
            left.push((here, at));
            (here, at) = (run, 0);
            // The head of the list that it is kept as.
            if item(here.bytes(), &mut at).is_err() {
                return;
            }
            continue;
        }
        if !std::mem::take(&mut is_counted)
            && let Some((kind, left, total)) = open.last_mut()
        {
            *left -= 1;
            if let In::Map(is_value) = kind {
                *is_value = (*total - *left) % 2 == 0;
            }
        }
        if let Item::Part(id) = next
            && let Some(Target::Anchor(anchor)) = here.links().get(id)
        {
            let Some(root) = root else {
                // The value itself.
                if let Some(content) = contents.content(anchor)
                    && let Some(path) = Path::of(content.bytes())
                {
                    found(path.whole(), anchor);
                }
                return;
            };
            let path = (open.len() <= PATH).then(|| {
                open.iter().try_fold(root, |path: Path, open| match *open {
                    (In::Tuple, left, _) => Some(path.element(left)),
                    (In::Map(true), left, total) => Some(path.value((total - left) / 2)),
                    _ => None,
                })
            });
            if let Some(Some(path)) = path
                && found(path, anchor)
                && let Some(content) = contents.content(anchor)
                && has_runs(content)
            {
                left.push((here, at));
                (here, at, is_counted) = (content, 0, true);
                continue;
            }
        }
        let following = match next {
            // Entries without parts.
            Item::Map(_) => 0,
            _ => next.following(),
        };
        if root.is_none() {
            root = Path::of(value.bytes());
            if root.is_none() {
                return;
            }
        }
        if following > 0 {
            let kind = match next {
                Item::Tuple(_) => In::Tuple,
                Item::Entries(_) => In::Map(false),
                _ => In::Other,
            };
            open.push((kind, following, following));
        }
        while let Some((_, 0, _)) = open.last() {
            open.pop();
        }
    }
}

/// Whether a value is a list or a map of which runs are contents.
fn has_runs<A: Anchor>(value: &Packed<A>) -> bool {
    let mut at = 0;
    let bytes = value.bytes();
    matches!(item(bytes, &mut at), Ok(Item::List(_) | Item::Entries(_)))
        && std::iter::from_fn(|| item(bytes, &mut at).ok())
            .any(|next| matches!(next, Item::Run { .. }))
}
