//! Where the crate meets the VM's C interface most: the calls, the objects behind references, the
//! allocator, and owners that end in a step of their own.

pub mod alloc;
pub mod call;
pub mod owner;
pub mod resource;
