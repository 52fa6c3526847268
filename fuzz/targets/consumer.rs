//! The agent's consumer on a log region whose every word a hostile application may have written.
#![no_main]

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::SeqCst;

use libfuzzer_sys::fuzz_target;
use pmemha::log::format::{Kind, cell};
use pmemha::log::{Appender, Consumer, LogRegion, LogSpec};
use pmemha::region::memory::{Access, SharedMem};
use pmemha::types::{Lsn, RegionId};

/// Bytes of the smallest region: header, cells, appender cells, region table, slot table, bitmap, ring.
const BEFORE_SLOTS: usize = 4 * 4096;
const SLOTS: usize = (64 << 10) / 4;
const BITMAP: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let spec = LogSpec { ring_bytes: 64 << 10, bitmap_bytes: BITMAP as u64, appenders: 2, regions: 4, ..LogSpec::default() };
    let (fd, log) = LogRegion::create(&spec).unwrap();
    let app = Appender::attach(log.clone(), 1).unwrap();
    for i in 0..4 {
        app.append(Kind::Data, RegionId(1), i * 64, &[i as u8; 64]).unwrap();
    }
    app.drain();
    let ring = BEFORE_SLOTS + SLOTS + BITMAP;
    let raw = SharedMem::map(fd.as_fd(), 0, ring + (64 << 10), Access::ReadWrite).unwrap();
    // Each write is a byte for the place and a word.
    for write in data.chunks_exact(9) {
        let at = match write[0] as usize {
            0 => cell::PUBLISHED,
            1 => cell::TAIL,
            2 => cell::FREE,
            3 => cell::GAP,
            place @ 4..100 => BEFORE_SLOTS + (place - 4) * 8,
            place => ring + (place - 100) * 8,
        };
        raw.u64(at).store(u64::from_le_bytes(write[1..].try_into().unwrap()), SeqCst);
    }
    let mut consumer = Consumer::new(log.clone(), spec.first_lsn);
    for _ in 0..8 {
        log.publish_filled(&|_| true);
        match consumer.next_batch(256) {
            Ok(Some(batch)) => assert!(batch.end.since(batch.start) <= 64 << 10 && batch.end > Lsn(0)),
            Ok(None) | Err(_) => break,
        }
    }
    log.set_free(consumer.position());
    let _ = (log.close_gap(), log.region(RegionId(1)));
});
