//! Waiting: applications for acknowledgements, the agent for work.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};
use std::sync::atomic::fence;
use std::time::{Duration, Instant};

use rustix::thread::futex;

use super::format::cell;
use super::protocol;
use super::region::{Acks, Counter, LinkState, LogRegion, boottime};
use crate::locks::lock;
use crate::types::{Level, Lsn};
use crate::waits;

/// Somebody who waits is taken to wait again for this long.
const WAITS_AGAIN: Duration = Duration::from_millis(2);

/// A waiter looks at the agent's pulse this often.
const WAIT_SLICE: Duration = Duration::from_millis(100);

/// How deeply the agent sleeps, and so what wakes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SleepDepth {
    /// While traffic flows: only a waiter wakes it.
    Nap = 1,
    /// While nothing happens: the next publish wakes it.
    Deep = 2,
}

/// Why a wait ended without the acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// Nothing was published up to there: a wait could never end.
    #[error("LSN {asked} is not published (the log is published up to {published}): drain first")]
    Unpublished {
        /// The LSN waited for.
        asked: Lsn,
        /// How far the log is published.
        published: Lsn,
    },
    /// The destinations did not acknowledge in time.
    #[error("not acknowledged in time")]
    Timeout,
    /// The LSN lies in a gap: the ring was full, and the copy that makes it good is not complete.
    #[error("the log overflowed and the destination is being copied anew; not acknowledged in time")]
    Gap,
    /// The agent does not run.
    #[error("the agent pmemhad is not running; the data is safe on this machine only")]
    AgentDead,
    /// No destination is configured.
    #[error("the group has no destination; the data is safe on this machine only")]
    NoDestination,
}

impl LogRegion {
    /// How far destinations have acknowledged.
    pub fn acks(&self) -> Acks {
        Acks {
            received: self.acknowledged(Level::Received),
            durable: self.acknowledged(Level::Durable),
            applied: self.acknowledged(Level::Applied),
        }
    }

    /// Agent: acknowledges. Each level only rises; none passes the start of a gap that is open. Wakes waiters.
    pub fn set_acks(&self, acks: Acks) {
        let limit = match self.gap() {
            Some(gap) if gap.end.is_none() => gap.start,
            _ => Lsn(u64::MAX),
        };
        let mut moved = false;
        for (i, lsn) in [acks.received, acks.durable, acks.applied].into_iter().enumerate() {
            let lsn = lsn.min(limit).0;
            moved |= self.control().u64(cell::ACKS + 8 * i).fetch_max(lsn, SeqCst) < lsn;
        }
        if moved {
            self.wake_waiters();
        }
    }

    /// Has every waiter look again, at acknowledgements, link and pulse.
    pub fn wake_waiters(&self) {
        let seq = self.control().u32(cell::ACK_SEQ);
        seq.fetch_add(1, SeqCst);
        // Pairs with the waiter's increment: either it sees the new sequence number, or we see it waiting. A waiter
        // that was killed stays counted, which costs a needless wake each time and nothing else.
        if self.control().u32(cell::ACK_SEQ + 4).load(SeqCst) != 0 {
            let _ = futex::wake(seq, futex::Flags::empty(), i32::MAX as u32);
        }
    }

