//! The NIF library of `erlmcp_memory`: it decodes Erlang terms, calls `erlmcp-memory-core`, and
//! encodes the results. No algorithm lives here.

mod alloc;
mod buffer;
mod connection;
mod connections;
mod cycles;
mod fold;
mod garbage;
mod health;
mod histogram;
mod inside;
mod inventory;
mod iodata;
mod lane;
mod load;
mod opened;
mod park;
mod pool;
mod profiler;
mod reaper;
mod reply;
mod resource;
mod running;
mod share;
mod snapshot;
mod state;
mod stock;
mod terms;
mod tracer;

/// Rust's heap is the VM's heap: native bytes appear in `erlang:memory/0`.
#[global_allocator]
static ALLOCATOR: alloc::CountingAllocator = alloc::CountingAllocator;
