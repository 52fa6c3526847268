//! Opening a replica after any crash: what had landed is checked and applied again from the stored position.

use std::time::{Duration, Instant};

use super::applier::{Applier, ApplierConfig, ApplyError};
use crate::types::Lsn;

/// What opening found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The stored position.
    pub from: Lsn,
    /// End of the valid records that had landed.
    pub to: Lsn,
    /// A landing ring that could not be used: why, and where it is now.
    pub set_aside: Option<String>,
    /// Records that had been applied in part are no longer in the ring: the image is no legal state until the source
    /// sends them again or syncs anew.
    pub torn: bool,
    /// How long it took.
    pub took: Duration,
}

/// Opens the replica and replays its landing ring.
pub fn open(config: ApplierConfig) -> Result<(Applier, Recovery), ApplyError> {
    let start = Instant::now();
    let (mut applier, refused) = Applier::open(config)?;
    let from = applier.landed();
    drain(&mut applier)?;
    let recovery = Recovery {
        from,
        to: applier.landed(),
        set_aside: refused.map(|e| e.to_string()),
        torn: !applier.images().is_whole(),
        took: start.elapsed(),
    };
    Ok((applier, recovery))
}

/// Applies everything valid that has landed, durably.
pub fn drain(applier: &mut Applier) -> Result<(), ApplyError> {
    while applier.receive()? {
        applier.apply()?;
        if applier.must_persist() {
            applier.persist()?;
        }
    }
    applier.persist()
}
