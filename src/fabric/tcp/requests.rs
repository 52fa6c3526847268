//! Our own requests, from posting to completion: a state machine without sockets.
//!
//! Requests are numbered from 1 in posting order. They leave as frames in that order; an acknowledgement settles
//! every write up to its number, a reply settles its read and everything before. Completions come out in
//! posting order, whatever order the answers came in.

use std::collections::VecDeque;

use super::exchange::{End, Refused};
use super::frame::{Frame, MAX_PAYLOAD};
use crate::fabric::connection::Books;
use crate::fabric::meeting::Payload;

/// A write as the endpoint checked it.
pub struct NewWrite {
    /// Source.
    pub from: Payload,
    /// Target registration.
    pub key: u64,
    /// Target offset.
    pub offset: u64,
    /// See [`crate::fabric::Write::immediate`].
    pub immediate: Option<u32>,
    /// See [`crate::fabric::Write::signal`].
    pub signal: Option<u64>,
}

/// Requests of one endpoint.
#[derive(Default)]
pub struct Requests {
    /// What has ended, and what waits for the rooms above.
    pub books: Books<Refused>,
    /// Number of the newest request that was wholly handed out as frames.
    sent: u64,
    /// The peer has said that it is done with everything up to here.
    answered: u64,
    outbox: VecDeque<Outgoing>,
    reads: VecDeque<OpenRead>,
}

enum Outgoing {
    Write { seq: u64, left: Payload, key: u64, offset: u64, immediate: Option<u32> },
    Read { seq: u64, key: u64, offset: u64, len: u32 },
}

struct OpenRead {
    seq: u64,
    into: Payload,
}

/// An answer that fits no question of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Unasked(pub &'static str);

impl Requests {
    /// Posts a write.
    pub fn write(&mut self, write: NewWrite) {
        let NewWrite { from: left, key, offset, immediate, signal } = write;
        let seq = self.books.post(1, signal);
        self.outbox.push_back(Outgoing::Write { seq, left, key, offset, immediate });
    }

    /// Posts a read of `into.len` bytes, at most [`super::frame::MAX_READ`].
    pub fn read(&mut self, into: Payload, key: u64, offset: u64, signal: u64) {
        let seq = self.books.post(1, Some(signal));
        let len = into.len as u32;
        self.reads.push_back(OpenRead { seq, into });
        self.outbox.push_back(Outgoing::Read { seq, key, offset, len });
    }

    /// Whether frames wait to be sent.
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The next frame to send, with the memory that follows it.
    pub fn next_frame(&mut self) -> Option<(Frame, Option<Payload>)> {
        match self.outbox.front_mut()? {
            Outgoing::Read { seq, key, offset, len } => {
                let frame = Frame::Read { seq: *seq, key: *key, offset: *offset, len: *len };
                self.sent = *seq;
                self.outbox.pop_front();
                Some((frame, None))
            }
            Outgoing::Write { seq, left, key, offset, immediate } => {
                let len = left.len.min(MAX_PAYLOAD as usize);
                let last = len == left.len;
                let piece = Payload { memory: left.memory.clone(), offset: left.offset, len };
                let frame = Frame::Write {
                    seq: *seq,
                    key: *key,
                    offset: *offset,
                    len: len as u32,
                    last,
                    immediate: immediate.filter(|_| last),
                };
                left.offset += len;
                left.len -= len;
                *offset += len as u64;
                if last {
                    self.sent = *seq;
                    self.outbox.pop_front();
                }
                Some((frame, Some(piece)))
            }
        }
    }

    /// The peer says that every write up to `seq` has landed.
    pub fn acknowledged(&mut self, seq: u64) -> Result<(), Unasked> {
        if seq > self.sent {
            return Err(Unasked("it acknowledged a request that was not sent"));
        }
        self.settle(seq);
        Ok(())
    }

    /// `len` bytes of the answer to read `seq` come next: where they go.
    pub fn reply(&mut self, seq: u64, len: u32, last: bool) -> Result<Payload, Unasked> {
        let read = self.reads.front_mut().ok_or(Unasked("it answered a read that was not asked"))?;
        if read.seq != seq || seq > self.sent {
            return Err(Unasked("it answered a read that was not asked"));
        }
        let len = len as usize;
        if len > read.into.len || last != (len == read.into.len) {
            return Err(Unasked("its answer to a read has another length"));
        }
        let place = Payload { memory: read.into.memory.clone(), offset: read.into.offset, len };
        read.into.offset += len;
        read.into.len -= len;
        Ok(place)
    }

    /// The last bytes of the answer to the oldest read have landed.
    pub fn reply_landed(&mut self) {
        if let Some(read) = self.reads.pop_front() {
            self.settle(read.seq);
        }
    }

    /// Completes everything that is in flight with an error, and forgets what was to be sent. Whether it did; the first
    /// end stays.
    pub fn finish(&mut self, end: End, peer: &str) -> bool {
        self.outbox.clear();
        self.reads.clear();
        self.books.finish(end, peer)
    }

