//! What an allocation costs: the sizes that the BEAM's allocator gives out.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that the allocator adds to every block: a header with size and flags, and what some
/// releases of the BEAM note about the process that allocated the block.
static BLOCK_OVERHEAD: AtomicUsize = AtomicUsize::new(16);

/// Says what the allocator adds to every block. To be called before anything is counted: a count
/// goes down by as much as it went up.
pub fn set_block_overhead(bytes: usize) {
    BLOCK_OVERHEAD.store(bytes, Ordering::Relaxed);
}

/// Block sizes are multiples of this.
const UNIT: usize = 8;
/// The smallest block: it must be able to hold a node of the allocator's tree of free blocks.
/// Measured by what `erlang:memory/0` says of 20,000 blocks of a size.
const SMALLEST: usize = 64;
/// More than this between two blocks is not overhead, but something else in between.
const MOST_OVERHEAD: usize = 256;

/// The bytes that an allocation of `size` bytes occupies, header and rounding included, in a
/// BEAM allocator; nothing for an empty one, which Rust does not allocate.
pub fn block(size: usize) -> usize {
    if size == 0 {
        0
    } else {
        let overhead = BLOCK_OVERHEAD.load(Ordering::Relaxed);
        (size + overhead).next_multiple_of(UNIT).max(SMALLEST)
    }
}

/// What a block takes on average besides the requested size: rounding is half a unit.
pub fn overhead_of_a_block() -> usize {
    BLOCK_OVERHEAD.load(Ordering::Relaxed) + UNIT / 2
}

/// The bytes that an `Arc<T>` occupies: the value, and two counters in front of it.
pub fn arc<T>() -> usize {
    block(2 * size_of::<usize>() + size_of::<T>())
}

/// What the allocator adds to a block, as the addresses of some blocks of `size` bytes show: none
/// begins before the one in front of it ends, and of blocks made in a row some lie side by side.
/// Nothing where they do not seem to.
pub fn overhead(size: usize, mut addresses: Vec<usize>) -> Option<usize> {
    addresses.sort_unstable();
    let distances = addresses.windows(2).map(|pair| pair[1] - pair[0]);
    let overhead = distances.min()?.checked_sub(size)?;
    (UNIT..=MOST_OVERHEAD)
        .contains(&overhead)
        .then_some(overhead)
}

#[cfg(test)]
mod tests {
    use super::overhead;

    #[test]
    fn overhead_is_seen_between_neighbours_alone() {
        assert_eq!(overhead(1000, vec![9000, 1000, 2024, 7000]), Some(24));
        assert_eq!(overhead(1000, vec![1000, 3000, 5000]), None);
        assert_eq!(overhead(1000, vec![1000, 2000]), None);
        assert_eq!(overhead(1000, vec![1000, 1500]), None);
        assert_eq!(overhead(1000, vec![1000]), None);
    }
}