    /// Waits until every record below `lsn` has come as far as `level`, for ever if `timeout` is `None`.
    pub fn wait(&self, lsn: Lsn, level: Level, timeout: Option<Duration>) -> Result<(), WaitError> {
        if self.reached(lsn, level) {
            return Ok(());
        }
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(self.hindrance(lsn, level).unwrap_or_else(|| self.late(lsn)));
        }
        let look = Look::begin(self);
        let deadline = timeout.map(|t| look.began + t);
        loop {
            let seen = self.control().u32(cell::ACK_SEQ).load(Acquire);
            if self.reached(lsn, level) {
                look.reached();
                return Ok(());
            }
            if let Some(error) = self.hindrance(lsn, level) {
                return Err(error);
            }
            let left = deadline.map_or(WAIT_SLICE, |d| d.saturating_duration_since(waits::now()));
            if left.is_zero() {
                look.given_up();
                return Err(self.late(lsn));
            }
            look.again_or_sleep(seen, left);
        }
    }

    /// Why a wait for `lsn` to reach `level` cannot end well at present.
    fn hindrance(&self, lsn: Lsn, level: Level) -> Option<WaitError> {
        // First: what ends a gap is published before.
        let in_gap = protocol::in_gap(self, lsn.0);
        let published = self.published();
        if lsn > published && !in_gap {
            return Some(WaitError::Unpublished { asked: lsn, published });
        }
        if level == Level::Local {
            return Some(WaitError::Gap);
        }
        if !self.agent_alive(boottime()) {
            return Some(WaitError::AgentDead);
        }
        (self.link() == LinkState::None).then_some(WaitError::NoDestination)
    }

    fn late(&self, lsn: Lsn) -> WaitError {
        if protocol::in_gap(self, lsn.0) { WaitError::Gap } else { WaitError::Timeout }
    }

    /// What the policy demands after a drain that yielded `lsn`: waits for the commit level, up to the commit timeout.
    ///
    /// Waits through everything that may pass: a destination that is slow, away, or being copied to, an agent that is slow
    /// or being restarted. When the time is over the commit is given up and counted, and further commits do not
    /// wait until that LSN has been acknowledged after all. Whether or not it waited for the level, it waits, no longer
    /// than that, where the log would overflow otherwise: see [`Pace`](super::Pace). Before all that it is held for as long as the
    /// battery budget demands, if that is enforced: see `log::budget`. Returns whether the level was reached.
    #[inline]
    pub fn commit(&self, lsn: Lsn) -> bool {
        !self.drains_wait() || self.commit_at(lsn)
    }

    #[cold]
    fn commit_at(&self, lsn: Lsn) -> bool {
        self.keep_budget(lsn);
        let level = self.commit_level();
        if level == Level::Local {
            return true;
        }
        let limit = self.policy().commit_timeout;
        if self.reached(lsn, level) {
            self.keep_pace(limit);
            return true;
        }
        if self.commits_wait() {
            let (began, free) = (waits::now(), self.free());
            if self.wait_out(lsn, level, limit) {
                self.keep_pace(limit.saturating_sub(waits::since(began)));
                return true;
            }
            // Not where the commit did not even wait: a program that goes on would always be a little past what the
            // destination acknowledges, and never wait again.
            self.control().u64(cell::GIVEN_UP).fetch_max(lsn.0, AcqRel);
            self.hold_nobody_if_stalled(free);
        } else if self.link() != LinkState::None {
            self.keep_pace(limit);
        }
        self.commit_given_up();
        false
    }

    /// Whether commits wait at present: not where there is nobody to wait for, nor from one that was given up until that one's
    /// LSN has been acknowledged.
    pub fn commits_wait(&self) -> bool {
        let given_up = self.control().u64(cell::GIVEN_UP).load(Acquire);
        self.link() != LinkState::None && self.acknowledged(self.commit_level()).0 >= given_up
    }

    /// Counts a drain that returns to a program whose level was not reached.
    pub(crate) fn commit_given_up(&self) {
        self.count(Counter::CommitsGivenUp, 1);
    }

    /// Waits for `lsn` to reach `level`, whatever stands in the way, for `limit`; whether it did.
    fn wait_out(&self, lsn: Lsn, level: Level, limit: Duration) -> bool {
        let look = Look::begin(self);
        loop {
            let seen = self.control().u32(cell::ACK_SEQ).load(Acquire);
            if self.reached(lsn, level) {
                look.reached();
                return true;
            }
            let left = limit.saturating_sub(waits::since(look.began));
            if left.is_zero() || self.link() == LinkState::None {
                look.given_up();
                return false;
            }
            look.again_or_sleep(seen, left);
        }
    }

    /// Agent: whether somebody waited for an acknowledgement a moment ago, and so may again at any moment.
    pub fn is_waited_for(&self) -> bool {
        let waited = self.control().u64(cell::WAITED).load(Acquire);
        (boottime().as_nanos() as u64).saturating_sub(waited) < WAITS_AGAIN.as_nanos() as u64
    }

    /// Agent: sleeps until something is published past `seen`, someone waits, the application goes ahead, or
    /// [`LogRegion::wake_agent`] is called; at most `timeout`. Any number of threads of the agent, through one mapping: what wakes
    /// the deepest sleeper wakes all.
    pub fn sleep_until_work(&self, seen: Lsn, depth: SleepDepth, timeout: Duration) {
        let (depth_cell, word) = self.sleep_cells();
        let before = word.load(SeqCst);
        let mut sleepers = lock(self.sleepers());
        *sleepers += 1;
        depth_cell.fetch_max(depth as u32, SeqCst);
        drop(sleepers);
        // Pairs with `wake_agent`, which follows the fence of publishing: either it sees the depth, or we its work.
        fence(SeqCst);
        if self.published() <= seen && !self.is_ahead() {
            waits::futex_wait(word, before, timeout);
        }
        let mut sleepers = lock(self.sleepers());
        *sleepers -= 1;
        if *sleepers == 0 {
            depth_cell.store(0, SeqCst);
        }
    }

    /// Wakes the agent if it sleeps at least as deeply as `depth`.
    #[inline]
    pub fn wake_agent(&self, depth: SleepDepth) {
        let (depth_cell, word) = self.sleep_cells();
        // Only one of many comes to make the system call.
        if depth_cell.load(SeqCst) >= depth as u32 && depth_cell.swap(0, SeqCst) != 0 {
            word.fetch_add(1, SeqCst);
            let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
        }
    }

    fn acknowledged(&self, level: Level) -> Lsn {
        let at = match level {
            Level::Local => cell::PUBLISHED,
            Level::Received => cell::ACKS,
            Level::Durable => cell::ACKS + 8,
            Level::Applied => cell::ACKS + 16,
        };
        Lsn(self.control().u64(at).load(Acquire))
    }

    /// Whether `lsn` has come as far as `level`. In a gap only the copy that closes it can bring it there.
    fn reached(&self, lsn: Lsn, level: Level) -> bool {
        let needed = match self.gap() {
            Some(gap) if lsn > gap.start => match gap.end {
                None => return false,
                Some(end) => lsn.max(end),
            },
            _ => lsn,
        };
        self.acknowledged(level) >= needed
    }

    fn sleep_for_acks(&self, seen: u32, at_most: Duration) {
        let waiters = self.control().u32(cell::ACK_SEQ + 4);
        waiters.fetch_add(1, SeqCst);
        let seq = self.control().u32(cell::ACK_SEQ);
        waits::futex_wait(seq, seen, at_most);
        waiters.fetch_sub(1, SeqCst);
    }

    fn sleep_cells(&self) -> (&std::sync::atomic::AtomicU32, &std::sync::atomic::AtomicU32) {
        (self.control().u32(cell::AGENT_SLEEP), self.control().u32(cell::AGENT_SLEEP + 4))
    }
}

/// One wait for an acknowledgement: looks for a while, then sleeps.
struct Look<'a> {
    log: &'a LogRegion,
    began: Instant,
    looks_for: Duration,
}

impl Look<'_> {
    /// For what is published: so the agent has no need to be woken again while we look.
    fn begin(log: &LogRegion) -> Look<'_> {
        log.control().u64(cell::WAITED).store(boottime().as_nanos() as u64, Release);
        log.wake_agent(SleepDepth::Nap);
        Look { log, began: waits::now(), looks_for: log.eager.begin() }
    }

    fn again_or_sleep(&self, seen: u32, left: Duration) {
        if waits::since(self.began) < self.looks_for {
            // Whoever is to acknowledge may need this processor.
            waits::yield_now();
        } else {
            self.log.wake_agent(SleepDepth::Nap);
            self.log.sleep_for_acks(seen, left.min(WAIT_SLICE));
        }
    }

    fn reached(self) {
        self.log.eager.took(waits::since(self.began), !self.looks_for.is_zero());
    }

    /// Whatever it would have taken, looking has not shortened it.
    fn given_up(self) {
        self.log.eager.took(Duration::MAX, false);
    }
}
