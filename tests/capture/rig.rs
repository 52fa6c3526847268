//! A log with an appender on one side and a consumer on the other.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use pmemha::log::format::{Kind, RecordHeader, cell};
use pmemha::log::{Appender, Consumer, LogRegion, LogSpec, Scan};
use pmemha::region::memory::{Access, SharedMem};
use pmemha::types::Lsn;

/// A log region and the reader of its records.
pub struct Rig {
    /// For other processes to attach to.
    pub fd: OwnedFd,
    /// The log.
    pub log: Arc<LogRegion>,
    consumer: Mutex<Consumer>,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with(LogSpec { ring_bytes: 1 << 20, ..LogSpec::default() })
    }

    pub fn with(spec: LogSpec) -> Rig {
        let (fd, log) = LogRegion::create(&spec).unwrap();
        let consumer = Mutex::new(Consumer::new(log.clone(), spec.first_lsn));
        Rig { fd, log, consumer }
    }

    pub fn appender(&self) -> Appender {
        Appender::attach(self.log.clone(), 1).unwrap()
    }

    /// Line-aligned memory that stands for a region; leaked, so that racing threads may keep it.
    pub fn memory(&self, len: usize) -> &'static mut [u8] {
        let pages = vec![Page([0; 4096]); len.div_ceil(4096)].leak();
        // SAFETY: the pages are leaked and exclusively ours, and bytes have no invariants.
        unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), len) }
    }

    /// How many wait for an acknowledgement.
    pub fn waiters(&self) -> u32 {
        let page = SharedMem::map(self.fd.as_fd(), 0, 2 * 4096, Access::ReadWrite).unwrap();
        page.u32(cell::ACK_SEQ + 4).load(std::sync::atomic::Ordering::SeqCst)
    }

    /// The records published since the last call, each as the destination would read it. Frees nothing.
    pub fn consume(&self) -> Vec<RecordHeader> {
        let mut all = Vec::new();
        while let Some(batch) = self.consumer.lock().unwrap().next_batch(u64::MAX).unwrap() {
            for header in &batch.headers {
                let generation = self.log.spec().generation;
                let seen = pmemha::log::scan::scan_ring(self.log.ring(), generation, Lsn(header.lsn));
                assert_eq!(seen, Scan::Record(*header), "a sealed record is one that a destination accepts");
            }
            all.extend(batch.headers);
        }
        all
    }
}

/// The payload of a record in the ring.
pub fn payload(log: &LogRegion, header: &RecordHeader) -> Vec<u8> {
    assert_ne!(header.kind, Kind::Filler as u8);
    let mut bytes = vec![0; header.len as usize];
    log.ring().read((header.lsn % log.spec().ring_bytes) as usize + 32, &mut bytes);
    bytes
}

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);
