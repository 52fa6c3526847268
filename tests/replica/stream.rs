//! Streams of records as a source ships them, and a replica's ring to land them in.

use pmemha::log::format::{CopyFor, Kind, RECORD_HEADER, RecordHeader, SamePayload, SlotState};
use pmemha::region::memory::SharedMem;
use pmemha::replica::StreamStart;
use pmemha::types::{Generation, GroupId, LogId, Lsn, RegionId};
use pmemha_testkit::chance::Chance;
use zerocopy::IntoBytes;

pub const GROUP: GroupId = GroupId([7; 16]);
/// Number of these streams.
pub const STREAM: u32 = 77;
/// The log that they are of.
pub const LOG: LogId = LogId(5);
pub const GENERATION: Generation = Generation(3);
/// Where the streams of these tests begin: not at 0, so that a forgotten offset shows.
pub const FIRST: Lsn = Lsn(4096);

/// How one of them begins anew at `from`, in a ring of so many bytes.
pub fn fresh(ring_bytes: u64, from: Lsn) -> StreamStart {
    StreamStart { generation: GENERATION, log: LOG, ring_bytes, from, fresh: Some(STREAM) }
}

/// How one of them goes on at `from`.
pub fn goes_on(ring_bytes: u64, from: Lsn) -> StreamStart {
    StreamStart { fresh: None, ..fresh(ring_bytes, from) }
}

/// Builds sealed records one after the other.
pub struct Builder {
    pub generation: Generation,
    pub at: Lsn,
    /// Whether copies refer to the image before.
    refers: bool,
    /// Header and payload of each.
    pub records: Vec<(RecordHeader, Vec<u8>)>,
}

impl Builder {
    pub fn new() -> Builder {
        Builder { generation: GENERATION, at: FIRST, refers: true, records: Vec::new() }
    }

    pub fn push(&mut self, kind: Kind, region: u16, offset: u64, payload: &[u8]) -> &mut Builder {
        let mut header = RecordHeader {
            lsn: self.at.0,
            len: payload.len() as u32,
            owner: 0,
            state: SlotState::Filled as u8,
            kind: kind as u8,
            place: RecordHeader::pack_place(RegionId(region), offset),
            generation: self.generation.0,
            crc: 0,
        };
        header.crc = crc32c::crc32c_append(header.crc_seed(self.generation), payload);
        self.at = header.next();
        self.records.push((header, payload.to_vec()));
        self
    }

    pub fn create(&mut self, region: u16, name: &str, size: u64) -> &mut Builder {
        self.create_as(Kind::RegionCreate, region, name, size)
    }

    fn create_as(&mut self, kind: Kind, region: u16, name: &str, size: u64) -> &mut Builder {
        let mut payload = size.to_le_bytes().to_vec();
        payload.extend(0o640u32.to_le_bytes());
        payload.extend([0; 4]);
        payload.extend(name.as_bytes());
        self.push(kind, region, 0, &payload)
    }

    pub fn data(&mut self, region: u16, offset: u64, bytes: &[u8]) -> &mut Builder {
        self.push(Kind::Data, region, offset, bytes)
    }

    pub fn begin(&mut self) -> &mut Builder {
        self.begin_for(CopyFor::All)
    }

    pub fn begin_for(&mut self, whom: CopyFor) -> &mut Builder {
        self.push(Kind::SyncBegin, 0, whom.offset(), &[])
    }

    pub fn end(&mut self) -> &mut Builder {
        self.push(Kind::SyncEnd, 0, 0, &[])
    }

    /// One complete sync of a region of 8 KiB, filled with `fill`.
    pub fn one_region(fill: u8) -> Builder {
        let mut b = Builder::new();
        b.begin().create(1, "/src/one", 8192).data(1, 0, &[fill; 8192]).end();
        b
    }

    /// A stream with everything in it: syncs, resyncs, metadata of all kinds, data that is out of bounds.
    pub fn random(seed: u64, records: usize) -> Builder {
        Builder::new().made_up(seed, records)
    }

    /// The same for readers with different images before, to which no copy refers.
    pub fn random_for_several(seed: u64, records: usize) -> Builder {
        Builder { refers: false, ..Builder::new() }.made_up(seed, records)
    }

    fn made_up(self, seed: u64, records: usize) -> Builder {
        let mut chance = Chance::seeded(seed);
        let mut b = self;
        b.data(1, 0, b"before any sync");
        b.sync(&mut chance);
        while b.records.len() < records {
            b.change(&mut chance);
            if chance.below(24) == 0 {
                b.sync(&mut chance);
            }
        }
        b
    }

    fn sync(&mut self, chance: &mut Chance) {
        // The last is for another reader than this one.
        let whom = [CopyFor::All, CopyFor::Newcomers, CopyFor::One(STREAM), CopyFor::One(STREAM + 1)];
        let whom = whom[chance.below(4) as usize];
        self.begin_for(whom);
        // Of the image before, if there is one; it stays as it is.
        let before =
            super::oracle::prefixes(FIRST, &self.records).pop().and_then(|(_, promotable)| promotable);
        let bases: Vec<u16> = before.map(|(_, regions)| regions.into_keys().collect()).unwrap_or_default();
        self.change(chance);
        for id in 1..4 {
            self.create_as(Kind::CopyCreate, id, &format!("/src/{id}"), 4096 * (1 + chance.below(3)));
            self.change(chance);
            let fill = id as u8 + chance.below(99) as u8;
            self.push(Kind::CopyData, id, 4096 * chance.below(2), &[fill; 4096]);
            if self.refers && !bases.is_empty() && chance.below(2) == 0 {
                let base = bases[chance.below(bases.len() as u64) as usize];
                let same = SamePayload { pages: chance.below(4), base, reserved: [0; 3] };
                self.push(Kind::CopySame, id, 4096 * chance.below(3), same.as_bytes());
            }
        }
        if chance.below(4) == 0 {
            self.push(Kind::CopyUnlink, 3, 0, &[]);
        }
        if chance.below(4) == 0 {
            // Given up, and begun again.
            return self.sync(chance);
        }
        self.end();
    }

    fn change(&mut self, chance: &mut Chance) {
        let id = 1 + chance.below(5) as u16;
        let offset = 64 * chance.below(200);
        match chance.below(16) {
            0 => self.push(Kind::Zero, id, offset, &(chance.below(9000)).to_le_bytes()),
            1 => self.push(Kind::RegionResize, id, 1 + chance.below(16384), &[]),
            2 => self.push(Kind::RegionRename, id, 0, format!("/src/{}", chance.below(6)).as_bytes()),
            3 => self.push(Kind::RegionUnlink, id, 0, &[]),
            4 => self.create(id, &format!("/src/{}", chance.below(6)), chance.below(12000)),
            5 => self.push(Kind::Filler, 0, 0, &[0xee; 40]),
            _ => self.data(id, offset, &vec![chance.number() as u8; 64 * (1 + chance.below(30)) as usize]),
        };
    }

    /// The stream's bytes, from [`FIRST`].
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (header, payload) in &self.records {
            bytes.extend(header.as_bytes());
            bytes.extend(payload);
            bytes.resize((header.next().0 - FIRST.0) as usize, 0);
        }
        bytes
    }
}

/// Lands one record.
pub fn land(ring: &SharedMem, header: &RecordHeader, payload: &[u8]) {
    let at = header.lsn as usize % ring.len();
    ring.write(at + RECORD_HEADER as usize, payload);
    ring.write(at, header.as_bytes());
}
