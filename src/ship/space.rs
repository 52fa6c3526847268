//! Which part of the ring may be reused: everything below the slowest consumer.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use crate::log::LogRegion;
use crate::types::Lsn;

/// The consumers of one log and how far each has come.
pub struct Space {
    log: Arc<LogRegion>,
    done: Vec<AtomicU64>,
}

impl Space {
    /// `consumers` of `log`, all of which still need everything that the ring holds.
    pub fn new(log: Arc<LogRegion>, consumers: usize) -> Arc<Space> {
        let free = log.free().0;
        Arc::new(Space { log, done: (0..consumers).map(|_| AtomicU64::new(free)).collect() })
    }

    /// Consumer `who` needs nothing below `lsn` any more.
    pub fn done(&self, who: usize, lsn: Lsn) {
        if self.done[who].fetch_max(lsn.0, AcqRel) >= lsn.0 {
            return;
        }
        let slowest = self.done.iter().map(|d| d.load(Acquire)).min().unwrap_or(lsn.0);
        self.log.set_free(Lsn(slowest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::{Kind, MIN_RING};
    use crate::log::{Appender, LogSpec};
    use crate::types::RegionId;

    #[test]
    fn the_slowest_consumer_holds_the_ring() {
        let spec = LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        let appender = Appender::attach(log.clone(), 1).unwrap();
        let first = log.free();
        let middle = appender.append(Kind::Data, RegionId(1), 0, &[1; 64]).unwrap();
        appender.append(Kind::Data, RegionId(1), 64, &[2; 64]).unwrap();
        let end = appender.drain();
        let space = Space::new(log.clone(), 2);
        space.done(0, end);
        assert_eq!(log.free(), first);
        space.done(1, middle);
        assert_eq!(log.free(), middle);
        space.done(0, middle);
        space.done(1, end);
        assert_eq!(log.free(), end);
    }
}
