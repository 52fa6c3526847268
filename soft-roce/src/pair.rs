//! Two machines and the cable between them.

use crate::cable::{Cable, End};
use crate::error::RigError;
use crate::machine::{ALPHA, BETA, Machine, MachineSpec};

/// Two machines whose RDMA devices reach each other over a cable. A machine that is switched off and booted again finds
/// the cable as it was.
pub struct Pair {
    /// At [`ALPHA`].
    pub alpha: Machine,
    /// At [`BETA`].
    pub beta: Machine,
    /// Between them.
    pub cable: Cable,
}

impl Pair {
    /// Boots both, at the same time.
    pub fn boot() -> Result<Pair, RigError> {
        Pair::with(MachineSpec::of_pair("alpha", ALPHA), MachineSpec::of_pair("beta", BETA))
    }

    /// As [`Pair::boot`], with machines like this.
    pub fn with(alpha: MachineSpec, beta: MachineSpec) -> Result<Pair, RigError> {
        let cable = Cable::default();
        let (alpha, beta) = std::thread::scope(|scope| {
            let alpha = scope.spawn(|| Machine::boot_at(alpha, cable.clone(), End::Left));
            let beta = Machine::boot_at(beta, cable.clone(), End::Right);
            (alpha.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), beta)
        });
        Ok(Pair { alpha: alpha?, beta: beta?, cable })
    }
}