    /// Everything up to `seq` has been answered. An acknowledgement may overtake the answer to a read: what comes after an
    /// open read waits for it.
    fn settle(&mut self, seq: u64) {
        self.answered = self.answered.max(seq);
        let open = self.reads.front().map_or(u64::MAX, |read| read.seq);
        self.books.settle(self.answered.min(open - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::memory::SharedMem;
    use std::sync::Arc;

    fn payload(len: usize) -> Payload {
        Payload { memory: Arc::new(SharedMem::anonymous(len.max(1)).unwrap()), offset: 0, len }
    }

    fn write(len: usize, signal: Option<u64>) -> NewWrite {
        NewWrite { from: payload(len), key: 7, offset: 100, immediate: Some(5), signal }
    }

    fn send_all(requests: &mut Requests) -> Vec<Frame> {
        std::iter::from_fn(|| requests.next_frame()).map(|(frame, _)| frame).collect()
    }

    fn completed(requests: &mut Requests) -> Vec<u64> {
        let mut out = Vec::new();
        requests.books.poll(&mut out);
        out.iter().map(|c| c.id).collect()
    }

    #[test]
    fn a_long_write_leaves_in_pieces_and_only_the_last_carries_the_immediate() {
        let mut requests = Requests::default();
        requests.write(write(MAX_PAYLOAD as usize + 10, None));
        let frames = send_all(&mut requests);
        let whole =
            Frame::Write { seq: 1, key: 7, offset: 100, len: MAX_PAYLOAD, last: false, immediate: None };
        let rest = Frame::Write {
            seq: 1,
            key: 7,
            offset: 100 + u64::from(MAX_PAYLOAD),
            len: 10,
            last: true,
            immediate: Some(5),
        };
        assert_eq!(frames, [whole, rest]);
    }

    #[test]
    fn one_acknowledgement_completes_all_signalled_writes_before_it() {
        let mut requests = Requests::default();
        for signal in [Some(10), None, Some(11), Some(12)] {
            requests.write(write(1, signal));
        }
        send_all(&mut requests);
        requests.acknowledged(3).unwrap();
        assert_eq!(completed(&mut requests), [10, 11]);
        requests.acknowledged(2).unwrap();
        requests.acknowledged(4).unwrap();
        assert_eq!(completed(&mut requests), [12]);
    }

    #[test]
    fn completions_keep_posting_order_across_reads() {
        let mut requests = Requests::default();
        requests.write(write(1, Some(1)));
        requests.read(payload(8), 7, 0, 2);
        requests.write(write(1, Some(3)));
        send_all(&mut requests);
        requests.acknowledged(3).unwrap();
        assert_eq!(completed(&mut requests), [1]);
        requests.reply(2, 5, false).unwrap();
        assert_eq!(requests.reply(2, 3, true).unwrap().offset, 5);
        requests.reply_landed();
        assert_eq!(completed(&mut requests), [2, 3]);
    }

    #[test]
    fn a_reply_settles_the_writes_before_its_read() {
        let mut requests = Requests::default();
        requests.write(write(1, Some(1)));
        requests.read(payload(8), 7, 0, 2);
        send_all(&mut requests);
        requests.reply(2, 8, true).unwrap();
        requests.reply_landed();
        assert_eq!(completed(&mut requests), [1, 2]);
    }

    #[test]
    fn answers_to_questions_that_were_not_asked_are_refused() {
        let mut requests = Requests::default();
        assert!(requests.reply(1, 0, true).is_err());
        requests.write(write(1, Some(1)));
        assert!(requests.acknowledged(1).is_err(), "not sent yet");
        requests.read(payload(8), 7, 0, 2);
        assert!(requests.reply(2, 8, true).is_err(), "not sent yet");
        send_all(&mut requests);
        assert!(requests.acknowledged(3).is_err());
        assert!(requests.reply(1, 8, true).is_err());
        assert!(requests.reply(2, 9, true).is_err());
        assert!(requests.reply(2, 8, false).is_err());
        assert!(requests.reply(2, 7, true).is_err());
        requests.reply(2, 8, true).unwrap();
    }

    #[test]
    fn failure_completes_everything_once() {
        let mut requests = Requests::default();
        requests.write(write(1, Some(1)));
        requests.read(payload(8), 7, 0, 2);
        send_all(&mut requests);
        requests.acknowledged(1).unwrap();
        requests.write(write(1, Some(3)));
        assert!(requests.finish(End::RevokedByPeer, "p") && !requests.finish(End::Closed, "p"));
        let mut out = Vec::new();
        requests.books.poll(&mut out);
        let ends: Vec<_> = out.iter().map(|c| (c.id, c.result.is_ok())).collect();
        assert_eq!(ends, [(1, true), (2, false), (3, false)]);
        assert!(!requests.has_output());
    }
}
