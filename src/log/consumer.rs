//! The agent's reader of the log: checks every published record and seals it for the journey.
//!
//! The application is not trusted: each word is read once into private memory and checked before use, loops are bounded
//! by the ring, and what does not fit poisons the group, never the agent. Several consumers (a destination's shipper, the
//! archive) read one log at positions of their own; sealing the same record twice writes the same bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;

use zerocopy::{FromBytes, IntoBytes};

use super::format::{Kind, RECORD_ALIGN, RECORD_HEADER, RecordHeader, SlotState, max_payload};
use super::protocol::Cells;
use super::region::LogRegion;
use super::slot::{Claim, View};
use crate::types::Lsn;

/// A reader of one log.
pub struct Consumer {
    log: Arc<LogRegion>,
    at: Lsn,
}

/// Consecutive published records, sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// First byte.
    pub start: Lsn,
    /// First byte after it; the bytes are at `start % ring_bytes` of the ring, at most a ring's length.
    pub end: Lsn,
    /// Payload bytes of `Data` records.
    pub data_bytes: u64,
    /// The sealed headers, in order.
    pub headers: Vec<RecordHeader>,
}

/// The log holds what no appender of ours writes. The group can no longer be shipped from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log is damaged at LSN {at}: {what}; a process of the group wrote to it by mistake or malice")]
pub struct PoisonError {
    /// Where.
    pub at: Lsn,
    /// What was found.
    pub what: String,
}

impl Consumer {
    /// Reads from `from`, which is where a record starts: the first LSN, or what an earlier batch ended at.
    pub fn new(log: Arc<LogRegion>, from: Lsn) -> Consumer {
        Consumer { log, at: from }
    }

    /// Where the next batch starts.
    pub fn position(&self) -> Lsn {
        self.at
    }

    /// Whether the ring still holds a record that starts at `lsn`, from this position on, or `lsn` is the end of what is
    /// published. Where a stream ended is the word of somebody else, so it is looked up, not believed.
    ///
    /// Nothing before this position counts: the reader has given it free, and appenders may use it again at any time. And
    /// nothing is written, for the same reason.
    pub fn holds(&self, lsn: Lsn) -> bool {
        let published = self.log.published();
        if lsn < self.at || lsn > published || published.since(self.at) > self.log.spec().ring_bytes {
            return false;
        }
        let mut at = self.at;
        while at < lsn {
            match self.check_slot(at.0, published.0) {
                Ok(claim) => at = at.advance(claim.span),
                Err(_) => return false,
            }
        }
        // Looked at last: had it been used again meanwhile, the words found say nothing.
        at == lsn && self.log.free() <= self.at
    }

    /// Goes on at `to`, a record's start: what lies between is forgotten.
    pub fn skip_to(&mut self, to: Lsn) {
        self.at = to;
    }

    /// The next published records, up to `max_bytes` of the ring but at least one; `None` if there are none.
    pub fn next_batch(&mut self, max_bytes: u64) -> Result<Option<Batch>, PoisonError> {
        let published = self.log.published();
        if published <= self.at {
            return Ok(None);
        }
        if published.since(self.at) > self.log.spec().ring_bytes {
            return Err(self.poison(format!("published up to {published}, more than a ring further on")));
        }
        let mut batch = Batch { start: self.at, end: self.at, ..Batch::default() };
        while batch.end < published {
            let (header, span) = self.check_record(batch.end.0, published.0)?;
            if span + batch.end.since(batch.start) > max_bytes && !batch.headers.is_empty() {
                break;
            }
            let sealed = self.seal(header);
            if Kind::from_byte(header.kind).is_some_and(Kind::is_content) {
                batch.data_bytes += u64::from(header.len);
            }
            batch.headers.push(sealed);
            batch.end = batch.end.advance(span);
        }
        self.at = batch.end;
        Ok(Some(batch))
    }

    /// The record at `at` as it is to be sealed, and its span.
    fn check_record(&self, at: u64, published: u64) -> Result<(RecordHeader, u64), PoisonError> {
        let claim = self.check_slot(at, published)?;
        let header = match claim.state {
            SlotState::Filler => filler(at, claim),
            _ => self.check_header(at, claim)?,
        };
        Ok((header, claim.span))
    }

    /// The complete slot that begins at `at`.
    fn check_slot(&self, at: u64, published: u64) -> Result<Claim, PoisonError> {
        let log = &*self.log;
        let word = log.slot(log.codec().index(at)).load(Acquire);
        let View::Current(claim) = log.codec().view(word, at) else {
            return Err(self.poison_at(at, format!("no record begins here (slot word {word:#x})")));
        };
        if claim.span < RECORD_ALIGN || claim.span > log.ring_bytes() / 4 || claim.span > published - at {
            return Err(self.poison_at(at, format!("a record of {} bytes", claim.span)));
        }
        if claim.state == SlotState::Reserved {
            return Err(self.poison_at(at, "published, yet not complete".into()));
        }
        Ok(claim)
    }

