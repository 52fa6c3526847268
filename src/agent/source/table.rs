//! The group's table of regions as the stream sees it: kept up with what the log says, and read for a copy.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

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
        self.0.follow_files().map_err(io::Error::other)?;
        let region = |r: Arc<Region>| {
            let file: OwnedFd = r.file().try_clone_to_owned()?;
            Ok(SyncRegion { id: r.id(), creation: r.creation(), len: r.len(), file })
        };
        self.0.regions().into_iter().map(region).collect()
    }
}
