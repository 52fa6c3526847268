//! Reading a segment record by record.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::{BATCH_HEADER, BatchHeader, FILE_HEADER, FileHeader, SegmentError, SegmentId};
use crate::log::format::{RECORD_HEADER, RecordHeader};
use crate::log::scan::{Scan, scan_bytes};
use crate::types::{GroupId, Lsn};

/// A record of an archive.
#[derive(Clone, Copy, Debug)]
pub struct ArchivedRecord<'a> {
    /// Its header.
    pub header: RecordHeader,
    /// Its payload.
    pub payload: &'a [u8],
    /// When its batch was archived, nanoseconds since 1970.
    pub time_ns: u64,
}

/// Reads one segment from its start. Holds one batch in memory.
pub struct SegmentReader {
    path: PathBuf,
    file: BufReader<File>,
    id: SegmentId,
    batch: Vec<u8>,
    /// LSN of the batch's first byte.
    base: Lsn,
    time_ns: u64,
    at: Lsn,
    /// End of the last whole batch: in the stream, and in the file.
    end: Lsn,
    offset: u64,
}

impl SegmentReader {
    /// Opens a segment of `group`.
    pub fn open(path: &Path, group: GroupId) -> Result<SegmentReader, SegmentError> {
        let file = File::open(path).map_err(SegmentError::io("open", path))?;
        let mut file = BufReader::new(file);
        let unfit = |what| SegmentError::Unfit { path: path.to_owned(), what };
        let mut head = [0; FILE_HEADER];
        match file.read_exact(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(unfit("is cut off in its header"));
            }
            read => read.map_err(SegmentError::io("read", path))?,
        }
        let id = FileHeader::check(&head, group).map_err(unfit)?;
        Ok(SegmentReader {
            path: path.to_owned(),
            file,
            id,
            batch: Vec::new(),
            base: id.first,
            time_ns: 0,
            at: id.first,
            end: id.first,
            offset: FILE_HEADER as u64,
        })
    }

    /// What it is of.
    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// The next record; `None` at the end, which is where the file ends or where its checksums stop fitting.
    pub fn next_record(&mut self) -> Result<Option<ArchivedRecord<'_>>, SegmentError> {
        if self.at == self.end && !self.next_batch()? {
            return Ok(None);
        }
        // Every record of the batch was checked when it was read.
        let Scan::Record(header) = scan_bytes(&self.batch, self.base, self.id.generation, self.at) else {
            return Ok(None);
        };
        let payload = (self.at.since(self.base) + RECORD_HEADER) as usize;
        self.at = header.next();
        let payload = &self.batch[payload..payload + header.len as usize];
        Ok(Some(ArchivedRecord { header, payload, time_ns: self.time_ns }))
    }

    /// End of the batches read so far.
    pub(super) fn batch_end(&self) -> Lsn {
        self.end
    }

    /// The same as an offset in the file.
    pub(super) fn batch_end_offset(&self) -> u64 {
        self.offset
    }

    fn next_batch(&mut self) -> Result<bool, SegmentError> {
        let mut head = [0; BATCH_HEADER];
        if !fill(&mut self.file, &mut head).map_err(SegmentError::io("read", &self.path))? {
            return Ok(false);
        }
        let Some(header) = BatchHeader::check(&head, self.end) else { return Ok(false) };
        // Grown as bytes come, so that a damaged length cannot ask for memory that the file does not fill.
        self.batch.clear();
        let read = self.file.by_ref().take(header.len).read_to_end(&mut self.batch);
        let read = read.map_err(SegmentError::io("read", &self.path))?;
        let end = self.end.advance(header.len);
        if read as u64 != header.len || !self.is_whole(self.end, end) {
            return Ok(false);
        }
        (self.base, self.time_ns, self.end) = (self.end, header.time_ns, end);
        self.offset += BATCH_HEADER as u64 + header.len;
        Ok(true)
    }

    fn is_whole(&self, base: Lsn, end: Lsn) -> bool {
        let mut at = base;
        while let Scan::Record(header) = scan_bytes(&self.batch, base, self.id.generation, at) {
            at = header.next();
        }
        at == end
    }
}