    fn check_header(&self, at: u64, claim: Claim) -> Result<RecordHeader, PoisonError> {
        let mut bytes = [0u8; RECORD_HEADER as usize];
        self.log.ring().read(self.log.ring_offset(at), &mut bytes);
        let header = RecordHeader::read_from_bytes(&bytes).expect("the sizes are equal");
        let refuse = |what: String| Err(self.poison_at(at, what));
        if header.lsn != at || header.span() != claim.span {
            return refuse(format!("header of {} bytes at {}", header.span(), header.lsn));
        }
        if u64::from(header.len) > max_payload(self.log.ring_bytes()) {
            return refuse(format!("a payload of {} bytes", header.len));
        }
        if Kind::from_byte(header.kind).is_none() {
            return refuse(format!("a record of kind {}", header.kind));
        }
        Ok(header)
    }

    /// Writes the header as the destination is to see it.
    fn seal(&self, header: RecordHeader) -> RecordHeader {
        let generation = self.log.spec().generation;
        let mut sealed = RecordHeader { generation: generation.0, ..header }.canonical();
        let at = self.log.ring_offset(header.lsn);
        let payload = at + RECORD_HEADER as usize;
        sealed.crc = self.log.ring().crc32c(sealed.crc_seed(generation), payload, header.len as usize);
        self.log.ring().write(at, sealed.as_bytes());
        sealed
    }

    fn poison(&self, what: String) -> PoisonError {
        self.poison_at(self.at.0, what)
    }

    fn poison_at(&self, at: u64, what: String) -> PoisonError {
        PoisonError { at: Lsn(at), what }
    }
}

fn filler(at: u64, claim: Claim) -> RecordHeader {
    RecordHeader::unowned(Kind::Filler, at, (claim.span - RECORD_HEADER) as u32)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Release;

    use super::*;
    use crate::log::format::MIN_RING;
    use crate::log::{Appender, LogSpec};
    use crate::types::RegionId;

    /// Records in the log, and bytes of each one's payload.
    const RECORDS: usize = 20;
    const PAYLOAD: usize = 992;

    /// What the reader says of a full log after `forge` has had its way with the first record's word and header.
    fn reads(forge: impl FnOnce(&mut Claim, &mut RecordHeader)) -> Result<usize, PoisonError> {
        let (_fd, log) = LogRegion::create(&LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() }).unwrap();
        let appender = Appender::for_agent(log.clone(), 1).unwrap();
        for _ in 0..RECORDS {
            appender.append(Kind::Data, RegionId(1), 0, &[7; PAYLOAD]).unwrap();
        }
        appender.drain();
        let at = log.spec().first_lsn;
        let slot = log.slot(log.codec().index(at.0));
        let View::Current(mut claim) = log.codec().view(slot.load(Acquire), at.0) else { panic!() };
        let place = log.ring_offset(at.0);
        let mut bytes = [0; RECORD_HEADER as usize];
        log.ring().read(place, &mut bytes);
        let mut header = RecordHeader::read_from_bytes(&bytes).unwrap();
        forge(&mut claim, &mut header);
        log.ring().write(place, header.as_bytes());
        slot.store(log.codec().pack(at.0, claim), Release);
        let batch = Consumer::new(log, at).next_batch(u64::MAX)?;
        Ok(batch.expect("records are published").headers.len())
    }

    #[test]
    fn what_no_appender_writes_is_refused_by_what_is_wrong_with_it() {
        type Forge = fn(&mut Claim, &mut RecordHeader);
        let forgeries: [(&str, Forge); 8] = [
            ("a record of 0 bytes", |claim, _| claim.span = 0),
            // A quarter of the ring is the limit; so much is published.
            ("a record of 16416 bytes", |claim, _| claim.span = MIN_RING / 4 + RECORD_ALIGN),
            ("not complete", |claim, _| claim.state = SlotState::Reserved),
            ("header of 1056 bytes", |_, header| header.len += RECORD_ALIGN as u32),
            ("header of 992 bytes", |_, header| header.len -= RECORD_ALIGN as u32),
            ("at 32768", |_, header| header.lsn = 32768),
            ("a record of kind 99", |_, header| header.kind = 99),
            ("a payload of 12320 bytes", |claim, header| {
                header.len = 12288 + RECORD_ALIGN as u32;
                claim.span = header.span();
            }),
        ];
        assert_eq!(reads(|_, _| {}).unwrap(), RECORDS);
        for (what, forge) in forgeries {
            let refused = reads(forge).expect_err(what);
            assert!(refused.what.contains(what), "{what}: {refused}");
        }
    }

    #[test]
    fn a_record_that_reaches_past_what_is_published_is_refused() {
        let (_fd, log) = LogRegion::create(&LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() }).unwrap();
        let appender = Appender::for_agent(log.clone(), 1).unwrap();
        appender.append(Kind::Data, RegionId(1), 0, &[7; PAYLOAD]).unwrap();
        appender.drain();
        let at = log.spec().first_lsn;
        let claim = Claim { state: SlotState::Filled, owner: 0, span: 4096 };
        log.slot(log.codec().index(at.0)).store(log.codec().pack(at.0, claim), Release);
        assert!(Consumer::new(log, at).next_batch(u64::MAX).unwrap_err().what.contains("4096 bytes"));
    }
}
