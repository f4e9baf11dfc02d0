//! The parts of `erlmcp_memory` that need no BEAM: everything here can be built, tested and
//! benchmarked with cargo alone. The NIF crate only translates Erlang terms.

pub mod awake;
pub mod buffer;
pub mod copy;
mod error;
pub mod etf;
pub mod heap;
pub mod map;
pub mod outline;
pub mod packed;
pub mod parts;
pub mod pool;
pub mod profile;
pub mod roster;
pub mod shared;
pub mod snapshot;
pub mod starts;
pub mod state;
mod sync;
pub mod threads;
