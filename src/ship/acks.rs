//! What to believe of a destination's acknowledgements.
//!
//! The destination writes an [`AckCell`] into our memory whenever it likes, with whatever bytes it likes. Pure:
//! bytes in, positions or the reason for distrust out. Called by the shipper for every change of the cell.

use crate::replica::ack::{ACK_BYTES, AckCell, COUNTS, FAULTED, SLEEPING, SYNCING};
use crate::types::{Generation, Lsn};

/// Positions that a destination acknowledged and that passed every check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// Durable in its landing ring.
    pub durable: Lsn,
    /// Durable in its image.
    pub applied: Lsn,
    /// Its chained digest at `applied`.
    pub digest: u64,
    /// LSN just past the `SyncEnd` from which its live image counts; 0 without one.
    pub counts_from: Lsn,
    /// Whether its image is complete and live, so that positions count for commit levels.
    pub counts: bool,
    /// Whether it builds an image.
    pub syncing: bool,
    /// Whether it sleeps and must be woken for new bytes.
    pub sleeping: bool,
    /// Whether it cannot persist at present.
    pub faulted: bool,
}

/// Why an acknowledgement cannot be true. The link ends: what such a peer says is worth nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// Of another generation than this link ships.
    #[error("an acknowledgement of generation {theirs} on a link of generation {ours}")]
    Generation {
        /// What the cell says.
        theirs: Generation,
        /// What the link ships.
        ours: Generation,
    },
    /// A position moved back.
    #[error("the {which} position went back from {was} to {is}")]
    Backwards {
        /// Which.
        which: &'static str,
        /// Before.
        was: Lsn,
        /// Now.
        is: Lsn,
    },
    /// More is acknowledged than was shipped, or more applied than durable.
    #[error("the {which} position {is} is past {limit}, which it cannot be")]
    Beyond {
        /// Which.
        which: &'static str,
        /// What the cell says.
        is: Lsn,
        /// What it can be at most.
        limit: Lsn,
    },
}

/// Checks the cells of one link.
#[derive(Debug)]
pub struct AckGate {
    generation: Generation,
    seq: u64,
    last: Acked,
}

impl AckGate {
    /// A gate for a link of `generation` on which nothing has been acknowledged yet.
    pub fn new(generation: Generation) -> AckGate {
        AckGate { generation, seq: 0, last: Acked::default() }
    }

    /// What `bytes`, read from the cell, add to what is known; `shipped` is the end of what was posted.
    /// `None`: nothing new, or torn by a write in progress (read it again later).
    pub fn check(&mut self, bytes: &[u8; ACK_BYTES], shipped: Lsn) -> Result<Option<Acked>, AckError> {
        let Some(cell) = AckCell::decode(bytes) else { return Ok(None) };
        // The CRC vouches for one write; an older one cannot come after a newer one on an ordered link.
        if cell.seq <= self.seq {
            return Ok(None);
        }
        let (theirs, durable, applied) = cell.positions();
        if theirs != self.generation {
            return Err(AckError::Generation { theirs, ours: self.generation });
        }
        forwards("durable", self.last.durable, durable)?;
        forwards("applied", self.last.applied, applied)?;
        within("durable", durable, shipped)?;
        within("applied", applied, durable)?;
        within("image's first", Lsn(cell.counts_from), applied)?;
        self.seq = cell.seq;
        self.last = Acked {
            durable,
            applied,
            digest: cell.digest,
            counts_from: Lsn(cell.counts_from),
            counts: cell.flags & COUNTS != 0,
            syncing: cell.flags & SYNCING != 0,
            sleeping: cell.flags & SLEEPING != 0,
            faulted: cell.flags & FAULTED != 0,
        };
        Ok(Some(self.last))
    }
}

fn forwards(which: &'static str, was: Lsn, is: Lsn) -> Result<(), AckError> {
    if is < was { Err(AckError::Backwards { which, was, is }) } else { Ok(()) }
}

fn within(which: &'static str, is: Lsn, limit: Lsn) -> Result<(), AckError> {
    if is > limit { Err(AckError::Beyond { which, is, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cell(seq: u64, durable: u64, applied: u64) -> AckCell {
        AckCell {
            seq,
            generation: 7,
            flags: COUNTS,
            durable,
            applied,
            image: 1,
            counts_from: 0,
            digest: 5,
            reserved: 0,
            crc: 0,
        }
    }

    #[test]
    fn positions_are_believed_once_and_in_order() {
        let mut gate = AckGate::new(Generation(7));
        let acked = gate.check(&cell(1, 640, 320).encode(), Lsn(640)).unwrap().unwrap();
        assert_eq!((acked.durable, acked.applied, acked.counts), (Lsn(640), Lsn(320), true));
        assert_eq!(gate.check(&cell(1, 640, 320).encode(), Lsn(640)), Ok(None));
        assert!(gate.check(&cell(2, 640, 640).encode(), Lsn(640)).unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_true_is_named() {
        let check = |c: AckCell| {
            let mut gate = AckGate::new(Generation(7));
            gate.check(&cell(1, 640, 320).encode(), Lsn(640)).unwrap();
            gate.check(&c.encode(), Lsn(960)).unwrap_err()
        };
        assert!(matches!(check(AckCell { generation: 6, ..cell(2, 640, 640) }), AckError::Generation { .. }));
        assert!(matches!(check(cell(2, 608, 320)), AckError::Backwards { which: "durable", .. }));
        assert!(matches!(check(cell(2, 640, 288)), AckError::Backwards { which: "applied", .. }));
        assert!(matches!(check(cell(2, 992, 320)), AckError::Beyond { which: "durable", .. }));
        assert!(matches!(check(cell(2, 640, 672)), AckError::Beyond { which: "applied", .. }));
        let ahead = AckCell { counts_from: 672, ..cell(2, 640, 640) };
        assert!(matches!(check(ahead), AckError::Beyond { .. }));
    }

    #[test]
    fn torn_cells_are_read_again() {
        let mut gate = AckGate::new(Generation(7));
        let mut bytes = cell(1, 640, 320).encode();
        bytes[17] ^= 1;
        assert_eq!(gate.check(&bytes, Lsn(640)), Ok(None));
        assert_eq!(gate.check(&[0; ACK_BYTES], Lsn(640)), Ok(None));
    }

    proptest! {
        #[test]
        fn nothing_past_what_was_shipped_is_ever_believed(
            cells in prop::collection::vec((0u64..9, 6u32..9, 0u64..2000, 0u64..2000), 1..40),
            shipped in 0u64..2000,
        ) {
            let mut gate = AckGate::new(Generation(7));
            let mut before = Acked::default();
            for (seq, generation, durable, applied) in cells {
                let bytes = AckCell { generation, ..cell(seq, durable, applied) }.encode();
                if let Ok(Some(acked)) = gate.check(&bytes, Lsn(shipped)) {
                    prop_assert!(generation == 7 && acked.durable <= Lsn(shipped));
                    prop_assert!(acked.applied <= acked.durable);
                    prop_assert!(acked.durable >= before.durable && acked.applied >= before.applied);
                    before = acked;
                }
            }
        }
    }
}
