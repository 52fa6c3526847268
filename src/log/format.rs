//! The bytes of the log region and of records: the one place that knows them.
//!
//! `docs/log-format.md` draws this file. Little-endian, fixed layout; any change raises [`VERSION`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::region::crc;
use crate::types::{Generation, Lsn, RegionId};

/// First bytes of a log region.
pub const MAGIC: [u8; 8] = *b"PMHALOG\x01";

/// Version of the layout; a reader refuses any other.
pub const VERSION: u32 = 2;

/// Records start and end at multiples of this, so that a header never straddles the end of the ring.
pub const RECORD_ALIGN: u64 = 32;

/// Bytes of [`RecordHeader`].
pub const RECORD_HEADER: u64 = 32;

/// A record's offset in its region has this many bits: 256 TiB.
pub const OFFSET_BITS: u32 = 48;

/// Largest region: the largest file of ext4. A source protects nothing larger, so that a record of more is damaged or hostile.
pub const MAX_REGION_BYTES: u64 = 16 << 40;

/// Smallest ring: four times the largest record that a single page capture can need, with room to spare.
pub const MIN_RING: u64 = 64 << 10;

/// Largest ring; record lengths are 32 bit and at most a quarter of the ring.
pub const MAX_RING: u64 = 4 << 30;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Content of flushed lines: `len` bytes at `offset` of `region`.
    Data = 1,
    /// `offset` and a payload of one `u64`, the number of zero bytes from there.
    Zero = 2,
    /// A slot whose owner died before it was filled; its payload means nothing.
    Filler = 3,
    /// A region comes to be: payload [`RegionPayload`] and the name's bytes.
    RegionCreate = 4,
    /// `offset` is the region's new size in bytes.
    RegionResize = 5,
    /// Payload is the region's new name; a region that had that name ceases to be.
    RegionRename = 6,
    /// The region ceases to be.
    RegionUnlink = 7,
    /// A full copy of every region begins: the reader starts a new, empty image beside the old one. `offset` is a [`CopyFor`]: with
    /// an image that follows the stream, it does so only for one that is meant for all.
    SyncBegin = 8,
    /// The copy is complete: the image beside is consistent from here on and replaces the old one.
    SyncEnd = 9,
    /// As `Data`, but part of a copy: an image that is not being built leaves it alone.
    CopyData = 10,
    /// As `RegionCreate`, but part of a copy.
    CopyCreate = 11,
    /// As `RegionUnlink`, but part of a copy.
    CopyUnlink = 12,
    /// Part of a copy: payload [`SamePayload`]. Pages from `offset` of `region` on are those of the image before, at the same offset.
    CopySame = 13,
}

/// Which readers of the stream a copy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFor {
    /// All: what their images lack stands in no record.
    All,
    /// Those with no image that follows the stream.
    Newcomers,
    /// The one whose stream has this number, unless it has an image that follows it.
    One(u32),
}

impl CopyFor {
    /// Whom the copy that begins with `header` is for; none if that makes no sense.
    pub fn of(header: &RecordHeader) -> Option<CopyFor> {
        let offset = header.place().1;
        match (offset & SCOPE, offset >> SCOPE_BITS) {
            (0, 0) => Some(CopyFor::All),
            (1, 0) => Some(CopyFor::Newcomers),
            (2, stream) => u32::try_from(stream).ok().map(CopyFor::One),
            _ => None,
        }
    }

    /// Whether a reader takes it whose stream has this number, and which has an image that follows the stream or has none. One that
    /// does not follow and does not take it loses what it had of an earlier copy, whose end will not come.
    pub fn is_for(self, stream: u32, follows: bool) -> bool {
        match self {
            CopyFor::All => true,
            CopyFor::Newcomers => !follows,
            CopyFor::One(number) => !follows && number == stream,
        }
    }

    /// The offset of its [`Kind::SyncBegin`].
    pub fn offset(self) -> u64 {
        match self {
            CopyFor::All => 0,
            CopyFor::Newcomers => 1,
            CopyFor::One(stream) => u64::from(stream) << SCOPE_BITS | 2,
        }
    }
}

