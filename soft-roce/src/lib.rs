//! The Soft-RoCE rig: machines with an RDMA device and persistent memory, emulated by QEMU, for tests that need real
//! verbs, real DAX and real power cuts on a host that has none of them.
//!
//! A [`Machine`] runs Debian's kernel on the host's own file system (read-only, writes go to its memory), so that
//! whatever was built or installed on the host runs in it as it is. It has:
//!
//! * `rxe0`, a Soft-RoCE device: a machine alone talks to itself, the two of a [`Pair`] talk over a [`Cable`] that
//!   a test cuts and heals;
//! * a file system with DAX at [`FSDAX`] and a devdax device at [`DEVDAX`], on NVDIMMs whose content outlives
//!   [`Machine::cut_power`] and [`Machine::crash`];
//! * up to [`COMMANDS`] commands at once, each with its own exit status, stdout and stderr: [`Machine::command`].
//!
//! What it promises: a machine that [`Machine::boot`] returned is ready, nothing was slept for; an error says what did
//! not work, on which machine, and shows the end of its kernel log. Machines, their files and their processes are gone
//! when they are dropped, and when the process that started them is gone, however it ended. Called by the tests that
//! run over verbs, and by `soft-roce/run`. All types may be shared between threads.
//!
//! ```no_run
//! use pmemha_rig::{FSDAX, Machine, MachineSpec};
//!
//! let machine = Machine::boot(MachineSpec::alone("alpha"))?;
//! machine.command("sh").args(["-c", &format!("echo kept >{FSDAX}/file; sync")]).text()?;
//! let machine = machine.cut_power().boot()?;
//! assert_eq!(machine.command("cat").arg(format!("{FSDAX}/file")).text()?, "kept\n");
//! # Ok::<(), pmemha_rig::RigError>(())
//! ```

mod cable;
mod command;
mod error;
mod frame;
pub mod guest;
mod host;
mod initramfs;
mod machine;
mod pair;
mod places;
mod ports;
mod qemu;
mod qmp;
mod rundir;

pub use cable::Cable;
pub use command::{Command, Output, Running, Status};
pub use error::RigError;
pub use host::skipped;
pub use machine::{ALPHA, BETA, DEVDAX, FSDAX, Machine, MachineSpec, PoweredOff};
pub use pair::Pair;
pub use ports::COMMANDS;
