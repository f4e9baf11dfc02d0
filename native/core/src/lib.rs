//! The parts of `erlmcp_memory` that need no BEAM: everything here can be built, tested and
//! benchmarked with cargo alone. The NIF crate only translates Erlang terms.

pub mod awake;
pub mod buffer;
pub mod charts;
pub mod copy;
pub mod etf;
pub mod gc;
pub mod growth;
pub mod heap;
pub mod heat;
pub mod histogram;
pub mod map;
pub mod outline;
pub mod packed;
pub mod parts;
pub mod pool;
pub mod reclaim;
pub mod resident;
pub mod roster;
pub mod samples;
pub mod shared;
pub mod snapshot;
pub mod starts;
pub mod state;
mod sync;
pub mod threads;
pub mod trend;
pub mod window;
pub mod worst;
