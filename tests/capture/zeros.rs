//! Ranges of a file that are made zero while others store to them.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use pmemha::log::LogSpec;
use pmemha::log::format::Kind;
use pmemha::types::RegionId;
use rustix::fs::{FallocateFlags, fallocate};

use crate::rig::{Rig, payload};

const REGION: RegionId = RegionId(1);
const PAGE: usize = 4096;
const LEN: usize = 4 << 20;

/// What a destination makes of the log's records, record by record.
fn replay(rig: &Rig, image: &mut [u8], mut each: impl FnMut(&[u8])) {
    for record in rig.consume() {
        let at = record.place().1 as usize;
        match Kind::from_byte(record.kind) {
            Some(Kind::Data) => {
                let bytes = payload(&rig.log, &record);
                image[at..][..bytes.len()].copy_from_slice(&bytes);
            }
            Some(Kind::Zero) => {
                let count = u64::from_le_bytes(payload(&rig.log, &record).try_into().unwrap());
                image[at..][..count as usize].fill(0);
            }
            other => assert_eq!(other, Some(Kind::Filler)),
        }
        each(image);
    }
}

fn file() -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all_at(&[7; LEN], 0).unwrap();
    file
}

fn punch(file: &File, at: usize, len: usize) {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, hole, at as u64, len as u64).unwrap();
}

#[test]
fn a_hole_is_one_record_however_large() {
    let rig = Rig::new();
    let (app, file, mut image) = (rig.appender(), file(), vec![7; LEN]);
    // Its edges lie within pages, which are data still.
    let (start, end) = (100, LEN - 100);
    punch(&file, start, end - start);
    app.append_zeros(REGION, start as u64, (end - start) as u64, file.as_fd()).unwrap();
    app.drain();
    let mut records = 0;
    replay(&rig, &mut image, |_| records += 1);
    assert_eq!(records, 1);
    assert!(image[start..end].iter().all(|b| *b == 0) && image[start - 1] == 7 && image[end] == 7);
}

#[test]
fn what_another_thread_stored_in_a_hole_before_its_record_is_not_taken_back() {
    let rig = Rig::with(LogSpec { ring_bytes: 16 << 20, ..LogSpec::default() });
    let (app, other, file) = (rig.appender(), rig.appender(), file());
    let stored = LEN / 2 + PAGE;
    punch(&file, 0, LEN);
    file.write_all_at(&[9; PAGE], stored as u64).unwrap();
    other.append_from_file(REGION, stored as u64, PAGE, file.as_fd(), true).unwrap();
    other.drain();
    app.append_zeros(REGION, 0, LEN as u64, file.as_fd()).unwrap();
    app.drain();
    let mut image = vec![7; LEN];
    replay(&rig, &mut image, |image| {
        assert!(image[stored..][..PAGE].iter().all(|b| *b == 9), "a prefix lacks what was drained");
    });
    let mut memory = vec![0; LEN];
    file.read_exact_at(&mut memory, 0).unwrap();
    assert!(image == memory);
}
