//! `pmemhad`: the agent of a node. `pmemhad(8)` documents it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use pmemha::agent::config::{Config, DEFAULT_FILE};
use pmemha::agent::holder;

/// The agent that keeps this node's persistent memory safe on another machine.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Check a configuration file and say everything that is wrong with it
    Check {
        /// Configuration file
        #[arg(default_value = DEFAULT_FILE)]
        file: PathBuf,
    },
    /// Keep log regions while the agent is down (started by the agent)
    Hold {
        /// Socket to listen at
        #[arg(long)]
        socket: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Command::Check { file }) => check(&file),
        Some(Command::Hold { socket }) => {
            holder::serve(&socket).map_err(|e| Failure::software(e.to_string()))
        }
        None => check(&arguments.config),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("pmemhad: {}", failure.message.replace('\n', "\npmemhad: "));
            ExitCode::from(failure.code)
        }
    }
}

fn check(file: &std::path::Path) -> Result<(), Failure> {
    let config = Config::load(file).map_err(|e| Failure { code: EX_CONFIG, message: e.to_string() })?;
    println!(
        "{}: node {}, {} peers, {} groups, {} replicas: nothing wrong",
        file.display(),
        config.node.name,
        config.peers.len(),
        config.groups.len(),
        config.replicas.len()
    );
    Ok(())
}

/// What the process ends with, by the conventions of sysexits.h.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn software(message: String) -> Failure {
        Failure { code: EX_SOFTWARE, message }
    }
}

/// An internal or system failure.
const EX_SOFTWARE: u8 = 70;
/// The configuration cannot be used.
const EX_CONFIG: u8 = 78;
