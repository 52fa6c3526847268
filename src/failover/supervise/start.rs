//! Starting the application inside its control group, and noticing the end of its processes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Helper, SuperviseError};

/// How to start the application; from this node's own configuration only.
#[derive(Clone, Debug, Default)]
pub struct StartCommand {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Added to the environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; the agent's own if none.
    pub directory: Option<PathBuf>,
    /// User and group by number; the agent's own if none.
    pub user: Option<(u32, u32)>,
}

impl StartCommand {
    pub(super) fn spawn(&self, helper: &Helper, procs: Option<PathBuf>) -> Result<Started, SuperviseError> {
        let missing = || {
            SuperviseError::system("starting the application", io::Error::other("no command is configured"))
        };
        let program = self.argv.first().ok_or_else(missing)?;
        is_there(Path::new(program))
            .map_err(|e| SuperviseError::system(format!("starting {}", program.to_string_lossy()), e))?;
        let by_helper = procs.is_some();
        let mut command = match procs {
            Some(procs) => {
                let mut command = helper.command();
                command.arg("exec-in").arg(procs);
                if let Some((uid, gid)) = self.user {
                    command.arg(format!("{uid}:{gid}"));
                } else {
                    command.arg("-");
                }
                command.arg("--").args(&self.argv);
                command
            }
            None => {
                let mut command = Command::new(program);
                command.args(&self.argv[1..]);
                if let Some((uid, gid)) = self.user {
                    command.gid(gid).uid(uid);
                }
                command
            }
        };
        for (name, value) in &self.env {
            match by_helper && for_the_loader(name) {
                true => command.env(kept_name(name), value),
                false => command.env(name, value),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdin(Stdio::null());
        let child = command
            .spawn()
            .map_err(|e| SuperviseError::system(format!("starting {}", program.to_string_lossy()), e))?;
        Ok(Started { child })
    }
}

/// Whether there is something to be executed. What a helper executes fails out of sight otherwise: as the end of the application.
fn is_there(program: &Path) -> io::Result<()> {
    // Others are looked for in PATH, by the system.
    if !program.is_absolute() {
        return Ok(());
    }
    match fs::metadata(program) {
        Ok(meta) if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 => {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is no executable file"))
        }
        // The user that it runs as may see what we may not.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// What the process `HELPER exec-in PROCS USER -- CMD…` does: joins the control group, takes the user (`uid:gid` or
/// `-`), becomes CMD. Returns only on failure.
pub fn exec_in(procs: &Path, user: &str, argv: &[OsString]) -> io::Error {
    let Some((program, args)) = argv.split_first() else {
        return io::Error::new(io::ErrorKind::InvalidInput, "no command after --");
    };
    if let Err(e) = fs::write(procs, std::process::id().to_string()) {
        return io::Error::new(e.kind(), format!("joining control group {}: {e}", procs.display()));
    }
    let mut command = Command::new(program);
    command.args(args);
    for (kept, value) in std::env::vars_os() {
        if let Some(name) = kept.as_bytes().strip_prefix(KEPT.as_bytes()) {
            command.env(OsStr::from_bytes(name), value).env_remove(kept);
        }
    }
    if user != "-" {
        let ids = user.split_once(':').and_then(|(u, g)| Some((u.parse().ok()?, g.parse().ok()?)));
        let Some((uid, gid)) = ids else {
            return io::Error::new(io::ErrorKind::InvalidInput, format!("{user:?} is no uid:gid"));
        };
        command.gid(gid).uid(uid);
    }
    let failed = command.exec();
    io::Error::new(failed.kind(), format!("{}: {failed}", program.to_string_lossy()))
}

/// Whether the dynamic loader obeys this variable: it is meant for the application, and must not reach into the helper that
/// becomes it. A preload library there would attach a session of its own, whose end says nothing about the application.
fn for_the_loader(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"LD_")
}

fn kept_name(name: &OsStr) -> OsString {
    let mut kept = OsString::from(KEPT);
    kept.push(name);
    kept
}

/// Before the names of variables that the helper keeps for the application.
const KEPT: &str = "PMEMHA_KEPT_";

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with status 0.
    Clean,
    /// By itself, with another status.
    Failed(i32),
    /// By a signal.
    Killed(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(0), _) => Exit::Clean,
            (Some(code), _) => Exit::Failed(code),
            (None, signal) => Exit::Killed(signal.unwrap_or_default()),
        }
    }
}

/// A process that we started.
#[derive(Debug)]
pub struct Started {
    child: Child,
}

impl Started {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Becomes readable at its end.
    pub fn watch(&self) -> Result<Option<ExitWatch>, SuperviseError> {
        ExitWatch::open(self.pid())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<Exit, SuperviseError> {
        let pid = self.pid();
        let status = self.child.wait();
        Ok(status.map_err(|e| SuperviseError::system(format!("waiting for process {pid}"), e))?.into())
    }
}

/// Notices the end of any process, a child of ours or not.
#[derive(Debug)]
pub struct ExitWatch {
    pidfd: OwnedFd,
}

impl ExitWatch {
    /// None if there is no such process (any more).
    pub fn open(pid: u32) -> Result<Option<Self>, SuperviseError> {
        let Some(target) = Pid::from_raw(pid as i32) else { return Ok(None) };
        match pidfd_open(target, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Some(Self { pidfd })),
            Err(Errno::SRCH) => Ok(None),
            Err(e) => Err(SuperviseError::system(format!("watching process {pid}"), e)),
        }
    }

    /// Whether it ended before `deadline`.
    pub fn wait(&self, deadline: Instant) -> Result<bool, SuperviseError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(ended) => return Ok(ended > 0),
                Err(Errno::INTR) => {}
                Err(e) => return Err(SuperviseError::system("waiting for the end of a process", e)),
            }
        }
    }
}

impl AsFd for ExitWatch {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
