//! What regions take from their group's log for as long as they live: a number, and a share of the dirty bitmap. Programs that
//! make and remove files for ever (sqlite's journals) must not use them up, so both are given out again.
//!
//! A number is another file's only when nothing can append a record under it that means the old one: every process that was told
//! of the region has said that it lets go of it, or is dead, and no copy holds the old region.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};

use super::Region;
use crate::types::RegionId;

/// Numbers and shares. Plain data, behind the group's lock.
pub(super) struct Numbers {
    /// The first number that was never given out.
    next: u16,
    /// Sessions that may still append for a region.
    holders: BTreeMap<RegionId, BTreeSet<u32>>,
    /// Regions that ceased to be, in that order; weak, so that a copy that still reads one is seen, and its file closed.
    ended: VecDeque<(RegionId, Weak<Region>)>,
    /// First bit that was never given out.
    next_bit: u64,
    shares: BTreeMap<RegionId, Share>,
    free_shares: Vec<Share>,
}

/// A stretch of the dirty bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// First bit.
    pub first: u64,
    /// Bits.
    pub bits: u64,
}

impl Numbers {
    /// Numbers from `next` on.
    pub fn new(next: u16) -> Numbers {
        Numbers {
            next,
            holders: BTreeMap::new(),
            ended: VecDeque::new(),
            next_bit: 0,
            shares: BTreeMap::new(),
            free_shares: Vec::new(),
        }
    }

    /// The first number that was never given out.
    pub fn next(&self) -> u16 {
        self.next
    }

    /// A number below `limit` for a file; `None` if all are in use.
    pub fn take(&mut self, limit: u32) -> Option<RegionId> {
        let fresh = u32::from(self.next) < limit;
        if self.ended.len() > REST || !fresh {
            let holders = &self.holders;
            let free = |(id, region): &(RegionId, Weak<Region>)| {
                region.strong_count() == 0 && !holders.contains_key(id)
            };
            if let Some(at) = self.ended.iter().position(free) {
                return self.ended.remove(at).map(|(id, _)| id);
            }
        }
        fresh.then(|| {
            self.next += 1;
            RegionId(self.next - 1)
        })
    }

    /// `session` knows `region` from here on.
    pub fn told(&mut self, region: RegionId, session: u32) {
        self.holders.entry(region).or_default().insert(session);
    }

    /// `session` appends nothing further for `region`.
    pub fn released(&mut self, region: RegionId, session: u32) {
        if let Some(holders) = self.holders.get_mut(&region) {
            holders.remove(&session);
            if holders.is_empty() {
                self.holders.remove(&region);
            }
        }
    }

    /// The process of `session` is dead.
    pub fn process_ended(&mut self, session: u32) {
        self.holders.retain(|_, holders| !holders.remove(&session) || !holders.is_empty());
    }

    /// `region` was found by this agent, not made: who knows it cannot be told, so its number is not given out again.
    pub fn found(&mut self, region: RegionId) {
        self.told(region, NOBODY_KNOWS_WHO);
    }

    /// `region` ceased to be.
    pub fn ended(&mut self, region: &Arc<Region>) {
        self.ended.push_back((region.id(), Arc::downgrade(region)));
        self.free_shares.extend(self.shares.remove(&region.id()));
    }

    /// Bits below `limit` that were never given out.
    pub fn fresh_bits(&self, limit: u64) -> u64 {
        limit.saturating_sub(self.next_bit)
    }

    /// A share of exactly `bits` that an earlier region had.
    pub fn used_share(&mut self, bits: u64) -> Option<Share> {
        let at = self.free_shares.iter().position(|s| s.bits == bits)?;
        Some(self.free_shares.swap_remove(at))
    }

    /// A share of `bits` that nobody had.
    pub fn fresh_share(&mut self, bits: u64) -> Share {
        let first = self.next_bit;
        self.next_bit += bits;
        Share { first, bits }
    }

    /// `region` has `share` until it ends.
    pub fn entered(&mut self, region: RegionId, share: Share) {
        self.shares.insert(region, share);
    }

    /// Bits below `end` are in use by a region of an earlier agent.
    pub fn skip_bits(&mut self, end: u64) {
        self.next_bit = self.next_bit.max(end);
    }
}

/// Numbers rest until this many later ones have ended: a thread that was about to append when its process let go is
/// long past it then.
const REST: usize = 256;

/// No session has this number.
const NOBODY_KNOWS_WHO: u32 = u32::MAX;
