//! The capture rules: what a record holds, where it stands, and what a drain promises.

mod dying;
mod hostile;
mod rig;
mod rules;
mod torn;
mod within;
mod zeros;

use pmemha::log::format::Kind;
use pmemha::types::{Level, Lsn, RegionId};
use rig::{Rig, payload};

#[test]
fn a_capture_is_read_back_widened_to_lines() {
    let rig = Rig::new();
    let memory = rig.memory(4096);
    memory.fill(0x11);
    let app = rig.appender();
    // SAFETY: the range lies in `memory`.
    unsafe { app.capture(RegionId(1), 100, memory.as_ptr().wrapping_add(100), 30) };
    let end = app.drain();
    let records = rig.consume();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].place(), (RegionId(1), 64));
    assert_eq!(payload(&rig.log, &records[0]), vec![0x11; 128]);
    assert_eq!(records[0].next(), end);
    assert_eq!(app.wait(end, Level::Local, None), Ok(()));
}

#[test]
fn metadata_and_captures_keep_their_order() {
    let rig = Rig::new();
    let app = rig.appender();
    app.append(Kind::RegionResize, RegionId(2), 8192, &[]).unwrap();
    app.append(Kind::Zero, RegionId(2), 0, &8u64.to_le_bytes()).unwrap();
    assert_eq!(rig.consume().len(), 0, "nothing is published before a drain");
    app.drain();
    let kinds: Vec<u8> = rig.consume().iter().map(|h| h.kind).collect();
    assert_eq!(kinds, [Kind::RegionResize as u8, Kind::Zero as u8]);
}

#[test]
fn waiting_for_what_is_not_published_is_an_error() {
    let rig = Rig::new();
    let app = rig.appender();
    assert!(app.wait(Lsn(1 << 20), Level::Local, None).is_err());
}
