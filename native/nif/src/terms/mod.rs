//! Erlang terms in the packed form, and back.
//!
//! Atoms, and the processes and ports of this node, are stored as the words that the VM uses for
//! them: these are valid for as long as the node runs, in any process. References of this node are
//! stored by their numbers, so that they stay what they are when the node gets a name. Other
//! things that only the VM understands (big integers, bit strings, what belongs to other nodes,
//! funs without an environment) are stored in the external term format. What must be kept alive to
//! stay what it is (a reference to a resource, a fun with an environment) is copied into an
//! environment of its own, and [`Anchor`] keeps that.

mod anchor;
mod copied;
mod external;
mod pack;
mod path;
mod references;
mod unpack;
mod words;

pub use anchor::{Anchor, ShareHandle};
pub use copied::{Copied, Search};
pub use external::{atom_name, existing_atom, to_external, unknown_name};
pub use pack::{PackError, pack, pack_untrusted, with_packed};
pub use path::Path;
pub use references::{LocalReferences, learn_magic_bit, reference_from_numbers, reference_numbers};
pub use unpack::{Source, unpack};
pub use words::{from_word, word};