/// Reads all of `into`; false if the file ends before.
fn fill(file: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(into) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::SegmentWriter;
    use super::*;
    use crate::log::format::{Kind, RecordHeader, SlotState};
    use crate::types::{Generation, RegionId};
    use zerocopy::IntoBytes;

    pub const ID: SegmentId =
        SegmentId { group: GroupId([3; 16]), generation: Generation(2), first: Lsn(64) };

    pub fn record(lsn: Lsn, payload: &[u8]) -> Vec<u8> {
        let mut header = RecordHeader {
            lsn: lsn.0,
            len: payload.len() as u32,
            owner: 0,
            state: SlotState::Filled as u8,
            kind: Kind::Data as u8,
            place: RecordHeader::pack_place(RegionId(1), 0),
            generation: 2,
            crc: 0,
        };
        header.crc = crc32c::crc32c_append(header.crc_seed(Generation(2)), payload);
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(payload);
        bytes.resize(header.span() as usize, 0);
        bytes
    }

    fn lsns(path: &Path) -> Vec<(u64, u64)> {
        let mut reader = SegmentReader::open(path, ID.group).unwrap();
        let mut found = Vec::new();
        while let Some(r) = reader.next_record().unwrap() {
            found.push((r.header.lsn, r.time_ns));
        }
        found
    }

    fn two_batches(dir: &Path) -> SegmentWriter {
        let mut writer = SegmentWriter::create(dir, ID, 5).unwrap();
        let mut first = record(Lsn(64), b"one");
        first.extend(record(Lsn(128), b"two"));
        writer.append(&first, 10).unwrap();
        writer.append(&record(Lsn(192), &[9; 100]), 20).unwrap();
        writer.sync().unwrap();
        writer
    }

    #[test]
    fn a_cut_anywhere_leaves_whole_batches_and_writing_goes_on_after_them() {
        let dir = tempfile::tempdir().unwrap();
        let writer = two_batches(dir.path());
        let whole = std::fs::read(writer.path()).unwrap();
        assert_eq!(lsns(writer.path()), [(64, 10), (128, 10), (192, 20)]);
        let first_end = FILE_HEADER + BATCH_HEADER + 128;
        for cut in FILE_HEADER..whole.len() {
            std::fs::write(writer.path(), &whole[..cut]).unwrap();
            let mut again = SegmentWriter::open(writer.path(), ID.group).unwrap();
            let kept = if cut < first_end { 0 } else { 2 };
            assert_eq!(lsns(writer.path()).len(), kept, "cut at {cut}");
            let next = again.end();
            again.append(&record(next, b"next"), 30).unwrap();
            assert_eq!(lsns(writer.path()).len(), kept + 1);
        }
    }

    #[test]
    fn a_changed_byte_ends_the_reading_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let writer = two_batches(dir.path());
        let whole = std::fs::read(writer.path()).unwrap();
        let first_end = FILE_HEADER + BATCH_HEADER + 128;
        // Padding is not covered by a checksum and means nothing.
        for i in
            (FILE_HEADER..FILE_HEADER + BATCH_HEADER + 35).chain(first_end..first_end + BATCH_HEADER + 132)
        {
            let mut bad = whole.clone();
            bad[i] ^= 4;
            std::fs::write(writer.path(), bad).unwrap();
            assert_eq!(lsns(writer.path()).len(), if i < first_end { 0 } else { 2 }, "byte {i}");
        }
        for i in 0..FILE_HEADER {
            let mut bad = whole.clone();
            bad[i] ^= 4;
            std::fs::write(writer.path(), bad).unwrap();
            assert!(SegmentReader::open(writer.path(), ID.group).is_err(), "byte {i}");
        }
    }

    #[test]
    fn a_batch_that_is_not_whole_records_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = two_batches(dir.path());
        let good = record(writer.end(), b"x");
        for bad in [&good[..good.len() - 1], &record(Lsn(64), b"x"), &[good.clone(), vec![0; 32]].concat()] {
            assert!(matches!(writer.append(bad, 1), Err(SegmentError::BadBatch { .. })));
        }
        assert_eq!(lsns(writer.path()).len(), 3);
    }
}
