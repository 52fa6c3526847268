//! Where things are in a log region: from a [`LogSpec`] to offsets, and back from a header that is not trusted.

use std::io;

use zerocopy::{FromBytes, IntoBytes};

use super::format::{MAGIC, MAX_RING, MIN_RING, RECORD_ALIGN, StaticHeader, VERSION, cell};
use super::slot::MAX_OWNERS;
use crate::types::{Generation, GroupId, LogId, Lsn, PAGE};

/// Bytes of an appender cell and of an entry of the region table: a cache line.
pub(crate) const ENTRY: usize = 64;

/// Regions that one group may have: ids are 16 bit.
pub const MAX_REGIONS: u64 = 1 << 16;

/// Largest dirty bitmap: a bit a 4 KiB page of 256 TiB, the largest region.
pub const MAX_BITMAP: u64 = 8 << 30;

/// First byte after the page of changing cells.
const APPENDERS_OFF: u64 = 2 * PAGE as u64;

const _: () = assert!((cell::OWED as u64) < APPENDERS_OFF);

/// What a new log region is to be like. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpec {
    /// The group that it is for.
    pub group: GroupId,
    /// The group's generation.
    pub generation: Generation,
    /// The log's identity.
    pub id: LogId,
    /// The ring: a power of two from [`MIN_RING`] to [`MAX_RING`]. Memory in all: this, a quarter more for the slot
    /// table, and `bitmap_bytes`; pages are taken when first used.
    pub ring_bytes: u64,
    /// The dirty bitmap, a multiple of 4096: a bit for each page of each region, at the shift its entry gives.
    pub bitmap_bytes: u64,
    /// How many processes may append at a time, the agent included.
    pub appenders: u32,
    /// How many regions the table holds; ids run below it.
    pub regions: u32,
    /// Where the stream begins: a multiple of 32, not 0.
    pub first_lsn: Lsn,
}

impl Default for LogSpec {
    fn default() -> Self {
        LogSpec {
            group: GroupId::default(),
            generation: Generation(1),
            id: LogId::default(),
            ring_bytes: 64 << 20,
            bitmap_bytes: 1 << 20,
            appenders: 256,
            regions: 1024,
            first_lsn: Lsn(RECORD_ALIGN),
        }
    }
}

/// Why a log region cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The specification or header asks for what cannot be.
    #[error("log region refused: {0}")]
    Geometry(String),
    /// The descriptor does not hold a log region, or one of another version.
    #[error("not a log region that this version of pmemha reads: {0}")]
    Format(String),
    /// The region is of another version of pmemha.
    #[error("the log region is of layout version {0}, and this pmemha reads version {VERSION}")]
    Version(u32),
    /// The memory could still be truncated under us.
    #[error(
        "log region is not sealed against shrinking and growing (seals {0:#x}); it must come from the agent"
    )]
    Unsealed(u32),
    /// All appender cells are taken.
    #[error(
        "{0} processes write to this group already, as many as can; what this one stores is not recorded"
    )]
    NoCell(u64),
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl LogError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> LogError {
        move |e| LogError::System { what, source: e.into() }
    }
}

impl LogSpec {
    /// The static header of a region like this.
    pub(crate) fn layout(&self, created_ns: u64) -> Result<StaticHeader, LogError> {
        let page = PAGE as u64;
        let (appenders, regions) = (u64::from(self.appenders), u64::from(self.regions));
        let regions_off = (APPENDERS_OFF + appenders * ENTRY as u64).next_multiple_of(page);
        let slots_off = (regions_off + regions * ENTRY as u64).next_multiple_of(page);
        let bitmap_off = (slots_off + self.ring_bytes / RECORD_ALIGN * 8).next_multiple_of(page);
        let ring_off = bitmap_off.saturating_add(self.bitmap_bytes);
        let mut header = StaticHeader {
            magic: MAGIC,
            version: VERSION,
            generation: self.generation.0,
            group: self.group.0,
            total_bytes: ring_off.saturating_add(self.ring_bytes),
            appenders_off: APPENDERS_OFF,
            appenders,
            regions_off,
            regions,
            slots_off,
            bitmap_off,
            bitmap_bytes: self.bitmap_bytes,
            ring_off,
            ring_bytes: self.ring_bytes,
            created_ns,
            first_lsn: self.first_lsn.0,
            log: self.id.0,
            crc: 0,
            reserved: 0,
        };
        header.crc = header_crc(&header);
        check_limits(&header)?;
        Ok(header)
    }

