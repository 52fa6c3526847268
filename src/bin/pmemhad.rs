//! `pmemhad`: the agent of a node. `pmemhad(8)` documents it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use pmemha::agent::config::{Config, ConfigError, DEFAULT_FILE};
use pmemha::agent::daemon::{Daemon, FINISH_WITHIN, Stop};
use pmemha::agent::holder;
use pmemha::failover::supervise;

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
    /// Thaw a frozen application should the agent die (started by the agent)
    Watchdog {
        /// What stops its processes
        kind: String,
        /// Its control group
        dir: PathBuf,
    },
    /// Become a command inside a control group (started by the agent)
    ExecIn {
        /// File that takes the pid
        procs: PathBuf,
        /// uid:gid, or - for the agent's own
        user: String,
        /// Program and arguments
        #[arg(last = true, required = true)]
        argv: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => return answered(&told),
    };
    let done = match arguments.command {
        Some(Command::Check { file }) => check(&file),
        Some(Command::Hold { socket }) => {
            holder::serve(&socket).map_err(|e| Failure::software(e.to_string()))
        }
        Some(Command::Watchdog { kind, dir }) => supervise::watch(&kind, &dir, std::io::stdin().lock())
            .map_err(|e| Failure::software(e.to_string())),
        Some(Command::ExecIn { procs, user, argv }) => {
            Err(Failure::software(supervise::exec_in(&procs, &user, &argv).to_string()))
        }
        None => serve(&arguments.config),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("pmemhad: {}", failure.message.replace('\n', "\npmemhad: "));
            ExitCode::from(failure.code)
        }
    }
}

/// Prints what the arguments ask for (help, the version), or what is wrong with them.
fn answered(told: &clap::Error) -> ExitCode {
    // Nobody reads it if it cannot be written.
    let _ = told.print();
    if told.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS }
}

/// Runs the agent until SIGTERM, SIGINT or an operator's shutdown.
fn serve(file: &Path) -> Result<(), Failure> {
    let config = Config::load(file).map_err(unusable)?;
    start_tracing();
    let program = std::env::current_exe().map_err(|e| Failure::software(e.to_string()))?;
    let (stop, stopped) = Stop::new();
    let on_signal = stop.clone();
    ctrlc::set_handler(move || on_signal.tell()).map_err(|e| Failure::software(e.to_string()))?;
    let daemon = Daemon::start(config, &program, stop).map_err(|e| Failure::software(e.to_string()))?;
    tracing::info!(socket = %daemon.socket().display(), "pmemhad is ready");
    daemon.run(&stopped);
    for left in daemon.finish(Instant::now() + FINISH_WITHIN) {
        eprintln!("pmemhad: left undone: {left}");
    }
    Ok(())
}

/// Diagnostics to standard error; PMEMHA_LOG chooses what (`pmemha=debug`), as tracing's filters do.
fn start_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PMEMHA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

fn check(file: &Path) -> Result<(), Failure> {
    let config = Config::check(file).map_err(unusable)?;
    println!(
        "{}: node {}, {}, {}, {}: nothing wrong",
        file.display(),
        config.node.name,
        counted(config.peers.len(), "peer"),
        counted(config.groups.len(), "group"),
        counted(config.replicas.len(), "replica")
    );
    Ok(())
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn unusable(error: ConfigError) -> Failure {
    Failure { code: EX_CONFIG, message: error.to_string() }
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

/// The arguments do not fit together.
const EX_USAGE: u8 = 64;
/// An internal or system failure.
const EX_SOFTWARE: u8 = 70;
/// The configuration cannot be used.
const EX_CONFIG: u8 = 78;
