//! The chained digest: one number that two ends of a stream compare to know that they saw the same records.
//!
//! `digest' = xxh3_64(le64(digest) || header)`, where `header` is the record's 32 bytes as shipped (owner 0,
//! state filled, generation and checksum set). The payload is in it by way of the header's checksum.
//!
//! Where the chain starts: at the newest [`Kind::SyncBegin`], that record included, from 0. An image begins with
//! one, so a source and a destination agree without exchanging anything. Before the first one the chain runs from 0 at
//! the first record seen.
//!
//! Callers: the source's shipper (for `saved`), the destination's applier, the archive.

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::IntoBytes;

use crate::log::format::{Kind, RecordHeader};

/// The digest after `header`, given the one before it. `header.crc` and `header.generation` must be set;
/// `owner` and `state` are taken as shipped.
pub fn chain(digest: u64, header: &RecordHeader) -> u64 {
    let before = if header.kind == Kind::SyncBegin as u8 { 0 } else { digest };
    let mut bytes = [0; 40];
    bytes[..8].copy_from_slice(&before.to_le_bytes());
    let shipped = RecordHeader { crc: header.crc, ..header.canonical() };
    bytes[8..].copy_from_slice(shipped.as_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(lsn: u64, kind: Kind) -> RecordHeader {
        RecordHeader { lsn, len: 0, owner: 3, state: 2, kind: kind as u8, place: 0, generation: 1, crc: 9 }
    }

    #[test]
    fn the_chain_starts_anew_at_a_sync_and_ignores_who_wrote_the_slot() {
        let begin = header(64, Kind::SyncBegin);
        assert_eq!(chain(0, &begin), chain(77, &begin));
        let data = header(96, Kind::Data);
        assert_ne!(chain(0, &data), chain(77, &data));
        assert_eq!(chain(1, &data), chain(1, &RecordHeader { owner: 0, state: 1, ..data }));
        assert_ne!(chain(1, &data), chain(1, &RecordHeader { crc: 8, ..data }));
    }
}
