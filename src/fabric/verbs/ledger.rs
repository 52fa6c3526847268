//! What is posted, what has ended, and what waits for the rooms above: bookkeeping without an adapter.
//!
//! Requests are numbered from 1 in posting order. An adapter completes a queue pair's requests in that order, so the
//! completion of one settles every one before it, unsignalled ones among them. A long request is posted in several
//! pieces, each with a number; the last one carries the signal.

use std::collections::VecDeque;

use super::queue::Status;
use crate::fabric::{Completion, FabricError, Wake};

/// Requests that may be posted and not settled, or settled and not polled, where the adapter has room for so many: as
/// over tcp, so that the rooms above behave alike.
pub const LIMIT: usize = 1024;

/// Immediates that wait to be taken. A peer sends one only when we said that we sleep.
pub const MAX_IMMEDIATES: usize = 1024;

/// One connection's bookkeeping, behind one lock; held for moments. `M` keeps a request's memory registered.
pub struct Ledger<M> {
    limit: usize,
    posted: u64,
    settled: u64,
    /// Signalled requests that have not completed, in order: number, and the caller's name for it.
    pending: VecDeque<(u64, u64)>,
    /// Memory of requests that are not settled, in order.
    held: VecDeque<(u64, M)>,
    done: VecDeque<Completion>,
    immediates: VecDeque<u32>,
    interrupted: bool,
    suspicion: Option<Suspicion>,
    halted: bool,
    end: Option<End>,
    /// Events so far, and how many of them [`Ledger::news`] has told.
    raised: u64,
    told: u64,
}

/// The queue pair has failed; why may become clearer by what the peer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// A request of ours ended so.
    Ours(Status),
    /// Our receives were flushed without a request of ours having failed: our adapter refused the peer's.
    Theirs,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The network, the adapter, or the peer's process.
    Lost(String),
    /// The peer revoked our access.
    RevokedByPeer,
    /// The peer's adapter refused a request of ours.
    RefusedByPeer(String),
    /// The peer broke the rules.
    Protocol(String),
    /// Our adapter refused a request of the peer's; it is told so.
    RefusedToPeer,
    /// We revoked the peer's access; it is told so.
    RevokedHere,
    /// The endpoint was dropped here.
    Closed,
}

impl End {
    /// As the rooms above see it.
    pub fn error(&self, peer: &str) -> FabricError {
        let peer = peer.to_owned();
        let lost = |reason: &str| FabricError::Disconnected { peer: peer.clone(), reason: reason.to_owned() };
        match self {
            End::Lost(reason) => lost(reason),
            End::RevokedByPeer => FabricError::Revoked { peer },
            End::RefusedByPeer(why) => {
                FabricError::Access(format!("{peer}'s adapter refused a request: {why}"))
            }
            End::Protocol(what) => FabricError::Protocol { peer, what: what.clone() },
            End::RefusedToPeer => FabricError::Protocol {
                peer,
                what: "it asked for memory that it may not reach, or not in that way".to_owned(),
            },
            End::RevokedHere => lost("this node revoked the peer's access"),
            End::Closed => lost("closed by this node"),
        }
    }
}

impl<M> Ledger<M> {
    /// Nothing posted; at most `limit` requests at a time.
    pub fn new(limit: usize) -> Ledger<M> {
        Ledger {
            limit,
            posted: 0,
            settled: 0,
            pending: VecDeque::new(),
            held: VecDeque::new(),
            done: VecDeque::new(),
            immediates: VecDeque::new(),
            interrupted: false,
            suspicion: None,
            halted: false,
            end: None,
            raised: 0,
            told: 0,
        }
    }

    /// Whether `requests` more, of which `signalled` ask for a completion, may be posted; else how many are in flight.
    pub fn room(&self, requests: usize, signalled: usize) -> Result<(), usize> {
        let unsettled = (self.posted - self.settled) as usize;
        let waiting = self.pending.len() + self.done.len();
        if unsettled + requests > self.limit || waiting + signalled > self.limit {
            return Err(unsettled.max(waiting));
        }
        Ok(())
    }

