//! Room in a full ring: waiting for it, or going ahead, as the policy says.

use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use super::{Appender, FILLING, MAX_ATTEMPTS, NAP, later};
use crate::log::protocol::{self, Blocked, Claimed};
use crate::log::region::{Counter, OnFull};
use crate::log::wait::SleepDepth;

impl Appender {
    /// No room: publishes what is complete, so that a capture larger than the ring never waits for itself, then does what the
    /// policy says.
    #[cold]
    pub(super) fn make_room(&self, span: u64, cell: u16) -> Claimed {
        let started = Instant::now();
        let mut attempts = 0;
        let mut held_up = None;
        loop {
            held_up = self.publish_complete().filter(|_| may_wait_for_us()).map(|slot| match held_up {
                Some((same, since)) if same == slot => (same, since),
                _ => (slot, Instant::now()),
            });
            self.log.wake_agent(SleepDepth::Nap);
            let tail = match protocol::claim(&*self.log, span, cell) {
                Claimed::Full(tail) if attempts < MAX_ATTEMPTS => tail,
                claimed => return claimed,
            };
            let policy = self.log.policy();
            // Whatever the reason: an agent that shows no pulse may be slow on a busy machine, or about to be restarted.
            let waited = started.elapsed();
            let in_vain = held_up.is_some_and(|(_, since)| since.elapsed() >= PREEMPTED_FOR);
            if policy.on_full == OnFull::Block && waited < policy.block_limit && !in_vain {
                std::thread::sleep((waited / 8).clamp(NAP, LONG_NAP));
                self.log.count(Counter::BlockedNs, (started.elapsed() - waited).as_nanos() as u64);
            } else {
                attempts += 1;
                if protocol::go_ahead(&*self.log, tail, cell) {
                    self.log.count(Counter::Ahead, 1);
                }
                self.log.wake_agent(SleepDepth::Nap);
            }
        }
    }

    /// Publishes what is complete; where it ends at a slot of this process that is not, that slot.
    fn publish_complete(&self) -> Option<u64> {
        let (tail, _) = protocol::tail(&*self.log);
        let mut ours = None;
        protocol::publish(&*self.log, self.settled.load(Acquire), tail, |slot, claim| {
            match self.fill_if_dead(claim) {
                true => Blocked::OwnerDead,
                false => {
                    ours = (self.cell() == Some(claim.owner)).then_some(slot);
                    Blocked::Stop
                }
            }
        });
        ours
    }
}

/// Whether an incomplete slot of this process may wait for this thread: its own thread interrupted by a handler that wants the lock
/// that is held here ([`later`]), or this very thread interrupted. Another process's slot is that process's to see to: publication
/// ends at the lowest one, so that where several processes wait for each other, one of them finds its own.
fn may_wait_for_us() -> bool {
    later::waits_later() || FILLING.get() > 1
}

/// A slot that is not complete after this long is hardly so because its thread was preempted.
const PREEMPTED_FOR: Duration = Duration::from_millis(20);

/// The longest between looks for room: what has been awaited for long is looked for seldom.
const LONG_NAP: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::super::wait_later;
    use super::*;
    use crate::log::format::Kind;
    use crate::log::{LogRegion, LogSpec, Policy};
    use crate::types::RegionId;

    #[test]
    fn under_the_lock_nobody_waits_for_room_that_a_slot_of_the_same_process_keeps() {
        let spec = LogSpec { ring_bytes: 1 << 16, bitmap_bytes: 4096, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        log.set_policy(Policy { on_full: OnFull::Block, block_limit: LIMIT, ..log.policy() });
        let appender = Appender::attach(log, 1).unwrap();
        let interrupted = appender.reserve(0).unwrap();
        let took = std::thread::scope(|s| {
            let holder = s.spawn(|| {
                wait_later(true);
                let began = Instant::now();
                while appender.append(Kind::Filler, RegionId(0), 0, &[0; 4096]).is_ok() {}
                wait_later(false);
                began.elapsed()
            });
            holder.join().unwrap()
        });
        appender.give_up(&interrupted);
        assert!(took < LIMIT / 2, "its handler waits for the lock: {took:?}");
    }

    const LIMIT: Duration = Duration::from_secs(6);
}
