//! References of this node, by their numbers.
//!
//! The external format of a reference is `131, 90, number of words:16, node, creation:32, words`.
//! Node and creation change when the node gets a name, the words do not, so only these are stored.

use super::external::{from_external, to_external};
use crate::resource::{self, Resource};
use rustler::{Env, Term};
use std::sync::OnceLock;

const NEWER_REFERENCE: u8 = 90;
const WORD: usize = 4;

/// The numbers of a reference and what stands before them, in its external format.
fn parts(external: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[_, tag, high, low], rest) = external.split_first_chunk()?;
    if tag != NEWER_REFERENCE {
        return None;
    }
    let words = usize::from(u16::from_be_bytes([high, low]));
    let node = rest.len().checked_sub(words * WORD)?;
    Some(rest.split_at(node))
}

/// Node name and creation of this node, as its references carry them just now.
pub struct LocalReferences {
    node: Vec<u8>,
}

impl LocalReferences {
    /// Asks the VM.
    pub fn new(env: Env<'_>) -> Self {
        let external = to_external(env.make_ref().into());
        let node = parts(&external).map(|(node, _)| node.to_vec());
        LocalReferences {
            node: node.unwrap_or_default(),
        }
    }

    /// The numbers of a reference of this node, from its external format; nothing for one of
    /// another node.
    pub fn numbers<'e>(&self, external: &'e [u8]) -> Option<&'e [u8]> {
        let (node, numbers) = parts(external)?;
        (node == self.node).then_some(numbers)
    }

    /// The external format of the reference of this node with these numbers.
    pub fn external(&self, numbers: &[u8]) -> Vec<u8> {
        let words = (numbers.len() / WORD) as u16;
        let mut external = vec![131, NEWER_REFERENCE];
        external.extend_from_slice(&words.to_be_bytes());
        external.extend_from_slice(&self.node);
        external.extend_from_slice(numbers);
        external
    }
}

/// The numbers of a reference of this node.
pub fn reference_numbers(env: Env<'_>, reference: Term<'_>) -> Option<Vec<u8>> {
    let external = to_external(reference);
    LocalReferences::new(env)
        .numbers(&external)
        .map(<[u8]>::to_vec)
}

/// The reference of this node with these numbers. While the resource that it refers to lives, it
/// refers to that again.
pub fn reference_from_numbers<'a>(env: Env<'a>, numbers: &[u8]) -> Option<Term<'a>> {
    from_external(env, &LocalReferences::new(env).external(numbers))
}

/// Which bit of a reference's numbers says that it refers to a resource, if that was found out.
static MAGIC_BIT: OnceLock<Option<(usize, u8)>> = OnceLock::new();

/// Finds out from examples how this VM marks the references that refer to resources, among them
/// those of ETS tables, atomics and the like. The NIF interface has no question for it.
pub fn learn_magic_bit<T: Resource>(env: Env<'_>, example: impl Fn() -> T) {
    let numbers = |term| {
        let external = to_external(term);
        parts(&external).map(|(_, numbers)| numbers.to_vec())
    };
    let (mut plain, mut magic) = (Vec::new(), Vec::new());
    // In an irregular order, so that no bit of a counter follows it by chance.
    for step in 0u32..128 {
        if step.count_ones() % 2 == 0 {
            plain.extend(numbers(env.make_ref().into()));
        } else {
            magic.extend(numbers(resource::make(env, example())));
        }
    }
    let _ = MAGIC_BIT.set(distinguishing_bit(&plain, &magic));
}

/// The one bit that is clear in all of `plain` and set in all of `magic`.
fn distinguishing_bit(plain: &[Vec<u8>], magic: &[Vec<u8>]) -> Option<(usize, u8)> {
    let length = magic.first()?.len();
    if plain.iter().chain(magic).any(|n| n.len() != length) || plain.is_empty() {
        return None;
    }
    let mut found = None;
    for byte in 0..length {
        let set = magic.iter().fold(0xff, |bits, n| bits & n[byte]);
        let clear = !plain.iter().fold(0, |bits, n| bits | n[byte]);
        let both = set & clear;
        if both != 0 {
            if found.is_some() || !both.is_power_of_two() {
                return None;
            }
            found = Some((byte, both));
        }
    }
    found
}

/// Whether a reference of this node may refer to a resource, so that it must be kept alive. Where
/// the VM's mark was not found out, any may.
pub fn may_be_magic(numbers: &[u8]) -> bool {
    match MAGIC_BIT.get() {
        Some(Some((byte, bit))) => numbers.get(*byte).is_none_or(|found| found & bit != 0),
        _ => true,
    }
}
