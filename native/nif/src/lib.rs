//! The NIF library of `erlmcp_memory`: it decodes Erlang terms, calls `erlmcp-memory-core`, and
//! encodes the answers. No algorithm lives here.

mod alloc;
mod buffer;
mod connection;
mod cycles;
mod histogram;
mod iodata;
mod lane;
mod opened;
mod pool;
mod profiler;
mod reaper;
mod reply;
mod resource;
mod share;
mod snapshot;
mod state;
mod terms;
mod tracer;

use rustler::{Env, Term};

/// Rust's heap is the VM's heap: native bytes appear in `erlang:memory/0`.
#[global_allocator]
static ALLOCATOR: alloc::CountingAllocator = alloc::CountingAllocator;

fn load(env: Env, _info: Term) -> bool {
    alloc::learn_overhead();
    let registered = buffer::register(env)
        && pool::register(env)
        && share::register(env)
        && state::register(env);
    if !registered {
        return false;
    }
    state::learn_overhead();
    state::load_names(env);
    terms::learn_magic_bit(env, share::Share::example);
    true
}

rustler::init!("erlmcp_memory_nif", load = load);
