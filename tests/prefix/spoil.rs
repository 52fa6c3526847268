//! An archive that lacks records: what a capture that forgets some would have written.

use std::fs;
use std::path::Path;

use pmemha::log::archive::{SegmentReader, SegmentWriter};
use pmemha::log::format::{Kind, RecordHeader};
use pmemha::types::GroupId;
use zerocopy::IntoBytes;

use crate::walk::Chance;

/// Copies the archive in `from` to `to`, with one record of content in `one_in`, chosen by chance, turned into a filler of the
/// same length. Returns how many.
pub fn drop_records(from: &Path, to: &Path, one_in: u64) -> usize {
    let mut chance = Chance(one_in);
    let mut dropped = 0;
    copy(from, to, &mut |path, to| {
        let owner = fs::read(path.with_file_name("group")).expect("an era's owner");
        let group = GroupId(owner.try_into().expect("sixteen bytes"));
        let mut reader = SegmentReader::open(path, group).expect("a segment");
        let dir = to.parent().expect("a file");
        let mut writer = SegmentWriter::create(dir, reader.id(), 0).expect("a new segment");
        while let Some(record) = reader.next_record().expect("a sound segment") {
            let drop = record.header.kind == Kind::Data as u8 && chance.below(one_in as usize) == 0;
            dropped += usize::from(drop);
            let header = if drop { filler(record.header, record.payload) } else { record.header };
            let mut bytes = [header.as_bytes(), record.payload].concat();
            bytes.resize(header.span() as usize, 0);
            writer.append(&bytes, record.time_ns).expect("a record that was in a segment");
        }
    });
    dropped
}

fn filler(header: RecordHeader, payload: &[u8]) -> RecordHeader {
    let mut header = RecordHeader { kind: Kind::Filler as u8, ..header };
    let seed = header.crc_seed(pmemha::types::Generation(header.generation));
    header.crc = crc32c::crc32c_append(seed, payload);
    header
}

/// Copies a tree; segments go through `segment`.
fn copy(from: &Path, to: &Path, segment: &mut dyn FnMut(&Path, &Path)) {
    fs::create_dir_all(to).expect("our own directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("an entry has a name");
        let target = to.join(name);
        if path.is_dir() {
            copy(&path, &target, segment);
        } else if name.to_string_lossy().starts_with("seg-") {
            segment(&path, &target);
        } else {
            fs::copy(&path, &target).expect("our own directory");
        }
    }
}
