//! An application's session with the agent of its node: what the C API and the preload library share.
//!
//! [`Session::connect`] gets the group's log region from the agent and attaches to it. From then on the data path
//! ([`Session::appender`]) needs no agent: capture, drain and wait work on shared memory, and an
//! agent that is dead or restarted changes nothing but how long a record waits to be shipped. Only the requests
//! here speak to the agent; each is bounded in time, connects anew where the agent was restarted, and fails with
//! [`SessionError::NoAgent`] where there is none.
//!
//! Threads: every method may be called from any thread. No thread is started, no signal raised. After a fork the
//! child calls [`Session::after_fork_child`] before anything else; it then has a session of its own
//! that is opened by its first request or [`Session::tend`], and the parent's is not touched.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::link::{Identity, Link, Welcome};
use super::patterns::Patterns;
use super::socket::SocketError;
use super::wire::{DEFAULT_SOCKET, Reply, Request};
use crate::log::{Appender, LogError, LogRegion};
use crate::region::dirty::Kind;
use crate::types::{Generation, Level, Lsn, RegionId};

/// How to reach the agent.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The agent's socket; else `PMEMHA_SOCKET`, else [`DEFAULT_SOCKET`].
    pub socket: Option<PathBuf>,
    /// The group by name; else `PMEMHA_GROUP`, else the one whose configuration admits us.
    pub group: Option<String>,
    /// Name of the program, for status.
    pub program: String,
}

/// A session, attached to its group's log region. Dropped without [`Session::goodbye`] it looks to the agent as if
/// the program went on without it; the end of the process then counts as a death.
pub struct Session {
    region: Arc<LogRegion>,
    appender: Appender,
    group: String,
    identity: Identity,
    protect: Patterns,
    commit: Level,
    drains_wait: bool,
    /// The process that connected; its descendants' links follow, one a fork.
    first: Incarnation,
    /// Forks between the process that connected and this one.
    forks: AtomicU32,
    /// Whether this process has a place among the log's writers.
    records: AtomicBool,
}

/// A file that the agent protects from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Its region, for records.
    pub region: RegionId,
    /// Bytes protected, from offset 0.
    pub len: u64,
    /// LSN just past the region's creation record: records from here on may name the region.
    pub lsn: Lsn,
}

/// Why a session could not be had or a request failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No agent answers. The program goes on; what it appends is shipped once an agent is back.
    #[error("no agent at {}: {source}; start pmemhad or set PMEMHA_SOCKET", socket.display())]
    NoAgent {
        /// Where it was looked for.
        socket: PathBuf,
        /// What happened.
        source: SocketError,
    },
    /// The configuration does not name this file.
    #[error("not protected: {reason}")]
    NotProtected {
        /// The agent's words.
        reason: String,
    },
    /// The agent refused or failed.
    #[error("the agent refused: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The agent has made another log for the group: what we append is read by nobody any more.
    #[error(
        "group \"{group}\" has a new log (generation {theirs}, this program writes {ours}): \
         its protection has ended; restart the program to protect it again"
    )]
    Replaced {
        /// The group.
        group: String,
        /// Generation of the log that is attached.
        ours: Generation,
        /// Generation of the log that the agent has now.
        theirs: Generation,
    },
    /// The agent's answer does not fit the request.
    #[error(
        "the agent answered with {reply}: agent and library are of different versions, install both anew"
    )]
    Unexpected {
        /// What came.
        reply: String,
    },
    /// The log region cannot be used.
    #[error("log region of group \"{group}\": {source}")]
    Log {
        /// The group.
        group: String,
        /// What is wrong with it.
        source: LogError,
    },
    /// The session has said goodbye.
    #[error("the session has ended")]
    Over,
}