    /// Enters a request of `pieces` pieces whose last one is signalled as `signal`; returns the number of the first.
    pub fn post(&mut self, pieces: usize, signal: Option<u64>, memory: M) -> u64 {
        let first = self.posted + 1;
        self.posted += pieces as u64;
        if let Some(id) = signal {
            self.pending.push_back((self.posted, id));
        }
        self.held.push_back((self.posted, memory));
        first
    }

    /// Request `number` has ended as `status` says.
    pub fn ended(&mut self, number: u64, status: Status) {
        if status == Status::Success {
            self.settle(number);
        } else {
            // The first failure is the reason; what is flushed after it only follows.
            self.suspect(Suspicion::Ours(status));
        }
    }

    /// A receive was flushed.
    pub fn receive_flushed(&mut self) {
        self.suspect(Suspicion::Theirs);
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

    /// The queue pair failed for this reason, or is about to tell a better one.
    pub fn suspect(&mut self, suspicion: Suspicion) {
        self.suspicion.get_or_insert(suspicion);
    }

    /// See [`Suspicion`].
    pub fn suspicion(&self) -> Option<Suspicion> {
        self.suspicion
    }

    /// The adapter takes nothing any more: what is entered from now on waits for the end.
    pub fn halt(&mut self) {
        self.halted = true;
    }

    /// Whether completions are due.
    pub fn expects_completions(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether requests go to the adapter.
    pub fn takes_requests(&self) -> bool {
        !self.halted && self.suspicion.is_none()
    }

    /// Moves completions to `out`; returns how many.
    pub fn poll(&mut self, out: &mut Vec<Completion>) -> usize {
        let n = self.done.len();
        out.extend(self.done.drain(..));
        n
    }

    /// The oldest immediate.
    pub fn take_immediate(&mut self) -> Option<u32> {
        self.immediates.pop_front()
    }

    /// Makes one [`Ledger::wake`] say `Ready`.
    pub fn interrupt(&mut self) {
        self.interrupted = true;
    }

    /// What a waiter is told now, if anything.
    pub fn wake(&mut self) -> Option<Wake> {
        let interrupted = std::mem::take(&mut self.interrupted);
        if interrupted || !self.done.is_empty() || !self.immediates.is_empty() {
            return Some(Wake::Ready);
        }
        self.end.as_ref().map(|_| Wake::Closed)
    }

    /// Whether [`Ledger::news`] would say so.
    pub fn has_news(&self) -> bool {
        self.told != self.raised
    }

    /// Whether something happened since this was last asked that the rooms above are to hear of.
    pub fn news(&mut self) -> bool {
        std::mem::replace(&mut self.told, self.raised) != self.raised
    }

    /// Ends the connection: everything in flight completes with an error. The first reason stays. The adapter touches
    /// no memory any more.
    pub fn finish(&mut self, end: End, peer: &str) {
        if self.end.is_some() {
            return;
        }
        self.halted = true;
        let failed = self.pending.drain(..).map(|(_, id)| Completion { id, result: Err(end.error(peer)) });
        self.done.extend(failed);
        self.held.clear();
        self.settled = self.posted;
        self.end = Some(end);
        self.raised += 1;
    }

    /// Why the connection ended, if it did.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    fn settle(&mut self, number: u64) {
        self.settled = self.settled.max(number);
        while let Some(&(at, id)) = self.pending.front()
            && at <= number
        {
            self.pending.pop_front();
            self.done.push_back(Completion { id, result: Ok(()) });
            self.raised += 1;
        }
        while self.held.front().is_some_and(|(at, _)| *at <= number) {
            self.held.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    fn polled<M>(ledger: &mut Ledger<M>) -> Vec<(u64, bool)> {
        let mut out = Vec::new();
        ledger.poll(&mut out);
        out.iter().map(|c| (c.id, c.result.is_ok())).collect()
    }

    #[test]
    fn a_completion_settles_everything_before_it() {
        let mut ledger = Ledger::new(8);
        assert_eq!(ledger.post(1, None, ()), 1);
        assert_eq!(ledger.post(3, Some(10), ()), 2);
        assert_eq!(ledger.post(1, Some(11), ()), 5);
        ledger.ended(4, Status::Success);
        assert_eq!(polled(&mut ledger), [(10, true)]);
        assert_eq!(ledger.room(7, 7), Ok(()));
        assert_eq!(ledger.room(8, 0), Err(1));
        ledger.ended(5, Status::Success);
        assert_eq!(polled(&mut ledger), [(11, true)]);
        assert!(polled(&mut ledger).is_empty());
    }

    #[test]
    fn memory_is_held_until_its_request_is_settled() {
        let mut ledger = Ledger::new(8);
        let memory = Rc::new(());
        ledger.post(1, Some(1), memory.clone());
        ledger.post(1, Some(2), memory.clone());
        assert_eq!(Rc::strong_count(&memory), 3);
        ledger.ended(1, Status::Success);
        assert_eq!(Rc::strong_count(&memory), 2);
        ledger.finish(End::Closed, "p");
        assert_eq!(Rc::strong_count(&memory), 1);
    }

    #[test]
    fn the_limit_counts_what_is_unsettled_and_what_is_unpolled() {
        let mut ledger = Ledger::new(2);
        ledger.post(1, Some(1), ());
        ledger.post(1, Some(2), ());
        assert_eq!(ledger.room(1, 0), Err(2));
        ledger.ended(2, Status::Success);
        assert_eq!(ledger.room(1, 0), Ok(()), "an unsignalled one has room");
        assert_eq!(ledger.room(1, 1), Err(2), "its completion would have none");
        assert_eq!(polled(&mut ledger), [(1, true), (2, true)]);
        assert_eq!(ledger.room(2, 2), Ok(()));
        assert_eq!(ledger.room(3, 0), Err(0));
    }

    #[test]
    fn a_failure_is_only_suspected_until_the_end_says_why() {
        let mut ledger = Ledger::new(8);
        ledger.post(1, Some(1), ());
        ledger.post(1, Some(2), ());
        ledger.ended(1, Status::RefusedByPeer(10));
        ledger.ended(2, Status::Flushed);
        ledger.receive_flushed();
        assert_eq!(ledger.suspicion(), Some(Suspicion::Ours(Status::RefusedByPeer(10))));
        assert!(!ledger.takes_requests() && polled(&mut ledger).is_empty() && ledger.wake().is_none());
        ledger.post(1, Some(3), ());
        ledger.finish(End::RevokedByPeer, "p");
        ledger.finish(End::Closed, "p");
        assert_eq!(ledger.wake(), Some(Wake::Ready));
        assert_eq!(polled(&mut ledger), [(1, false), (2, false), (3, false)]);
        assert_eq!(ledger.wake(), Some(Wake::Closed));
        assert_eq!(ledger.end(), Some(&End::RevokedByPeer));
    }

    #[test]
    fn news_are_told_once() {
        let mut ledger = Ledger::new(8);
        assert!(!ledger.news());
        ledger.post(1, Some(1), ());
        ledger.ended(1, Status::Success);
        assert!(ledger.news() && !ledger.news());
        ledger.immediate(7).unwrap();
        assert!(ledger.news());
        assert_eq!((ledger.take_immediate(), ledger.take_immediate()), (Some(7), None));
        ledger.finish(End::Closed, "p");
        assert!(ledger.news() && !ledger.news());
    }

    #[test]
    fn an_interrupt_is_used_up_by_one_wait() {
        let mut ledger = Ledger::<()>::new(8);
        ledger.interrupt();
        assert_eq!((ledger.wake(), ledger.wake()), (Some(Wake::Ready), None));
    }

    #[test]
    fn immediates_that_nobody_takes_are_bounded() {
        let mut ledger = Ledger::<()>::new(8);
        (0..MAX_IMMEDIATES as u32).for_each(|i| ledger.immediate(i).unwrap());
        assert!(ledger.immediate(0).is_err());
    }
}
