//! Writes that nobody records, found by sampling: raw system calls, io_uring, static binaries.
//!
//! Two questions, both answered by looking twice. *Is there a reason to look?* [`Motive`]: the file's time of modification
//! moved. A file that a program under our eyes has mapped is left out, since that program may store and not flush
//! for as long as it likes (a transaction that waits, a lock that lives in a pool), and leave it so when it ends: such lines
//! differ from the image by right. Once nobody has the file open any more, a time other than the one at which it was left is a
//! reason again ([`Motive::since`]). *Which pages?* [`Samples`]: a page that differs from the image in two looks with no
//! record in between. One look proves nothing: a record may be on its way.
//!
//! Pure, but for [`digests`]: whoever samples keeps the looks and decides how often. `agent::source` does.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;

use xxhash_rust::xxh3::xxh3_64;

use super::content::Content;
use crate::types::{ByteRange, Lsn, PAGE};

/// A file's time of modification: seconds and nanoseconds. Stores through a mapping move it, too.
pub type Modified = (i64, i64);

/// Whether a file gives reason to be searched.
#[derive(Clone, Debug, Default)]
pub struct Motive {
    before: Option<Modified>,
    moved: bool,
}

impl Motive {
    /// Of a file that nobody has written to as long as its time is `known`.
    pub fn since(known: Modified) -> Motive {
        Motive { before: Some(known), moved: false }
    }

    /// Takes a new look at the time, a second or more after the last one. Whether the file is to be searched: once, since
    /// nobody knows what was done before, and whenever somebody wrote to it.
    ///
    /// The answer comes a look late: the clock that files are stamped with stands still for milliseconds, and what is
    /// written in the rest of such a tick moves nothing any more.
    pub fn look(&mut self, now: Modified) -> bool {
        let moved = self.before.replace(now) != Some(now);
        mem::replace(&mut self.moved, moved)
    }
}

/// Digests of `count` blocks of a file from number `first` on, each of `block` bytes; what lies behind its end counts as zeros.
pub fn block_digests(content: &Content<'_>, block: usize, first: u64, count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; block];
    // Of most small files most of what is asked for lies behind the end.
    let (end, mut zeros) = (content.size().div_ceil(block as u64), None);
    let one = |number: u64| match number < end {
        true => read_block(content, &mut bytes, number).map(|()| xxh3_64(&bytes)),
        false => Ok(*zeros.get_or_insert_with(|| xxh3_64(&vec![0; block]))),
    };
    (first..first.saturating_add(count as u64)).map(one).collect()
}

/// Reads the block of this number, as many bytes as `into` has; zeros behind the end.
pub fn read_block(content: &Content<'_>, into: &mut [u8], number: u64) -> io::Result<()> {
    let from = number.saturating_mul(into.len() as u64);
    let mut got = 0;
    while got < into.len() {
        match content.read_at(&mut into[got..], from + got as u64)? {
            0 => break,
            n => got += n,
        }
    }
    into[got..].fill(0);
    Ok(())
}

/// Digests of whole pages of a file; what lies behind its end counts as zeros.
pub fn digests(file: BorrowedFd<'_>, pages: &[u64]) -> io::Result<Vec<u64>> {
    let one = |page: &u64| {
        let mut bytes = [0; PAGE];
        let mut got = 0;
        while got < PAGE {
            match rustix::io::pread(file, &mut bytes[got..], page.saturating_mul(PAGE as u64) + got as u64)? {
                0 => break,
                n => got += n,
            }
        }
        Ok(xxh3_64(&bytes))
    };
    pages.iter().map(one).collect()
}

/// One page, looked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Digest of what the source holds.
    pub source: u64,
    /// Digest of what the image holds, with every record below `last_record` applied.
    pub image: u64,
    /// Where the last record that touched the page ended when it was looked at.
    pub last_record: Lsn,
}

impl Look {
    fn differs(&self) -> bool {
        self.source != self.image
    }
}

/// The latest look at each sampled page of one region.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    looks: BTreeMap<u64, Look>,
}

/// Pages that are remembered: with more, the oldest in the region's order are looked at afresh. Bounds memory to a few
/// megabytes a region.
pub const MAX_PAGES: usize = 1 << 16;

