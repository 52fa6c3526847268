//! Appending a range of a file: for programs that `write(2)` to it, and for the agent's sync pages.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{Ahead, Appender, MAX_ATTEMPTS, Slot};
use crate::log::format::{Kind, MAX_REGION_BYTES, OFFSET_BITS, RecordHeader};
use crate::log::protocol;
use crate::region::content::Content;
use crate::types::{LINE, Lsn, PAGE, RegionId};

/// Most bytes that are read, and content that is recorded, while one slot keeps others waiting to see whether a range is zero.
const ZERO_PIECE: usize = 1 << 20;

/// Readings of a page before giving up on lines that agree; see `lines`.
const MAX_READINGS: u32 = 64;

/// Why a range of a file is not in the log.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The application runs ahead of the log; the range is noted in the dirty bitmap.
    #[error(transparent)]
    Ahead(#[from] Ahead),
    /// The file could not be read; its place in the log became a filler.
    #[error("reading back what was written: {0}")]
    Read(#[from] io::Error),
    /// The file has grown larger than a region may be; its size is in no record.
    #[error("it is larger than {} TiB", MAX_REGION_BYTES >> 40)]
    TooLarge,
}

impl Appender {
    /// Records `len` bytes at `offset` of `file`, which is `region`, as the file holds them now, and returns where the next
    /// record starts; what lies past the end of the file is left out. The read happens after the place is taken.
    ///
    /// `stable`: the file may be mapped and stored to meanwhile, so read until each line is the content of one instant.
    pub fn append_from_file(
        &self,
        region: RegionId,
        offset: u64,
        len: usize,
        file: BorrowedFd<'_>,
        stable: bool,
    ) -> Result<Lsn, AppendError> {
        self.append_content(Kind::Data, (region, offset), len, file, stable)
    }

    /// Agent: as [`Appender::append_from_file`], as a part of a copy.
    pub fn copy_from_file(
        &self,
        region: RegionId,
        offset: u64,
        len: usize,
        file: BorrowedFd<'_>,
    ) -> Result<Lsn, AppendError> {
        self.append_content(Kind::CopyData, (region, offset), len, file, true)
    }

    fn append_content(
        &self,
        kind: Kind,
        (region, offset): (RegionId, u64),
        len: usize,
        file: BorrowedFd<'_>,
        stable: bool,
    ) -> Result<Lsn, AppendError> {
        let content = Content::of(&file)?;
        let len = (len as u64).min(content.size().saturating_sub(offset)) as usize;
        let mut end = self.log.tail();
        let mut done = 0;
        let mut attempts = 0;
        while done < len {
            let n = (len - done).min(self.max_payload);
            let at = offset + done as u64;
            bring_to_memory(&content, at, n)?;
            match self.append_piece(kind, (region, at), n, &content, stable) {
                Ok(next) => {
                    end = next;
                    done += n;
                }
                Err(AppendError::Ahead(ahead)) => {
                    attempts += 1;
                    if self.note(region, at, len - done) || attempts > MAX_ATTEMPTS {
                        return Err(ahead.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(end)
    }

    /// Records that `len` bytes at `offset` of `file`, which is `region`, have been made zero; what was stored there since is recorded
    /// as it is. `file` is no descriptor of the program's: its offset moves.
    ///
    /// Another thread may store and flush there between the call that made them zero and this one. Its record comes before ours, which
    /// must not take back what it says: so a [`Kind::Zero`] stands only where zeros were found after its place was taken.
    pub fn append_zeros(
        &self,
        region: RegionId,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
    ) -> Result<Lsn, AppendError> {
        if let Some(next) = self.append_if_zero(region, offset, len, file)? {
            return Ok(next);
        }
        let (mut end, past) = (self.log.tail(), offset + len);
        for at in (offset..past).step_by(ZERO_PIECE) {
            let n = (past - at).min(ZERO_PIECE as u64);
            end = match self.append_if_zero(region, at, n, file)? {
                Some(next) => next,
                None => self.append_from_file(region, at, n as usize, file, true)?,
            };
        }
        Ok(end)
    }

    /// Appends a record that says that the range is zero, or else a filler.
    fn append_if_zero(
        &self,
        region: RegionId,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
    ) -> Result<Option<Lsn>, AppendError> {
        let count = len.to_le_bytes();
        let slot = self.reserve(count.len())?;
        let (header, payload): (*mut RecordHeader, *mut u8) = self.slot_addr(&slot);
        match is_zero(file, offset, len) {
            Ok(true) => {}
            other => {
                self.give_up(&slot);
                return Ok(other.map(|_| None)?);
            }
        }
        // SAFETY: the slot is ours and as long as the count.
        unsafe { payload.copy_from_nonoverlapping(count.as_ptr(), count.len()) };
        self.finish(&slot, header, Kind::Zero, region, offset);
        self.await_lower(slot.lsn, slot.lsn + slot.span);
        Ok(Some(Lsn(slot.lsn + slot.span)))
    }

    /// The slot becomes a filler.
    pub(super) fn give_up(&self, slot: &Slot) {
        protocol::abandon(&*self.log, slot.lsn, slot.span, slot.cell);
        super::FILLING.set(super::FILLING.get() - 1);
    }

    /// One record of content.
    fn append_piece(
        &self,
        kind: Kind,
        (region, offset): (RegionId, u64),
        len: usize,
        content: &Content<'_>,
        stable: bool,
    ) -> Result<Lsn, AppendError> {
        assert!(offset >> OFFSET_BITS == 0, "offset {offset} is beyond the largest region");
        let slot = self.reserve(len)?;
        let (header, payload): (*mut RecordHeader, *mut u8) = self.slot_addr(&slot);
        // SAFETY: the slot is ours and `len` bytes long.
        let read = unsafe { content.read_to(offset, payload, len) }.and_then(|()| {
            // SAFETY: as above.
            if stable { unsafe { self.settle(content, offset, payload, len) } } else { Ok(()) }
        });
        if let Err(error) = read {
            self.give_up(&slot);
            return Err(error.into());
        }
        self.finish(&slot, header, kind, region, offset);
        self.await_lower(slot.lsn, slot.lsn + slot.span);
        Ok(Lsn(slot.lsn + slot.span))
    }

    /// Reads the range again until every line agrees with its last reading.
    ///
    /// # Safety
    /// `at` is writable for `len` bytes and nobody else's.
    unsafe fn settle(&self, content: &Content<'_>, offset: u64, at: *mut u8, len: usize) -> io::Result<()> {
        let mut again = [0u8; PAGE];
        for done in (0..len).step_by(PAGE) {
            let n = PAGE.min(len - done);
            // SAFETY: within the range; the slot is ours, so nobody writes while the slice lives.
            let page = unsafe { std::slice::from_raw_parts_mut(at.wrapping_add(done), n) };
            let mut unsettled = 0;
            for _ in 0..MAX_READINGS {
                // SAFETY: `again` holds at least `n` bytes.
                unsafe { content.read_to(offset + done as u64, again.as_mut_ptr(), n)? };
                unsettled = adopt_changes(page, &again[..n]);
                if unsettled == 0 {
                    break;
                }
            }
            self.count_torn(unsettled);
        }
        Ok(())
    }
}

/// Takes over the lines that differ; returns how many did.
fn adopt_changes(page: &mut [u8], again: &[u8]) -> u64 {
    let mut changed = 0;
    for (old, new) in page.chunks_mut(LINE).zip(again.chunks(LINE)) {
        if old != new {
            old.copy_from_slice(new);
            changed += 1;
        }
    }
    changed
}

/// Whether the range reads as zero; `false`, too, where that takes reading more than [`ZERO_PIECE`].
fn is_zero(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<bool> {
    let (mut at, end, mut looked_at) = (offset, offset + len, 0);
    let mut page = [0u8; PAGE];
    let content = Content::of(&file)?;
    while at < end {
        // What is not data is zero; a file system that knows no holes has data only.
        at = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.max(at),
            Err(Errno::NXIO) => end,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        if at >= end {
            break;
        }
        let n = ((end - at) as usize).min(PAGE - at as usize % PAGE);
        let got = content.read_at(&mut page[..n], at)?;
        // What was just truncated would read as zero if the file grew again.
        page[got..n].fill(0);
        looked_at += n;
        if looked_at > ZERO_PIECE || page[..n].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}

/// Reads a byte of each page, so that waiting for a disk happens here and not while others wait for the slot.
fn bring_to_memory(content: &Content<'_>, offset: u64, len: usize) -> io::Result<()> {
    for done in (0..len).step_by(PAGE) {
        content.read_at(&mut [0], offset + done as u64)?;
    }
    Ok(())
}
