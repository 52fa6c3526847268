//! Agents as child processes, each with directories, ports and certificates of its own.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pmemha::fabric::tls::{Pem, make_authority, make_node_certificate};
use pmemha::session::socket::Connection;
use pmemha::session::wire::{Reply, Request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::net::free_port;
use crate::{dirs, process, programs, wait};

/// How long an agent may take to answer after its start, on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(20);

/// How long a group may take to become what a test waits for: a first sync on a busy machine.
const AWAIT: Duration = Duration::from_secs(60);

/// Paths of the two binaries; the tests of package `pmemha` know them as `env!("CARGO_BIN_EXE_…")`.
#[derive(Clone, Copy, Debug)]
pub struct Binaries {
    /// `pmemhad`
    pub agent: &'static str,
    /// `pmemha`
    pub cli: &'static str,
}

/// Two nodes, `alpha` the source of the group `app` and `beta` its destination.
pub struct Pair {
    /// The source.
    pub alpha: Node,
    /// The destination.
    pub beta: Node,
}

/// What procfs counts processor time in, on x86-64 whatever the kernel's own clock.
const TICK: Duration = Duration::from_millis(10);

/// Stands in [`PairOptions`] for the node's own directory of files.
const FILES: &str = "@files@";

/// Names the fabric that pairs of nodes use, in place of tcp.
pub const FABRIC: &str = "PMEMHA_TEST_FABRIC";

/// The fabric that nodes of tests use.
pub fn fabric() -> String {
    std::env::var(FABRIC).unwrap_or_else(|_| "tcp".into())
}

/// The line of `[[replica]]` that chooses the fabric, if it is not tcp, which needs none: some tests add a line of their own.
pub fn fabric_line() -> String {
    let fabric = fabric();
    if fabric == "tcp" { String::new() } else { format!("fabric = \"{fabric}\"\n") }
}

/// What a pair of nodes shall be like. `@files@` in a line stands for the files' directory of the node that it is for.
#[derive(Clone, Debug, Default)]
pub struct PairOptions {
    /// Extra lines for `[[group]]` at the source.
    pub group: String,
    /// Extra lines for `[[replica]]` at the destination.
    pub replica: String,
    /// Whether data travels inside TLS.
    pub encrypt: bool,
    /// Whether the source keeps a replica for the group's way back, and the destination watches its power, too.
    pub both_ways: bool,
    /// Port by which the source reaches the destination's control channel, if not the destination's own.
    pub way: Option<u16>,
    /// Lines of `[power]` at the source, in place of a watched file.
    pub power: Option<String>,
    /// Whether the agents find no control group to freeze with, so that signals have to do.
    pub no_cgroups: bool,
}

impl Pair {
    /// Writes configurations and certificates; starts nothing.
    pub fn prepare(binaries: Binaries, options: &PairOptions) -> Pair {
        let mut alpha = Node::new(binaries, "alpha");
        let mut beta = Node::new(binaries, "beta");
        let authority = make_authority().expect("certificates can be made");
        for node in [&mut alpha, &mut beta] {
            node.no_cgroups = options.no_cgroups;
            node.certify(&authority);
        }
        alpha.configure(&format!(
            "[power]\n{power}\n\n\
             [[peer]]\nname = \"beta\"\naddress = \"127.0.0.1:{port}\"\n\n\
             [[group]]\nname = \"app\"\nprotect = [\"{files}/*\"]\ndestinations = [\"beta\"]\n{extra}\n",
            power = options.power.clone().unwrap_or_else(|| alpha.watched_power()),
            port = options.way.unwrap_or(beta.port),
            files = alpha.files().display(),
            extra = options.group.replace(FILES, &alpha.files().to_string_lossy()),
        ));
        beta.configure(&format!(
            "[[peer]]\nname = \"alpha\"\naddress = \"127.0.0.1:{port}\"\n\n\
             [[replica]]\ngroup = \"app\"\nfrom = [\"alpha\"]\ndir = \"{dir}\"\nencrypt = {encrypt}\n\
             durability = \"battery\"\npaths = {{ \"{from}\" = \"{to}\" }}\n{extra}\n",
            port = alpha.port,
            dir = beta.replica().display(),
            encrypt = options.encrypt,
            from = alpha.files().display(),
            to = beta.files().display(),
            extra = fabric_line() + &options.replica.replace(FILES, &beta.files().to_string_lossy()),
        ));
        if options.both_ways {
            alpha.configure_more(&format!(
                "[[replica]]\ngroup = \"app\"\nfrom = [\"beta\"]\ndir = \"{dir}\"\nencrypt = {encrypt}\n\
                 durability = \"battery\"\npaths = {{ \"{from}\" = \"{to}\" }}\n{fabric}",
                fabric = fabric_line(),
                dir = alpha.replica().display(),
                encrypt = options.encrypt,
                from = beta.files().display(),
                to = alpha.files().display(),
            ));
            beta.configure_more(&format!(
                "[power]\nsource = \"file\"\npath = \"{}\"\n",
                beta.power().display()
            ));
            beta.set_power(true);
        }
        alpha.set_power(true);
        Pair { alpha, beta }
    }

    /// Prepares and starts both.
    pub fn start(binaries: Binaries, options: &PairOptions) -> Pair {
        let mut pair = Pair::prepare(binaries, options);
        pair.beta.start();
        pair.alpha.start();
        pair
    }
}

/// Three nodes that share the group `app`: `alpha` ships it to both others, and whoever owns it later to the other two.
pub struct Trio {
    /// The first source.
    pub alpha: Node,
    /// Its first destination.
    pub beta: Node,
    /// Its second one.
    pub gamma: Node,
}

impl Trio {
    /// Writes configurations and certificates; starts nothing. `group` are extra lines for `[[group]]` at the source.
    pub fn prepare(binaries: Binaries, group: &str) -> Trio {
        let nodes = ["alpha", "beta", "gamma"].map(|name| Node::new(binaries, name));
        let authority = make_authority().expect("certificates can be made");
        for node in &nodes {
            node.certify(&authority);
            let others = || nodes.iter().filter(|other| other.name != node.name);
            let peer = |other: &Node| {
                format!("[[peer]]\nname = \"{}\"\naddress = \"127.0.0.1:{}\"\n\n", other.name, other.port)
            };
            let here = node.files();
            let place = |other: &Node| format!("\"{}\" = \"{}\"", other.files().display(), here.display());
            let names: Vec<_> = others().map(|other| format!("\"{}\"", other.name)).collect();
            let places: Vec<_> = others().map(place).collect();
            node.configure(&format!(
                "[power]\nsource = \"file\"\npath = \"{power}\"\n\n{peers}\
                 [[replica]]\ngroup = \"app\"\nfrom = [{from}]\ndir = \"{dir}\"\nencrypt = false\n\
                 durability = \"battery\"\npaths = {{ {places} }}\n{fabric}\n",
                power = node.power().display(),
                peers = others().map(peer).collect::<String>(),
                from = names.join(", "),
                dir = node.replica().display(),
                places = places.join(", "),
                fabric = fabric_line(),
            ));
            node.set_power(true);
        }
        let [alpha, beta, gamma] = nodes;
        alpha.configure_more(&format!(
            "[[group]]\nname = \"app\"\nprotect = [\"{files}/*\"]\ndestinations = [\"beta\", \"gamma\"]\n{group}\n",
            files = alpha.files().display(),
        ));
        Trio { alpha, beta, gamma }
    }

    /// Prepares and starts all.
    pub fn start(binaries: Binaries, group: &str) -> Trio {
        let mut trio = Trio::prepare(binaries, group);
        trio.beta.start();
        trio.gamma.start();
        trio.alpha.start();
        trio
    }
}

/// A source without destinations: its group `app` goes into the archive at [`Node::archive`] and nowhere else. `group` are
/// extra lines for `[[group]]`. Not started yet.
pub fn archiving(binaries: Binaries, group: &str) -> Node {
    let node = Node::new(binaries, "alpha");
    node.certify(&make_authority().expect("certificates can be made"));
    node.configure(&format!(
        "[[group]]\nname = \"app\"\nprotect = [\"{files}/*\"]\non_death = \"none\"\n\
         archive = {{ dir = \"{archive}\" }}\n{group}\n",
        files = node.files().display(),
        archive = node.archive().display(),
    ));
    node
}

/// One node: an agent with its directories.
pub struct Node {
    binaries: Binaries,
    /// Its name.
    pub name: &'static str,
    /// Port of its control channel.
    pub port: u16,
    dir: TempDir,
    agent: Option<Child>,
    starts: u32,
    no_cgroups: bool,
    user: Option<u32>,
    /// What the agent runs.
    program: PathBuf,
}

impl Node {
    /// With directories and a port, and neither certificate nor configuration: whoever calls writes [`Node::config`].
    pub fn new(binaries: Binaries, name: &'static str) -> Node {
        let dir = dirs::for_a_node();
        for sub in ["state", "run", "tls", "files", "replica"] {
            fs::create_dir(dir.path().join(sub)).expect("fresh directory");
        }
        let program = PathBuf::from(binaries.agent);
        let (port, agent, starts, no_cgroups, user) = (free_port(), None, 0, false, None);
        Node { binaries, name, port, dir, agent, starts, no_cgroups, user, program }
    }

    /// The node's own directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where its application's files are: every file in there is protected.
    pub fn files(&self) -> PathBuf {
        self.dir().join("files")
    }

    /// Where it keeps its replica.
    pub fn replica(&self) -> PathBuf {
        self.dir().join("replica")
    }

    /// Where a node made by [`archiving`] keeps its archive.
    pub fn archive(&self) -> PathBuf {
        self.dir().join("archive")
    }

    /// The file that says whether there is line power.
    pub fn power(&self) -> PathBuf {
        self.dir().join("ac_online")
    }

    /// Lines of `[power]` that watch it.
    fn watched_power(&self) -> String {
        format!("source = \"file\"\npath = \"{}\"", self.power().display())
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("run/pmemhad.sock")
    }

    /// The agent's messages so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("agent.log")).unwrap_or_default()
    }

    /// Switches line power.
    pub fn set_power(&self, on: bool) {
        let aside = self.dir().join("ac_online.new");
        fs::write(&aside, if on { "1\n" } else { "0\n" }).expect("own directory");
        fs::rename(&aside, self.power()).expect("own directory");
    }

    fn certify(&self, authority: &Pem) {
        let tls = self.dir().join("tls");
        fs::write(tls.join("ca.pem"), &authority.certificate).expect("own directory");
        make_node_certificate(authority, self.name)
            .and_then(|node| node.write(&tls.join("node.pem"), &tls.join("node.key")))
            .expect("a valid node name and an own directory");
    }

    fn configure(&self, rest: &str) {
        let mut text = String::new();
        let dir = self.dir().display();
        write!(
            text,
            "[node]\nname = \"{}\"\nstate_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n\
             listen = \"127.0.0.1:{}\"\n\n\
             [tls]\nca = \"{dir}/tls/ca.pem\"\ncert = \"{dir}/tls/node.pem\"\nkey = \"{dir}/tls/node.key\"\n\n{rest}",
            self.name, self.port
        )
        .expect("writing to a String");
        fs::write(self.config(), text).expect("own directory");
    }

    /// Appends to the configuration.
    pub fn configure_more(&self, rest: &str) {
        let text = fs::read_to_string(self.config()).expect("configured before");
        fs::write(self.config(), text + "\n" + rest).expect("own directory");
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir().join("pmemhad.toml")
    }

    /// The agent runs as user `uid` from now on, whom everything in the node's directory is given to: its program, too, since that
    /// user may not enter the directories above the one that it was built in.
    pub fn run_as(&mut self, uid: u32) {
        self.user = Some(uid);
        self.program = self.dir().join("pmemhad");
        fs::copy(self.binaries.agent, &self.program).expect("own directory");
        self.give_to(self.dir(), uid);
    }

    /// Gives `path`, and what is in it, to user `uid`.
    pub fn give_to(&self, path: &Path, uid: u32) {
        let done = Command::new("chown").arg("-R").arg(uid.to_string()).arg(path).status();
        assert!(done.expect("chown is there").success(), "tests with users run as root");
    }

    /// Starts an agent that is to refuse; what it says.
    pub fn refused(&mut self) -> String {
        let mut agent = self.spawn();
        let ended = wait::attempt(START, || agent.try_wait().expect("our own child"));
        if ended.is_none() {
            self.agent = Some(agent);
        }
        assert!(ended.is_some_and(|status| !status.success()), "the agent does not refuse:\n{}", self.log());
        self.log()
    }

    /// Starts the agent and waits until it answers.
    pub fn start(&mut self) {
        self.starts += 1;
        self.agent = Some(self.spawn());
        wait::until(&format!("the agent of {} to answer", self.name), START, || {
            let gone = self.agent.as_mut().and_then(|a| a.try_wait().ok()).flatten();
            assert!(gone.is_none(), "pmemhad of {} ended with {gone:?}:\n{}", self.name, self.log());
            self.status()
        });
    }

    fn spawn(&self) -> Child {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir().join("agent.log"))
            .expect("own directory");
        let mut command = Command::new(&self.program);
        if self.no_cgroups {
            // In a mount namespace of its own; the process stays the same one through both exec calls.
            command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "/bin/sh", "-c"]);
            command.arg("umount -l -a -t cgroup,cgroup2 && exec \"$0\" \"$@\"").arg(&self.program);
        }
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        command
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("pmemhad starts")
    }

    /// Kills the agent as `kill -9` does. Its holder and the application live on.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().expect("our own child");
            agent.wait().expect("our own child");
        }
    }

    /// Process id of the agent.
    pub fn pid(&self) -> u32 {
        self.agent.as_ref().expect("the agent runs").id()
    }

    /// Processor time that the agent has taken so far, in steps of the kernel's clock tick.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the agent runs");
        let fields: Vec<&str> = stat.rsplit_once(") ").expect("a program's name").1.split(' ').collect();
        // utime and stime, the 14th and 15th of all.
        let ticks: u32 = [11, 12].map(|i| fields[i].parse::<u32>().expect("a number")).iter().sum();
        TICK * ticks
    }

    /// A command of the CLI that talks to this node.
    pub fn cli(&self) -> Command {
        let mut command = Command::new(self.binaries.cli);
        command.env("PMEMHA_SOCKET", self.socket()).stdin(Stdio::null());
        command
    }

    /// `pmemha status --json`, if the agent answers.
    pub fn try_status(&self) -> Option<Value> {
        let out = self.cli().args(["status", "--json"]).output().expect("pmemha runs");
        out.status.success().then(|| serde_json::from_slice(&out.stdout).expect("status is JSON"))
    }

    /// The same document, asked for on the socket: quick enough for a sampler.
    pub fn status(&self) -> Option<Value> {
        match self.ask(&Request::Status {})? {
            Reply::Status { document } => Some(document),
            other => panic!("{} answered {other:?}", self.name),
        }
    }

    /// Asks the agent; `None` if it does not answer.
    pub fn ask(&self, request: &Request) -> Option<Reply> {
        let deadline = Instant::now() + START;
        let connection = Connection::connect(&self.socket(), deadline).ok()?;
        connection.send(request, None, Some(deadline)).ok()?;
        Some(connection.recv::<Reply>(Some(deadline)).ok()?.0)
    }

    /// The detail of the first event of `kind` that the agent has emitted, waited for.
    pub fn await_event(&self, kind: &str) -> Value {
        self.await_event_that(&format!("of kind {kind}"), |event| event["kind"] == kind)["detail"].take()
    }

    /// The first event that the agent has emitted and `wanted` is true of, waited for; `what` is for messages.
    pub fn await_event_that(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + AWAIT;
        let connection = Connection::connect(&self.socket(), deadline).expect("the agent listens");
        connection.send(&Request::Events { since: Some(0) }, None, Some(deadline)).expect("the agent reads");
        loop {
            match connection.recv::<Reply>(Some(deadline)) {
                Ok((Reply::Event { event }, _)) if wanted(&event) => return event,
                Ok((Reply::Event { .. }, _)) => {}
                other => panic!("waited for an event {what} of {}: {other:?}", self.name),
            }
        }
    }

    /// Waits until `probe` finds what it looks for in the status of the group `app`.
    pub fn await_group<T>(&self, what: &str, mut probe: impl FnMut(&Value) -> Option<T>) -> T {
        let mut last = Value::Null;
        let what = format!("{what} at {}", self.name);
        let found = wait::attempt(AWAIT, || {
            last = self.status()?["groups"][0].take();
            probe(&last)
        });
        found.unwrap_or_else(|| panic!("waited {AWAIT:?} in vain for: {what}; the group is {last:#}"))
    }

    /// Waits until the destination's image counts, with everything applied that was published until now.
    pub fn await_streaming(&self) -> Value {
        self.await_streaming_to(0)
    }

    /// As [`Node::await_streaming`], for one of several destinations.
    pub fn await_streaming_to(&self, which: usize) -> Value {
        let row = |group: &Value| {
            let row = &group["destinations"][which];
            (row["state"] == "streaming" && group["log"]["ahead"] == false).then(|| row.clone())
        };
        let published = self.await_group("a destination that counts", row)["lsn_published"].clone();
        self.await_group("the destination to catch up", |group| {
            row(group).filter(|row| row["lsn_applied"].as_u64() >= published.as_u64())
        })
    }

    /// Stops the agent in its tracks: nothing of it executes until [`Node::go_on`].
    pub fn stand_still(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.pid());
        wait::until("the agent to stand still", START, || {
            let text = fs::read_to_string(&stat).ok()?;
            text.rsplit_once(") ")?.1.starts_with('T').then_some(())
        });
    }

    /// See [`Node::stand_still`].
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a process id");
        kill_process(pid, signal).expect("our own child");
    }

    /// A program of ours under the preload library, attached to this node.
    pub fn preloaded(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_PRELOAD", programs::preload())
            .env("PMEMHA_SOCKET", self.socket())
            .env("PMEMHA_GROUP", "app")
            .env("PMEM_IS_PMEM_FORCE", "1")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- agent of {} ---\n{}", self.name, self.log());
        }
        // The holder and a started application outlive their agent by design; they must not outlive the test.
        let (agent, socket) = (&*self.program, self.socket());
        for process in process::all() {
            let is_agent = || process.program().is_some_and(|program| program == agent);
            let is_here = || process.arguments().iter().any(|a| Path::new(a).starts_with(self.dir()));
            if (is_agent() && is_here()) || process.has_variable("PMEMHA_SOCKET", &socket) {
                process.kill();
            }
        }
    }
}
