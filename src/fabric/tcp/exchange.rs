//! Everything about a connection that several threads touch, but for memory and socket: our requests, our
//! answers to the peer's, and what waits for the rooms above. A state machine without sockets.

use std::collections::VecDeque;
use std::sync::Arc;

use super::frame::{Frame, MAX_PAYLOAD, Refusal};
use super::registry::Region;
use super::requests::{LIMIT, Requests};
use crate::fabric::meeting::Payload;
use crate::fabric::{FabricError, Wake};

/// Immediates that wait to be taken. A peer sends one only when we said that we sleep, so that a full queue means that
/// it does not keep the rules; verbs bounds them by posted receives in the same way.
pub const MAX_IMMEDIATES: usize = 1024;

/// One connection's state, behind one lock; held for moments, never over a system call.
#[derive(Default)]
pub struct Exchange {
    /// Our requests.
    pub requests: Requests,
    /// The peer's.
    pub answers: Answers,
    immediates: VecDeque<u32>,
    interrupted: bool,
    end: Option<End>,
    answered_last: bool,
    /// Events so far, and how many of them [`Exchange::news`] has told.
    raised: u64,
    told: u64,
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

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The network or the peer's process.
    Lost(String),
    /// The peer revoked our access.
    RevokedByPeer,
    /// The peer refused a request of ours.
    RefusedByPeer {
        /// The request's number.
        seq: u64,
        /// Why.
        reason: Refusal,
    },
    /// The peer broke the rules.
    Protocol(String),
    /// The peer asked for what it may not have; it is told so.
    RefusedToPeer {
        /// The request's number.
        seq: u64,
        /// Why.
        reason: Refusal,
    },
    /// We revoked the peer's access; it is told so.
    RevokedHere,
    /// The endpoint was dropped here.
    Closed,
}

impl End {
    /// As the rooms above see it.
    pub fn error(&self, peer: &str) -> FabricError {
        let peer = peer.to_owned();
        match self {
            End::Lost(reason) => FabricError::Disconnected { peer, reason: reason.clone() },
            End::RevokedByPeer => FabricError::Revoked { peer },
            End::RefusedByPeer { seq, reason } => {
                FabricError::Access(format!("{peer} refused request {seq}: {}", reason.as_str()))
            }
            End::Protocol(what) => FabricError::Protocol { peer, what: what.clone() },
            End::RefusedToPeer { seq, reason } => FabricError::Protocol {
                peer,
                what: format!("its request {seq} was refused: {}", reason.as_str()),
            },
            End::RevokedHere => {
                FabricError::Disconnected { peer, reason: "this node revoked the peer's access".to_owned() }
            }
            End::Closed => FabricError::Disconnected { peer, reason: "closed by this node".to_owned() },
        }
    }

    /// The frame that tells the peer, if it is to be told.
    pub fn farewell(&self) -> Option<Frame> {
        match *self {
            End::RevokedHere => Some(Frame::Revoked),
            End::RefusedToPeer { seq, reason } => Some(Frame::Refused { seq, reason }),
            _ => None,
        }
    }
}

impl Exchange {
    /// The next frame to send: acknowledgements first, since the peer's window waits for them, then our answers and our
    /// requests in turns, so that neither direction of bulk starves the other.
    pub fn next_frame(&mut self) -> Option<(Frame, Option<Payload>)> {
        if self.end.is_some() || self.answers.refused {
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
        self.end.is_none()
            && !self.answers.refused
            && (self.answers.has_output() || self.requests.has_output())
    }

    /// An immediate of the peer's has come, after its bytes.
    pub fn immediate(&mut self, value: u32) -> Result<(), &'static str> {
        if self.immediates.len() == MAX_IMMEDIATES {
            return Err("it sent more immediates than may wait");
        }
        self.immediates.push_back(value);
        self.raised += 1;
        Ok(())
    }

    /// The oldest immediate.
    pub fn take_immediate(&mut self) -> Option<u32> {
        self.immediates.pop_front()
    }

    /// Makes one [`Exchange::wake`] say `Ready`.
    pub fn interrupt(&mut self) {
        self.interrupted = true;
    }

    /// What a waiter is told now, if anything.
    pub fn wake(&mut self) -> Option<Wake> {
        let interrupted = std::mem::take(&mut self.interrupted);
        if interrupted || self.has_events() {
            return Some(Wake::Ready);
        }
        self.end.as_ref().map(|_| Wake::Closed)
    }

    /// Whether completions or immediates can be taken.
    pub fn has_events(&self) -> bool {
        self.requests.has_completions() || !self.immediates.is_empty()
    }

    /// Whether something happened since this was last asked that the rooms above are to hear of.
    pub fn news(&mut self) -> bool {
        let now = self.raised + self.requests.completed();
        std::mem::replace(&mut self.told, now) != now
    }

    /// Ends the connection: everything in flight completes with an error. The first reason stays.
    pub fn finish(&mut self, end: End, peer: &str) {
        if self.end.is_none() {
            self.requests.fail(|| end.error(peer));
            self.answers.reads.clear();
            self.end = Some(end);
            self.raised += 1;
        }
    }

    /// Why the connection ended, if it did.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
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
