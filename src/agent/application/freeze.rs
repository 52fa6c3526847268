//! Freezing an application: all of it, also what the means do not hold yet, at a moment when nothing is half done.

use std::thread;
use std::time::{Duration, Instant};

use super::{Halfway, Keeper};
use crate::agent::group::Crowd;
use crate::failover::supervise::SuperviseError;
use crate::failover::{Event, Round};

impl Keeper {
    pub(super) fn freeze(&mut self, round: Round, halfway: &Halfway) -> Result<(), SuperviseError> {
        (self.frozen, self.unheld) = (true, false);
        let frozen = self.freeze_at_rest(halfway);
        (self.hear)(match &frozen {
            Ok(()) => Event::FreezeDone { round },
            Err(_) => Event::FreezeFailed { round },
        });
        frozen
    }

    /// Freezes; where that has halted a process in the middle of a record that others wait for, lets everything run for a
    /// moment and tries again. The state machine waits twice the deadline before it has the application killed.
    fn freeze_at_rest(&mut self, halfway: &Halfway) -> Result<(), SuperviseError> {
        let deadline = Instant::now() + self.freeze_within;
        self.freeze_everyone(deadline)?;
        let mut run = SHORTEST_RUN;
        while (halfway.0)() && Instant::now() + run < deadline {
            self.means.thaw()?;
            thread::sleep(run);
            run = (run * 2).min(LONGEST_RUN);
            self.freeze_everyone(deadline + self.freeze_within / 2)?;
        }
        Ok(())
    }

    /// Freezes what the means hold, and takes in what they do not until there is no more of it: a worker that was forked before
    /// its parent was taken in, for one.
    fn freeze_everyone(&mut self, deadline: Instant) -> Result<(), SuperviseError> {
        let mut outside = Crowd::default();
        for _ in 0..FREEZE_ROUNDS {
            self.means.freeze(deadline)?;
            outside = self.outside(deadline)?;
            if outside.is_empty() {
                return Ok(());
            }
            if outside.own.is_empty() {
                // Whoever it is may be on its way to become another program, without the log.
                thread::sleep(SHORTEST_RUN);
            }
            outside.own.iter().try_for_each(|pid| self.take_in(*pid))?;
        }
        let (name, pids) = (self.name.clone(), outside.all());
        Err(match outside.own[..] {
            [] => SuperviseError::Strangers { name, pids },
            _ => SuperviseError::Deadline { name, pids },
        })
    }

    /// Processes that have to do with the application and that the means do not hold; never this one.
    pub(super) fn outside(&self, deadline: Instant) -> Result<Crowd, SuperviseError> {
        let mut outside = self.look.everyone(deadline);
        if !outside.is_empty() {
            let members = self.means.members()?;
            outside.retain(|pid| pid != std::process::id() && !members.contains(&pid));
        }
        Ok(outside)
    }
}

/// How often processes that are outside are taken in during one freeze. Each round stops those that fork, so the second finds what
/// was forked in the first.
const FREEZE_ROUNDS: u32 = 8;

/// How long it may take to see who is there before a kill and after it: tens of milliseconds, unless a process does not answer.
pub(super) const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// How long an application that was halted in the middle of a record runs before it is frozen again: a record takes microseconds.
const SHORTEST_RUN: Duration = Duration::from_micros(200);

/// The same after several attempts: the halted thread may have to wait for a processor.
const LONGEST_RUN: Duration = Duration::from_millis(20);
