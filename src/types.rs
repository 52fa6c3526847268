//! The words of pmemha as types: positions, generations, regions, levels.
//!
//! Every room uses these instead of bare integers, so that a byte offset in a region can never be
//! passed where a position in the log is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Size of a CPU cache line on x86-64, the unit in which stores become persistent.
pub const LINE: usize = 64;

/// Size of a page of the region bitmap at its finest, and of the unit of first sync.
pub const PAGE: usize = 4096;

/// A byte position in a group's log stream. Never reused within a generation; 0 is before any record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position `bytes` further on.
    pub fn advance(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }

    /// Bytes from `earlier` up to here; 0 when `earlier` is later.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fencing number of a group: up by one at every promotion and whenever a log is created anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A region's number within its group; assigned by the source's agent, given to another file once no process can still append for the old one (`agent::group::numbers`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegionId(pub u16);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of a group, random, made when the group is first configured.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub [u8; 16]);

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Identity of a log, random, drawn when it is made: two nodes that were both made to own one generation have logs of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(pub u64);

/// `len` bytes from `offset` of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl ByteRange {
    /// A range of `len` bytes from `offset`.
    pub fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// The first byte past the range.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// How far a record has come. Each level implies those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Published in the source's log region.
    Local,
    /// Landed in the destination's ring.
    Received,
    /// Survives the loss of the source, as the destination declares durability.
    Durable,
    /// Part of the destination's image, persistently.
    Applied,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Local => "local",
            Level::Received => "received",
            Level::Durable => "durable",
            Level::Applied => "applied",
        })
    }
}

/// What makes bytes at a destination survive; declared by the destination, obeyed by the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The whole machine is battery-backed: placement in DRAM is enough. Does not survive a crash of its OS.
    Battery,
    /// Memory and caches of the CPU survive a power cut, adapters do not (eADR): a completion proves nothing by itself, but a
    /// read that follows the write over the same connection finds it in its place.
    Eadr,
    /// Persistent memory flushed by the destination's CPU.
    Pmem,
    /// A block device: the destination writes back and waits for the device.
    Disk,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Durability::Battery => "battery",
            Durability::Eadr => "eadr",
            Durability::Pmem => "pmem",
            Durability::Disk => "disk",
        })
    }
}
