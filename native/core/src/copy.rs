//! Copying large runs of bytes.
//!
//! The C library copies more than a few kilobytes with `rep movsb`, which on some processors (seen
//! on an AMD EPYC) is three times slower than a loop where source and destination lie badly to
//! each other: a message of 145 KB in 100 pieces took 38 microseconds or 17, as its blocks fell.
//! In pieces below that size it always takes 17, and nowhere longer.

const PIECE: usize = 2048;

/// Copies `from` into `to`, which is as long.
pub fn copy(to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len());
    for (to, from) in to.chunks_mut(PIECE).zip(from.chunks(PIECE)) {
        to.copy_from_slice(from);
    }
}

/// Appends `from`.
pub fn append(to: &mut Vec<u8>, from: &[u8]) {
    to.reserve(from.len());
    for piece in from.chunks(PIECE) {
        to.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
            let from: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut to = vec![0; length];
            copy(&mut to, &from);
            assert_eq!(to, from);
            append(&mut to, &from);
            assert_eq!(to, [&from[..], &from[..]].concat());
        }
    }
}