impl Session {
    /// Opens a session: finds the agent, gets the log region and attaches to it. Takes at most
    /// [`REQUEST_WAIT`], however slow the agent is.
    pub fn connect(options: Options) -> Result<Arc<Session>, SessionError> {
        let socket = options
            .socket
            .or_else(|| variable("PMEMHA_SOCKET").map(PathBuf::from))
            .unwrap_or_else(|| DEFAULT_SOCKET.into());
        let group =
            options.group.or_else(|| variable("PMEMHA_GROUP").map(|g| g.to_string_lossy().into_owned()));
        let link = Link::new(socket, group, options.program, None);
        let welcome = link.connect(REQUEST_WAIT)?;
        let (appender, protect) = attach(&welcome).inspect_err(|_| {
            // The agent counts us by now, and would take our end for the application's death. It may be gone.
            let _ = link.finish(&Request::Goodbye { status: None }, GOODBYE_WAIT);
        })?;
        let drains_wait = welcome.commit > Level::Local || appender.log().drains_wait();
        Ok(Arc::new(Session {
            region: appender.log().clone(),
            appender,
            group: welcome.group,
            identity: welcome.identity,
            protect,
            commit: welcome.commit,
            drains_wait,
            first: Incarnation { link, child: OnceLock::new() },
            forks: AtomicU32::new(0),
            records: AtomicBool::new(true),
        }))
    }

    /// Where records are appended.
    #[inline]
    pub fn appender(&self) -> &Appender {
        &self.appender
    }

    /// Whether the appender may be used: false in the child of a fork for which the log had no room.
    #[inline]
    pub fn records(&self) -> bool {
        self.records.load(Ordering::Relaxed)
    }

    /// The log region, for what it says of acknowledgements and of the agent.
    pub fn log(&self) -> &Arc<LogRegion> {
        &self.region
    }

    /// The group's name.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The generation of the log that is attached.
    pub fn generation(&self) -> Generation {
        self.identity.generation
    }

    /// The level that every drain is configured to wait for; `Local` waits for nothing.
    pub fn commit_level(&self) -> Level {
        self.commit
    }

    /// Whether a drain may have to wait, for its level or for the battery budget; as it was when the session began.
    pub fn drains_wait(&self) -> bool {
        self.drains_wait
    }

    /// Whether the configuration protects the file at `path`, which is absolute and free of symbolic links. The
    /// file need not exist.
    pub fn protects(&self, path: &Path) -> bool {
        self.protect.matches(path)
    }

    /// Protects the first `len` bytes of the file behind `fd` (0: all of it). Without `explicit` only files that
    /// the configuration names; others are [`SessionError::NotProtected`]. A file that is protected
    /// already keeps its region, whoever asked first.
    pub fn protect(&self, fd: BorrowedFd<'_>, len: u64, explicit: bool) -> Result<Protection, SessionError> {
        match self.link().request(&Request::Protect { len, explicit }, Some(fd), REQUEST_WAIT)? {
            Reply::Protected { region, len, lsn } => Ok(Protection { region, len, lsn }),
            Reply::NotProtected { reason } => Err(SessionError::NotProtected { reason }),
            other => Err(SessionError::unexpected(&other)),
        }
    }

    /// Tells the agent that this process is about to map `region`, and how it finds its stores: the agent blames nobody for
    /// bytes of that file that are in no record. Cheap but the first time; waits a moment at most.
    pub fn maps(&self, region: RegionId, by: Kind) {
        self.link().maps(region, by);
    }

    /// Tells the agent that this process records nothing further for `region`, whose end it has recorded: its number may be
    /// another file's once every process that knew it has said so.
    /// Does not wait for the agent.
    pub fn release(&self, region: RegionId) {
        self.link().release(region);
    }

    /// Tells the agent that the program is about to become another one (exec), which may fail: with the next request it is as if
    /// nothing had been said. Does not wait for the agent.
    pub fn exec(&self) {
        self.link().exec();
    }

    /// Tells the agent that the program is about to exit of its own will, with `status` if known, even if the connection was
    /// lost meanwhile, and ends the session: what this process appends afterwards is still shipped, but no request is sent any more.
    pub fn goodbye(&self, status: Option<i32>) -> Result<(), SessionError> {
        self.link().finish(&Request::Goodbye { status }, GOODBYE_WAIT)
    }

    /// The last gasp of the session's group, now; returns once it has begun.
    pub fn last_gasp(&self) -> Result<(), SessionError> {
        self.done(&Request::LastGasp { group: None }, REQUEST_WAIT)
    }

