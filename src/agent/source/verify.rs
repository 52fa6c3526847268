//! The whole of a group's regions beside one destination's live image, while the program runs.
//!
//! Blocks are compared by digest, then the pages of those that differ, as they are at that instant on either side: what is equal is
//! done with. A page that differs may have a record on its way. So it is looked at again, each time against an image that has
//! everything that the log held when the page was read; twice different with no record between means that no record tells of it.
//! Then its cache lines are compared, and those that differ are told.
//!
//! In a file that a program under our eyes has mapped these are lines that were stored and not flushed, as far as anybody can say
//! who sees two copies only; in another one, writes that passed the log by, or damage at the destination.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::suspects::Suspects;
use crate::log::LogRegion;
use crate::region::content::Content;
use crate::region::sampling::block_digests;
use crate::ship::limit::Limit;
use crate::types::{ByteRange, LINE, Lsn, PAGE, RegionId};

/// Bytes of a block.
const BLOCK: usize = 64 << 10;

/// Blocks compared at a time.
const WINDOW: usize = 64;

const PAGES: usize = BLOCK / PAGE;

/// Pages that are stored to with every look are left undecided after so many.
const LOOKS: u32 = 12;

/// Pause between two looks at the same pages: what a program does in a moment is over.
const PAUSE: Duration = Duration::from_millis(20);

/// What was in the log when pages were read must be in the image within this time.
const APPLIED_WITHIN: Duration = Duration::from_secs(30);

/// The image that is compared with.
pub(super) trait Image {
    /// Up to where records are in it; none while it does not follow the stream.
    fn applied(&self) -> Option<Lsn>;
    /// XXH3 of `count` blocks of `block` bytes each, from number `first` on, zeros behind the region's end included.
    fn digests(&mut self, region: RegionId, block: usize, first: u64, count: usize) -> io::Result<Vec<u64>>;
}

/// Why a comparison ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("the agent ends, or the group is given up")]
    Stopped,
    #[error("the destination does not follow the stream any more: it went away, or is brought a copy")]
    NotFollowing,
    #[error("the destination has not applied in {APPLIED_WITHIN:?} what was in the log")]
    Slow,
    #[error("the destination cannot say what it holds: {0}")]
    Asking(io::Error),
    #[error("region {0} cannot be read: {1}")]
    Reading(RegionId, io::Error),
}

/// How a comparison is coming along; read by anyone.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) done: AtomicU64,
    pub(super) total: AtomicU64,
}

/// One comparison.
pub(super) struct Comparison<'a> {
    pub(super) log: &'a LogRegion,
    pub(super) image: &'a mut dyn Image,
    pub(super) suspects: &'a Suspects,
    pub(super) limit: Option<Limit>,
    pub(super) stop: &'a AtomicBool,
    pub(super) progress: &'a Progress,
}

/// What was found in a region.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// Ranges that differ, whole cache lines, in order.
    pub(super) ranges: Vec<ByteRange>,
    /// Pages that were stored to with every look.
    pub(super) undecided: u64,
}

