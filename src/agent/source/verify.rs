//! The whole of a group's regions beside one destination's live image, while the program runs.
//!
//! Blocks are compared by digest, then the pages of those that differ, as they are at that instant on either side: what is equal is
//! done with. A page that differs may have a record on its way. So it is looked at again, against an image that has everything that
//! the log held when the page was read. The cache lines of what still differs are compared twice, a while apart, each time against
//! such an image. A line that differs, and is what it was on both sides, is a finding: a record of it would have changed the image.
//! One that is not is being stored to and recorded.
//!
//! In a file that a program under our eyes has mapped these are lines that were stored and not flushed, as far as anybody can say
//! who sees two copies only; in another one, writes that passed the log by, or damage at the destination.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use crate::log::LogRegion;
use crate::region::content::Content;
use crate::region::sampling::read_block;
use crate::ship::limit::Limit;
use crate::types::{ByteRange, LINE, Lsn, PAGE, RegionId};

/// Bytes of a block.
const BLOCK: usize = 64 << 10;

/// Blocks compared at a time, if no limit makes that too long.
const WINDOW: usize = 64;

/// A destination closes a channel that is silent for half a minute: a window is made so small that it takes no longer than this.
const LONGEST_WINDOW_S: u64 = 4;

/// The smallest limit that may be asked for, in bytes a second.
pub(super) const SLOWEST: u64 = 64 << 10;

const PAGES: usize = BLOCK / PAGE;

/// Looks at pages that differ before they are kept for the last one: most records on their way have come by then.
const LOOKS: u32 = 4;

/// Pause between these.
const PAUSE: Duration = Duration::from_millis(20);

/// The last look comes so much later: programs write first and record then, and may be held up in between.
const CONFIRM_AFTER: Duration = Duration::from_millis(1500);

/// Pages that are kept for the last look at most; it comes earlier then.
const MAX_KEPT: usize = 1 << 16;

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
    #[error("the group is being handed over")]
    Still,
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
    /// Whether the group is being handed over: processors and network are for what is left then.
    pub(super) still: &'a dyn Fn() -> bool,
    pub(super) image: &'a mut dyn Image,
    pub(super) limit: Option<Limit>,
    pub(super) stop: &'a AtomicBool,
    pub(super) progress: &'a Progress,
}

/// A region as it is here: nothing behind its end.
pub(super) struct Source<'a> {
    pub(super) id: RegionId,
    pub(super) content: Content<'a>,
    pub(super) len: u64,
}

impl Source<'_> {
    fn digests(&self, block: usize, first: u64, count: usize) -> Result<Vec<u64>, Cut> {
        let mut bytes = vec![0; block];
        let one = |number: u64| {
            read_block(&self.content, &mut bytes, number).map_err(|e| Cut::Reading(self.id, e))?;
            let ours = self.len.saturating_sub(number * block as u64).min(block as u64);
            bytes[ours as usize..].fill(0);
            Ok(xxh3_64(&bytes))
        };
        (first..first + count as u64).map(one).collect()
    }
}

/// Cache lines that differ, with the digests of both sides.
type Lines = BTreeMap<u64, (u64, u64)>;

