//! How far programs may append, where their operator lets them pay: see `log::pace`.

use std::sync::atomic::Ordering::SeqCst;

use super::Shared;
use crate::log::Pace;
use crate::types::Lsn;

impl Shared {
    /// The copy has just put `copied` bytes into the log: so may the programs, before it goes on. Link and ring are shared
    /// half and half, and however fast the programs are it comes to its end; also where others count, who would be without this one
    /// for as long as the programs are busy. Programs that take no more than half of what the copy may are not held, however slow
    /// it is.
    pub(super) fn keep_beside(&self, copied: u64) {
        let log = self.log();
        let unhindered = log.free().advance(log.spec().ring_bytes / self.share() / 2);
        self.let_reach(Pace::Upto(unhindered.max(log.tail().advance(copied))));
    }

    /// No copy is under way.
    pub(super) fn keep_room(&self) {
        self.let_reach(Pace::Room);
    }

    /// As [`Shared::keep_room`], where programs found that nothing moved: something has since `free` was.
    pub(super) fn keep_room_again(&self, free: &mut Lsn) {
        let now = self.log().free();
        if self.log().pace() == Pace::Free && now != *free {
            self.keep_room();
        }
        *free = now;
    }

    /// Where nobody takes records nobody is held.
    fn let_reach(&self, pace: Pace) {
        self.log().set_pace(if self.flowing.load(SeqCst) { pace } else { Pace::Free });
    }
}