impl Samples {
    /// Enters a new look at page number `page`; returns the page's bytes if it has now been found differing from the image
    /// twice with no record in between.
    pub fn enter(&mut self, page: u64, look: Look) -> Option<ByteRange> {
        let before = self.looks.insert(page, look);
        if self.looks.len() > MAX_PAGES {
            self.looks.pop_first();
        }
        let silent = |before: Look| before.differs() && before.last_record == look.last_record;
        (look.differs() && before.is_some_and(silent)).then(|| bytes_of(page))
    }

    /// Forgets what was seen of page number `page`: a record tells of it by now, or it is equal.
    pub fn forget(&mut self, page: u64) {
        self.looks.remove(&page);
    }

    /// Forgets everything: after a gap or a sync, records no longer tell what the image holds.
    pub fn clear(&mut self) {
        self.looks.clear();
    }
}

fn bytes_of(page: u64) -> ByteRange {
    ByteRange::new(page * PAGE as u64, PAGE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_file_is_searched_at_first_and_a_look_after_it_was_written_to() {
        let mut motive = Motive::default();
        let reasons = [1, 1, 1, 2, 2, 3, 4, 4, 4].map(|seconds| motive.look((seconds, 0)));
        assert_eq!(reasons, [false, true, false, false, true, false, true, true, false]);
    }

    #[test]
    fn a_file_whose_time_is_known_is_searched_only_once_it_was_written_to() {
        let mut motive = Motive::since((1, 0));
        let reasons = [1, 1, 2, 2].map(|seconds| motive.look((seconds, 0)));
        assert_eq!(reasons, [false, false, false, true]);
    }

    #[test]
    fn what_lies_behind_the_end_counts_as_zeros() {
        use std::os::fd::AsFd;
        let file = tempfile::tempfile().unwrap();
        let zeros = xxh3_64(&[0; PAGE]);
        assert_eq!(digests(file.as_fd(), &[0, u64::MAX >> 14]).unwrap(), [zeros; 2]);
        file.set_len(100).unwrap();
        assert_eq!(digests(file.as_fd(), &[0]).unwrap(), [zeros]);
        rustix::io::pwrite(&file, b"x", 99).unwrap();
        assert_ne!(digests(file.as_fd(), &[0]).unwrap(), [zeros]);
    }

    fn look(source: u64, image: u64, last_record: u64) -> Look {
        Look { source, image, last_record: Lsn(last_record) }
    }

    #[test]
    fn two_differing_looks_without_a_record_between_are_a_finding() {
        let mut samples = Samples::default();
        assert_eq!(samples.enter(3, look(1, 2, 10)), None);
        assert_eq!(samples.enter(3, look(7, 2, 10)), Some(ByteRange::new(3 * 4096, 4096)));
    }

    #[test]
    fn a_record_between_or_an_equal_page_clears_the_suspicion() {
        let mut samples = Samples::default();
        samples.enter(3, look(1, 2, 10));
        assert_eq!(samples.enter(3, look(5, 2, 20)), None, "a record was on its way");
        assert_eq!(samples.enter(3, look(5, 5, 20)), None, "it arrived");
        assert_eq!(samples.enter(3, look(6, 5, 20)), None, "the first look since");
        samples.clear();
        assert_eq!(samples.enter(3, look(6, 5, 20)), None, "nothing is remembered");
    }

    proptest! {
        #[test]
        fn a_region_whose_every_write_is_recorded_is_never_accused(
            steps in prop::collection::vec((0u64..4, any::<bool>()), 1..200)
        ) {
            // Each step writes a page and records it at once; a look may fall before the image has caught up.
            let mut samples = Samples::default();
            let (mut source, mut image, mut lsn) = ([0u64; 4], [0u64; 4], 0);
            let mut last = [0u64; 4];
            for (page, lagging) in steps {
                let p = page as usize;
                lsn += 1;
                (source[p], last[p]) = (lsn, lsn);
                if !lagging {
                    image = source;
                }
                prop_assert_eq!(samples.enter(page, look(source[p], image[p], last[p])), None);
            }
        }
    }
}
