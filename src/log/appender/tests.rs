//! Order among appenders, with one of them stopped where it matters.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::Appender;
use crate::log::format::Kind;
use crate::log::{LogRegion, LogSpec};
use crate::types::{Lsn, RegionId};

fn log() -> Arc<LogRegion> {
    let spec = LogSpec { ring_bytes: 1 << 16, bitmap_bytes: 4096, ..LogSpec::default() };
    LogRegion::create(&spec).unwrap().1
}

#[test]
fn a_capture_returns_only_when_every_lower_slot_is_complete() {
    let log = log();
    let [slow, quick] = [1, 2].map(|session| Appender::attach(log.clone(), session).unwrap());
    let slot = slow.reserve(0).unwrap();
    let (tell, told) = channel();
    thread::scope(|s| {
        s.spawn(|| {
            #[repr(align(64))]
            struct Line([u8; 64]);
            let line = Line([1; 64]);
            // SAFETY: the line is readable and aligned as its offset is.
            unsafe { quick.capture(RegionId(1), 0, line.0.as_ptr(), 64) };
            tell.send(()).unwrap();
        });
        let soon = told.recv_timeout(Duration::from_millis(50));
        assert_eq!(soon, Err(RecvTimeoutError::Timeout), "a slot below is being filled");
        slow.give_up(&slot);
        told.recv().unwrap();
    });
}

#[test]
fn what_is_being_filled_is_not_published() {
    let log = log();
    let slow = Appender::attach(log.clone(), 1).unwrap();
    let quick = Appender::for_agent(log.clone(), 2).unwrap();
    let slot = slow.reserve(0).unwrap();
    let end = quick.append(Kind::Filler, RegionId(0), 0, &[]).unwrap();
    quick.drain();
    assert_eq!(log.published(), Lsn(slot.lsn));
    slow.give_up(&slot);
    quick.drain();
    assert_eq!(log.published(), end);
}
