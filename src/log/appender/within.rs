//! Changes of whole files: sizes and names, whose order among several processes only their places in the log can tell.
//!
//! A lock of one process orders nothing between two. So a change is made while its place is held
//! ([`Appender::append_around`]), which puts it before whatever any process records of the file as it is afterwards; and a
//! size is looked at after its place was taken ([`Appender::append_size`]), so that it is never older than its place. Whoever
//! may have cut a file calls both, in this order: the last size in the log is then the file's own.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use rustix::fs::{FileType, fstat};

use super::{Ahead, AppendError, Appender};
use crate::log::format::{Kind, MAX_REGION_BYTES, OFFSET_BITS, SHRINKS, cell};
use crate::log::region::LogRegion;
use crate::types::{Lsn, RegionId};

impl Appender {
    /// Appends a record of what `act` does, which runs while the record's place is held; if it says that it did nothing, the
    /// place becomes a filler. Others' drains wait meanwhile. While the application is ahead `act` runs all the same.
    ///
    /// # Panics
    /// Before `act`, if the payload is longer than the ring's records may be, or `offset` beyond the largest region.
    pub fn append_around(
        &self,
        kind: Kind,
        region: RegionId,
        offset: u64,
        payload: &[u8],
        act: impl FnOnce() -> bool,
    ) -> Result<(), Ahead> {
        self.append_at(kind, region, offset, payload, |_| act())
    }

    /// As [`Appender::append_around`]; `act` is told where the record's place begins, if it has one.
    pub fn append_at(
        &self,
        kind: Kind,
        region: RegionId,
        offset: u64,
        payload: &[u8],
        act: impl FnOnce(Option<Lsn>) -> bool,
    ) -> Result<(), Ahead> {
        assert!(payload.len() <= self.max_payload, "payload of {} bytes", payload.len());
        assert!(offset >> OFFSET_BITS == 0, "offset {offset} is beyond the largest region");
        let slot = match self.reserve(payload.len()) {
            Ok(slot) => slot,
            Err(ahead) => {
                act(None);
                return Err(ahead);
            }
        };
        if !act(Some(Lsn(slot.lsn))) {
            self.give_up(&slot);
            return Ok(());
        }
        let (header, at) = self.slot_addr(&slot);
        // SAFETY: the slot is ours and as long as the payload.
        unsafe { ptr::copy_nonoverlapping(payload.as_ptr(), at, payload.len()) };
        self.finish(&slot, header, kind, region, offset);
        self.await_lower(slot.lsn, slot.lsn + slot.span);
        Ok(())
    }

    /// Records the size that `file`, which is `region`, has once the record's place is taken; returns it. What has no size of
    /// its own, a device, is left alone, and 0 returned.
    pub fn append_size(&self, region: RegionId, file: BorrowedFd<'_>) -> Result<u64, AppendError> {
        if size_of(file)?.is_none() {
            return Ok(0);
        }
        let slot = self.reserve(0)?;
        let size = match size_of(file) {
            Ok(Some(size)) if size <= MAX_REGION_BYTES => size,
            other => {
                self.give_up(&slot);
                return Err(other.map_or_else(AppendError::Read, |_| AppendError::TooLarge));
            }
        };
        let (header, _) = self.slot_addr(&slot);
        self.finish(&slot, header, Kind::RegionResize, region, size);
        self.await_lower(slot.lsn, slot.lsn + slot.span);
        Ok(size)
    }
}

impl LogRegion {
    /// How often a process of this log began to cut the file of `region`, or of one that shares its counter. To be read after a
    /// write: if the number is that of before a size was recorded, the log has no smaller size behind that record.
    pub fn shrinks(&self, region: RegionId) -> u64 {
        // Pairs with `shrinking`: whoever does not see a cut here wrote before it.
        self.shrinks_cell(region).load(SeqCst)
    }

    /// To be called before a file is cut.
    pub fn shrinking(&self, region: RegionId) {
        // Before the system call that cuts. Pairs with `shrinks`.
        self.shrinks_cell(region).fetch_add(1, SeqCst);
    }

    fn shrinks_cell(&self, region: RegionId) -> &AtomicU64 {
        self.control().u64(cell::SHRINKS + 8 * (usize::from(region.0) % SHRINKS))
    }
}

/// Bytes of a regular file.
fn size_of(file: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let stat = fstat(file)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(regular.then_some(stat.st_size as u64))
}
