//! Speaking to the agent of this machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pmemha::agent::status::{GroupStatus, Status};
use pmemha::session::socket::{Connection, SocketError};
use pmemha::session::wire::{DEFAULT_SOCKET, Reply, Request};
use serde_json::Value;

use crate::failure::{Failure, NO_PERMISSION, SOFTWARE, UNAVAILABLE};

/// An answer must be there within this time: the agent answers at once, but a host may be busy.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Remembered events come at once; a pause of this length means that there are no more.
const LAST_EVENT: Duration = Duration::from_millis(200);

/// Where the agent is.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
}

impl Agent {
    /// At `socket`, or where agents are by default.
    pub fn new(socket: Option<PathBuf>) -> Agent {
        Agent { socket: socket.unwrap_or_else(|| DEFAULT_SOCKET.into()) }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A connection.
    pub fn connect(&self) -> Result<Connection, Failure> {
        Connection::connect(&self.socket, Instant::now() + ANSWER_WITHIN).map_err(|e| {
            let message =
                format!("no agent: {e}; start pmemhad, or name its socket with --socket or PMEMHA_SOCKET");
            Failure::new(UNAVAILABLE, message)
        })
    }

    /// Asks on a connection of its own.
    pub fn ask(&self, request: &Request) -> Result<Reply, Failure> {
        ask(&self.connect()?, request)
    }

    /// How everything is.
    pub fn status(&self) -> Result<Status, Failure> {
        let document = match self.ask(&Request::Status {})? {
            Reply::Status { document } => document,
            other => return Err(unexpected(&other)),
        };
        serde_json::from_value(document)
            .map_err(|e| Failure::new(SOFTWARE, format!("the agent is of another version: {e}")))
    }

    /// How a group is.
    pub fn group(&self, name: &str) -> Result<GroupStatus, Failure> {
        let group = self.status()?.groups.into_iter().find(|g| g.name == name);
        group.ok_or_else(|| Failure::new(SOFTWARE, format!("the agent knows of no group `{name}`")))
    }

    /// Everything that happened to a group so far, as far as the agent remembers.
    pub fn events(&self, group: &str) -> Result<Vec<Value>, Failure> {
        let connection = self.connect()?;
        let deadline = || Some(Instant::now() + LAST_EVENT);
        let sent = connection.send(&Request::Events { since: Some(0) }, None, deadline());
        sent.map_err(|e| Failure::new(SOFTWARE, e))?;
        let mut events = Vec::new();
        while let Ok((Reply::Event { event }, _)) = connection.recv(deadline()) {
            if event["group"] == group {
                events.push(event);
            }
        }
        Ok(events)
    }
}

/// Asks; a refusal is a failure.
pub fn ask(connection: &Connection, request: &Request) -> Result<Reply, Failure> {
    let deadline = Some(Instant::now() + ANSWER_WITHIN);
    connection.send(request, None, deadline).map_err(gone)?;
    receive(connection, deadline)
}

/// The next answer; waits until `deadline`, for ever if there is none.
pub fn receive(connection: &Connection, deadline: Option<Instant>) -> Result<Reply, Failure> {
    match connection.recv(deadline).map_err(gone)?.0 {
        Reply::Error { message } => Err(Failure::new(NO_PERMISSION, message)),
        reply => Ok(reply),
    }
}

/// An answer that does not fit the question.
pub fn unexpected(reply: &Reply) -> Failure {
    Failure::new(SOFTWARE, format!("the agent answered something else: {reply:?}"))
}

/// The agent that was spoken to is silent.
pub fn gone(error: SocketError) -> Failure {
    Failure::new(UNAVAILABLE, format!("the agent does not answer: {error}"))
}
