//! Version 1 of the snapshot format, read only.

use super::host::SnapshotError;

/// A state as version 1 holds it. Big endian, behind the version byte:
/// `phase:8, transport:8, id length:16, id, created_at:64, number of pending references:16`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1 {
    /// 0 initialization, 1 initialized, 2 closed, anything else unknown.
    pub phase: u8,
    /// 0 undefined, 1 TCP, 2 stdio, 3 HTTP, 4 WebSocket, anything else undefined.
    pub transport: u8,
    /// The connection's id.
    pub id: Vec<u8>,
    /// Milliseconds since the epoch. Erlang's `:64` wrote the low 64 bits of an integer, so a time
    /// before the epoch is there as in two's complement.
    pub created_at: i64,
    /// How many references were pending. Their values were numbers from 1 on.
    pub pending: u16,
}

impl V1 {
    pub(super) fn decode(rest: &[u8]) -> Result<Self, SnapshotError> {
        Self::parse(rest).ok_or(SnapshotError::Corrupt)
    }

    fn parse(rest: &[u8]) -> Option<Self> {
        let (&[phase, transport, high, low], rest) = rest.split_first_chunk()?;
        let (id, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        let (created_at, rest) = rest.split_first_chunk()?;
        let &[high, low] = rest else { return None };
        Some(V1 {
            phase,
            transport,
            id: id.to_vec(),
            created_at: i64::from_be_bytes(*created_at),
            pending: u16::from_be_bytes([high, low]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        let mut bytes = vec![1, 1, 0, 8];
        bytes.extend_from_slice(b"conn-123");
        bytes.extend_from_slice(&1_769_000_000_000u64.to_be_bytes());
        bytes.extend_from_slice(&[0, 2]);
        bytes
    }

    #[test]
    fn reads_what_the_erlang_module_wrote() {
        let expected = V1 {
            phase: 1,
            transport: 1,
            id: b"conn-123".to_vec(),
            created_at: 1_769_000_000_000,
            pending: 2,
        };
        assert_eq!(V1::decode(&example()), Ok(expected));
    }

    #[test]
    fn every_other_length_is_corrupt() {
        let whole = example();
        for len in 0..whole.len() {
            assert_eq!(V1::decode(&whole[..len]), Err(SnapshotError::Corrupt));
        }
        let mut longer = whole;
        longer.push(0);
        assert_eq!(V1::decode(&longer), Err(SnapshotError::Corrupt));
    }
}
