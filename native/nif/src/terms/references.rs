//! References of this node, by their numbers: these stay the same when the node gets a name.

use super::external::{from_external, to_external};
use crate::resource::{self, Resource, ResourceRef};
use erlmcp_memory_core::etf;
use parking_lot::Mutex;
use rustler::{Env, Term};
use std::sync::OnceLock;

/// Node name and creation of this node, as its references have them now.
pub struct LocalReferences {
    node: Vec<u8>,
}

impl LocalReferences {
    /// Asks the VM.
    pub fn new(env: Env<'_>) -> Self {
        let external = to_external(env.make_ref().into());
        let node = etf::reference_parts(&external).map(|(node, _)| node.to_vec());
        LocalReferences {
            node: node.unwrap_or_default(),
        }
    }

    /// The node as the external format names it, with its creation.
    pub fn node(&self) -> &[u8] {
        &self.node
    }

    /// The numbers of a reference of this node, from its external format; `None` for one of
    /// another node.
    pub fn numbers<'e>(&self, external: &'e [u8]) -> Option<&'e [u8]> {
        let (node, numbers) = etf::reference_parts(external)?;
        (node == self.node).then_some(numbers)
    }

    /// The external format of the reference of this node with these numbers.
    pub fn external(&self, numbers: &[u8]) -> Vec<u8> {
        etf::reference(&self.node, numbers)
    }
}

/// How the one reference to an object is found again while a term has it, without keeping it.
#[derive(Debug, Default)]
pub struct Known(Mutex<Numbers>);

/// The numbers of a reference to a resource, in place: three words, of which the VM's mark is a
/// part, so that they are not all zero. No reference to a resource names a process, which would
/// make them five.
#[derive(Debug, Default)]
struct Numbers([u8; 12]);

impl Numbers {
    /// None if there are not as many.
    fn new(numbers: &[u8]) -> Self {
        Numbers(numbers.try_into().unwrap_or_default())
    }

    fn get(&self) -> Option<&[u8]> {
        (self.0 != [0; 12]).then_some(&self.0)
    }
}

impl Known {
    /// The object that the reference refers to, or a new one if no term has it any more.
    pub fn find_or<T: Resource>(&self, env: Env<'_>, new: impl FnOnce() -> T) -> ResourceRef<T> {
        let mut numbers = self.0.lock();
        if let Some(known) = numbers.get().and_then(|numbers| find(env, numbers)) {
            return known;
        }
        let object = ResourceRef::new(new());
        *numbers = reference_numbers(env, object.to_term(env));
        object
    }

    /// Sets the reference.
    pub fn set(&self, env: Env<'_>, reference: Term<'_>) {
        *self.0.lock() = reference_numbers(env, reference);
    }
}

/// The object that a reference of this node refers to, if a term still has it.
fn find<T: Resource>(env: Env<'_>, numbers: &[u8]) -> Option<ResourceRef<T>> {
    let external = LocalReferences::new(env).external(numbers);
    ResourceRef::from_term(from_external(env, &external)?)
}

/// Writing the reference down also makes the VM able to find the object by its numbers.
fn reference_numbers(env: Env<'_>, reference: Term<'_>) -> Numbers {
    let external = to_external(reference);
    let numbers = LocalReferences::new(env)
        .numbers(&external)
        .map(Numbers::new);
    numbers.unwrap_or_default()
}

/// Which bit of a reference's numbers says that it refers to a resource, if that was found out.
static MAGIC_BIT: OnceLock<Option<(usize, u8)>> = OnceLock::new();

/// Finds out from examples how this VM marks the references that refer to resources, among them
/// those of ETS tables, atomics and the like. The NIF interface has no function for it.
pub fn learn_magic_bit<T: Resource>(env: Env<'_>, example: impl Fn() -> T) {
    let numbers = |term| {
        let external = to_external(term);
        etf::reference_parts(&external).map(|(_, numbers)| numbers.to_vec())
    };
    let (mut plain, mut magic) = (Vec::new(), Vec::new());
    // In an irregular order, so that no bit of a counter matches it by chance.
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

/// Whether a reference of this node may refer to a resource, so that it must be kept alive. If the
/// VM's mark was not found, any reference may.
pub fn may_be_magic(numbers: &[u8]) -> bool {
    match MAGIC_BIT.get() {
        Some(Some((byte, bit))) => numbers.get(*byte).is_none_or(|found| found & bit != 0),
        _ => true,
    }
}
