//! Over how many destinations a record must have come before it is acknowledged.
//!
//! Each destination's shipper reports how far that one has come; what so many of them have is raised in the log's
//! cells, for whoever waits. Pure but for that.

use std::sync::{Arc, Mutex};

use serde::Deserialize;

use crate::locks::lock;
use crate::log::{Acks, LogRegion};
use crate::types::Lsn;

/// How many destinations must have a record, as the configuration has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// One, whichever.
    #[default]
    Any,
    /// More than half.
    Quorum,
    /// Each, those that are away included.
    All,
}

impl Over {
    /// How many of so many.
    pub fn of(self, destinations: usize) -> usize {
        match self {
            Over::Any => 1,
            Over::Quorum => destinations / 2 + 1,
            Over::All => destinations,
        }
    }
}

/// What the destinations of one log have acknowledged.
pub struct Commits {
    log: Arc<LogRegion>,
    enough: usize,
    /// By destination.
    acks: Mutex<Vec<Acks>>,
}

impl Commits {
    /// For so many destinations, none of which has acknowledged anything.
    pub fn new(log: Arc<LogRegion>, over: Over, destinations: usize) -> Commits {
        Commits { log, enough: over.of(destinations), acks: Mutex::new(vec![Acks::default(); destinations]) }
    }

    /// Destination `who` begins anew: what it had it may have lost. What was acknowledged stays so.
    pub fn begins_anew(&self, who: usize) {
        let mut all = lock(&self.acks);
        all[who] = Acks::default();
        self.log.set_durable_somewhere(reached(&all, 1).durable);
    }

    /// Destination `who` resumes, and has so much: what had landed there may have been lost in a crash.
    pub fn resumes(&self, who: usize, has: Acks) {
        let mut all = lock(&self.acks);
        let mine = &mut all[who];
        mine.received = mine.received.min(has.received);
        mine.durable = mine.durable.min(has.durable);
        mine.applied = mine.applied.min(has.applied);
        self.log.set_durable_somewhere(reached(&all, 1).durable);
    }

    /// Destination `who` has come so far: never back before it begins anew, since what it has it keeps.
    pub fn acknowledge(&self, who: usize, acks: Acks) {
        let mut all = lock(&self.acks);
        let mine = &mut all[who];
        let before = *mine;
        mine.received = mine.received.max(acks.received);
        mine.durable = mine.durable.max(acks.durable);
        mine.applied = mine.applied.max(acks.applied);
        if *mine != before {
            self.log.set_acks(reached(&all, self.enough));
            self.log.set_durable_somewhere(reached(&all, 1).durable);
        }
    }
}

/// How far at least `enough` of them have come, at each level.
fn reached(all: &[Acks], enough: usize) -> Acks {
    let level = |of: fn(&Acks) -> Lsn| {
        let mut lsns: Vec<Lsn> = all.iter().map(of).collect();
        lsns.sort_unstable_by(|a, b| b.cmp(a));
        lsns[enough - 1]
    };
    Acks { received: level(|a| a.received), durable: level(|a| a.durable), applied: level(|a| a.applied) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::Kind;
    use crate::log::{Appender, LogSpec};
    use crate::types::RegionId;

    fn acks(received: u64, durable: u64, applied: u64) -> Acks {
        Acks { received: Lsn(received), durable: Lsn(durable), applied: Lsn(applied) }
    }

    #[test]
    fn a_level_is_reached_where_so_many_have_come_that_far() {
        let all = [acks(300, 200, 100), acks(250, 250, 50), acks(400, 100, 75)];
        assert_eq!(reached(&all, Over::Any.of(3)), acks(400, 250, 100));
        assert_eq!(reached(&all, Over::Quorum.of(3)), acks(300, 200, 75));
        assert_eq!(reached(&all, Over::All.of(3)), acks(250, 100, 50));
        assert_eq!((Over::Quorum.of(1), Over::Quorum.of(2), Over::Quorum.of(4)), (1, 2, 3));
    }

    #[test]
    fn all_wait_for_the_one_that_is_away_and_what_was_acknowledged_stays_so() {
        let (_fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
        let app = Appender::attach(log.clone(), 1).unwrap();
        let end = app.append(Kind::Data, RegionId(1), 0, &[1; 64]).unwrap();
        app.drain();
        let both = |lsn: Lsn| Acks { received: lsn, durable: lsn, applied: lsn };
        let commits = Commits::new(log.clone(), Over::All, 2);
        commits.acknowledge(0, both(end));
        assert_eq!(log.acks(), Acks::default());
        commits.acknowledge(1, both(end));
        assert_eq!(log.acks(), both(end));
        commits.acknowledge(1, Acks::default());
        commits.begins_anew(1);
        commits.acknowledge(0, both(end.advance(64)));
        assert_eq!(log.acks(), both(end));
    }
}
