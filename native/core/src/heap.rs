//! What an allocation costs: the sizes that the BEAM's allocator gives out.

/// Bytes in front of every block that a NIF gets: the header of the BEAM's allocators, which holds
/// size and flags, and a word that says which thread's allocator it came from.
const BLOCK_HEADER: usize = 16;
/// Block sizes are multiples of this.
const UNIT: usize = 8;
/// The smallest block: it must be able to hold a node of the allocator's tree of free blocks.
/// Measured, like the header, by what `erlang:memory/0` says of 20,000 blocks of a size.
const SMALLEST: usize = 64;

/// The bytes that an allocation of `size` bytes occupies, header and rounding included, in a
/// BEAM allocator; nothing for an empty one, which Rust does not allocate.
pub fn block(size: usize) -> usize {
    if size == 0 {
        0
    } else {
        (size + BLOCK_HEADER).next_multiple_of(UNIT).max(SMALLEST)
    }
}

/// The bytes that an `Arc<T>` occupies: the value, and two counters in front of it.
pub fn arc<T>() -> usize {
    block(2 * size_of::<usize>() + size_of::<T>())
}
