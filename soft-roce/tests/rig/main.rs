//! The rig keeps what its documentation promises: what a machine has, what a power cut leaves, what a cable does, and
//! that nothing of it stays behind.

mod devices;
mod host;
mod listening;
mod pair;
mod power;

use std::sync::LazyLock;

use pmemha_rig::{Machine, MachineSpec};

/// A machine for all tests that leave it as it is.
static SHARED: LazyLock<Machine> =
    LazyLock::new(|| Machine::boot(MachineSpec::alone("shared")).unwrap_or_else(|e| panic!("{e}")));

/// The outcome of a test that ends at the first thing that does not work.
type Outcome = Result<(), pmemha_rig::RigError>;
