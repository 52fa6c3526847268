//! A small process that keeps log regions while application and agent die.
//!
//! A log region is an anonymous sealed memfd: it lives as long as someone holds a descriptor of it. `pmemhad
//! hold` does nothing else. It starts with the agent, survives the agent, uses a few hundred KiB and
//! exits only when told to ([`Holder::finish`]) or killed; then the next agent starts a new one. A region that an application
//! still has mapped is taken from there (`log::adopt`); the others are lost, which a new first sync repairs.
//!
//! [`Holder`] is the agent's side, [`serve`] the process. One request a connection, answered in order of
//! arrival; only the holder's own user and root are heard. Whatever a client sends costs one message of memory
//! and two seconds.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::session::peer::Peer;
use crate::session::socket::{Connection, Listener, SocketError};

/// Keeps named descriptors beyond the agent's life. All methods may be called from any thread.
pub trait FdKeeper: Send + Sync {
    /// Keeps a duplicate of `fd` under `name`, in place of what had that name.
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), KeeperError>;
    /// A duplicate of what is kept under `name`.
    fn get(&self, name: &str) -> Result<Option<OwnedFd>, KeeperError>;
    /// The names, in order.
    fn list(&self) -> Result<Vec<String>, KeeperError>;
    /// Forgets `name`; nothing happens if it is not kept.
    fn forget(&self, name: &str) -> Result<(), KeeperError>;
}

/// Why a descriptor could not be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The holder cannot be reached.
    #[error("the process that keeps log regions does not answer: {0}; restart pmemhad to start a new one")]
    Unreachable(#[from] SocketError),
    /// It cannot be started.
    #[error("cannot start `{program} hold`: {source}")]
    Start {
        /// What was started.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The holder, or systemd, said no.
    #[error("the keeper of log regions refused: {0}")]
    Refused(String),
    /// The system refused.
    #[error("keeping log regions: {0}")]
    System(#[from] io::Error),
}

/// The agent's side of a holder process.
#[derive(Debug)]
pub struct Holder {
    socket: PathBuf,
}

impl Holder {
    /// The holder that listens at `socket`; if there is none, `program hold` is started.
    pub fn find_or_start(socket: &Path, program: &Path) -> Result<Holder, KeeperError> {
        let holder = Holder { socket: socket.to_owned() };
        if holder.list().is_err() {
            start(socket, program)
                .map_err(|source| KeeperError::Start { program: program.display().to_string(), source })?;
            holder.list()?;
        }
        Ok(holder)
    }

    /// Tells the holder to forget everything and exit.
    pub fn finish(&self) -> Result<(), KeeperError> {
        self.ask(&Ask::Exit {}, None).map(drop)
    }

    fn ask(&self, ask: &Ask, fd: Option<BorrowedFd<'_>>) -> Result<(Answer, Option<OwnedFd>), KeeperError> {
        let deadline = Instant::now() + REQUEST_WITHIN;
        let connection = Connection::connect(&self.socket, deadline)?;
        connection.send(ask, fd, Some(deadline))?;
        match connection.recv(Some(deadline))? {
            (Answer::Refused { why }, _) => Err(KeeperError::Refused(why)),
            answer => Ok(answer),
        }
    }
}

impl FdKeeper for Holder {
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), KeeperError> {
        self.ask(&Ask::Put { name: name.into() }, Some(fd)).map(drop)
    }

    fn get(&self, name: &str) -> Result<Option<OwnedFd>, KeeperError> {
        self.ask(&Ask::Get { name: name.into() }, None).map(|(_, fd)| fd)
    }

    fn list(&self) -> Result<Vec<String>, KeeperError> {
        match self.ask(&Ask::List {}, None)? {
            (Answer::Names { names }, _) => Ok(names),
            (other, _) => Err(KeeperError::Refused(format!("it answered {other:?} to a question for names"))),
        }
    }

    fn forget(&self, name: &str) -> Result<(), KeeperError> {
        self.ask(&Ask::Forget { name: name.into() }, None).map(drop)
    }
}

/// The holder process: listens at `socket`, says `ready` on standard output, and serves until told to exit.
pub fn serve(socket: &Path) -> Result<(), KeeperError> {
    // A signal to the agent's terminal or process group is not meant for us. A leader of a group cannot leave
    // it, and then it has none of the agent's signals to fear either.
    let _ = rustix::process::setsid();
    let listener = Listener::bind(socket, 0o600)?;
    let mut out = io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush())?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    // Whoever reads what the agent says must not wait for us to end.
    rustix::stdio::dup2_stdout(&null)
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .map_err(io::Error::from)?;
    let owner = rustix::process::geteuid().as_raw();
    let mut held = BTreeMap::new();
    loop {
        let connection = listener.accept(None)?;
        let uid = Peer::of(&connection)?.uid;
        if uid != owner && uid != 0 {
            continue;
        }
        // A client that went away or spoke nonsense harms only itself.
        if let Ok(false) = serve_one(&connection, &mut held) {
            break;
        }
    }
    std::fs::remove_file(socket).map_err(KeeperError::System)
}

