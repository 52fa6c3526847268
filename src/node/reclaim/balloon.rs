//! A guest's balloon, by QEMU's machine protocol (QMP), and whether it has stalled.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest line that is read of QEMU; its greeting and answers have a few hundred bytes.
const LONGEST: u64 = 1 << 20;

/// A connection to the socket of a machine.
pub struct Balloon {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Balloon {
    /// Connects, and agrees on the protocol.
    pub fn connect(socket: &Path) -> io::Result<Balloon> {
        let writer = UnixStream::connect(socket)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", socket.display())))?;
        writer.set_read_timeout(Some(PATIENCE))?;
        writer.set_write_timeout(Some(PATIENCE))?;
        let mut balloon = Balloon { reader: BufReader::new(writer.try_clone()?), writer };
        balloon.line()?;
        balloon.ask("qmp_capabilities", json!({}))?;
        Ok(balloon)
    }

    /// Bytes that the guest has now. An error where the machine has no balloon.
    pub fn actual(&mut self) -> io::Result<u64> {
        let answer = self.ask("query-balloon", json!({}))?;
        answer["actual"]
            .as_u64()
            .ok_or_else(|| io::Error::other(format!("QEMU said {answer} of its balloon")))
    }

    /// The guest is to have so many bytes: more is given back at once. The guest follows in its own time, or not at all.
    pub fn set_target(&mut self, bytes: u64) -> io::Result<()> {
        self.ask("balloon", json!({ "value": bytes })).map(|_| ())
    }

    fn ask(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.writer.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            // Events come in between.
            if !answer["return"].is_null() {
                return Ok(answer["return"].take());
            }
            if let Some(why) = answer["error"]["desc"].as_str() {
                return Err(io::Error::other(format!("QEMU refuses {command}: {why}")));
            }
        }
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        io::Read::take(&mut self.reader, LONGEST).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(|e| io::Error::other(format!("QEMU said what is no JSON: {e}")))
    }
}

/// Whether a balloon follows its target: looked at now and then. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    target: u64,
    best: u64,
    still: u32,
}

impl Progress {
    /// A guest of `actual` bytes is to come down to `target`.
    pub fn towards(target: u64, actual: u64) -> Progress {
        Progress { target, best: actual, still: 0 }
    }

    /// A new look, a tenth of a second or more after the last one; whether it has stalled: it is not there, and has not moved for
    /// [`STILL`] looks.
    pub fn look(&mut self, actual: u64) -> bool {
        if actual + MOVED <= self.best {
            (self.best, self.still) = (actual, 0);
        } else {
            self.still = self.still.saturating_add(1);
        }
        actual > self.target && self.still >= STILL
    }
}

/// Looks without progress after which a balloon has stalled.
pub const STILL: u32 = 5;

/// Bytes that are progress.
const MOVED: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_that_moves_or_has_arrived_has_not_stalled() {
        let mib = |n: u64| n << 20;
        let mut progress = Progress::towards(mib(200), mib(512));
        let looks = [512, 400, 300, 240, 232, 232, 232, 232, 232].map(|n| progress.look(mib(n)));
        assert_eq!(looks, [false; 9]);
        assert!(progress.look(mib(232)));
        assert!(!progress.look(mib(220)), "it moves again");
        let mut arrived = Progress::towards(mib(200), mib(512));
        assert!((0..20).all(|_| !arrived.look(mib(200))));
    }

    #[test]
    fn a_socket_that_says_nonsense_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        assert!(Balloon::connect(&path).is_err());
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"hello?\n").unwrap();
        });
        assert!(Balloon::connect(&path).err().unwrap().to_string().contains("JSON"));
        server.join().unwrap();
    }
}
