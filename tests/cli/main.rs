//! The commands that an operator types: what `init` makes is enough for two nodes, `run` ends as its program does, `log` reads
//! what `run` archived, `doctor` says how a machine is, and wrong arguments are answered with what to do and the documented exit code.

mod arguments;
mod check;
mod doctor;
mod host;
mod init;
mod last_gasp;
mod run;

use std::process::Output;

use pmemha_testkit::node::Binaries;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// What a command printed, for messages.
fn said(out: &Output) -> String {
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    format!("{:?}\n{said}\n{complained}", out.status)
}
