//! The workload of `tests/programs` as a load: an unmodified program under the preload library, and what it has done.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::node::Node;
use crate::{programs, wait};

/// How long the program may take for a few operations on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);

/// More operations than any test lets it do.
pub const ENDLESS: &str = "1000000000";

/// A shell's words that run the workload under the library without end, in the files of whichever node runs them.
pub fn endless(mode: &str) -> String {
    format!(
        "exec env LD_PRELOAD={} PMEM_IS_PMEM_FORCE=1 {} go-on {mode} @files@/pool @files@/acks {ENDLESS} >/dev/null",
        programs::preload().display(),
        programs::workload().display(),
    )
}

/// Files that the workload keeps in a directory.
#[derive(Clone, Debug)]
pub struct Files {
    /// Its pool.
    pub pool: PathBuf,
    /// Its acknowledgements.
    pub acks: PathBuf,
}

impl Files {
    /// In `dir`.
    pub fn of(dir: &Path) -> Files {
        Files { pool: dir.join("pool"), acks: dir.join("acks") }
    }

    /// Number of the last operation that returned to the program, read from the memory that it works on. Its drains
    /// have waited for the commit level by then.
    pub fn done(&self) -> u64 {
        let mut number = [0; 8];
        let read = File::open(&self.acks).and_then(|file| file.read_exact_at(&mut number, 0));
        read.map_or(0, |()| u64::from_le_bytes(number))
    }

    /// Waits until `more` operations have returned since now: nothing blocks the program.
    pub fn await_progress(&self, what: &str, more: u64) {
        let before = self.done();
        wait::until(&format!("the program to go on {what}"), SOON, || {
            (self.done() >= before + more).then_some(())
        });
    }

    /// Opens and checks what the files hold; the number of the last operation found, or what is wrong.
    pub fn check(&self, mode: &str) -> Result<u64, String> {
        let mut command = Command::new(programs::workload());
        command.args(["check-many", mode]).env("PMEM_IS_PMEM_FORCE", "1");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the checker starts");
        let line = format!("{} {}\n", self.pool.display(), self.acks.display());
        let mut input = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut input, line.as_bytes()).expect("the checker reads");
        drop(input);
        let out = child.wait_with_output().expect("our own child");
        let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        // A number a thread.
        let numbers = said
            .strip_prefix("ok ")
            .map(|n| n.split(' ').map(str::parse::<u64>).collect::<Result<Vec<_>, _>>());
        match numbers {
            Some(Ok(found)) => Ok(found.iter().sum()),
            _ => Err(format!("{said} ({})", out.status)),
        }
    }
}

/// The running program. Killed on drop.
pub struct Load {
    child: Child,
    /// Its files at the source.
    pub files: Files,
}

impl Load {
    /// Starts `mode` at `node` and waits until it works.
    pub fn start(node: &Node, mode: &str) -> Load {
        Load::paced(node, mode, 0)
    }

    /// As [`Load::start`], with a pause after each operation.
    pub fn paced(node: &Node, mode: &str, pause_us: u32) -> Load {
        let files = Files::of(&node.files());
        let child = node
            .preloaded(programs::workload())
            .args(["go-on", mode])
            .args([&files.pool, &files.acks])
            .arg(ENDLESS)
            .env("WORKLOAD_PAUSE_US", pause_us.to_string())
            .stdout(Stdio::null())
            .spawn()
            .expect("the workload starts");
        let load = Load { child, files };
        load.files.await_progress("after its start", 10);
        load
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended: nothing that happens to agents or destinations may crash it.
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("our own child");
        assert!(ended.is_none(), "the program ended with {ended:?}");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    /// Stops it in its tracks.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// See [`Load::pause`].
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a process id");
        kill_process(pid, signal).expect("our own child");
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.kill();
    }
}
