//! The concurrent parts in every order that their threads can run in: models for loom, which
//! replaces locks, atomics and threads by its own and tries the orders one after another, stale
//! reads of relaxed atomics included.
//!
//! ```sh
//! RUSTFLAGS='--cfg loom' cargo test --locked -p erlmcp-memory-core --test loom --target-dir target/loom
//! ```
//!
//! A failure inside a destructor aborts the run; `-- --nocapture` shows what failed first.
//!
//! A model is a few operations on two or three threads. Its pool is a static of loom's, which is
//! made anew for each execution, so that leases can move between threads.

#![cfg(loom)]

mod blocks;
mod counters;
mod object;
mod ownership;
mod sizing;
