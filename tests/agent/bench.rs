//! An agent of a test: its directories, its process, its clients.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pmemha::agent::holder::Holder;
use pmemha::session::socket::Connection;
use pmemha::session::wire::{Reply, Request, VERSION};
use rustix::process::{Pid, Signal, WaitOptions};

pub const PMEMHAD: &str = env!("CARGO_BIN_EXE_pmemhad");

/// How long anything may take here; a limit for hangs, not a measure.
pub const LONG: Duration = Duration::from_secs(30);

/// A node with one group, `db`, whose files are `pm/*.pool`, shipped nowhere.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with("")
    }

    /// With more lines in the group's section.
    pub fn with(more: &str) -> Bench {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        std::fs::create_dir(dir.path().join("pm")).unwrap();
        let root = dir.path().display();
        let text = format!(
            "[node]\nname = \"alpha\"\nstate_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\n\
             [[group]]\nname = \"db\"\nlog_size = \"1MiB\"\nprotect = [\"{root}/pm/*.pool\"]\n{more}\n"
        );
        std::fs::write(dir.path().join("conf"), text).unwrap();
        Bench { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/pmemhad.sock")
    }

    pub fn pool(&self, name: &str, len: u64) -> std::fs::File {
        let path = self.path("pm").join(name);
        let file =
            std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(len).unwrap();
        file
    }

    /// Starts the agent and waits until it serves.
    pub fn start(&self) -> Agent {
        self.start_as(&mut self.agent())
    }

    /// Starts this command of an agent and waits until it serves.
    pub fn start_as(&self, command: &mut Command) -> Agent {
        let agent = Agent { child: command.spawn().unwrap() };
        let deadline = Instant::now() + LONG;
        while Connection::connect(&self.socket(), deadline).is_err() {
            assert!(Instant::now() < deadline, "the agent does not serve");
            std::thread::yield_now();
        }
        agent
    }

    /// Starts the agent's process; its diagnostics can be read from standard error.
    pub fn spawn(&self) -> Child {
        self.agent().spawn().unwrap()
    }

    pub fn agent(&self) -> Command {
        let mut command = Command::new(PMEMHAD);
        command.arg("--config").arg(self.path("conf")).stderr(Stdio::piped());
        command
    }

    pub fn connect(&self) -> Client {
        Client(Connection::connect(&self.socket(), Instant::now() + LONG).unwrap())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Ok(holder) = Holder::find_or_start(&self.path("run/holder.sock"), Path::new("/bin/false")) {
            let _ = holder.finish();
        }
    }
}

/// A running agent, killed when the test is over.
pub struct Agent {
    pub child: Child,
}

impl Agent {
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it in its tracks: nothing of it executes until [`Agent::go_on`].
    pub fn stand_still(&self) {
        self.signal(Signal::STOP);
        let stopped = rustix::process::waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap();
        assert!(stopped.is_some_and(|(_, status)| status.stopped()), "{stopped:?}");
    }

    /// See [`Agent::stand_still`].
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32).unwrap()
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// SIGTERM; returns its exit code and what it said.
    pub fn terminate(mut self) -> (Option<i32>, String) {
        self.signal(Signal::TERM);
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that says what the test wants said.
pub struct Client(pub Connection);

impl Client {
    pub fn ask(&self, request: &Request) -> Reply {
        self.ask_with(request, None)
    }

    pub fn ask_with(&self, request: &Request, file: Option<&std::fs::File>) -> Reply {
        use std::os::fd::AsFd;
        let deadline = Some(Instant::now() + LONG);
        self.0.send(request, file.map(AsFd::as_fd), deadline).unwrap();
        self.0.recv(deadline).unwrap().0
    }

    pub fn hello(&self, program: &str) -> Reply {
        self.hello_to(None, program)
    }

    pub fn hello_to(&self, group: Option<&str>, program: &str) -> Reply {
        let group = group.map(str::to_owned);
        self.ask(&Request::Hello { version: VERSION, group, program: program.into(), after: None })
    }

    pub fn status(&self) -> serde_json::Value {
        match self.ask(&Request::Status {}) {
            Reply::Status { document } => document,
            other => panic!("{other:?}"),
        }
    }

    /// Follows events until one of `kind`, and returns it.
    pub fn event(&self, kind: &str) -> serde_json::Value {
        let deadline = Some(Instant::now() + LONG);
        self.0.send(&Request::Events { since: Some(0) }, None, deadline).unwrap();
        loop {
            match self.0.recv::<Reply>(deadline).unwrap().0 {
                Reply::Event { event } if event["kind"] == kind => return event,
                Reply::Event { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