/// The offset of a `SyncBegin` has its scope in so many bits, and above them the stream's number.
const SCOPE_BITS: u32 = 2;

const SCOPE: u64 = (1 << SCOPE_BITS) - 1;

impl Kind {
    /// The kind that `byte` stands for.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        // In the order of the bytes, so that it is a comparison and a move: every record that lands is looked at by this.
        const KINDS: [Kind; 13] = [
            Data,
            Zero,
            Filler,
            RegionCreate,
            RegionResize,
            RegionRename,
            RegionUnlink,
            SyncBegin,
            SyncEnd,
            CopyData,
            CopyCreate,
            CopyUnlink,
            CopySame,
        ];
        KINDS.get(usize::from(byte).wrapping_sub(1)).copied()
    }

    /// Whether it holds content.
    pub fn is_content(self) -> bool {
        matches!(self, Kind::Data | Kind::CopyData)
    }

    /// Whether it is a part of a copy, which an image that is not being built leaves alone.
    pub fn is_copied(self) -> bool {
        self.copied().is_some() || self == Kind::CopySame
    }

    /// What a part of a copy says that could stand by itself; none of any other kind.
    pub fn copied(self) -> Option<Kind> {
        match self {
            Kind::CopyData => Some(Kind::Data),
            Kind::CopyCreate => Some(Kind::RegionCreate),
            Kind::CopyUnlink => Some(Kind::RegionUnlink),
            _ => None,
        }
    }
}

/// How far a slot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlotState {
    /// Claimed; its owner is copying into it.
    Reserved = 1,
    /// Complete.
    Filled = 2,
    /// Claimed by an owner that died before it was complete. Only in the slot table, never in a header.
    Filler = 3,
}

/// The head of every record, in the ring, on the wire, in the landing ring and in archive segments.
///
/// Written by the appender after its claim stands in the slot table, and *sealed* by the agent before it ships:
/// `owner` 0, the generation, and `crc`, which covers the sealed header with `crc` = 0, then the payload without
/// padding, seeded with the generation. Whoever is not on the source believes sealed headers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
pub struct RecordHeader {
    /// Position of the record's first byte in the stream.
    pub lsn: u64,
    /// Payload bytes that follow, without the padding to [`RECORD_ALIGN`].
    pub len: u32,
    /// Index of the appender cell that owns the slot; 0 once shipped.
    pub owner: u16,
    /// Always [`SlotState::Filled`]; how far a slot has come stands in the slot table.
    pub state: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// Region in the upper 16 bits, byte offset in the region in the lower 48.
    pub place: u64,
    /// The group's generation.
    pub generation: u32,
    /// CRC32C, see above.
    pub crc: u32,
}

const _: () = assert!(size_of::<RecordHeader>() as u64 == RECORD_HEADER);

impl RecordHeader {
    /// Of a filled record of `len` bytes at `lsn` that no application owns and that is about no region.
    pub fn unowned(kind: Kind, lsn: u64, len: u32) -> RecordHeader {
        let (state, kind) = (SlotState::Filled as u8, kind as u8);
        RecordHeader { lsn, len, owner: 0, state, kind, place: 0, generation: 0, crc: 0 }
    }

    /// The region and the offset in it.
    pub fn place(&self) -> (RegionId, u64) {
        (RegionId((self.place >> OFFSET_BITS) as u16), self.place & ((1 << OFFSET_BITS) - 1))
    }

    /// `region` and `offset` as the field holds them. `offset` must be below 2^48.
    pub fn pack_place(region: RegionId, offset: u64) -> u64 {
        debug_assert!(offset >> OFFSET_BITS == 0);
        (u64::from(region.0) << OFFSET_BITS) | offset
    }

    /// Bytes from this record's start to the next one's.
    pub fn span(&self) -> u64 {
        record_span(self.len)
    }

    /// Where the next record starts.
    pub fn next(&self) -> Lsn {
        Lsn(self.lsn + self.span())
    }

    /// The header as the checksum sees it.
    pub fn canonical(&self) -> RecordHeader {
        RecordHeader { owner: 0, state: SlotState::Filled as u8, crc: 0, ..*self }
    }

