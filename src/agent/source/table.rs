//! The group's table of regions as the stream sees it: kept up with what the log says, and read for a copy.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;

use crate::agent::group::{Group, Region};
use crate::log::Appender;
use crate::log::format::{Kind, MAX_NAME, RECORD_HEADER, RecordHeader};
use crate::ship::sync::{SyncRegion, SyncSource};

/// Keeps the group's table up with what the log says of its regions.
pub(super) fn observe(group: &Group, header: &RecordHeader) {
    let (id, offset) = header.place();
    let done = match Kind::from_byte(header.kind) {
        Some(Kind::RegionResize) => group.region_resized(id, offset),
        Some(Kind::RegionUnlink) => group.region_unlinked(id),
        Some(Kind::RegionRename) if header.len as usize <= MAX_NAME => {
            let log = group.log();
            let mut name = vec![0; header.len as usize];
            let at = (header.lsn & (log.spec().ring_bytes - 1)) as usize + RECORD_HEADER as usize;
            log.ring().read(at, &mut name);
            match String::from_utf8(name) {
                Ok(name) => group.region_renamed(id, &name),
                Err(_) => Ok(()),
            }
        }
        _ => Ok(()),
    };
    if let Err(error) = done {
        tracing::warn!(group = group.name(), region = %id, %error, "the change of a region was not stored");
    }
}

/// The group's regions, to be copied.
pub(super) struct GroupRegions(pub(super) Arc<Group>);

impl SyncSource for GroupRegions {
    fn appender(&self) -> &Appender {
        self.0.appender()
    }

    fn regions(&self) -> io::Result<Vec<SyncRegion>> {
        let region = |r: Arc<Region>| {
            let file: OwnedFd = r.file().try_clone_to_owned()?;
            // Its size as of now: the record of a change may still be on its way to whoever keeps the table, or have been
            // passed over, and a copy of the old size would cut off what was written since.
            let stat = rustix::fs::fstat(&file)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && stat.st_size as u64 != r.len()
            {
                self.0.region_resized(r.id(), stat.st_size as u64).map_err(io::Error::other)?;
            }
            Ok(SyncRegion { id: r.id(), creation: r.creation(), len: r.len(), file })
        };
        self.0.regions().into_iter().map(region).collect()
    }
}
