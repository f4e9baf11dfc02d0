//! The NIF library of `erlmcp_memory`: it decodes Erlang terms, calls `erlmcp-memory-core`, and
//! encodes the results. No algorithm lives here.

mod buffer;
mod connection;
mod connections;
mod cycles;
mod enif;
mod fold;
mod garbage;
mod inside;
mod inventory;
mod iodata;
mod lane;
mod load;
mod opened;
mod park;
mod pool;
mod profile;
mod reaper;
mod reply;
mod running;
mod share;
mod snapshot;
mod state;
mod stock;
mod terms;

use enif::{alloc, resource};

/// Rust's heap is the VM's heap: native bytes appear in `erlang:memory/0`.
#[global_allocator]
static ALLOCATOR: alloc::CountingAllocator = alloc::CountingAllocator;
