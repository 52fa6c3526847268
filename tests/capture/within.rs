//! Changes of whole files, each made while its place in the log is held.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use pmemha::log::format::{Kind, MIN_RING};
use pmemha::log::{Appender, LogSpec, OnFull, Policy};
use pmemha::types::RegionId;

use crate::rig::Rig;

const REGION: RegionId = RegionId(1);
const PAGE: u64 = 4096;

fn file(size: u64) -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(size).unwrap();
    file
}

/// Kind and place of each record.
fn records(rig: &Rig) -> Vec<(Kind, u64)> {
    rig.consume().iter().map(|r| (Kind::from_byte(r.kind).unwrap(), r.place().1)).collect()
}

fn write_page(app: &Appender, file: &File) {
    file.write_all_at(&[7; PAGE as usize], 0).unwrap();
    app.append_size(REGION, file.as_fd()).unwrap();
    app.append_from_file(REGION, 0, PAGE as usize, file.as_fd(), true).unwrap();
    app.drain();
}

#[test]
fn what_another_process_writes_after_a_cut_lies_behind_its_record() {
    let rig = Rig::new();
    let (app, other, file) = (rig.appender(), rig.appender(), file(4 * PAGE));
    std::thread::scope(|threads| {
        let cut = || {
            file.set_len(0).unwrap();
            let before = rig.log.tail();
            // It waits for our record, once its own has its place.
            threads.spawn(|| write_page(&other, &file));
            while rig.log.tail() == before {
                std::thread::yield_now();
            }
            true
        };
        app.append_around(Kind::RegionResize, REGION, 0, &[], cut).unwrap();
    });
    assert_eq!(app.append_size(REGION, file.as_fd()).unwrap(), PAGE);
    app.drain();
    let resize = |size| (Kind::RegionResize, size);
    assert_eq!(records(&rig), [resize(0), resize(PAGE), (Kind::Data, 0), resize(PAGE)]);
}

#[test]
fn a_size_is_the_one_that_the_file_has_once_its_place_is_taken() {
    let rig = Rig::with(LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() });
    let block_limit = Duration::from_secs(60);
    rig.log.set_policy(Policy { on_full: OnFull::Block, block_limit, ..Policy::default() });
    let (app, file) = (rig.appender(), file(PAGE));
    while rig.log.tail().since(rig.log.free()) < MIN_RING - PAGE {
        app.append(Kind::Filler, REGION, 0, &[0; 992]).unwrap();
    }
    let room = (MIN_RING - rig.log.tail().since(rig.log.free())) as usize;
    app.append(Kind::Filler, REGION, 0, &vec![0; room - 64]).unwrap();
    std::thread::scope(|threads| {
        let size = threads.spawn(|| app.append_size(REGION, file.as_fd()).unwrap());
        while rig.log.counters().blocked_ns == 0 {
            std::thread::yield_now();
        }
        file.set_len(2 * PAGE).unwrap();
        rig.log.set_free(rig.log.published());
        assert_eq!(size.join().unwrap(), 2 * PAGE);
    });
}

#[test]
fn a_change_that_failed_leaves_no_record() {
    let rig = Rig::new();
    let app = rig.appender();
    app.append_around(Kind::RegionRename, REGION, 0, b"/new", || false).unwrap();
    app.drain();
    assert_eq!(records(&rig), [(Kind::Filler, 0)]);
}

#[test]
fn a_cut_is_counted_for_every_process_of_the_log() {
    let rig = Rig::new();
    let (app, other) = (rig.appender(), rig.appender());
    let before = app.log().shrinks(REGION);
    other.log().shrinking(REGION);
    assert_ne!(app.log().shrinks(REGION), before);
    assert_eq!(app.log().shrinks(RegionId(2)), before);
}
