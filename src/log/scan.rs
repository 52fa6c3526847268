//! The reader that trusts nothing but the bytes: is there a complete record at a position?
//!
//! For landing rings, whose bytes arrive in any order over those of the lap before, and for archive segments. It believes LSN,
//! generation, kind, bounds and CRC32C together, never one of them alone. Callers: `replica`, `archive`.

use zerocopy::FromBytes;

use super::format::{Kind, MAX_RING, RECORD_HEADER, RecordHeader, SlotState, max_payload, record_span};
use crate::region::memory::SharedMem;
use crate::types::{Generation, Lsn};

/// What stands at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// A complete record; its payload follows the header.
    Record(RecordHeader),
    /// Something else: nothing has arrived there yet.
    NothingYet,
    /// The head of the record that belongs there, but not all of it: in a landing ring the rest is on its way; in a file it is
    /// damaged or was cut off.
    Incomplete(Flaw),
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The kind, or a field that is constant, is none of ours.
    Header,
    /// It is longer than a record may be, or than what is left of the bytes.
    Length,
    /// The checksum differs.
    Checksum,
}

/// Looks for the record at `at` in a ring whose length is a power of two (mapped twice in succession).
pub fn scan_ring(ring: &SharedMem, generation: Generation, at: Lsn) -> Scan {
    let ring_bytes = ring.len() as u64;
    debug_assert!(ring_bytes.is_power_of_two());
    let start = (at.0 & (ring_bytes - 1)) as usize;
    let mut head = [0u8; RECORD_HEADER as usize];
    ring.read(start, &mut head);
    let crc = |header: &RecordHeader| {
        let payload = start + RECORD_HEADER as usize;
        ring.crc32c(header.crc_seed(generation), payload, header.len as usize)
    };
    judge(&head, generation, at, max_payload(ring_bytes), crc)
}

/// Looks for the record at `at` in `bytes`, whose first byte is at `base`.
pub fn scan_bytes(bytes: &[u8], base: Lsn, generation: Generation, at: Lsn) -> Scan {
    let Some(rest) = at.0.checked_sub(base.0).and_then(|skip| bytes.get(usize::try_from(skip).ok()?..))
    else {
        return Scan::NothingYet;
    };
    let Some((head, payload)) = rest.split_first_chunk() else {
        return if rest.is_empty() { Scan::NothingYet } else { Scan::Incomplete(Flaw::Length) };
    };
    // The padding belongs to the record: the next one starts after it.
    let fits = |len: u32| record_span(len) <= rest.len() as u64;
    let crc = |header: &RecordHeader| {
        crc32c::crc32c_append(header.crc_seed(generation), &payload[..header.len as usize])
    };
    match RecordHeader::read_from_bytes(head) {
        Ok(header) if header.lsn == at.0 && header.generation == generation.0 && !fits(header.len) => {
            Scan::Incomplete(Flaw::Length)
        }
        _ => judge(head, generation, at, max_payload(MAX_RING), crc),
    }
}

fn judge(
    head: &[u8; RECORD_HEADER as usize],
    generation: Generation,
    at: Lsn,
    longest: u64,
    crc: impl FnOnce(&RecordHeader) -> u32,
) -> Scan {
    let header = RecordHeader::read_from_bytes(head).expect("the sizes are equal");
    if header.lsn != at.0 || header.generation != generation.0 {
        return Scan::NothingYet;
    }
    if Kind::from_byte(header.kind).is_none() || header.owner != 0 || header.state != SlotState::Filled as u8
    {
        return Scan::Incomplete(Flaw::Header);
    }
    if u64::from(header.len) > longest {
        return Scan::Incomplete(Flaw::Length);
    }
    if crc(&header) != header.crc {
        return Scan::Incomplete(Flaw::Checksum);
    }
    Scan::Record(header)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    const RING: u64 = 1 << 16;
    const GENERATION: Generation = Generation(3);

    /// What is found at LSN 0 of a ring that holds `header`, with a checksum that is right for as many bytes.
    fn found(header: RecordHeader) -> Scan {
        let ring = SharedMem::anonymous(2 * RING as usize).expect("memory");
        let len = (header.len as usize).min(ring.len() - RECORD_HEADER as usize);
        let crc = ring.crc32c(header.crc_seed(GENERATION), RECORD_HEADER as usize, len);
        ring.write(0, RecordHeader { crc, ..header }.as_bytes());
        let mut head = [0; RECORD_HEADER as usize];
        ring.read(0, &mut head);
        judge(&head, GENERATION, Lsn(0), max_payload(RING), |header| {
            assert!(u64::from(header.len) <= max_payload(RING), "{} bytes are read", header.len);
            ring.crc32c(header.crc_seed(GENERATION), RECORD_HEADER as usize, header.len as usize)
        })
    }

    #[test]
    fn each_field_is_believed_only_if_all_of_them_fit() {
        let whole = RecordHeader { generation: 3, ..RecordHeader::unowned(Kind::Data, 0, 64) };
        assert!(matches!(found(whole), Scan::Record(_)));
        let longest = max_payload(RING) as u32;
        assert!(matches!(found(RecordHeader { len: longest, ..whole }), Scan::Record(_)));
        for (what, header, verdict) in [
            ("another place", RecordHeader { lsn: 64, ..whole }, Scan::NothingYet),
            ("another generation", RecordHeader { generation: 2, ..whole }, Scan::NothingYet),
            ("no kind", RecordHeader { kind: 99, ..whole }, Scan::Incomplete(Flaw::Header)),
            ("an owner", RecordHeader { owner: 1, ..whole }, Scan::Incomplete(Flaw::Header)),
            ("not sealed", RecordHeader { state: 1, ..whole }, Scan::Incomplete(Flaw::Header)),
            ("too long", RecordHeader { len: longest + 1, ..whole }, Scan::Incomplete(Flaw::Length)),
            ("far too long", RecordHeader { len: u32::MAX, ..whole }, Scan::Incomplete(Flaw::Length)),
        ] {
            assert_eq!(found(header), verdict, "{what}");
        }
    }
}
