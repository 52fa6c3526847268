//! Everything about a connection that several threads touch, but for memory and socket: our requests, our
//! answers to the peer's, and what waits for the rooms above. A state machine without sockets.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::frame::{Frame, MAX_PAYLOAD, Refusal};
use super::registry::Region;
use super::requests::Requests;
use crate::fabric::connection::{self, LIMIT};
use crate::fabric::meeting::Payload;

/// Why a connection ended.
pub type End = connection::End<Refused>;

/// One connection's state, behind one lock; held for moments, never over a system call.
#[derive(Default)]
pub struct Exchange {
    /// Our requests, and what waits for the rooms above.
    pub requests: Requests,
    /// The peer's.
    pub answers: Answers,
    answered_last: bool,
}

/// What we owe the peer.
#[derive(Default)]
pub struct Answers {
    landed: u64,
    acknowledged: u64,
    reads: VecDeque<Answer>,
    refused: bool,
}

struct Answer {
    seq: u64,
    region: Arc<Region>,
    offset: u64,
    left: u32,
}

/// A request that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The request's number.
    pub seq: u64,
    /// Why.
    pub reason: Refusal,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}: {}", self.seq, self.reason.as_str())
    }
}

/// The frame that tells the peer why the connection ended, if it is to be told.
pub fn farewell(end: &End) -> Option<Frame> {
    match *end {
        End::RevokedHere => Some(Frame::Revoked),
        End::RefusedToPeer(Refused { seq, reason }) => Some(Frame::Refused { seq, reason }),
        _ => None,
    }
}

impl Exchange {
    /// The next frame to send: acknowledgements first, since the peer's window waits for them, then our answers and our
    /// requests in turns, so that neither direction of bulk starves the other.
    pub fn next_frame(&mut self) -> Option<(Frame, Option<Payload>)> {
        if self.ended() || self.answers.refused {
            return None;
        }
        if let Some(ack) = self.answers.next_ack() {
            return Some((ack, None));
        }
        self.answered_last = !self.answered_last;
        if self.answered_last {
            self.answers.next_piece().or_else(|| self.requests.next_frame())
        } else {
            self.requests.next_frame().or_else(|| self.answers.next_piece())
        }
    }

    /// Whether [`Exchange::next_frame`] would return one.
    pub fn has_output(&self) -> bool {
        !self.ended() && !self.answers.refused && (self.answers.has_output() || self.requests.has_output())
    }

    /// Ends the connection: everything in flight completes with an error. The first reason stays.
    pub fn finish(&mut self, end: End, peer: &str) {
        if self.requests.finish(end, peer) {
            self.answers.reads.clear();
        }
    }

    fn ended(&self) -> bool {
        self.requests.books.end().is_some()
    }
}

impl Answers {
    /// The peer's writes have landed up to request `seq`.
    pub fn landed(&mut self, seq: u64) {
        self.landed = seq;
    }

    /// The peer asked to read `len` bytes from `offset` of `region`.
    pub fn read(&mut self, seq: u64, region: Arc<Region>, offset: u64, len: u32) -> Result<(), &'static str> {
        if self.reads.len() == LIMIT {
            return Err("it asked for more reads than may be open");
        }
        self.reads.push_back(Answer { seq, region, offset, left: len });
        Ok(())
    }

    fn has_output(&self) -> bool {
        self.landed > self.acknowledged || !self.reads.is_empty()
    }

    fn next_ack(&mut self) -> Option<Frame> {
        (self.landed > self.acknowledged).then(|| {
            self.acknowledged = self.landed;
            Frame::Ack { seq: self.landed }
        })
    }

    fn next_piece(&mut self) -> Option<(Frame, Option<Payload>)> {
        let answer = self.reads.front_mut()?;
        let seq = answer.seq;
        if !answer.region.live() {
            // Deregistered since it was asked. The peer ends the connection when it reads this.
            self.refused = true;
            return Some((Frame::Refused { seq, reason: Refusal::Key }, None));
        }
        let len = answer.left.min(MAX_PAYLOAD);
        let last = len == answer.left;
        let piece = Payload {
            memory: answer.region.memory().clone(),
            offset: answer.offset as usize,
            len: len as usize,
        };
        answer.offset += u64::from(len);
        answer.left -= len;
        if last {
            self.reads.pop_front();
        }
        Some((Frame::Reply { seq, len, last }, Some(piece)))
    }
}
