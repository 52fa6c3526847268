//! `pmemha`: the operator's command. `pmemha(1)` documents it.

mod agent;
mod demo;
mod doctor;
mod failure;
mod filled;
mod init;
mod largepages;
mod last_gasp;
mod local_agent;
mod log;
mod memory;
mod operate;
mod output;
mod placement;
mod private;
mod run;
mod verify;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// Keeps programs' persistent memory safe on another machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The agent's socket
    #[arg(long, global = true, env = "PMEMHA_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make certificates and a commented configuration for one or two nodes
    Init(init::Init),
    /// Start a program with its files protected
    Run(run::Run),
    /// Show how every group is
    Status(watch::Status),
    /// Follow what happens, a JSON object a line
    Events(watch::Events),
    /// Bring everything to the destination and hand the group over, now; tells the steps, and ends with whether it was
    LastGasp(last_gasp::LastGasp),
    /// Call a last gasp off: the application runs on here, once the heir has given the group back
    Cancel(operate::Cancel),
    /// Make this node the owner of a group
    Promote(operate::Promote),
    /// Ship nothing to a destination until `resume`: it keeps what it has, and is brought up to date then
    Pause(operate::Pause),
    /// Have a paused destination go on
    Resume(operate::Pause),
    /// Compare a group's files with a destination's copy, while the program runs
    Verify(verify::Verify),
    /// List what the program stored in its files and never flushed
    Scrub(verify::Scrub),
    /// See a PMDK program outlive its machine, on this one
    Demo(demo::Demo),
    /// Say what this machine offers pmemha, what it lacks, and what to do
    Doctor(doctor::Doctor),
    /// Show where groups of threads run: packages, their load, sleep and class, and the last moves
    Placement(placement::Placement),
    /// Say which ranges of a process earn large pages, and map them
    #[command(name = "largepages")]
    LargePages(largepages::LargePages),
    /// Say what processes and control groups use their memory for, and make room
    Memory(memory::Memory),
    /// Read an archive: list its records, or build the files of any moment
    Log(log::Log),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => return answered(&told),
    };
    let agent = agent::Agent::new(arguments.socket);
    let done: Result<u8, Failure> = match arguments.command {
        Command::Init(init) => init.execute().map(|()| 0),
        Command::Run(run) => run.execute(&agent),
        Command::Status(status) => status.execute(&agent).map(|()| 0),
        Command::Events(events) => events.execute(&agent).map(|()| 0),
        Command::LastGasp(gasp) => gasp.execute(&agent),
        Command::Cancel(cancel) => cancel.execute(&agent).map(|()| 0),
        Command::Promote(promote) => promote.execute(&agent).map(|()| 0),
        Command::Pause(pause) => pause.execute(&agent, true).map(|()| 0),
        Command::Resume(pause) => pause.execute(&agent, false).map(|()| 0),
        Command::Verify(verify) => verify.execute(&agent),
        Command::Scrub(scrub) => scrub.execute(&agent),
        Command::Demo(demo) => demo.execute(),
        Command::Doctor(doctor) => doctor.execute(),
        Command::Placement(placement) => placement.execute(&agent).map(|()| 0),
        Command::LargePages(large) => large.execute().map(|()| 0),
        Command::Memory(memory) => memory.execute(),
        Command::Log(log) => log.execute().map(|()| 0),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}

/// Prints what the arguments ask for (help, the version), or what is wrong with them.
fn answered(told: &clap::Error) -> ExitCode {
    // Nobody reads it if it cannot be written.
    let _ = told.print();
    if told.use_stderr() { ExitCode::from(failure::USAGE) } else { ExitCode::SUCCESS }
}