impl Comparison<'_> {
    /// Compares a region; `tell` hears of ranges that differ, whole cache lines, in order.
    pub(super) fn region(&mut self, source: &Source<'_>, tell: &mut dyn FnMut(ByteRange)) -> Result<(), Cut> {
        // Its creation may be on its way.
        self.await_applied()?;
        let slow = self.limit.as_ref().map(|limit| limit.bytes_per_s() * LONGEST_WINDOW_S / BLOCK as u64);
        let window = slow.map_or(WINDOW, |blocks| WINDOW.min(blocks.max(1) as usize));
        let blocks = source.len.div_ceil(BLOCK as u64);
        let mut kept = BTreeSet::new();
        for first in (0..blocks).step_by(window) {
            let count = window.min((blocks - first) as usize);
            kept.append(&mut self.window(source, first, count)?);
            if kept.len() > MAX_KEPT {
                self.confirm(source, &std::mem::take(&mut kept), tell)?;
            }
            let end = source.len.min((first + count as u64) * BLOCK as u64);
            self.pace(end - first * BLOCK as u64)?;
        }
        self.confirm(source, &kept, tell)
    }

    /// Pages that differ, and not for a moment only.
    fn window(&mut self, source: &Source<'_>, first: u64, count: usize) -> Result<BTreeSet<u64>, Cut> {
        let mut pages = BTreeSet::new();
        for block in self.differing(source, BLOCK, first, count)?.into_keys() {
            pages.extend(self.differing(source, PAGE, block * PAGES as u64, PAGES)?.into_keys());
        }
        for _ in 0..LOOKS {
            if pages.is_empty() {
                break;
            }
            thread::sleep(PAUSE);
            let differing = self.settled(source, PAGE, &pages)?;
            pages.retain(|page| differing.contains_key(page));
        }
        Ok(pages)
    }

    /// Looks twice at the lines of pages, and tells of those that differ and were not stored to.
    fn confirm(
        &mut self,
        source: &Source<'_>,
        pages: &BTreeSet<u64>,
        tell: &mut dyn FnMut(ByteRange),
    ) -> Result<(), Cut> {
        if pages.is_empty() {
            return Ok(());
        }
        let before = self.settled(source, LINE, pages)?;
        let until = Instant::now() + CONFIRM_AFTER;
        while Instant::now() < until {
            self.check()?;
            thread::sleep(PAUSE);
        }
        let now = self.settled(source, LINE, pages)?;
        let mut range: Option<ByteRange> = None;
        for line in now.iter().filter(|(line, both)| before.get(line) == Some(both)).map(|(line, _)| *line) {
            let next = ByteRange::new(line * LINE as u64, LINE as u64);
            match &mut range {
                Some(last) if last.end() == next.offset => last.len += next.len,
                _ => range.replace(next).into_iter().for_each(&mut *tell),
            }
        }
        range.into_iter().for_each(tell);
        Ok(())
    }

    /// Parts of pages that differ, lines or all of each, against an image that has everything that the log holds once they have been
    /// read.
    fn settled(&mut self, source: &Source<'_>, part: usize, pages: &BTreeSet<u64>) -> Result<Lines, Cut> {
        let blocks: BTreeSet<u64> = pages.iter().map(|page| page / PAGES as u64).collect();
        let parts = BLOCK / part;
        let mut differing = Lines::new();
        // A few megabytes at a time, whatever the region has.
        for blocks in blocks.into_iter().collect::<Vec<_>>().chunks(WINDOW) {
            let mut ours = Vec::with_capacity(blocks.len());
            for block in blocks {
                let first = block * parts as u64;
                ours.push((first, source.digests(part, first, parts)?));
            }
            self.await_applied()?;
            for (first, ours) in ours {
                let theirs = self.ask(source.id, part, first, parts)?;
                differing.extend(beside(source, part, first, ours, theirs));
            }
        }
        differing.retain(|number, _| pages.contains(&(number * part as u64 / PAGE as u64)));
        Ok(differing)
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

    /// Blocks that differ at this instant.
    fn differing(
        &mut self,
        source: &Source<'_>,
        block: usize,
        first: u64,
        count: usize,
    ) -> Result<Lines, Cut> {
        let ours = source.digests(block, first, count)?;
        let theirs = self.ask(source.id, block, first, count)?;
        Ok(beside(source, block, first, ours, theirs).collect())
    }

    fn ask(&mut self, id: RegionId, block: usize, first: u64, count: usize) -> Result<Vec<u64>, Cut> {
        self.check()?;
        let theirs = self.image.digests(id, block, first, count).map_err(Cut::Asking)?;
        // Another number: its image is another one by now, or has not come to the region's creation.
        if theirs.len() == count { Ok(theirs) } else { Err(Cut::NotFollowing) }
    }

    fn pace(&mut self, bytes: u64) -> Result<(), Cut> {
        self.progress.done.fetch_add(bytes, Relaxed);
        let Some(mut limit) = self.limit.take() else { return Ok(()) };
        let waited = limit.wait(bytes, || self.check().map(|()| true));
        self.limit = Some(limit);
        waited
    }

    fn check(&self) -> Result<(), Cut> {
        if self.stop.load(Relaxed) {
            return Err(Cut::Stopped);
        }
        if (self.still)() {
            return Err(Cut::Still);
        }
        self.image.applied().map(drop).ok_or(Cut::NotFollowing)
    }
}

