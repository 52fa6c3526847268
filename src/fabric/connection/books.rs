//! A connection's books: what is posted and what has ended, what waits for the rooms above, and what a waiter is told.
//!
//! Requests are numbered from 1 in posting order, and are settled in that order: settling one settles every one before it,
//! unsignalled ones among them. A request may have several numbers, of which the last carries its signal. Plain data behind
//! the connection's lock, which is held for moments and never over a system call.

use std::collections::VecDeque;
use std::fmt::Display;

use super::End;
use crate::fabric::{Completion, Wake};

/// Requests of one endpoint that may be posted and not settled, and signalled ones that may be posted and not polled. As a
/// verbs send queue of common size; at some 100 bytes each it bounds an endpoint's memory to a few hundred KiB.
pub const LIMIT: usize = 1024;

/// Immediates that wait to be taken. A peer sends one only when we said that we sleep, so a full queue means that it does
/// not keep the rules.
pub const MAX_IMMEDIATES: usize = 1024;

/// See the module.
pub struct Books<R> {
    limit: usize,
    posted: u64,
    settled: u64,
    /// Signalled requests that have not completed, in order: number, and the caller's name for it.
    pending: VecDeque<(u64, u64)>,
    done: VecDeque<Completion>,
    immediates: VecDeque<u32>,
    interrupted: bool,
    end: Option<End<R>>,
    /// Events so far, and how many of them [`Books::news`] has told.
    raised: u64,
    told: u64,
}

impl<R> Default for Books<R> {
    fn default() -> Books<R> {
        Books::new(LIMIT)
    }
}

impl<R> Books<R> {
    /// Nothing posted; at most `limit` requests at a time.
    pub fn new(limit: usize) -> Books<R> {
        Books {
            limit,
            posted: 0,
            settled: 0,
            pending: VecDeque::new(),
            done: VecDeque::new(),
            immediates: VecDeque::new(),
            interrupted: false,
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

    /// Enters a request of `pieces` numbers, the last of which is signalled as `signal`; returns the first.
    pub fn post(&mut self, pieces: usize, signal: Option<u64>) -> u64 {
        let first = self.posted + 1;
        self.posted += pieces as u64;
        if let Some(id) = signal {
            self.pending.push_back((self.posted, id));
        }
        first
    }

    /// Number of the newest request.
    pub fn posted(&self) -> u64 {
        self.posted
    }

    /// Everything up to `number` has been done.
    pub fn settle(&mut self, number: u64) {
        self.settled = self.settled.max(number);
        while let Some(&(at, id)) = self.pending.front()
            && at <= number
        {
            self.pending.pop_front();
            self.done.push_back(Completion { id, result: Ok(()) });
            self.raised += 1;
        }
    }

    /// Whether completions are due.
    pub fn expects_completions(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Moves completions to `out`; returns how many.
    pub fn poll(&mut self, out: &mut Vec<Completion>) -> usize {
        let n = self.done.len();
        out.extend(self.done.drain(..));
        n
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

    /// Makes one [`Books::wake`] say `Ready`.
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

    /// Whether [`Books::news`] would say so.
    pub fn has_news(&self) -> bool {
        self.told != self.raised
    }

    /// Whether something happened since this was last asked that the rooms above are to hear of.
    pub fn news(&mut self) -> bool {
        std::mem::replace(&mut self.told, self.raised) != self.raised
    }

    /// Why the connection ended, if it did.
    pub fn end(&self) -> Option<&End<R>> {
        self.end.as_ref()
    }
}

impl<R: Display> Books<R> {
    /// Ends the connection: everything in flight completes with an error. Whether it did; the first reason stays.
    pub fn finish(&mut self, end: End<R>, peer: &str) -> bool {
        if self.end.is_some() {
            return false;
        }
        let failed = self.pending.drain(..).map(|(_, id)| Completion { id, result: Err(end.error(peer)) });
        self.done.extend(failed);
        self.settled = self.posted;
        self.end = Some(end);
        self.raised += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::FabricError;

    fn polled(books: &mut Books<&str>) -> Vec<(u64, bool)> {
        let mut out = Vec::new();
        books.poll(&mut out);
        out.iter().map(|c| (c.id, c.result.is_ok())).collect()
    }

    #[test]
    fn a_completion_settles_everything_before_it() {
        let mut books: Books<&str> = Books::new(8);
        assert_eq!(books.post(1, None), 1);
        assert_eq!(books.post(3, Some(10)), 2);
        assert_eq!(books.post(1, Some(11)), 5);
        books.settle(4);
        assert_eq!(polled(&mut books), [(10, true)]);
        assert_eq!(books.room(7, 7), Ok(()));
        assert_eq!(books.room(8, 0), Err(1));
        // An older word changes nothing.
        books.settle(2);
        books.settle(5);
        assert_eq!(polled(&mut books), [(11, true)]);
        assert!(polled(&mut books).is_empty());
    }

    #[test]
    fn the_limit_counts_what_is_unsettled_and_what_is_unpolled() {
        let mut books = Books::new(2);
        books.post(1, Some(1));
        books.post(1, Some(2));
        assert_eq!(books.room(1, 0), Err(2));
        books.settle(2);
        assert_eq!(books.room(1, 0), Ok(()), "an unsignalled one has room");
        assert_eq!(books.room(1, 1), Err(2), "its completion would have none");
        assert_eq!(polled(&mut books), [(1, true), (2, true)]);
        assert_eq!(books.room(2, 2), Ok(()));
        assert_eq!(books.room(3, 0), Err(0));
    }

    #[test]
    fn the_end_completes_everything_once_with_the_first_reason() {
        let mut books: Books<&str> = Books::new(8);
        books.post(1, Some(1));
        books.post(1, Some(2));
        books.settle(1);
        assert!(books.finish(End::RevokedByPeer, "p") && !books.finish(End::Closed, "p"));
        assert_eq!(books.wake(), Some(Wake::Ready));
        let mut out = Vec::new();
        books.poll(&mut out);
        assert!(matches!(
            &out[..],
            [
                Completion { id: 1, result: Ok(()) },
                Completion { id: 2, result: Err(FabricError::Revoked { .. }) },
            ]
        ));
        assert_eq!(books.wake(), Some(Wake::Closed));
        assert_eq!(books.end(), Some(&End::RevokedByPeer));
    }

    #[test]
    fn news_are_told_once() {
        let mut books = Books::<&str>::default();
        assert!(!books.news());
        books.post(1, Some(1));
        books.settle(1);
        assert!(books.has_news() && books.news() && !books.news());
        books.immediate(7).unwrap();
        assert!(books.news());
        assert_eq!((books.take_immediate(), books.take_immediate()), (Some(7), None));
        books.finish(End::Closed, "p");
        assert!(books.news() && !books.has_news());
    }

    #[test]
    fn an_interrupt_is_used_up_by_one_wait() {
        let mut books = Books::<&str>::default();
        books.interrupt();
        assert_eq!((books.wake(), books.wake()), (Some(Wake::Ready), None));
    }

    #[test]
    fn immediates_that_nobody_takes_are_bounded() {
        let mut books = Books::<&str>::default();
        (0..MAX_IMMEDIATES as u32).for_each(|i| books.immediate(i).unwrap());
        assert!(books.immediate(0).is_err());
    }
}