    /// CRC32C of the canonical header, seeded with the generation; continue it over the payload.
    pub fn crc_seed(&self, generation: Generation) -> u32 {
        crc::of_words(generation.0, zerocopy::transmute!(self.canonical()))
    }
}

/// Bytes that a record with a payload of `len` bytes takes in the ring.
pub fn record_span(len: u32) -> u64 {
    (RECORD_HEADER + u64::from(len)).next_multiple_of(RECORD_ALIGN)
}

/// Largest payload of one record in a ring of `ring` bytes; larger captures are split.
pub fn max_payload(ring: u64) -> u64 {
    (ring / 4 - RECORD_HEADER) & !(crate::types::PAGE as u64 - 1)
}

/// Payload of [`Kind::CopySame`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SamePayload {
    /// A bit for each of 64 pages of 4 KiB, the lowest for the first.
    pub pages: u64,
    /// Which region of the image before.
    pub base: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

/// Payload of [`Kind::RegionCreate`], followed by the name (UTF-8, at most [`MAX_NAME`] bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionPayload {
    /// Size in bytes.
    pub size: u64,
    /// Access bits as of `stat(2)`.
    pub mode: u32,
    /// Zero.
    pub reserved: u32,
}

/// Longest name of a region: a path of Linux.
pub const MAX_NAME: usize = 4096;

/// Suffix of a region's name until its content is whole: a promotion leaves such a region out.
pub const ARRIVING: &str = ".pmemha-arriving";

/// A region's name as a record may have it; `None` if it is no UTF-8, empty or longer than [`MAX_NAME`]. Sources refuse what
/// destinations would.
pub fn region_name(bytes: &[u8]) -> Option<&str> {
    let fits = !bytes.is_empty() && bytes.len() <= MAX_NAME;
    fits.then(|| str::from_utf8(bytes).ok()).flatten()
}

/// As [`region_name`] of a file's path, which has to leave room for [`ARRIVING`].
pub fn region_path(path: &[u8]) -> Option<&str> {
    region_name(path).filter(|path| path.len() + ARRIVING.len() <= MAX_NAME)
}

/// The fixed head of a log region: written once, never changed, copied out at attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StaticHeader {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// The generation this log was made for.
    pub generation: u32,
    /// The group.
    pub group: [u8; 16],
    /// Bytes of the whole log region.
    pub total_bytes: u64,
    /// Start and number of the appender cells, 64 bytes each.
    pub appenders_off: u64,
    /// See `appenders_off`.
    pub appenders: u64,
    /// Start and number of the region table's entries, 64 bytes each.
    pub regions_off: u64,
    /// See `regions_off`.
    pub regions: u64,
    /// Start of the slot table: a `u64` for each [`RECORD_ALIGN`] bytes of the ring (see `log::slot`).
    pub slots_off: u64,
    /// Start of the dirty bitmap.
    pub bitmap_off: u64,
    /// Bytes of the dirty bitmap.
    pub bitmap_bytes: u64,
    /// Start of the ring.
    pub ring_off: u64,
    /// Bytes of the ring, a power of two.
    pub ring_bytes: u64,
    /// Wall clock at creation, nanoseconds since 1970.
    pub created_ns: u64,
    /// First LSN of this log.
    pub first_lsn: u64,
    /// Its identity.
    pub log: u64,
    /// CRC32C of the bytes above.
    pub crc: u32,
    /// Zero.
    pub reserved: u32,
}

/// Cells that count cuts of files. Regions that share one cost each other a record of their size.
pub const SHRINKS: usize = 64;

