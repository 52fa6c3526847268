//! A region file, written through a mapping where that is safe.
//!
//! Writing to a hole of a mapping raises SIGBUS when the file system is full. So a page's first bytes go through
//! `pwrite`, which says ENOSPC instead and allocates the page; from then on the mapping is used: no system call
//! for a record. File systems that allocate anew on every write (copy on write) are written by `pwrite` always.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use super::bitmap::PageBits;
use super::{Bytes, RegionFile};
use crate::region::memory::{Access, SharedMem};

/// Page of a mapping.
const PAGE: u64 = crate::types::PAGE as u64;

/// Bytes copied at once from shared memory to a buffer of ours on their way to `pwrite`.
const BOUNCE: usize = 64 << 10;

pub(super) struct MappedRegion {
    file: File,
    size: u64,
    may_map: bool,
    map: Option<SharedMem>,
    present: PageBits,
    /// Something was done since the last sync; always false where syncing means nothing.
    dirty: bool,
    sync_needed: bool,
}

impl MappedRegion {
    /// `may_map`: writing to allocated pages of a mapping never fails. `sync_needed`: false for memory.
    pub(super) fn new(file: File, size: u64, may_map: bool, sync_needed: bool) -> io::Result<Self> {
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        let mut region = MappedRegion {
            file,
            size,
            may_map,
            map: None,
            present: PageBits::new(),
            dirty: sync_needed,
            sync_needed,
        };
        region.remap();
        region.find_present()?;
        Ok(region)
    }

    /// A region that cannot be mapped (address space, limits) is still served by `pwrite`.
    fn remap(&mut self) {
        self.map = None;
        if self.may_map && self.size > 0 {
            let len = self.size.next_multiple_of(PAGE) as usize;
            self.map = SharedMem::map(self.file.as_fd(), 0, len, Access::ReadWrite).ok();
        }
    }

    fn find_present(&mut self) -> io::Result<()> {
        let mut at = 0;
        while at < self.size {
            let start = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            let end = seek(&self.file, SeekFrom::Hole(start))?;
            let last = if end >= self.size { end.div_ceil(PAGE) } else { end / PAGE };
            let first = start.div_ceil(PAGE);
            if first < last {
                self.present.set(first..last.min(self.size.div_ceil(PAGE)), true);
            }
            at = end;
        }
        Ok(())
    }

    fn pwrite(&mut self, offset: u64, bytes: Bytes<'_>) -> io::Result<()> {
        match bytes {
            Bytes::Slice(b) => self.file.write_all_at(b, offset),
            Bytes::Shared { len, .. } => {
                let mut buf = vec![0; len.min(BOUNCE)];
                let mut done = 0;
                while done < len {
                    let n = buf.len().min(len - done);
                    bytes.part(done, n).copy_to(&mut buf[..n]);
                    self.file.write_all_at(&buf[..n], offset + done as u64)?;
                    done += n;
                }
                Ok(())
            }
        }
    }

    /// Splits `[offset, offset + len)` into runs of pages that are all present or all absent.
    fn next_run(&self, at: u64, end: u64) -> (Range<u64>, bool) {
        let page = at / PAGE;
        let stop = self.present.run(page, end.div_ceil(PAGE));
        (at..(stop * PAGE).min(end), self.present.get(page))
    }

    fn zero_present(&mut self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let (run, present) = self.next_run(at, range.end);
            if present {
                let len = (run.end - run.start) as usize;
                match &self.map {
                    Some(map) => map.zero(run.start as usize, len),
                    None => self.pwrite(run.start, Bytes::Slice(&vec![0; len]))?,
                }
            }
            at = run.end;
        }
        Ok(())
    }
}

