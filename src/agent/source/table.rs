//! The group's table of regions as the stream sees it: kept up with what the log says, and read for a copy.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::base::{EveryBase, RemoteBase};
use super::destination::Destination;
use crate::agent::group::{Group, Region};
use crate::fabric::tls::TlsIdentity;
use crate::locks::lock;
use crate::log::Appender;
use crate::log::format::{CopyFor, Kind, MAX_NAME, RECORD_HEADER, RecordHeader, region_name};
use crate::ship::space::Space;
use crate::ship::sync::base::Base;
use crate::ship::sync::{SyncRegion, SyncSource};
use crate::types::Lsn;

/// Keeps the group's table up with what the log says of its regions, whoever reads it first.
pub(super) struct Table {
    group: Arc<Group>,
    /// What was looked at; a slower reader's news is old.
    observed: Mutex<Lsn>,
}

impl Table {
    pub(super) fn new(group: Arc<Group>) -> Table {
        Table { group, observed: Mutex::new(Lsn(0)) }
    }

    /// A reader has come to this record.
    pub(super) fn observe(&self, header: &RecordHeader) {
        let Some(kind @ (Kind::RegionResize | Kind::RegionUnlink | Kind::RegionRename)) =
            Kind::from_byte(header.kind)
        else {
            // Nearly all that are shipped: no lock is for each of them.
            return;
        };
        let mut observed = lock(&self.observed);
        if header.lsn >= observed.0 {
            *observed = header.next();
            observe(&self.group, kind, header);
        }
    }
}

fn observe(group: &Group, kind: Kind, header: &RecordHeader) {
    let (id, offset) = header.place();
    if group.region(id).is_some_and(|region| header.lsn < region.since().0) {
        // Of an earlier file, read late or again.
        return;
    }
    let done = match kind {
        Kind::RegionResize => group.region_resized(id, offset),
        Kind::RegionUnlink => group.region_unlinked(id),
        Kind::RegionRename if header.len as usize <= MAX_NAME => {
            let log = group.log();
            let mut name = vec![0; header.len as usize];
            let at = (header.lsn & (log.spec().ring_bytes - 1)) as usize + RECORD_HEADER as usize;
            log.ring().read(at, &mut name);
            region_name(&name).map_or(Ok(()), |name| group.region_renamed(id, name))
        }
        _ => Ok(()),
    };
    if let Err(error) = done {
        tracing::warn!(group = group.name(), region = %id, %error, "the change of a region was not stored");
    }
}

/// The group's regions, to be copied.
pub(super) struct GroupRegions {
    pub(super) group: Arc<Group>,
    pub(super) destinations: Vec<Arc<Destination>>,
    /// Who holds the ring.
    pub(super) space: Arc<Space>,
    /// For asking destinations.
    pub(super) identity: Option<Arc<TlsIdentity>>,
}

impl SyncSource for GroupRegions {
    fn appender(&self) -> &Appender {
        self.group.appender()
    }

    fn regions(&self) -> io::Result<Vec<SyncRegion>> {
        let region = |r: &Arc<Region>, len| {
            let file: OwnedFd = r.file().try_clone_to_owned()?;
            Ok(SyncRegion {
                id: r.id(),
                creation: r.creation(len),
                len,
                file,
                changed: r.was_changed(),
                held: r.clone(),
            })
        };
        self.group.follow_files(region).map_err(io::Error::other)?.into_iter().collect()
    }

    fn is_still(&self) -> bool {
        self.group.is_still()
    }

    fn destinations(&self) -> usize {
        self.destinations.len()
    }

    fn limit(&self) -> Option<u64> {
        self.group.config().sync_rate
    }

    fn reader(&self, stream: u32) -> Option<bool> {
        let mut all = self.destinations.iter();
        all.find(|to| to.stream_number() == Some(stream)).map(|to| to.link().connected)
    }

    fn taken_to(&self, whom: CopyFor) -> Option<Lsn> {
        let takes_it = |to: &&Arc<Destination>| match whom {
            CopyFor::One(stream) => to.stream_number() == Some(stream),
            CopyFor::All | CopyFor::Newcomers => true,
        };
        let readers = self.destinations.iter().filter(takes_it);
        readers.filter_map(|to| self.space.taken_to(to.index)).min()
    }

    fn base(&self, whom: CopyFor, begin: Lsn) -> Option<Box<dyn Base>> {
        let to: Vec<_> = match whom {
            // One that has let the ring go takes a copy of its own later.
            CopyFor::All => self.destinations.iter().filter(|to| self.space.holds(to.index)).collect(),
            CopyFor::One(stream) => {
                self.destinations.iter().filter(|to| to.stream_number() == Some(stream)).collect()
            }
            CopyFor::Newcomers => return None,
        };
        // One that is away may resume in the middle of the copy, and an archive takes one for all as well.
        let all_answer = to.iter().all(|to| to.link().connected && to.says_what_it_holds());
        if to.is_empty() || !all_answer || (whom == CopyFor::All && self.group.config().archive.is_some()) {
            return None;
        }
        let identity = self.identity.as_ref()?;
        let base = |to: &Arc<Destination>| RemoteBase {
            to: to.clone(),
            group: self.group.clone(),
            identity: identity.clone(),
            begin,
            waits_since: None,
            asked: (Duration::ZERO, 0),
            client: None,
        };
        Some(Box::new(EveryBase(to.into_iter().map(base).collect())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::group::tests::Bench;
    use crate::log::format::RegionPayload;
    use crate::types::RegionId;
    use std::collections::BTreeSet;
    use std::os::fd::AsFd;
    use zerocopy::FromBytes as _;

    fn regions_of(group: &Arc<Group>) -> GroupRegions {
        let space = Space::new(group.log().clone(), (0, 0), 0, true);
        GroupRegions { group: group.clone(), destinations: Vec::new(), space, identity: None }
    }

    #[test]
    fn a_copy_takes_the_names_that_files_have_now_and_leaves_out_those_without() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        for name in ["a.pool", "b.pool", "c.pool"] {
            group.protect(bench.file(name, 4096).as_fd(), 0, false).unwrap();
        }
        // Nothing of this is in the log: the application was ahead of it.
        std::fs::rename(bench.path("a.pool"), bench.path("b.pool")).unwrap();
        std::fs::remove_file(bench.path("c.pool")).unwrap();
        let regions = regions_of(&group).regions().unwrap();
        assert_eq!(regions.iter().map(|r| r.id).collect::<Vec<_>>(), [RegionId(1)]);
        assert!(regions[0].creation.ends_with(b"/pm/b.pool"));
        assert_eq!(group.regions().len(), 1);
    }

    #[test]
    fn a_copy_takes_the_size_that_a_file_has_while_older_sizes_are_read_from_the_log() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let (region, _) = group.protect(bench.file("a.pool", 4096).as_fd(), 0, false).unwrap();
        let regions = regions_of(&group);
        let sizes: BTreeSet<_> = std::thread::scope(|scope| {
            let look = || {
                let listed = regions.regions().unwrap();
                let created = RegionPayload::ref_from_prefix(&listed[0].creation).unwrap().0.size;
                (created, listed[0].len)
            };
            let looker = scope.spawn(move || (0..500).map(|_| look()).collect());
            while !looker.is_finished() {
                group.region_resized(region.id(), 0).unwrap();
            }
            looker.join().unwrap()
        });
        assert_eq!(sizes, BTreeSet::from([(4096, 4096)]));
    }

    #[test]
    fn a_record_that_means_an_earlier_file_of_the_number_changes_nothing() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let (region, _) = group.protect(bench.file("a.pool", 4096).as_fd(), 0, false).unwrap();
        let unlink = |lsn| RecordHeader {
            lsn,
            len: 0,
            owner: 0,
            state: 0,
            kind: Kind::RegionUnlink as u8,
            place: RecordHeader::pack_place(region.id(), 0),
            generation: 0,
            crc: 0,
        };
        observe(&group, Kind::RegionUnlink, &unlink(region.since().0 - 32));
        assert_eq!(group.regions().len(), 1);
        observe(&group, Kind::RegionUnlink, &unlink(region.since().0 + 32));
        assert!(group.regions().is_empty());
    }
}
