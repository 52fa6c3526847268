//! What our figures are compared with. A peer that is not on this machine is no error: it is named with what to install.

pub mod iperf3;
pub mod librpma;
pub mod memory;
pub mod perftest;
pub mod pingpong;
#[cfg(feature = "two-sided")]
pub mod two_sided;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::report::{Absent, Report};

/// A measurement of a peer, or why there is none.
pub type Found<T> = Outcome<Result<T, Absent>>;

/// Unwraps a measurement; an absent peer goes to the report.
pub fn take<T>(report: &mut Report, found: Found<T>) -> Outcome<Option<T>> {
    Ok(found?.map_err(|absent| report.lacks(absent)).ok())
}

/// Notes that a peer is missing, with the Debian package that has it.
pub fn missing(name: &'static str, package: &str) -> Absent {
    Absent { name, remedy: format!("not installed: apt-get install {package}") }
}

/// A program of this name on the search path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A peer's program may take so long at most: one that hangs is ended, and said to have failed.
const LIMIT_S: &str = "120";

/// `program`, ended after [`LIMIT_S`].
pub fn bounded(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", LIMIT_S, program]).stdin(Stdio::null());
    command
}

/// The server's half of a peer; ended when dropped.
pub struct Server(Child);

impl Server {
    /// Starts it, and waits until it listens at `port`.
    pub fn start(mut command: Command, port: u16) -> Outcome<Server> {
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut server = Server(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !listening(port) {
            if let Some(status) = server.0.try_wait()? {
                return Err(format!("{command:?} ended with {status} before it listened").into());
            }
            if Instant::now() > deadline {
                return Err(format!("{command:?} does not listen at port {port}").into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a peer's command to its end; what it printed.
pub fn text_of(mut command: Command) -> Outcome<String> {
    let Output { status, stdout, stderr } = command.output()?;
    let said = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(said);
    }
    Err(format!("{command:?} ended with {status}: {said}{}", String::from_utf8_lossy(&stderr)).into())
}

/// Whether some socket of this machine listens at a port: to ask by connecting would be taken for the client.
fn listening(port: u16) -> bool {
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| std::fs::read_to_string(file).unwrap_or_default());
    let end = format!(":{port:04X}");
    tables.iter().flat_map(|table| table.lines()).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&end)) && fields.nth(1) == Some(LISTEN)
    })
}

/// State of a socket in the kernel's tables.
const LISTEN: &str = "0A";
