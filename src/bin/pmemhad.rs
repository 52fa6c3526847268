//! `pmemhad`: the agent of a node. `pmemhad(8)` documents it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use clap::{Parser, Subcommand};

use pmemha::agent::config::{Config, ConfigError, DEFAULT_FILE};
use pmemha::agent::daemon::{Daemon, FINISH_WITHIN, HOLDER_SOCKET, Stop};
use pmemha::agent::holder::{self, Holder};
use pmemha::failover::supervise;

/// The agent that keeps this node's persistent memory safe on another machine.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// This agent's directory, which is removed when the launcher at the other end of standard input is gone
    #[arg(long, value_name = "DIR", hide = true)]
    private: Option<PathBuf>,
    /// Directory of another private agent, which is to be gone before this one follows their launcher
    #[arg(long, value_name = "DIR", hide = true, requires = "private")]
    after: Option<PathBuf>,
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
        None => {
            let private = arguments.private.map(|dir| Private { dir, after: arguments.after });
            serve(&arguments.config, private)
        }
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

/// Runs the agent until SIGTERM, SIGINT, an operator's shutdown or, where it is private, its launcher's end.
fn serve(file: &Path, private: Option<Private>) -> Result<(), Failure> {
    let config = Config::load(file).map_err(unusable)?;
    let holder = config.node.runtime_dir.join(HOLDER_SOCKET);
    start_tracing();
    let program = std::env::current_exe().map_err(|e| Failure::software(e.to_string()))?;
    let (stop, stopped) = Stop::new();
    let on_signal = stop.clone();
    ctrlc::set_handler(move || on_signal.tell()).map_err(|e| Failure::software(e.to_string()))?;
    let orphaned = Arc::new(AtomicBool::new(false));
    if private.is_some() {
        watch_launcher(stop.clone(), orphaned.clone())?;
    }
    let daemon = Daemon::start(config, &program, stop).map_err(|e| Failure::software(e.to_string()))?;
    tracing::info!(socket = %daemon.socket().display(), "pmemhad is ready");
    daemon.run(&stopped);
    let orphan = private.filter(|_| orphaned.load(Ordering::Acquire));
    if let Some(orphan) = &orphan {
        orphan.await_other();
    }
    for left in daemon.finish(Instant::now() + FINISH_WITHIN) {
        eprintln!("pmemhad: left undone: {left}");
    }
    if let Some(orphan) = &orphan {
        orphan.clean_up(&holder);
    }
    Ok(())
}

/// An agent that a launcher has started for its own purposes.
struct Private {
    dir: PathBuf,
    after: Option<PathBuf>,
}

impl Private {
    /// A copy takes what the source, which the same launcher has left, still brings out.
    fn await_other(&self) {
        let deadline = Instant::now() + FINISH_WITHIN;
        while self.after.as_ref().is_some_and(|dir| dir.exists()) && Instant::now() < deadline {
            thread::sleep(OTHER_LOOK);
        }
    }

    /// Does for a launcher that is gone what it would have done.
    fn clean_up(&self, holder: &Path) {
        if holder.exists()
            && let Ok(holder) = Holder::find_or_start(holder, Path::new("/nonexistent"))
        {
            let _ = holder.finish();
        }
        let _ = fs::remove_dir_all(&self.dir);
        // The last of several agents removes what they were in.
        let _ = self.dir.parent().map(fs::remove_dir);
    }
}

/// Stops the agent when nobody holds the other end of standard input any more, however its launcher ended.
fn watch_launcher(stop: Stop, orphaned: Arc<AtomicBool>) -> Result<(), Failure> {
    let watch = move || {
        // What cannot be read has no launcher either.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        orphaned.store(true, Ordering::Release);
        stop.tell();
    };
    let thread = thread::Builder::new().name("launcher".into()).spawn(watch);
    thread.map(drop).map_err(|e| Failure::software(format!("starting a thread: {e}")))
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
/// How often an orphan looks for the directory of another one.
const OTHER_LOOK: Duration = Duration::from_millis(20);
/// An internal or system failure.
const EX_SOFTWARE: u8 = 70;
/// The configuration cannot be used.
const EX_CONFIG: u8 = 78;
