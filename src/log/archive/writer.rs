//! Writing a segment: batches one after the other, durable at [`SegmentWriter::sync`].

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::io::Write;
use std::path::{Path, PathBuf};

use zerocopy::IntoBytes;

use super::{
    BATCH_HEADER, BatchHeader, FILE_HEADER, FileHeader, MAX_BATCH, SegmentError, SegmentId, SegmentReader,
};
use crate::log::scan::{Scan, scan_bytes};
use crate::types::{GroupId, Lsn};

/// A segment that is being written. One thread.
pub struct SegmentWriter {
    path: PathBuf,
    file: File,
    id: SegmentId,
    bytes: u64,
    end: Lsn,
    durable: Lsn,
    /// A write failed: the file's end is unknown until it is opened again.
    broken: bool,
}

impl SegmentWriter {
    /// A new segment in `dir`.
    pub fn create(dir: &Path, id: SegmentId, time_ns: u64) -> Result<SegmentWriter, SegmentError> {
        let path = dir.join(SegmentId::file_name(id.first));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(SegmentError::io("create", &path))?;
        let write = file.write_all(FileHeader::new(id, time_ns).as_bytes());
        let done = write.and_then(|()| file.sync_all()).and_then(|()| File::open(dir)?.sync_all());
        done.map_err(SegmentError::io("write", &path))?;
        let (bytes, end) = (FILE_HEADER as u64, id.first);
        Ok(SegmentWriter { path, file, id, bytes, end, durable: end, broken: false })
    }

    /// Goes on with a segment: what a crash cut short at its end is cut off.
    pub fn open(path: &Path, group: GroupId) -> Result<SegmentWriter, SegmentError> {
        let mut reader = SegmentReader::open(path, group)?;
        while reader.next_record()?.is_some() {}
        let (id, end, bytes) = (reader.id(), reader.batch_end(), reader.batch_end_offset());
        let mut file = OpenOptions::new().write(true).open(path).map_err(SegmentError::io("open", path))?;
        let seek = std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(bytes));
        let done = file.set_len(bytes).and(seek).and_then(|_| file.sync_all());
        done.map_err(SegmentError::io("cut", path))?;
        Ok(SegmentWriter { path: path.to_owned(), file, id, bytes, end, durable: end, broken: false })
    }

    /// Appends a batch of sealed records, the first of which stands at [`SegmentWriter::end`].
    pub fn append(&mut self, records: &[u8], time_ns: u64) -> Result<(), SegmentError> {
        if records.is_empty() {
            return Ok(());
        }
        let lsn = self.end;
        let end = whole_records(records, self.id, lsn).ok_or(SegmentError::BadBatch { lsn })?;
        if self.broken {
            *self = SegmentWriter::open(&self.path, self.id.group)?;
        }
        let header = BatchHeader::new(lsn, records.len() as u64, time_ns);
        self.broken = true;
        let written = write_both(&mut self.file, header.as_bytes(), records);
        written.map_err(SegmentError::io("append to", &self.path))?;
        self.broken = false;
        self.bytes += (BATCH_HEADER + records.len()) as u64;
        self.end = end;
        Ok(())
    }

    /// Makes everything appended durable; returns its end.
    pub fn sync(&mut self) -> Result<Lsn, SegmentError> {
        if self.durable < self.end {
            self.file.sync_data().map_err(SegmentError::io("sync", &self.path))?;
            self.durable = self.end;
        }
        Ok(self.durable)
    }

    /// What it is of.
    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// End of the last record appended.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// End of the last record that is durable.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The end of `records` if they are whole records from `lsn` on, nothing else, and not too many for a batch.
fn whole_records(records: &[u8], id: SegmentId, lsn: Lsn) -> Option<Lsn> {
    let end = Lsn(lsn.0.checked_add(records.len() as u64)?);
    let mut at = lsn;
    while at < end {
        match scan_bytes(records, lsn, id.generation, at) {
            Scan::Record(header) => at = header.next(),
            _ => return None,
        }
    }
    (at == end && records.len() as u64 <= MAX_BATCH).then_some(end)
}

fn write_both(file: &mut File, head: &[u8], body: &[u8]) -> std::io::Result<()> {
    // One system call in the usual case.
    let n = file.write_vectored(&[IoSlice::new(head), IoSlice::new(body)])?;
    if n < head.len() {
        file.write_all(&head[n..])?;
    }
    file.write_all(&body[n.saturating_sub(head.len())..])
}
