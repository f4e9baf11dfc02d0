//! Erlang terms in the packed form, and back.
//!
//! Atoms, and the processes and ports of this node, are stored as the words that the VM uses for
//! them: these are valid for as long as the node runs, in any process. References of this node are
//! stored by their numbers, so that they stay the same when the node gets a name. Other terms
//! without parts that only the VM understands (big integers, bit strings, what belongs to other
//! nodes) are stored in the external term format. Funs and native records are stored by their
//! contents, which an Erlang module provides ([`opened`]). What must be kept alive to stay valid (a
//! reference to an object of this library or another one) has an [`Anchor`].

mod anchor;
mod copied;
mod error;
mod external;
mod flat;
mod kind;
mod mark;
mod opened;
mod pack;
mod path;
mod references;
mod scratch;
mod unpack;
mod words;
mod written;

pub use anchor::{Anchor, ENVIRONMENT, Keeper, environment_bytes};
pub use copied::{Copied, Search, copied};
pub use error::PackError;
pub use external::{atom_name, existing_atom, from_external_safe, to_external, unknown_node};
pub use flat::with_flat;
pub use mark::learn_marks;
pub use opened::{Opened, unopened, walk, walk_opened};
pub use pack::{float_key, pack, pack_content, pack_flat, with_content, with_packed};
pub use path::{Path, with_state_path};
pub use references::{Known, LocalReferences, learn_magic_bit};
pub use scratch::with_room;
pub use unpack::{Source, unpack};
pub use words::{from_word, word};
