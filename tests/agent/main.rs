//! The agent from outside: its processes, its socket, hostile clients, its command line, full disks, wrong permissions.

mod bench;
mod full_disk;
mod holder;
mod lives;
mod permissions;
mod restarts;
mod sessions;
mod trouble;

use pmemha_testkit::node::Binaries;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };
