//! Files at rest: what they are like when nobody who records what he does has them open.
//!
//! Between two runs of a program its files may be replaced in place, by a restored copy or a tool of a person, and no record tells
//! of it. So size and time of modification are noted when the last process has ended, and compared when a file is protected
//! again.

use rustix::fs::fstat;
use serde::{Deserialize, Serialize};

use super::{Group, Region};
use crate::log::Debt;
use crate::log::format::Kind;

/// What a file at rest is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rest {
    /// Bytes.
    pub size: u64,
    /// Time of modification: seconds and nanoseconds.
    pub modified: (i64, i64),
}

impl Rest {
    /// The file of `region` as it is now; none if it cannot be looked at, or has no size and time that mean anything.
    pub(super) fn of(region: &Region) -> Option<Rest> {
        let stat = fstat(region.file()).ok().filter(|_| region.is_regular())?;
        Some(Rest { size: stat.st_size as u64, modified: (stat.st_mtime, stat.st_mtime_nsec as i64) })
    }
}

impl Group {
    /// To be called when a process has ended: if it was the last, the files are at rest.
    pub fn come_to_rest(&self) {
        let inner = self.lock();
        // What a fork's child still does before it attaches is no foreigner's doing.
        if !inner.processes.is_empty() || self.living_owners().next().is_some() {
            return;
        }
        for region in inner.regions.values() {
            region.set_rest(Rest::of(region));
        }
        if let Err(error) = self.save(&inner) {
            // Only the next agent could miss a change, and only one made while it is not there.
            tracing::warn!(group = self.name(), %error, "how files were left could not be stored");
        }
    }

    /// A file that was at rest is protected again. What has happened to it meanwhile is in no record; it is to be copied before
    /// anything is acknowledged that builds on it. An empty file needs no copy. Whether it was at rest.
    pub(super) fn rouse(&self, region: &Region) -> bool {
        let Some(rest) = region.take_rest() else { return false };
        let now = Rest::of(region);
        if now.is_some_and(|now| now.size == 0) && rest.size != 0 {
            // Emptied as it was opened, as a rule: that is said in a record. While ahead, the copy says it.
            region.set_len(0);
            let _ = self.appender().append(Kind::RegionResize, region.id(), 0, &[]);
        } else if now != Some(rest) {
            tracing::warn!(
                group = self.name(),
                path = %region.path().display(),
                "the file was changed while no program of the group had it open: all files are copied anew"
            );
            self.log().owe(Debt::Remains);
            self.make_good_remains();
        }
        true
    }
}
