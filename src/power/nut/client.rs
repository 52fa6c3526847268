//! A connection to upsd: text lines over TCP, each exchange with a deadline, each line with a limit.
//!
//! Whatever upsd or somebody in its place does (says nothing, too much, something else, ends in the middle) is an error within
//! the deadline, and the connection is not used again. Called by [`super::NutSource`] alone.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::protocol::{Answer, Garbage, answer, quoted};

/// Longest line that is read; upsd's own limit is half of it.
pub const MAX_LINE: usize = 1024;

/// Who we are to upsd.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// A user of its `upsd.users`.
    pub user: String,
    /// That one's password.
    pub password: String,
}

/// Without the password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why nothing is known from upsd.
#[derive(Debug, thiserror::Error)]
pub enum NutError {
    /// It cannot be reached.
    #[error("cannot reach upsd at {server}: {source}")]
    Unreachable {
        /// Its address.
        server: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to upsd broke: {0}")]
    Broken(io::Error),
    /// It closed the connection.
    #[error("upsd closed the connection")]
    Closed,
    /// It did not answer in time.
    #[error("upsd did not answer in {0:?}")]
    Silent(Duration),
    /// It sent a line without end.
    #[error("upsd sent more than {MAX_LINE} bytes without a newline")]
    Endless,
    /// It sent something that is no answer to what was asked.
    #[error("upsd answered `{command}` with {what}")]
    Garbage {
        /// What was asked, without secrets.
        command: String,
        /// What is wrong.
        what: String,
    },
    /// It said no.
    #[error("upsd says {code}{}", meaning(code))]
    Refused {
        /// The word that it gave.
        code: String,
    },
}

impl NutError {
    /// Whether the connection is as good as before.
    pub fn is_answer(&self) -> bool {
        matches!(self, NutError::Refused { .. })
    }

    /// Whether it is only that the UPS has no such variable.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, NutError::Refused { code } if code == "VAR-NOT-SUPPORTED")
    }
}

fn meaning(code: &str) -> &'static str {
    match code {
        "DATA-STALE" => ": the UPS or its driver has not answered it for a while",
        "DRIVER-NOT-CONNECTED" => ": the UPS's driver does not run",
        "ACCESS-DENIED" => {
            ": compare `user` and the password with its upsd.users, and its LISTEN and firewall with this node"
        }
        "INVALID-PASSWORD" | "INVALID-USERNAME" => ": compare `user` and the password with its upsd.users",
        "UNKNOWN-UPS" => ": it has no UPS of this name; `upsc -l` lists those that it has",
        _ => "",
    }
}

/// A connection that every answer so far was sound on.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Read, and not yet taken for an answer.
    ahead: Vec<u8>,
    within: Duration,
}

impl Connection {
    /// Connects to `server`, `host:port`; this and each exchange take no longer than `within`, but for the resolution of a name.
    pub fn open(server: &str, within: Duration) -> Result<Connection, NutError> {
        let unreachable = |source| NutError::Unreachable { server: server.into(), source };
        let (mut last, deadline) = (io::Error::other("the name has no address"), Instant::now() + within);
        for address in server.to_socket_addrs().map_err(unreachable)? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(unreachable)?;
                    return Ok(Connection { stream, ahead: Vec::new(), within });
                }
                Err(error) => last = error,
            }
        }
        Err(unreachable(last))
    }

    /// Says who we are; with `ups`, also that this machine lives on it, so that upsd waits for us before it is switched off.
    pub fn log_in(&mut self, who: &Credentials, ups: Option<&str>) -> Result<(), NutError> {
        self.order(&format!("USERNAME {}", quoted(&who.user)), "USERNAME")?;
        self.order(&format!("PASSWORD {}", quoted(&who.password)), "PASSWORD")?;
        ups.map_or(Ok(()), |ups| self.order(&format!("LOGIN {}", quoted(ups)), "LOGIN"))
    }

    /// The value of a variable of a UPS.
    pub fn variable(&mut self, ups: &str, name: &str) -> Result<String, NutError> {
        let command = format!("GET VAR {} {name}", quoted(ups));
        match self.exchange(&command, &command)? {
            Answer::Variable { ups: of, name: said, value } if of == ups && said == name => Ok(value),
            other => Err(NutError::Garbage { command, what: format!("{other:?}") }),
        }
    }

    fn order(&mut self, command: &str, shown: &str) -> Result<(), NutError> {
        match self.exchange(command, shown)? {
            Answer::Done => Ok(()),
            other => Err(NutError::Garbage { command: shown.into(), what: format!("{other:?}") }),
        }
    }

    fn exchange(&mut self, command: &str, shown: &str) -> Result<Answer, NutError> {
        let deadline = Instant::now() + self.within;
        let garbage = |what: String| NutError::Garbage { command: shown.into(), what };
        if !self.ahead.is_empty() {
            return Err(garbage("more than one line".into()));
        }
        self.stream.set_write_timeout(Some(self.within)).map_err(NutError::Broken)?;
        self.stream.write_all(format!("{command}\n").as_bytes()).map_err(|e| self.failed(e))?;
        let line = self.line(deadline)?;
        let line = str::from_utf8(&line).map_err(|_| garbage("what is no text".into()))?;
        match answer(line).map_err(|what: Garbage| garbage(what.to_string()))? {
            Answer::Refused(code) => Err(NutError::Refused { code }),
            answer => Ok(answer),
        }
    }

    /// The next line, without its newline.
    fn line(&mut self, deadline: Instant) -> Result<Vec<u8>, NutError> {
        let mut bytes = [0; 512];
        loop {
            if let Some(end) = self.ahead.iter().position(|b| *b == b'\n') {
                let rest = self.ahead.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.ahead, rest);
                line.truncate(end);
                return Ok(line);
            }
            if self.ahead.len() > MAX_LINE {
                return Err(NutError::Endless);
            }
            // For the whole line: one that trickles is as late as one that does not come.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NutError::Silent(self.within));
            }
            self.stream.set_read_timeout(Some(left)).map_err(NutError::Broken)?;
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(NutError::Closed),
                Ok(n) => self.ahead.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn failed(&self, error: io::Error) -> NutError {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => NutError::Silent(self.within),
            _ => NutError::Broken(error),
        }
    }
}