/// Blocks that differ, with both digests; what lies behind the end is none of the region, whatever has been added there since.
fn beside(
    source: &Source<'_>,
    block: usize,
    first: u64,
    ours: Vec<u64>,
    theirs: Vec<u64>,
) -> impl Iterator<Item = (u64, (u64, u64))> {
    let both = (first..).zip(ours.into_iter().zip(theirs));
    let len = source.len;
    both.filter(move |(number, (ours, theirs))| ours != theirs && number * (block as u64) < len)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::log::format::Kind;
    use crate::log::{Appender, LogSpec};

    const ID: RegionId = RegionId(1);

    /// An image in memory; `asked` is called with the number of asks for lines so far.
    struct Fake<'a> {
        bytes: Vec<u8>,
        applied: Option<Lsn>,
        asks: u32,
        asked: &'a mut dyn FnMut(u32, &mut Vec<u8>),
    }

    impl Image for Fake<'_> {
        fn applied(&self) -> Option<Lsn> {
            self.applied
        }

        fn digests(&mut self, _: RegionId, block: usize, first: u64, count: usize) -> io::Result<Vec<u64>> {
            if block == LINE {
                self.asks += 1;
                (self.asked)(self.asks, &mut self.bytes);
            }
            let from = first as usize * block;
            let bytes = self.bytes.get(from..from + count * block).unwrap_or_default();
            Ok(bytes.chunks(block).map(xxh3_64).collect())
        }
    }

    fn zeros() -> Vec<u8> {
        vec![0; 4 * BLOCK]
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Compares so much of a file with an image of `theirs`: offset and length of each range.
    fn compare(
        file: &File,
        len: usize,
        theirs: Vec<u8>,
        applied: Option<Lsn>,
        asked: &mut dyn FnMut(u32, &mut Vec<u8>),
    ) -> Result<Vec<(usize, u64)>, Cut> {
        let (_fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
        let app = Appender::attach(log.clone(), 1).unwrap();
        app.append(Kind::Data, ID, 0, &[1; 64]).unwrap();
        let fd = file.as_fd();
        let source = Source { id: ID, content: Content::of(&fd).unwrap(), len: len as u64 };
        let mut found = Vec::new();
        Comparison {
            log: &log,
            still: &|| false,
            image: &mut Fake { bytes: theirs, applied, asks: 0, asked },
            limit: None,
            stop: &AtomicBool::new(false),
            progress: &Progress::default(),
        }
        .region(&source, &mut |range| found.push((range.offset as usize, range.len)))?;
        Ok(found)
    }

    const ALL: Option<Lsn> = Some(Lsn(u64::MAX));

    #[test]
    fn what_no_record_tells_of_is_found_to_the_line() {
        let mut ours = zeros();
        let len = ours.len();
        assert_eq!(compare(&file_of(&ours), len, zeros(), ALL, &mut |_, _| {}).unwrap(), []);
        ours[BLOCK + 70] = 1;
        ours[BLOCK + 2 * PAGE - 1] = 1;
        ours[BLOCK + 2 * PAGE] = 1;
        let found = compare(&file_of(&ours), len, zeros(), ALL, &mut |_, _| {}).unwrap();
        assert_eq!(found, [(BLOCK + 64, 64), (BLOCK + 2 * PAGE - 64, 128)]);
    }

    #[test]
    fn a_record_that_arrives_late_clears_the_line() {
        let mut ours = zeros();
        ours[0] = 1;
        let mut arrives = |asks, image: &mut Vec<u8>| {
            if asks == 2 {
                image[0] = 1;
            }
        };
        assert_eq!(compare(&file_of(&ours), ours.len(), zeros(), ALL, &mut arrives).unwrap(), []);
    }

    #[test]
    fn a_line_that_is_stored_to_and_recorded_all_the_time_hides_none_beside_it() {
        let file = file_of(&zeros());
        file.write_all_at(&[9], 0).unwrap();
        file.write_all_at(&[9], 640).unwrap();
        // With every look the program has stored anew, and the record of the store before has come.
        let mut stored = |asks: u32, image: &mut Vec<u8>| {
            file.write_all_at(&(asks + 2).to_le_bytes(), 0).unwrap();
            image[..4].copy_from_slice(&asks.to_le_bytes());
        };
        let found = compare(&file, zeros().len(), zeros(), ALL, &mut stored).unwrap();
        assert_eq!(found, [(640, 64)]);
    }

    #[test]
    fn what_lies_behind_the_end_is_not_compared() {
        let (mut ours, mut image) = (zeros(), zeros());
        let end = BLOCK + PAGE + 100;
        ours[end..].fill(7);
        image[end + 1000..].fill(8);
        assert_eq!(compare(&file_of(&ours), end, image, ALL, &mut |_, _| {}).unwrap(), []);
    }

    #[test]
    fn an_image_that_does_not_follow_or_is_another_one_is_no_image_to_compare_with() {
        let mut ours = zeros();
        ours[0] = 1;
        let file = file_of(&ours);
        let none = compare(&file, ours.len(), zeros(), None, &mut |_, _| {});
        assert!(matches!(none, Err(Cut::NotFollowing)), "{none:?}");
        let another = compare(&file, ours.len(), zeros(), ALL, &mut |_, image| image.clear());
        assert!(matches!(another, Err(Cut::NotFollowing)), "{another:?}");
    }
}