impl Comparison<'_> {
    /// Compares `len` bytes of a region.
    pub(super) fn region(&mut self, id: RegionId, content: &Content<'_>, len: u64) -> Result<Found, Cut> {
        let mut found = Found::default();
        let blocks = len.div_ceil(BLOCK as u64);
        for first in (0..blocks).step_by(WINDOW) {
            let count = WINDOW.min((blocks - first) as usize);
            let compared = self.window(id, content, first, count);
            self.suspects.acquit(id);
            let more = compared?;
            more.ranges.into_iter().for_each(|range| join(&mut found.ranges, range));
            found.undecided += more.undecided;
            self.pace((count * BLOCK) as u64)?;
        }
        Ok(found)
    }

    fn window(
        &mut self,
        id: RegionId,
        content: &Content<'_>,
        first: u64,
        count: usize,
    ) -> Result<Found, Cut> {
        let (ours, theirs) = self.both(id, content, BLOCK, first, count)?;
        let mut pages = BTreeSet::new();
        for block in
            (first..).zip(differing(&ours, &theirs)).filter_map(|(block, differs)| differs.then_some(block))
        {
            let from = block * PAGES as u64;
            let (ours, theirs) = self.both(id, content, PAGE, from, PAGES)?;
            pages.extend(
                (from..).zip(differing(&ours, &theirs)).filter_map(|(page, differs)| differs.then_some(page)),
            );
        }
        self.decide(id, content, pages)
    }

    /// Looks at pages that differ until it is known of each why.
    fn decide(&mut self, id: RegionId, content: &Content<'_>, pages: BTreeSet<u64>) -> Result<Found, Cut> {
        // Where the last record began that had touched it when it was found different.
        let mut open: BTreeMap<u64, Option<Lsn>> = pages.into_iter().map(|page| (page, None)).collect();
        let mut found = Found::default();
        {
            let mut suspects = self.suspects.lock();
            suspects.extend(open.keys().map(|page| ((id, *page), Lsn(0))));
            self.suspects.noted(&suspects);
        }
        let mut different = BTreeSet::new();
        for _ in 0..LOOKS {
            if open.is_empty() {
                break;
            }
            thread::sleep(PAUSE);
            let before = self.touched(id, open.keys());
            let blocks: BTreeSet<u64> = open.keys().map(|page| page / PAGES as u64).collect();
            let mut ours = BTreeMap::new();
            for block in &blocks {
                let from = block * PAGES as u64;
                let digests = block_digests(content, PAGE, from, PAGES).map_err(|e| Cut::Reading(id, e))?;
                ours.extend((from..).zip(digests));
            }
            self.await_applied()?;
            for block in &blocks {
                let from = block * PAGES as u64;
                let theirs = self.ask(id, PAGE, from, PAGES)?;
                for (page, theirs) in (from..).zip(theirs) {
                    let Some(first) = open.get_mut(&page) else { continue };
                    let touched = before.get(&page).copied();
                    if ours[&page] == theirs {
                        open.remove(&page);
                    } else if self.suspects.lock().get(&(id, page)).copied() != touched {
                        *first = None;
                    } else if first.is_some() && *first == touched {
                        open.remove(&page);
                        different.insert(page);
                    } else {
                        *first = touched;
                    }
                }
            }
        }
        found.undecided = open.len() as u64;
        for page in different {
            let lines = PAGE / LINE;
            let from = page * lines as u64;
            let (ours, theirs) = self.both(id, content, LINE, from, lines)?;
            for line in
                (from..).zip(differing(&ours, &theirs)).filter_map(|(line, differs)| differs.then_some(line))
            {
                join(&mut found.ranges, ByteRange::new(line * LINE as u64, LINE as u64));
            }
        }
        Ok(found)
    }

    /// Where the last record began that touched each of the pages.
    fn touched<'p>(&self, id: RegionId, pages: impl Iterator<Item = &'p u64>) -> BTreeMap<u64, Lsn> {
        let suspects = self.suspects.lock();
        pages.filter_map(|page| Some((*page, *suspects.get(&(id, *page))?))).collect()
    }

    /// Waits until everything that is in the log now is in the image.
    fn await_applied(&mut self) -> Result<(), Cut> {
        let (tail, began) = (self.log.tail(), Instant::now());
        loop {
            self.check()?;
            if self.image.applied().ok_or(Cut::NotFollowing)? >= tail {
                return Ok(());
            }
            if began.elapsed() > APPLIED_WITHIN {
                return Err(Cut::Slow);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn both(
        &mut self,
        id: RegionId,
        content: &Content<'_>,
        block: usize,
        first: u64,
        count: usize,
    ) -> Result<(Vec<u64>, Vec<u64>), Cut> {
        let ours = block_digests(content, block, first, count).map_err(|e| Cut::Reading(id, e))?;
        Ok((ours, self.ask(id, block, first, count)?))
    }

    fn ask(&mut self, id: RegionId, block: usize, first: u64, count: usize) -> Result<Vec<u64>, Cut> {
        self.check()?;
        self.image.applied().ok_or(Cut::NotFollowing)?;
        let theirs = self.image.digests(id, block, first, count).map_err(Cut::Asking)?;
        match theirs.len() {
            n if n == count => Ok(theirs),
            // Its image is another one by now, or it has not come to the region's creation.
            _ => Err(Cut::NotFollowing),
        }
    }

    fn pace(&mut self, bytes: u64) -> Result<(), Cut> {
        self.progress.done.fetch_add(bytes, Relaxed);
        let due = self.limit.as_mut().map(|limit| limit.sent(bytes, Instant::now()));
        while let Some(left) =
            due.map(|due| due.saturating_duration_since(Instant::now())).filter(|t| !t.is_zero())
        {
            self.check()?;
            thread::sleep(left.min(PAUSE));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Cut> {
        if self.stop.load(Relaxed) { Err(Cut::Stopped) } else { Ok(()) }
    }
}

fn differing<'a>(ours: &'a [u64], theirs: &'a [u64]) -> impl Iterator<Item = bool> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours != theirs)
}

/// Adds a range that begins where the last one ends, or behind it.
fn join(ranges: &mut Vec<ByteRange>, range: ByteRange) {
    match ranges.last_mut() {
        Some(last) if last.end() == range.offset => last.len += range.len,
        _ => ranges.push(range),
    }
}
