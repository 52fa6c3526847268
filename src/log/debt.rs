//! Whether the agent owes the log's readers a copy of the regions: the log alone does not make an image whole.
//!
//! Noted in the log region, so that it outlives the agent exactly as long as the log does: an agent that finds the log finds
//! the debt, and one that does not begins anew with a copy anyway. It is noted before anything that only a copy
//! makes good is in the log or agreed with a destination, and settled at once when the copy's `SyncEnd` stands in the log,
//! since every reader that goes on in this log comes to it. Callers: `ship::sync`, `agent::group` and `log::owner`; any thread.

use std::sync::atomic::Ordering::{Acquire, SeqCst};

use super::format::cell;
use super::region::LogRegion;

/// Why a copy is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Debt {
    /// One for all was asked for or has begun.
    Copy = 1,
    /// A region is being entered, and not all that it has is in the log yet.
    Entry = 2,
    /// Processes are gone, killed most likely, that had stored to regions what no record tells of. It lies in the page cache, where
    /// the next program finds it and builds on it: only a copy that begins before that program appends brings it along.
    /// Noted by whoever buries the dead.
    Remains = 4,
    /// A reader with no image that follows the stream asked for one: a copy for it alone will do.
    Newcomer = 8,
}

impl LogRegion {
    /// From here on, whoever finds this log knows that a copy is owed.
    pub fn owe(&self, debt: Debt) {
        self.control().u64(cell::OWED).fetch_or(debt as u64, SeqCst);
    }

    /// Agent: the log holds all that `debt` was about.
    pub fn settle(&self, debt: Debt) {
        self.control().u64(cell::OWED).fetch_and(!(debt as u64), SeqCst);
    }

    /// Whether a copy is owed for this reason.
    pub fn owes(&self, debt: Debt) -> bool {
        self.control().u64(cell::OWED).load(Acquire) & debt as u64 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogSpec;
    use std::os::fd::AsFd;

    #[test]
    fn each_debt_is_found_by_whoever_finds_the_log_until_it_is_settled() {
        let (fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
        let found = || {
            let log = LogRegion::attach(fd.as_fd()).unwrap();
            [Debt::Copy, Debt::Entry].map(|debt| log.owes(debt))
        };
        assert_eq!(found(), [false, false]);
        log.owe(Debt::Copy);
        log.owe(Debt::Entry);
        assert_eq!(found(), [true, true]);
        log.settle(Debt::Copy);
        assert_eq!(found(), [false, true]);
        log.settle(Debt::Entry);
        assert_eq!(found(), [false, false]);
    }
}
