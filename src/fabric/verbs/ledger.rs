//! What an adapter has been given and what it has done: the connection's books, the memory that requests hold, and what
//! is suspected when a queue pair fails. Bookkeeping without an adapter.
//!
//! An adapter completes a queue pair's requests in posting order, so the completion of one settles every one before it. A
//! long request is posted in several pieces, each with a number; the last one carries the signal.

use std::collections::VecDeque;

use super::queue::Status;
use crate::fabric::connection::{self, Books};

/// Why a connection ended; a refused request is named by what the adapter said.
pub type End = connection::End<String>;

/// One connection's bookkeeping, behind one lock; held for moments. `M` keeps a request's memory registered.
pub struct Ledger<M> {
    /// Requests, completions, immediates, the end.
    pub books: Books<String>,
    /// Memory of requests that are not settled, in order.
    held: VecDeque<(u64, M)>,
    suspicion: Option<Suspicion>,
    halted: bool,
}

/// The queue pair has failed; why may become clearer by what the peer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// A request of ours ended so.
    Ours(Status),
    /// Our receives were flushed without a request of ours having failed: our adapter refused the peer's.
    Theirs,
}

impl<M> Ledger<M> {
    /// Nothing posted; at most `limit` requests at a time.
    pub fn new(limit: usize) -> Ledger<M> {
        Ledger { books: Books::new(limit), held: VecDeque::new(), suspicion: None, halted: false }
    }

    /// Enters a request of `pieces` pieces whose last one is signalled as `signal`; returns the number of the first.
    pub fn post(&mut self, pieces: usize, signal: Option<u64>, memory: M) -> u64 {
        let first = self.books.post(pieces, signal);
        self.held.push_back((self.books.posted(), memory));
        first
    }

    /// Request `number` has ended as `status` says.
    pub fn ended(&mut self, number: u64, status: Status) {
        if status == Status::Success {
            self.books.settle(number);
            while self.held.front().is_some_and(|(at, _)| *at <= number) {
                self.held.pop_front();
            }
        } else {
            // The first failure is the reason; what is flushed after it only follows.
            self.suspect(Suspicion::Ours(status));
        }
    }

    /// A receive was flushed.
    pub fn receive_flushed(&mut self) {
        self.suspect(Suspicion::Theirs);
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

    /// Whether requests go to the adapter.
    pub fn takes_requests(&self) -> bool {
        !self.halted && self.suspicion.is_none()
    }

    /// Ends the connection: everything in flight completes with an error. The first reason stays. The adapter touches
    /// no memory any more.
    pub fn finish(&mut self, end: End, peer: &str) {
        if self.books.finish(end, peer) {
            self.halted = true;
            self.held.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::Wake;
    use std::rc::Rc;

    #[test]
    fn memory_is_held_until_its_request_is_settled() {
        let mut ledger = Ledger::new(8);
        let memory = Rc::new(());
        ledger.post(1, Some(1), memory.clone());
        ledger.post(2, Some(2), memory.clone());
        assert_eq!(Rc::strong_count(&memory), 3);
        ledger.ended(1, Status::Success);
        assert_eq!(Rc::strong_count(&memory), 2);
        ledger.ended(2, Status::Success);
        assert_eq!(Rc::strong_count(&memory), 2, "half of it is not settled");
        ledger.finish(End::Closed, "p");
        assert_eq!(Rc::strong_count(&memory), 1);
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
        let mut out = Vec::new();
        assert!(
            !ledger.takes_requests() && ledger.books.poll(&mut out) == 0 && ledger.books.wake().is_none()
        );
        ledger.post(1, Some(3), ());
        ledger.finish(End::RevokedByPeer, "p");
        ledger.finish(End::Closed, "p");
        assert_eq!(ledger.books.wake(), Some(Wake::Ready));
        assert_eq!(ledger.books.poll(&mut out), 3);
        assert!(out.iter().map(|c| (c.id, c.result.is_ok())).eq([(1, false), (2, false), (3, false)]));
        assert_eq!(ledger.books.end(), Some(&End::RevokedByPeer));
    }
}
