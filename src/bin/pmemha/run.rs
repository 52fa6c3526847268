//! `pmemha run`: starts a program with its files protected, tells the agent how it ended, and ends as it did.

use std::ffi::{OsString, c_int};
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use pmemha::agent::sessions::LAUNCHER;
use pmemha::session::socket::Connection;
use pmemha::session::wire::{Reply, Request, VERSION};

use crate::agent::{Agent, ask, unexpected};
use crate::failure::{CANT_EXECUTE, Failure, NOT_FOUND, SOFTWARE, USAGE};
use crate::filled::Filled;
use crate::private::{GROUP, Private, Wanted};

/// `pmemha run`
#[derive(Args)]
pub struct Run {
    /// File, directory or glob pattern to protect, also if it does not exist yet; may be repeated
    #[arg(long, value_name = "PATH")]
    protect: Vec<PathBuf>,
    /// Directory for the copy; without it, a directory of its own below the temporary one
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Directory for an archive of every change, for point-in-time restore
    #[arg(long, value_name = "DIR")]
    archive: Option<PathBuf>,
    /// How far a change must have come before the program goes on; of a running agent, its configuration says
    #[arg(long, value_name = "LEVEL", default_value = "local", requires = "protect", value_parser = ["local", "received", "durable", "applied"])]
    commit: String,
    /// Group of the running agent; without effect on a private one
    #[arg(long, env = "PMEMHA_GROUP")]
    group: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Run {
    /// Runs the program and returns what it ended with, as a shell would.
    pub fn execute(self, agent: &Agent) -> Result<u8, Failure> {
        let own = !self.protect.is_empty() || self.to.is_some() || self.archive.is_some();
        if !own && agent.connect().is_ok() {
            return self.launch(agent, self.group.as_deref(), &find_preload()?);
        }
        if self.protect.is_empty() && own {
            return Err(Failure::new(
                USAGE,
                "--to and --archive are for agents of the run's own, which need --protect: name the files to protect; a \
                 running agent has both in its configuration",
            ));
        }
        if self.protect.is_empty() {
            return Err(Failure::new(
                USAGE,
                format!(
                    "no agent at {}, and no --protect: name the files to protect",
                    agent.socket().display()
                ),
            ));
        }
        self.run_privately(&find_preload()?)
    }

    /// Under agents of its own.
    fn run_privately(&self, preload: &Path) -> Result<u8, Failure> {
        let dir = own_dir();
        let image = Filled::new("--to", absolute(self.to.as_deref().unwrap_or(&image_beside(&dir)))?)?;
        let archive =
            self.archive.as_deref().map(|dir| Filled::new("--archive", absolute(dir)?)).transpose()?;
        let protect = self.protect.iter().map(|p| pattern(p)).collect::<Result<Vec<_>, _>>()?;
        let wanted = Wanted {
            protect: &protect,
            image: image.path(),
            archive: archive.as_ref().map(Filled::path),
            commit: &self.commit,
        };
        let clear = || [Some(&image), archive.as_ref()].into_iter().flatten().for_each(Filled::clear);
        let private = Private::start(&dir, &wanted).inspect_err(|_| clear())?;
        eprintln!(
            "pmemha: status of this run: pmemha --socket {} status",
            private.agent().socket().display()
        );
        let launched = self.launch(private.agent(), Some(GROUP), preload);
        if let Ok(false) = private.has_protected() {
            drop(private);
            clear();
            if launched.is_ok() {
                let patterns = protect.join(" or ");
                eprintln!(
                    "pmemha: ! nothing was protected: no process opened a file that matches {patterns}"
                );
            }
            return launched;
        }
        let code = launched?;
        let given_up = on_interrupt()?;
        let (copy, dir) = (private.finish(&given_up), image.path().display());
        match copy {
            Ok(()) => eprintln!("pmemha: the copy is in {dir}, complete"),
            Err(why) => eprintln!("pmemha: ! the copy in {dir} is NOT complete: {why}"),
        }
        Ok(code)
    }

    fn launch(&self, agent: &Agent, group: Option<&str>, preload: &Path) -> Result<u8, Failure> {
        let session = agent.connect()?;
        let hello = Request::Hello {
            version: VERSION,
            group: group.map(Into::into),
            program: LAUNCHER.into(),
            after: None,
        };
        let joined = match ask(&session, &hello)? {
            Reply::Welcome { group, .. } => group,
            other => return Err(unexpected(&other)),
        };
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).env("PMEMHA_SOCKET", agent.socket());
        command.env("LD_PRELOAD", preload_list(preload));
        if let Some(group) = group {
            command.env("PMEMHA_GROUP", group);
        }
        // Before there is a program that somebody could mean by a signal to us.
        let signals = Signals::new(passed_on()?).map_err(Failure::system("handling signals"))?;
        let mut child = command.spawn().map_err(|e| {
            let code = if e.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANT_EXECUTE };
            Failure::new(code, format!("{}: {e}", self.command[0].display()))
        })?;
        let forwarding = forward(signals, &child)?;
        let status = child.wait().map_err(Failure::system("waiting for the program"))?;
        forwarding.close();
        tell_end(&session, &joined, child.id(), status);
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => code as u8,
            (None, signal) => 128u8.wrapping_add(signal.unwrap_or(0) as u8),
        })
    }
}