impl RegionFile for MappedRegion {
    fn write(&mut self, offset: u64, bytes: Bytes<'_>) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        assert!(end <= self.size, "bytes up to {end} in a region of {}", self.size);
        self.dirty = self.sync_needed;
        let page = offset / PAGE;
        if let Some(map) = &self.map
            && end <= (page + 1) * PAGE
            && self.present.get(page)
        {
            // Nearly every record is of a few lines in a page that is there.
            bytes.copy_into(map, offset as usize);
            return Ok(());
        }
        let mut at = offset;
        while at < end {
            let (run, present) = self.next_run(at, end);
            let part = bytes.part((at - offset) as usize, (run.end - run.start) as usize);
            match &self.map {
                Some(map) if present => part.copy_into(map, at as usize),
                _ => {
                    self.pwrite(at, part)?;
                    self.present.set(at / PAGE..run.end.div_ceil(PAGE), true);
                }
            }
            at = run.end;
        }
        Ok(())
    }

    fn expect(&self, offset: u64) {
        match &self.map {
            Some(map) if offset < self.size && self.present.get(offset / PAGE) => {
                map.prefetch(offset as usize)
            }
            _ => {}
        }
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        assert!(end <= self.size, "zeros up to {end} in a region of {}", self.size);
        self.dirty = self.sync_needed;
        let (first, last) = (offset.next_multiple_of(PAGE), end / PAGE * PAGE);
        if first >= last {
            return self.zero_present(offset..end);
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, punch, first, last - first) {
            Ok(()) => self.present.set(first / PAGE..last / PAGE, false),
            Err(rustix::io::Errno::OPNOTSUPP) => self.zero_present(first..last)?,
            Err(e) => return Err(e.into()),
        }
        self.zero_present(offset..first)?;
        self.zero_present(last..end)
    }

    fn resize(&mut self, size: u64) -> io::Result<()> {
        // Unmapped first: a page past the end must not be reachable. The rest of a cut page is zeroed by the kernel.
        self.map = None;
        let done = self.file.set_len(size);
        if done.is_ok() {
            let (old, new) = (self.size.div_ceil(PAGE), size.div_ceil(PAGE));
            if new < old {
                self.present.set(new..old, false);
            }
            self.present.truncate(new);
            self.size = size;
            self.dirty = self.sync_needed;
        }
        self.remap();
        done
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn region(size: u64) -> MappedRegion {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        MappedRegion::new(file, size, true, true).unwrap()
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_vector_holds(
            ops in prop::collection::vec((0u8..4, 0u64..40_000, 0u64..20_000, any::<u8>()), 1..40)
        ) {
            let (mut region, mut model) = (region(40_000), vec![0u8; 40_000]);
            for (op, a, b, fill) in ops {
                let (start, len) = (a.min(model.len() as u64), b.min(model.len() as u64 - a.min(model.len() as u64)));
                let range = start as usize..(start + len) as usize;
                match op {
                    0 | 1 => {
                        region.write(start, Bytes::Slice(&vec![fill; len as usize])).unwrap();
                        model[range].fill(fill);
                    }
                    2 => {
                        region.zero(start, len).unwrap();
                        model[range].fill(0);
                    }
                    _ => {
                        region.resize(a).unwrap();
                        model.resize(a as usize, 0);
                    }
                }
                let mut got = vec![1; model.len()];
                region.read(0, &mut got).unwrap();
                prop_assert!(got == model);
            }
        }
    }

    #[test]
    fn it_stays_sparse_and_finds_its_pages_again() {
        use std::os::unix::fs::MetadataExt;
        let mut r = region(1 << 30);
        r.write(500 << 20, Bytes::Slice(&[7; 100])).unwrap();
        assert!(r.file.metadata().unwrap().blocks() * 512 <= 8 << 10);
        let mut again = MappedRegion::new(r.file.try_clone().unwrap(), 1 << 30, true, true).unwrap();
        assert!(again.present.get((500 << 20) / PAGE) && !again.present.get(0));
        again.zero(500 << 20, 1 << 20).unwrap();
        assert_eq!(r.file.metadata().unwrap().blocks(), 0);
    }
}
