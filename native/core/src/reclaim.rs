//! Freeing large values in slices.
//!
//! Dropping a value drops what it links to, and what that links to: it may take long, all at once.
//! [`Reclaim`] takes a value apart instead, one block a step, so that the caller can pause.

use crate::map::Node;
use crate::packed::{Anchor, Link, Links, Packed, Target};
use std::sync::Arc;

/// A value that is being freed.
#[derive(Debug)]
pub struct Reclaim<A: Anchor> {
    parts: Vec<Part<A>>,
    /// Put in the place of what is taken out of a block that cannot be taken apart.
    empty: Arc<Packed<A>>,
}

#[derive(Debug)]
enum Part<A> {
    Packed(Packed<A>),
    /// Links, with the number of those that are left.
    Links(Arc<[Link<A>]>, usize),
    Target(Target<A>),
}

impl<A: Anchor> Reclaim<A> {
    /// Begins to free a value.
    pub fn new(garbage: Packed<A>) -> Self {
        Reclaim {
            parts: vec![Part::Packed(garbage)],
            empty: Arc::new(Packed::from_bytes(&[])),
        }
    }

    /// Adds a value to be freed.
    pub fn push(&mut self, garbage: Packed<A>) {
        self.parts.push(Part::Packed(garbage));
    }

    /// Frees one block; `false` when nothing was left.
    pub fn step(&mut self) -> bool {
        match self.parts.pop() {
            None => return false,
            Some(Part::Packed(packed)) => self.packed(packed),
            Some(Part::Links(links, left)) => self.links(links, left),
            Some(Part::Target(target)) => self.target(target),
        }
        true
    }

    fn packed(&mut self, packed: Packed<A>) {
        match packed.into_parts().1 {
            Links::None => {}
            Links::One((_, target)) => self.parts.push(Part::Target(target)),
            Links::Many(links, _) => {
                let left = links.len();
                self.parts.push(Part::Links(links, left));
            }
        }
    }

    fn links(&mut self, mut links: Arc<[Link<A>]>, left: usize) {
        // Another version may have them in common; then that one frees them.
        if let Some(own) = Arc::get_mut(&mut links)
            && let Some(left) = left.checked_sub(1)
        {
            let empty = Target::Blob(Arc::clone(&self.empty));
            let target = std::mem::replace(&mut own[left].1, empty);
            self.parts.push(Part::Links(links, left));
            self.parts.push(Part::Target(target));
        }
    }

    fn target(&mut self, target: Target<A>) {
        match target {
            Target::Anchor(anchor) => drop(anchor),
            Target::Blob(blob) => self.parts.extend(Arc::into_inner(blob).map(Part::Packed)),
            Target::Trie(node) => match Arc::into_inner(node) {
                None => {}
                Some(Node::Leaf(page, _)) => self.packed(page),
                Some(Node::Branch { children, .. }) => {
                    let children = children.into_iter().flatten();
                    self.parts
                        .extend(children.map(Target::Trie).map(Part::Target));
                }
            },
        }
    }
}
