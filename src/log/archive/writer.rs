//! Writing a segment: batches one after the other, durable at [`SegmentWriter::sync`].

use std::fs::{self, File, OpenOptions};
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
    /// Bytes of the file up to there.
    durable_bytes: u64,
    /// A write failed: the file's end is unknown until it is opened again.
    broken: bool,
}

impl SegmentWriter {
    /// A new segment in `dir`.
    pub fn create(dir: &Path, id: SegmentId, time_ns: u64) -> Result<SegmentWriter, SegmentError> {
        let path = dir.join(SegmentId::file_name(id.first));
        let file = create_with_header(dir, &path, FileHeader::new(id, time_ns).as_bytes())
            .map_err(SegmentError::io("create", &path))?;
        let (bytes, end) = (FILE_HEADER as u64, id.first);
        Ok(SegmentWriter { path, file, id, bytes, end, durable: end, durable_bytes: bytes, broken: false })
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
        let (path, durable) = (path.to_owned(), end);
        Ok(SegmentWriter { path, file, id, bytes, end, durable, durable_bytes: bytes, broken: false })
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
            if self.end != lsn {
                return Err(SegmentError::BadBatch { lsn });
            }
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

    /// Makes everything appended durable; returns its end. What could not be made durable is cut off: the kernel takes pages whose
    /// writing failed for written, so whoever opens the file would find it, and sync it, in vain.
    pub fn sync(&mut self) -> Result<Lsn, SegmentError> {
        if self.durable < self.end {
            if let Err(source) = self.file.sync_data() {
                self.broken = true;
                let cut = OpenOptions::new().write(true).open(&self.path);
                cut.and_then(|file| file.set_len(self.durable_bytes))
                    .map_err(SegmentError::io("cut what could not be made durable off", &self.path))?;
                return Err(SegmentError::io("sync", &self.path)(source));
            }
            (self.durable, self.durable_bytes) = (self.end, self.bytes);
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

/// A new file at `path` in `dir` with this header: it is there whole or not at all, also where the disk is full.
fn create_with_header(dir: &Path, path: &Path, header: &[u8]) -> std::io::Result<File> {
    if path.try_exists()? {
        return Err(std::io::ErrorKind::AlreadyExists.into());
    }
    let beside = dir.join(BESIDE);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&beside)?;
    file.write_all(header)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}

/// Where a segment has its header written before it gets its name.
const BESIDE: &str = "segment.new";

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

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::super::reader::tests::{ID, record};
    use super::*;

    #[test]
    fn what_could_not_be_made_durable_is_not_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = SegmentWriter::create(dir.path(), ID, 5).unwrap();
        writer.append(&record(ID.first, b"one"), 10).unwrap();
        let durable = writer.sync().unwrap();
        writer.append(&record(durable, b"two"), 20).unwrap();
        // Nothing can be synced through a pipe.
        let (_read, pipe) = std::io::pipe().unwrap();
        writer.file = OwnedFd::from(pipe).into();
        writer.sync().unwrap_err();
        assert!(matches!(
            writer.append(&record(writer.end(), b"more"), 30),
            Err(SegmentError::BadBatch { .. })
        ));
        let mut again = SegmentWriter::open(writer.path(), ID.group).unwrap();
        assert_eq!((again.end(), again.durable()), (durable, durable));
        again.append(&record(durable, b"two, again"), 40).unwrap();
        assert!(again.sync().unwrap() > durable);
    }
}
