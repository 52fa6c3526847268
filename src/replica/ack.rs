//! The acknowledgement cell: what a destination writes into its source's memory, one cache line.
//!
//! Written by [`super::worker`] through the fabric, read by the source's shipper, which believes it only after
//! [`AckCell::decode`] and its own checks (monotonic, not past what it shipped). `docs/image-format.md` draws it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::types::{Generation, Lsn};

/// Bytes of an [`AckCell`].
pub const ACK_BYTES: usize = 64;

/// The destination's image is complete and live: its positions count for commit levels.
pub const COUNTS: u32 = 1;
/// A sync is under way: an image is being built.
pub const SYNCING: u32 = 2;
/// The destination is about to sleep, or sleeps: a source that has shipped past `durable` must wake it with an
/// immediate, also when it had shipped before it saw this bit.
pub const SLEEPING: u32 = 4;
/// The destination cannot persist at present (its status says why): positions stand still.
pub const FAULTED: u32 = 8;

/// 64 bytes, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AckCell {
    /// Goes up by one with every acknowledgement of an attachment, from 1.
    pub seq: u64,
    /// Generation of the stream that the positions belong to.
    pub generation: u32,
    /// [`COUNTS`], [`SYNCING`], [`SLEEPING`], [`FAULTED`].
    pub flags: u32,
    /// Every record below is durable in the landing ring.
    pub durable: u64,
    /// Every record below is durable in the image; the source may reuse its space.
    pub applied: u64,
    /// Number of the image that records are applied to; 0: none.
    pub image: u64,
    /// LSN just past the `SyncEnd` from which the live image counts; 0 without one.
    pub counts_from: u64,
    /// Chained digest at `applied`.
    pub digest: u64,
    /// Zero.
    pub reserved: u32,
    /// CRC32C of the 60 bytes above.
    pub crc: u32,
}

const _: () = assert!(size_of::<AckCell>() == ACK_BYTES);

impl AckCell {
    /// The cell's bytes with their checksum.
    pub fn encode(&self) -> [u8; ACK_BYTES] {
        let mut cell = AckCell { crc: 0, reserved: 0, ..*self };
        cell.crc = crc32c::crc32c(&cell.as_bytes()[..ACK_BYTES - 4]);
        let mut bytes = [0; ACK_BYTES];
        bytes.copy_from_slice(cell.as_bytes());
        bytes
    }

    /// The cell that `bytes` hold; `None` while it is torn or was never written.
    pub fn decode(bytes: &[u8; ACK_BYTES]) -> Option<AckCell> {
        let cell = AckCell::read_from_bytes(bytes).ok()?;
        (cell.seq != 0 && cell.crc == crc32c::crc32c(&bytes[..ACK_BYTES - 4])).then_some(cell)
    }

    /// Generation, durable and applied position as words.
    pub fn positions(&self) -> (Generation, Lsn, Lsn) {
        (Generation(self.generation), Lsn(self.durable), Lsn(self.applied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: AckCell = AckCell {
        seq: 0x0102,
        generation: 7,
        flags: COUNTS | SLEEPING,
        durable: 0x1000,
        applied: 0x0f00,
        image: 3,
        counts_from: 0x0800,
        digest: 0x1122334455667788,
        reserved: 0,
        crc: 0,
    };

    #[test]
    fn cell_bytes_are_golden() {
        let mut golden = Vec::new();
        golden.extend([0x02, 0x01, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 5, 0, 0, 0]);
        golden.extend([0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x0f, 0, 0, 0, 0, 0, 0]);
        golden.extend([3, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 0, 0]);
        golden.extend([0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0]);
        let crc = crc32c::crc32c(&golden);
        golden.extend(crc.to_le_bytes());
        assert_eq!(CELL.encode().as_slice(), golden);
    }

    #[test]
    fn a_torn_or_empty_cell_is_not_believed() {
        let bytes = CELL.encode();
        assert_eq!(AckCell::decode(&bytes).map(|c| c.durable), Some(0x1000));
        assert_eq!(AckCell::decode(&[0; ACK_BYTES]), None);
        for i in 0..ACK_BYTES {
            let mut torn = bytes;
            torn[i] ^= 1;
            assert_eq!(AckCell::decode(&torn), None, "byte {i}");
        }
    }
}
