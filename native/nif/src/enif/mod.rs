//! Where the crate meets the VM's C interface most: the objects behind references, and the
//! allocator.

pub mod alloc;
pub mod resource;