    /// Reads a header back. Everything in it is checked: the offsets are computed anew and must agree.
    pub(crate) fn parse(
        bytes: &[u8; size_of::<StaticHeader>()],
    ) -> Result<(LogSpec, StaticHeader), LogError> {
        let header = StaticHeader::read_from_bytes(bytes).expect("the sizes are equal");
        if header.magic != MAGIC {
            return Err(LogError::Format("wrong magic number".into()));
        }
        if header.version != VERSION {
            return Err(LogError::Version(header.version));
        }
        if header.crc != header_crc(&header) {
            return Err(LogError::Format("header checksum is wrong".into()));
        }
        check_limits(&header)?;
        let spec = LogSpec {
            group: GroupId(header.group),
            generation: Generation(header.generation),
            id: LogId(header.log),
            ring_bytes: header.ring_bytes,
            bitmap_bytes: header.bitmap_bytes,
            appenders: header.appenders as u32,
            regions: header.regions as u32,
            first_lsn: Lsn(header.first_lsn),
        };
        if spec.layout(header.created_ns)? != header {
            return Err(LogError::Format("offsets are not those of this layout".into()));
        }
        Ok((spec, header))
    }
}

fn header_crc(header: &StaticHeader) -> u32 {
    let covered = size_of::<StaticHeader>() - 8;
    crc32c::crc32c(&header.as_bytes()[..covered])
}

fn check_limits(h: &StaticHeader) -> Result<(), LogError> {
    let refuse = |what: String| Err(LogError::Geometry(what));
    if !h.ring_bytes.is_power_of_two() || !(MIN_RING..=MAX_RING).contains(&h.ring_bytes) {
        return refuse(format!(
            "ring of {} bytes; need a power of two from {MIN_RING} to {MAX_RING}",
            h.ring_bytes
        ));
    }
    if !h.bitmap_bytes.is_multiple_of(PAGE as u64) || h.bitmap_bytes > MAX_BITMAP {
        return refuse(format!(
            "dirty bitmap of {} bytes; need a multiple of {PAGE} up to {MAX_BITMAP}",
            h.bitmap_bytes
        ));
    }
    if !(1..=MAX_OWNERS).contains(&h.appenders) {
        return refuse(format!("{} appenders; need 1 to {MAX_OWNERS}", h.appenders));
    }
    if h.regions > MAX_REGIONS {
        return refuse(format!("{} regions; the limit is {MAX_REGIONS}", h.regions));
    }
    if h.first_lsn == 0 || !h.first_lsn.is_multiple_of(RECORD_ALIGN) || h.first_lsn >> 62 != 0 {
        return refuse(format!("first LSN {}; need a multiple of {RECORD_ALIGN}, not 0", h.first_lsn));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(header: &StaticHeader) -> [u8; size_of::<StaticHeader>()] {
        header.as_bytes().try_into().unwrap()
    }

    #[test]
    fn a_header_reads_back_as_the_spec_it_was_made_from() {
        let spec = LogSpec { regions: 0, appenders: 4096, ring_bytes: 1 << 16, ..LogSpec::default() };
        let header = spec.layout(7).unwrap();
        assert_eq!(LogSpec::parse(&bytes_of(&header)).unwrap(), (spec, header));
    }

    #[test]
    fn the_static_header_is_golden_where_docs_log_format_says() {
        let spec = LogSpec { id: LogId(0x0102030405060708), generation: Generation(7), ..LogSpec::default() };
        let bytes = bytes_of(&spec.layout(9).unwrap());
        assert_eq!(bytes.len(), 144);
        assert_eq!(bytes[..16], *b"PMHALOG\x01\x02\0\0\0\x07\0\0\0");
        assert_eq!(bytes[112..136], *b"\x09\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01");
        assert_eq!(bytes[136..140], crc32c::crc32c(&bytes[..136]).to_le_bytes());
    }

    #[test]
    fn impossible_geometries_are_refused_by_name() {
        let d = LogSpec::default();
        for (spec, word) in [
            (LogSpec { ring_bytes: 3 << 20, ..d }, "ring"),
            (LogSpec { ring_bytes: 1 << 40, ..d }, "ring"),
            (LogSpec { bitmap_bytes: 100, ..d }, "bitmap"),
            (LogSpec { appenders: 0, ..d }, "appenders"),
            (LogSpec { regions: 70_000, ..d }, "regions"),
            (LogSpec { first_lsn: Lsn(0), ..d }, "LSN"),
        ] {
            let said = spec.layout(0).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    proptest! {
        #[test]
        fn a_header_with_any_byte_changed_is_refused(at in 0..size_of::<StaticHeader>() - 4, to: u8) {
            let mut bytes = bytes_of(&LogSpec::default().layout(1).unwrap());
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert!(LogSpec::parse(&bytes).is_err());
        }

        #[test]
        fn a_forged_header_with_a_right_checksum_must_also_have_the_right_offsets(
            appenders: u64, regions: u64, slots_off: u64, ring_off: u64, total: u64
        ) {
            let mut h = LogSpec::default().layout(1).unwrap();
            (h.appenders, h.regions) = (appenders, regions);
            (h.slots_off, h.ring_off, h.total_bytes) = (slots_off, ring_off, total);
            h.crc = header_crc(&h);
            prop_assert!(LogSpec::parse(&bytes_of(&h)).is_err());
        }
    }
}
