//! What a source says at an instant, and the proof of it on what its destination has.

use pmemha::types::Level;
use serde_json::Value;

use crate::image::Copy;

/// The levels that a destination keeps when its agent dies.
pub const KEPT_BY_A_MACHINE: [Level; 3] = [Level::Received, Level::Durable, Level::Applied];

/// The levels that a destination keeps when its machine loses its power, and DRAM with it.
pub const KEPT_WITHOUT_POWER: [Level; 2] = [Level::Durable, Level::Applied];

/// What the source says at an instant.
pub struct Claim {
    /// Operations that had returned to the program.
    pub done: u64,
    /// Whether each of them had waited until the destination acknowledged it.
    pub waited: bool,
    /// The group in the source's status, taken after `done`.
    pub group: Value,
}

impl Claim {
    /// Proves on a copy of the destination, opened after the claim, that the status claimed no LSN of a level in `kept` that is not
    /// there, and that a promotion yields files that keep the invariants of `mode` and have every operation that was
    /// acknowledged. How many operations they have.
    pub fn prove(&self, mode: &str, kept: &[Level], copy: &mut Copy) -> u64 {
        let (row, there) = (&self.group["destinations"][0], copy.status());
        if row["state"] == "streaming" {
            let levels = [
                (Level::Received, "received", there.received),
                (Level::Durable, "durable", there.durable),
                (Level::Applied, "applied", there.applied),
            ];
            for (_, level, have) in levels.into_iter().filter(|(level, ..)| kept.contains(level)) {
                let claimed = row[format!("lsn_{level}")].as_u64().expect("an LSN");
                assert!(have.0 >= claimed, "{level} was claimed up to {claimed}, there is {have}: {row:#}");
            }
        }
        let files =
            copy.promote().unwrap_or_else(|why| panic!("cannot be promoted: {why}; claimed: {row:#}"));
        let found = files.check(mode).unwrap_or_else(|why| panic!("{mode}: {why}; claimed: {row:#}"));
        if self.waited {
            assert!(found >= self.done, "{mode}: {} acknowledged, {found} found: {row:#}", self.done);
        }
        found
    }
}
