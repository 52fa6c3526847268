//! Agents that this command starts on this machine for its own purposes, each with a directory, certificates and an address
//! of its own. `run` (through `private`) and `demo` start two, which are each other's peers over loopback.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pmemha::agent::daemon::HOLDER_SOCKET;
use pmemha::agent::holder::Holder;
use pmemha::fabric::tls::{make_authority, make_node_certificate};
use pmemha::session::wire::Request;

use crate::agent::Agent;
use crate::failure::{CANT_CREATE, Failure, SOFTWARE};

/// A new agent serves within this time.
pub const READY_WITHIN: Duration = Duration::from_secs(30);

/// How often an agent is looked at while it starts.
pub const LOOK: Duration = Duration::from_millis(20);

/// Where an agent lives.
pub struct Home {
    dir: PathBuf,
    node: &'static str,
    address: SocketAddr,
}

/// Makes in `dir` a home for each node, with certificates of one authority.
pub fn make_homes<const N: usize>(dir: &Path, nodes: [&'static str; N]) -> Result<[Home; N], Failure> {
    let tls = |e| Failure::new(SOFTWARE, format!("{e}"));
    let authority = make_authority().map_err(tls)?;
    let mut homes = Vec::with_capacity(N);
    for (number, node) in nodes.into_iter().enumerate() {
        let home = Home { dir: dir.join(node), node, address: own_address(number)? };
        make_dir(&home.dir)?;
        write(&home.dir.join("ca.pem"), &authority.certificate)?;
        let certificate = make_node_certificate(&authority, node).map_err(tls)?;
        certificate.write(&home.dir.join("node.pem"), &home.dir.join("node.key")).map_err(tls)?;
        homes.push(home);
    }
    Ok(homes.try_into().unwrap_or_else(|_| unreachable!("one home a node")))
}

impl Home {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the configuration: the node itself, `peer`, and `rest`.
    pub fn configure(&self, peer: &Home, rest: &str) -> Result<(), Failure> {
        let dir = &self.dir;
        let common = format!(
            "[node]\nname = \"{}\"\nstate_dir = {}\nruntime_dir = {}\nlisten = \"{}\"\n\n\
             [tls]\nca = {}\ncert = {}\nkey = {}\n\n\
             [[peer]]\nname = \"{}\"\naddress = \"{}\"\n\n",
            self.node,
            quote(&dir.join("state")),
            quote(&dir.join("run")),
            self.address,
            quote(&dir.join("ca.pem")),
            quote(&dir.join("node.pem")),
            quote(&dir.join("node.key")),
            peer.node,
            peer.address,
        );
        write(&dir.join(CONF), &(common + rest))
    }
}

/// An agent, ended when dropped. Should this process end without that, the agent finishes by itself and removes its home.
pub struct LocalAgent {
    dir: PathBuf,
    child: Child,
    /// Its end tells the agent that we are gone.
    _lifeline: Option<ChildStdin>,
    agent: Agent,
}

impl LocalAgent {
    /// Starts the agent of `home` and waits until it serves. Should we end, it ends after that of `before`.
    pub fn start(home: &Home, before: Option<&Home>) -> Result<LocalAgent, Failure> {
        let dir = home.dir();
        let log = dir.join(LOG);
        let log = fs::File::create(&log).map_err(Failure::system(log.display()))?;
        let program = pmemhad()?;
        let mut child = Command::new(&program)
            .arg("--config")
            .arg(dir.join(CONF))
            .arg("--private")
            .arg(dir)
            .args(before.into_iter().flat_map(|other| [OsStr::new("--after"), other.dir.as_os_str()]))
            // Not the service that systemd may run us as.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LD_PRELOAD")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // An interrupt from the terminal is for the program; the agents end after it.
            .process_group(0)
            .spawn()
            .map_err(Failure::system(format!("starting {}", program.display())))?;
        let agent = Agent::new(Some(dir.join("run/pmemhad.sock")));
        // Taken, since waiting for the child would close it.
        let lifeline = child.stdin.take();
        let mut member = LocalAgent { dir: dir.into(), child, _lifeline: lifeline, agent };
        member.await_ready().inspect_err(|_| member.end())?;
        Ok(member)
    }

    /// Speaks to it.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Has it finish; what it leaves undone, a sentence each.
    pub fn stop(&mut self) -> Result<Vec<String>, Failure> {
        self.agent.ask(&Request::Shutdown {})?;
        let status = self.child.wait().map_err(Failure::system("waiting for pmemhad"))?;
        if status.success() {
            let log = fs::read_to_string(self.dir.join(LOG)).unwrap_or_default();
            return Ok(log.lines().filter_map(|line| line.strip_prefix(UNDONE)).map(str::to_owned).collect());
        }
        Err(Failure::new(SOFTWARE, format!("the agent ended with {status}:\n{}", self.diagnostics())))
    }

    /// Kills the agent as `kill -9` does: its holder lives on.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends the agent if it still runs, and the holder of its logs, which belong to this run only.
    pub fn end(&mut self) {
        self.kill();
        let socket = self.dir.join("run").join(HOLDER_SOCKET);
        if socket.exists()
            && let Ok(holder) = Holder::find_or_start(&socket, Path::new("/nonexistent"))
        {
            let _ = holder.finish();
        }
    }

    /// It listens last of all.
    fn await_ready(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            if self.agent.connect().is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().map_err(Failure::system("waiting for pmemhad"))? {
                return Err(Failure::new(
                    SOFTWARE,
                    format!("the agent ended with {status} before it served:\n{}", self.diagnostics()),
                ));
            }
            thread::sleep(LOOK);
        }
        Err(Failure::new(SOFTWARE, format!("the agent does not serve:\n{}", self.diagnostics())))
    }

    /// The last lines that it said.
    pub fn diagnostics(&self) -> String {
        let log = fs::read_to_string(self.dir.join(LOG)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for LocalAgent {
    fn drop(&mut self) {
        self.end();
    }
}

/// A TOML string; JSON's are a subset.
pub fn quote(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// Makes a directory that is not there yet, for this user alone.
pub fn make_dir(dir: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().mode(0o700).create(dir);
    made.map_err(|e| Failure::new(CANT_CREATE, format!("{}: {e}", dir.display())))
}

/// Writes a file.
pub fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|e| Failure::new(CANT_CREATE, format!("{}: {e}", file.display())))
}

/// Where the node of this number can listen: a port that is free at this moment, and likely to be so when the agent takes it,
/// since it is of a loopback address that no other process has by our rule. On 127.0.0.1 any connection may get it meanwhile.
fn own_address(number: usize) -> Result<SocketAddr, Failure> {
    let free = |ip: Ipv4Addr| TcpListener::bind((ip, 0)).and_then(|l| l.local_addr());
    free(own_loopback(std::process::id(), number as u32))
        .or_else(|_| free(Ipv4Addr::LOCALHOST))
        .map_err(Failure::system("a free port"))
}

/// One for each of two nodes of a process: of the 24 bits that 127.0.0.0/8 leaves, numbers of processes take 22.
fn own_loopback(pid: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 0, 0).to_bits() | (pid << 1 | number & 1) & 0x00ff_ffff)
}

/// The agent's program: beside this one, in the sbin directory next to it, or where the shell looks.
fn pmemhad() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(Failure::system("finding pmemhad"))?;
    let beside = own.with_file_name(PMEMHAD);
    let sbin = own.parent().and_then(Path::parent).map(|p| p.join("sbin").join(PMEMHAD)).unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not below the current directory, which a relative entry means.
    let in_path = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(PMEMHAD));
    let mut places = [beside.clone(), sbin.clone()].into_iter().chain(in_path);
    places.find(|place| place.is_file()).ok_or_else(|| {
        Failure::new(
            SOFTWARE,
            format!(
                "no {PMEMHAD} at {} or {}, nor in a directory of PATH: install it there (`make install`)",
                beside.display(),
                sbin.display()
            ),
        )
    })
}

/// File name of the agent's program.
const PMEMHAD: &str = "pmemhad";

const CONF: &str = "pmemhad.conf";
/// How the agent begins a line on what it leaves undone.
const UNDONE: &str = "pmemhad: left undone: ";

const LOG: &str = "pmemhad.log";