/// Offsets of the cells that change, each on a cache line of its own, in bytes from the region's start.
pub mod cell {
    /// `u64`: where the next record begins; bit 0 ([`AHEAD`]) while the application runs ahead of the log.
    pub const TAIL: usize = 4096;
    /// `u64`: every record below this LSN is published.
    pub const PUBLISHED: usize = 4096 + 128;
    /// `u64`: ring space below this LSN may be reused; written by the agent.
    pub const FREE: usize = 4096 + 256;
    /// `u32` how deeply the agent sleeps (0 awake, 1 nap, 2 deep), `u32` futex word that wakes it.
    pub const AGENT_SLEEP: usize = 4096 + 384;
    /// Three `u64`: received, durable, applied LSN; written by the agent.
    pub const ACKS: usize = 4096 + 512;
    /// `u32` futex word that moves at every change of ACKS, `u32` number of waiters that sleep.
    pub const ACK_SEQ: usize = 4096 + 576;
    /// `u64` CLOCK_BOOTTIME ns at which somebody last began to wait for an acknowledgement.
    pub const WAITED: usize = 4096 + 584;
    /// `u64` first LSN that the newest gap covers (0: none), `u64` end of the newest gap that was closed; the
    /// gap is open while its end is not past its start.
    pub const GAP: usize = 4096 + 640;
    /// `u64` CLOCK_BOOTTIME nanoseconds of the agent's last beat, `u32` pid, `u32` link state.
    pub const AGENT: usize = 4096 + 768;
    /// Policy words: `u32` commit level, `u32` on_full, `u64` commit timeout ns, `u64` block limit ns.
    pub const POLICY: usize = 4096 + 896;
    /// Counters, `u64` each, in the order of `log::Counters`.
    pub const COUNTERS: usize = 4096 + 1024;
    /// `u64`: the highest LSN whose commit was given up; commits do not wait until it has been acknowledged.
    pub const GIVEN_UP: usize = 4096 + 1152;
    /// `u64`: bits of `log::Debt`, whose copies of the regions are owed; written by the agent.
    pub const OWED: usize = 4096 + 1280;
    /// [`SHRINKS`](super::SHRINKS) times `u64`: how often a process began to cut a file, by region number modulo.
    pub const SHRINKS: usize = 4096 + 1408;
    /// `u64`: how far the log may reach before drains hold their programs; see `log::Pace`.
    pub const PACE: usize = 4096 + 1920;

    /// `u64` bytes that may be exposed (0: as many as there are), `u64` bytes a second that drain, `u64` LSN up to where a destination has
    /// all; see `log::budget`.
    pub const BUDGET: usize = 4096 + 2048;

    /// Bit of the TAIL cell, see there. LSNs are multiples of 32, so the bit is free.
    pub const AHEAD: u64 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_are_golden() {
        let h = RecordHeader {
            lsn: 0x0102030405060708,
            len: 0x40,
            owner: 0x1122,
            state: 2,
            kind: 1,
            place: RecordHeader::pack_place(RegionId(0xabcd), 0x112233445566),
            generation: 7,
            crc: 0xdeadbeef,
        };
        assert_eq!(
            h.as_bytes(),
            [
                8, 7, 6, 5, 4, 3, 2, 1, 0x40, 0, 0, 0, 0x22, 0x11, 2, 1, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
                0xcd, 0xab, 7, 0, 0, 0, 0xef, 0xbe, 0xad, 0xde
            ]
        );
        assert_eq!(h.place(), (RegionId(0xabcd), 0x112233445566));
        assert_eq!(h.span(), 96);
    }

    #[test]
    fn a_kind_is_found_by_its_byte() {
        let found: Vec<_> = (0..=u8::MAX).filter_map(|b| Some((b, Kind::from_byte(b)? as u8))).collect();
        assert_eq!(found, (1..=13).map(|b| (b, b)).collect::<Vec<_>>());
    }

    #[test]
    fn whom_a_copy_is_for_and_what_it_refers_to_are_golden() {
        let all = [CopyFor::All, CopyFor::Newcomers, CopyFor::One(7), CopyFor::One(u32::MAX)];
        assert_eq!(all.map(CopyFor::offset), [0, 1, 30, 0x3_ffff_fffe]);
        for whom in all {
            let place = RecordHeader::pack_place(RegionId(0), whom.offset());
            let begin = RecordHeader { place, ..RecordHeader::unowned(Kind::SyncBegin, 64, 0) };
            assert_eq!(CopyFor::of(&begin), Some(whom));
        }
        let same = SamePayload { pages: 0x0102, base: 0x0304, reserved: [0; 3] };
        assert_eq!(same.as_bytes(), [2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]);
    }
}
