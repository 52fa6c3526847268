//! A machine's ports, on each of which it runs one command at a time.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::error::RigError;
use crate::frame::{Frame, Kind};

/// How many commands a machine runs at once. A port costs a socket here and a thread there; a QEMU device has 31.
pub const COMMANDS: usize = 16;

/// The ports of one machine.
pub struct Ports {
    machine: String,
    idle: Mutex<Vec<Port>>,
}

/// A port that nobody else uses.
pub struct Port {
    pub stream: UnixStream,
    /// The number of the command that was started on it last.
    pub command: u32,
}

impl Ports {
    /// Waits until the machine has said on each of them that it is ready.
    pub fn greeted(machine: &str, streams: Vec<UnixStream>, end: Instant) -> io::Result<Ports> {
        for mut stream in &streams {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left))?;
            let frame = Frame::read(&mut stream)?;
            if frame.kind != Kind::Hello {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{:?} for Hello", frame.kind),
                ));
            }
            stream.set_read_timeout(None)?;
        }
        let idle = streams.into_iter().map(|stream| Port { stream, command: 0 }).collect();
        Ok(Ports { machine: machine.to_owned(), idle: Mutex::new(idle) })
    }

    /// A port for a command. The caller gives it back when the command has ended.
    pub fn take(&self) -> Result<Port, RigError> {
        self.idle().pop().ok_or_else(|| RigError::Busy { machine: self.machine.clone(), limit: COMMANDS })
    }

    /// Takes a port back.
    pub fn put(&self, port: Port) {
        self.idle().push(port);
    }

    /// The machine's name.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Port>> {
        // Pushing and popping leave nothing half done.
        self.idle.lock().unwrap_or_else(|e| e.into_inner())
    }
}
