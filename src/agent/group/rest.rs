//! Files at rest: what they are like when nobody who records what he does has them open.
//!
//! Between two runs of a program its files may be replaced in place, by a restored copy or a tool of a person, and no record tells
//! of it. So size and time of modification are noted when the last process has ended, and compared when a file is protected
//! again. Until then whoever compares the file with an image may have the agent record it ([`Group::record_pages`]).

use std::sync::Arc;

use rustix::fs::fstat;
use serde::{Deserialize, Serialize};

use super::{Group, GroupError, Inner, Region};
use crate::log::Debt;
use crate::log::format::{Kind, MAX_REGION_BYTES};
use crate::types::{PAGE, RegionId};

/// What a file at rest is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rest {
    /// Bytes.
    pub size: u64,
    /// Time of modification: seconds and nanoseconds.
    pub modified: (i64, i64),
}

impl Region {
    /// Whether the file is at rest, and not as it was left.
    pub fn was_changed(&self) -> bool {
        self.at_rest().is_some_and(|left| Rest::of(self) != Some(left))
    }
}

impl Rest {
    /// The file of `region` as it is now; none if it cannot be looked at, or has no size and time that mean anything.
    pub fn of(region: &Region) -> Option<Rest> {
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
        // What has happened to a file since it was left is still to be found, whoever had others open.
        for region in inner.regions.values().filter(|region| region.at_rest().is_none()) {
            region.set_rest(Rest::of(region));
        }
        if let Err(error) = self.save(&inner) {
            // Only the next agent could miss a change, and only one made while it is not there.
            tracing::warn!(group = self.name(), %error, "how files were left could not be stored");
        }
    }

    /// Records pages of a file at rest as they are, its size before them; how many of `pages`, from the first on, fit into the log
    /// at present. None in a last gasp, or if the file is not at rest: what a program stores meanwhile has an order that a late copy of a
    /// page would break.
    pub fn record_pages(&self, id: RegionId, pages: &[u64]) -> usize {
        // Whoever opens the file waits for the lock before it stores.
        let inner = self.lock();
        let at_rest = |r: &&Arc<Region>| r.at_rest().is_some() && !self.is_still();
        let Some(region) = inner.regions.get(&id).filter(at_rest) else { return 0 };
        if self.record_size(&inner, region).is_err() {
            return 0;
        }
        let page = |number: &&u64| {
            let from = number.saturating_mul(PAGE as u64);
            let (appender, file) = (self.appender(), region.file());
            self.has_room_for(PAGE as u64) && appender.append_from_file(id, from, PAGE, file, true).is_ok()
        };
        let count = pages.iter().take(self.pages_at_once()).take_while(page).count();
        self.appender().drain();
        count
    }

    /// Records the size of a file at rest, if it is not what it was; whether bytes were cut off.
    pub fn record_rest_size(&self, id: RegionId) -> bool {
        let inner = self.lock();
        let at_rest = |r: &&Arc<Region>| r.at_rest().is_some() && !self.is_still();
        let Some(region) = inner.regions.get(&id).filter(at_rest) else { return false };
        let cut = self.record_size(&inner, region).unwrap_or(false);
        self.appender().drain();
        cut
    }

    /// All of a file at rest is in the log as it was when it was like `rest`. Whether it still is, and at rest.
    pub fn rests_as(&self, id: RegionId, rest: Rest) -> bool {
        let inner = self.lock();
        let Some(region) = inner.regions.get(&id).filter(|region| region.at_rest().is_some()) else {
            return false;
        };
        if Rest::of(region) != Some(rest) || region.len() != region.len_now() {
            return false;
        }
        if region.at_rest() == Some(rest) {
            return true;
        }
        region.set_rest(Some(rest));
        if let Err(error) = self.save(&inner) {
            // The next agent finds it changed, and compares or copies it once more.
            tracing::warn!(group = self.name(), %error, "how a file was left could not be stored");
        }
        true
    }

    pub(super) fn record_size(&self, inner: &Inner, region: &Arc<Region>) -> Result<bool, GroupError> {
        let (known, now) = (region.len(), region.len_now());
        if now > MAX_REGION_BYTES {
            return Ok(false);
        }
        if now > known {
            self.grow(inner, region, now, false)?;
        } else if now < known {
            self.store_len(inner, region, now)?;
            // While ahead, the copy says it.
            let _ = self.appender().append_size(region.id(), region.file());
        }
        Ok(now < known)
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
