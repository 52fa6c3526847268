//! What a hostile process of the group can do to the log's readers: end its own group, nothing more.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};

use pmemha::log::format::cell;
use pmemha::log::scan::{scan_bytes, scan_ring};
use pmemha::log::{Consumer, LogError, LogRegion, LogSpec};
use pmemha::region::memory::{Access, SharedMem};
use pmemha::types::{Generation, Lsn, RegionId};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::rig::Rig;

const SPEC_RING: u64 = 1 << 16;

/// Places that change: cells, appender cells, slot words at the front, ring at the front.
fn target() -> impl Strategy<Value = (usize, u64)> {
    let value = prop_oneof![any::<u64>(), 0u64..4096, Just(u64::MAX), Just(SPEC_RING), Just(1 << 63)];
    (0usize..300, value)
}

#[test]
fn a_log_that_can_still_be_cut_or_grown_is_refused() {
    let rig = Rig::with(LogSpec { ring_bytes: SPEC_RING, ..LogSpec::default() });
    let good = std::fs::read(format!("/proc/self/fd/{}", rig.fd.as_raw_fd())).unwrap();
    let attach = |seals: SealFlags| {
        let mut copy = std::fs::File::from(memfd_create("log", MemfdFlags::ALLOW_SEALING).unwrap());
        copy.write_all(&good).unwrap();
        fcntl_add_seals(&copy, seals).unwrap();
        LogRegion::attach(copy.as_fd())
    };
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    for lacking in [all, SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL] {
        let refused = attach(all - lacking).err();
        assert!(matches!(refused, Some(LogError::Unsealed(_))), "without {lacking:?}: {refused:?}");
    }
    assert_eq!(attach(all).unwrap().spec(), rig.log.spec());
}

proptest! {
    #[test]
    fn forged_words_never_make_a_reader_panic_or_read_past_the_ring(writes in prop::collection::vec(target(), 1..12)) {
        let spec = LogSpec { ring_bytes: SPEC_RING, appenders: 4, regions: 4, bitmap_bytes: 4096, ..LogSpec::default() };
        let rig = Rig::with(spec);
        let memory = rig.memory(4096);
        let app = rig.appender();
        for i in 0..6 {
            // SAFETY: within `memory`.
            unsafe { app.capture(RegionId(1), i * 64, memory.as_ptr().wrapping_add(i as usize * 64), 64) };
        }
        app.drain();
        let size = rustix::fs::fstat(&rig.fd).unwrap().st_size as usize;
        let raw = SharedMem::map(rig.fd.as_fd(), 0, size, Access::ReadWrite).unwrap();
        let slots = 4 * 4096; // header, cells, appender cells, region table: a page each
        for (place, value) in writes {
            let at = match place {
                0..20 => cell::PUBLISHED,
                20..40 => cell::TAIL,
                40..60 => cell::FREE,
                60..140 => slots + (place - 60) * 8,
                _ => size - SPEC_RING as usize + (place - 140) * 8,
            };
            raw.u64(at).store(value, std::sync::atomic::Ordering::SeqCst);
        }
        let mut consumer = Consumer::new(rig.log.clone(), spec.first_lsn);
        for _ in 0..10 {
            rig.log.publish_filled(&|_| true);
            match consumer.next_batch(4096) {
                Ok(Some(batch)) => prop_assert!(batch.end.since(batch.start) <= SPEC_RING),
                Ok(None) | Err(_) => break,
            }
        }
        rig.log.set_free(consumer.position());
        let _ = (rig.log.close_gap(), rig.log.gap(), rig.log.acks());
    }

    #[test]
    fn any_bytes_can_be_scanned(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0u64..300, lsn: u64) {
        let _ = scan_bytes(&bytes, Lsn(100), Generation(1), Lsn(at));
        let ring = SharedMem::anonymous(1 << 16).unwrap();
        ring.write(0, &bytes);
        let _ = scan_ring(&ring, Generation(1), Lsn((lsn & !31) % (1 << 15)));
    }
}