/// Set once an interrupt comes: the program has had those before.
fn on_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in passed_on()?.filter(|signal| [SIGINT, SIGTERM].contains(signal)) {
        signal_hook::flag::register(signal, interrupted.clone())
            .map_err(Failure::system("handling signals"))?;
    }
    Ok(interrupted)
}

/// A directory for the agents, with a place for an image beside it: of our pid, which an earlier run may have had too.
fn own_dir() -> PathBuf {
    let base = std::env::temp_dir().join(format!("pmemha-run-{}", std::process::id()));
    let more = (2..).map(|n| PathBuf::from(format!("{}-{n}", base.display())));
    let mut all = std::iter::once(base.clone()).chain(more);
    all.find(|dir| !dir.exists() && !image_beside(dir).exists()).unwrap_or(base)
}

fn image_beside(dir: &Path) -> PathBuf {
    dir.with_extension("image")
}

fn tell_end(session: &Connection, group: &str, pid: u32, status: ExitStatus) {
    let ended = Request::Ended { pid, code: status.code(), signal: status.signal() };
    match ask(session, &ended) {
        Ok(Reply::HandedOver { to }) => eprintln!("pmemha: group `{group}` was handed over to {to}"),
        Ok(_) => {}
        Err(_) => {
            eprintln!("pmemha: the agent could not be told how the program ended; it takes it for dead")
        }
    }
}

/// What is passed on: not what is ignored, by `nohup` for one. Handled by us it would no longer be so in the program.
fn passed_on() -> Result<impl Iterator<Item = c_int>, Failure> {
    let status = std::fs::read_to_string(STATUS).map_err(Failure::system(STATUS))?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let ignored = ignored.ok_or_else(|| Failure::new(SOFTWARE, format!("{STATUS}: no SigIgn")))?;
    let all = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
    Ok(all.into_iter().filter(move |number| ignored & 1 << (number - 1) == 0))
}

/// Passes on what is sent to us alone. From a terminal, interrupt and quit go to the whole group already.
fn forward(mut signals: Signals, child: &Child) -> Result<signal_hook::iterator::Handle, Failure> {
    let handle = signals.handle();
    let terminal = io::stdin().is_terminal();
    let pid = Pid::from_child(child);
    let forward = move || {
        for number in signals.forever() {
            let by_terminal = terminal && (number == SIGINT || number == SIGQUIT);
            if let Some(signal) = Signal::from_named_raw(number).filter(|_| !by_terminal) {
                // It has ended already if there is nobody to tell.
                let _ = kill_process(pid, signal);
            }
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(forward)
        .map_err(Failure::system("starting a thread"))?;
    Ok(handle)
}

/// The preload library: named by PMEMHA_PRELOAD, beside this program, or in the lib directory next to it.
pub fn find_preload() -> Result<PathBuf, Failure> {
    if let Some(named) = std::env::var_os("PMEMHA_PRELOAD") {
        let named = absolute(Path::new(&named))?;
        if named.is_file() {
            return Ok(named);
        }
        let message = format!("PMEMHA_PRELOAD names {}, which is no file: name {PRELOAD}", named.display());
        return Err(Failure::new(SOFTWARE, message));
    }
    let own = std::env::current_exe().map_err(Failure::system("finding the preload library"))?;
    let beside = own.with_file_name(PRELOAD);
    let lib = own.parent().and_then(Path::parent).map(|p| p.join("lib").join(PRELOAD)).unwrap_or_default();
    let found = [beside.clone(), lib.clone()].into_iter().find(|p| p.exists());
    found.ok_or_else(|| {
        Failure::new(
            SOFTWARE,
            format!("no {PRELOAD} at {} or {}; name it in PMEMHA_PRELOAD", beside.display(), lib.display()),
        )
    })
}

/// Ours comes first, since it must see the calls before any other.
fn preload_list(preload: &Path) -> OsString {
    let mut list = preload.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|o| !o.is_empty()) {
        list.push(":");
        list.push(others);
    }
    list
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(Failure::system(path.display()))
}

/// A pattern for the agent, which sees files by their real paths: links in the existing part are resolved.
fn pattern(path: &Path) -> Result<String, Failure> {
    let absolute = absolute(path)?;
    let existing = absolute.ancestors().find_map(|a| Some((a, a.canonicalize().ok()?)));
    let real = match existing {
        Some((ancestor, real)) => match absolute.strip_prefix(ancestor) {
            Ok(rest) if rest.as_os_str().is_empty() => real,
            Ok(rest) => real.join(rest),
            Err(_) => absolute.clone(),
        },
        None => absolute.clone(),
    };
    let text = real.to_str().ok_or_else(|| Failure::new(USAGE, format!("{}: not UTF-8", real.display())))?;
    Ok(if real.is_dir() { format!("{text}/**") } else { text.into() })
}

/// Says which signals this process ignores.
const STATUS: &str = "/proc/self/status";

/// File name of the preload library.
const PRELOAD: &str = "libpmemha_preload.so";
