//! The profiler: sessions with their samples, collections timed by a tracer, figures of a window.

pub mod health;
pub mod histogram;
pub mod session;
pub mod tracer;