/// Answers one request; false when it was the last.
fn serve_one(connection: &Connection, held: &mut BTreeMap<String, OwnedFd>) -> Result<bool, SocketError> {
    let deadline = Some(Instant::now() + REQUEST_WITHIN);
    let (ask, fd) = connection.recv::<Ask>(deadline)?;
    let mut reply = None;
    let answer = match ask {
        Ask::Put { name } => put(held, name, fd),
        Ask::Get { name } => {
            reply = held.get(&name);
            Answer::Done {}
        }
        Ask::List {} => Answer::Names { names: held.keys().cloned().collect() },
        Ask::Forget { name } => {
            held.remove(&name);
            Answer::Done {}
        }
        Ask::Exit {} => {
            connection.send(&Answer::Done {}, None, deadline)?;
            return Ok(false);
        }
    };
    connection.send(&answer, reply.map(AsFd::as_fd), deadline)?;
    Ok(true)
}

fn put(held: &mut BTreeMap<String, OwnedFd>, name: String, fd: Option<OwnedFd>) -> Answer {
    let refused = |why: String| Answer::Refused { why };
    match fd {
        None => refused(format!("no descriptor came with `{name}`")),
        Some(_) if name.is_empty() || name.len() > MAX_NAME => {
            refused(format!("a name has 1 to {MAX_NAME} bytes"))
        }
        Some(_) if held.len() >= MAX_HELD && !held.contains_key(&name) => {
            refused(format!("{MAX_HELD} descriptors are kept already"))
        }
        Some(fd) => {
            held.insert(name, fd);
            Answer::Done {}
        }
    }
}

fn start(socket: &Path, program: &Path) -> io::Result<()> {
    let mut child = Command::new(program)
        .arg("hold")
        .arg("--socket")
        .arg(socket)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if line.trim_end() != READY {
        let status = child.wait()?;
        return Err(io::Error::other(format!("it ended with {status} before it was ready")));
    }
    // It outlives us; should it end first, a thread takes its exit status, so that no zombie stays.
    std::thread::Builder::new().name("holder-reaper".into()).spawn(move || child.wait()).map(drop)
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
enum Ask {
    Put { name: String },
    Get { name: String },
    List {},
    Forget { name: String },
    Exit {},
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
enum Answer {
    Done {},
    Names { names: Vec<String> },
    Refused { why: String },
}

/// What the holder prints once it listens.
const READY: &str = "ready";

/// Descriptors kept at most: a few per group, and a node has at most a few hundred groups.
const MAX_HELD: usize = 512;

/// Longest name; all names together must fit one message of the socket (512 * 100 bytes < 64 KiB).
const MAX_NAME: usize = 100;

/// A client must be done within this time, since others wait for it.
const REQUEST_WITHIN: Duration = Duration::from_secs(2);