    /// The agent's status, as `pmemha status --json` prints it.
    pub fn status(&self) -> Result<serde_json::Value, SessionError> {
        match self.link().request(&Request::Status {}, None, REQUEST_WAIT)? {
            Reply::Status { document } => Ok(document),
            other => Err(SessionError::unexpected(&other)),
        }
    }

    /// Looks whether the agent was restarted, or this process forked, and connects again if so, so that the agent
    /// learns of this process's end. Cheap (two system calls) where nothing happened; meant for moments
    /// that are slow anyway, such as opening a file. Waits at most [`TEND_WAIT`].
    pub fn tend(&self) {
        self.link().tend(TEND_WAIT);
    }

    /// To be called in the child of a fork, before anything else of the session. Never waits. On an error there is
    /// no room for another writer in the log: what this process stores is not recorded.
    pub fn after_fork_child(&self) -> Result<(), SessionError> {
        // The child has one thread and nobody else sees its copy: no ordering is needed.
        let forks = self.forks.load(Ordering::Relaxed);
        let parent = self.incarnation(forks);
        parent.link.drop_inherited();
        let child = Incarnation { link: parent.link.for_child(self.identity), child: OnceLock::new() };
        // Empty so far: a process sets it only in its copy, as the first thing that it does.
        let set = parent.child.set(Box::new(child));
        assert!(set.is_ok(), "after_fork_child is called once, in the child");
        self.forks.store(forks + 1, Ordering::Relaxed);
        let cell = self.appender.after_fork_child();
        self.records.store(cell.is_ok(), Ordering::Relaxed);
        cell.map_err(|source| SessionError::Log { group: self.group.clone(), source })
    }

    fn done(&self, request: &Request, wait: Duration) -> Result<(), SessionError> {
        match self.link().request(request, None, wait)? {
            Reply::Ok {} => Ok(()),
            other => Err(SessionError::unexpected(&other)),
        }
    }

    fn link(&self) -> &Link {
        &self.incarnation(self.forks.load(Ordering::Relaxed)).link
    }

    fn incarnation(&self, forks: u32) -> &Incarnation {
        (0..forks).fold(&self.first, |at, _| at.child.get().expect("made by after_fork_child"))
    }
}

fn attach(welcome: &Welcome) -> Result<(Appender, Patterns), SessionError> {
    let broken = |source| SessionError::Log { group: welcome.group.clone(), source };
    let region = LogRegion::attach(welcome.log.as_fd()).map_err(broken)?;
    let appender = Appender::attach(region, welcome.session).map_err(broken)?;
    let protect = Patterns::new(&welcome.protect);
    Ok((appender, protect.map_err(|e| SessionError::Unexpected { reply: e.to_string() })?))
}

impl SessionError {
    pub(super) fn unexpected(reply: &Reply) -> SessionError {
        // The name of the variant tells enough; a status document would not.
        let reply = format!("{reply:?}");
        let name = reply.split([' ', '{']).next().unwrap_or_default();
        SessionError::Unexpected { reply: format!("an unexpected \"{name}\"") }
    }
}

/// The session as one process of a line of forks has it. A lock that a thread of the parent held at the fork
/// stays locked in the child for ever; so each process has its own.
struct Incarnation {
    link: Link,
    child: OnceLock<Box<Incarnation>>,
}

/// An environment variable, unless the program runs with more rights than its caller has: that caller must choose
/// neither its agent nor a file that it appends to.
pub fn variable(name: &str) -> Option<OsString> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    let own_rights = getuid() == geteuid() && getgid() == getegid();
    std::env::var_os(name).filter(|value| own_rights && !value.is_empty())
}

/// Longest wait for an agent's answer. An agent answers in microseconds; one that is swapped out, in seconds.
pub const REQUEST_WAIT: Duration = Duration::from_secs(5);

/// Longest wait at exit: short, since nothing is lost but the difference between an exit and a death.
pub const GOODBYE_WAIT: Duration = Duration::from_secs(1);

/// Longest wait of [`Session::tend`].
pub const TEND_WAIT: Duration = Duration::from_millis(100);
