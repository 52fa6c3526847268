//! Agents for one run: a source and a destination on this machine, over loopback, stopped when the program has ended.
//!
//! Two processes, since a node has one role in a group.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pmemha::agent::daemon::HOLDER_SOCKET;
use pmemha::agent::holder::Holder;
use pmemha::agent::sessions::LAUNCHER;
use pmemha::fabric::tls::{make_authority, make_node_certificate};
use pmemha::session::wire::{Request, VERSION};

use crate::agent::Agent;
use crate::failure::{CANT_CREATE, Failure, SOFTWARE};

/// Node of the agent that the program attaches to.
const SOURCE: &str = "source";

/// Node of the agent that keeps the copy.
const COPY: &str = "copy";

/// Name of the group.
pub const GROUP: &str = "run";

/// A new agent serves within this time.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What the agent is to do.
pub struct Wanted<'a> {
    /// Absolute patterns to protect.
    pub protect: &'a [String],
    /// Where the image goes.
    pub image: &'a Path,
    /// Where an archive goes, if there is to be one.
    pub archive: Option<&'a Path>,
    /// Commit level.
    pub commit: &'a str,
}

/// The agents. Dropped without [`Private::stop`], they are killed.
pub struct Private {
    dir: PathBuf,
    // In the order in which they are stopped: the source brings out what it has while the copy still listens.
    source: Member,
    copy: Member,
}

/// One of the agents, killed when dropped.
struct Member {
    dir: PathBuf,
    child: Child,
    agent: Agent,
}

impl Private {
    /// Starts both, with their state in the new directory `dir`, and waits until they serve.
    pub fn start(dir: &Path, wanted: &Wanted<'_>) -> Result<Private, Failure> {
        make_dir(dir)?;
        let tls = |e| Failure::new(SOFTWARE, format!("{e}"));
        let authority = make_authority().map_err(tls)?;
        for node in [SOURCE, COPY] {
            let home = dir.join(node);
            make_dir(&home)?;
            write(&home.join("ca.pem"), &authority.certificate)?;
            let certificate = make_node_certificate(&authority, node).map_err(tls)?;
            certificate.write(&home.join("node.pem"), &home.join("node.key")).map_err(tls)?;
        }
        let (near, far) = (free_port()?, free_port()?);
        let conf = |node: &str, own, peer: &str, address| common(&dir.join(node), node, own, peer, address);
        write(&dir.join(COPY).join(CONF), &(conf(COPY, far, SOURCE, near) + &replica_section(wanted)))?;
        write(&dir.join(SOURCE).join(CONF), &(conf(SOURCE, near, COPY, far) + &group_section(wanted)))?;
        let copy = Member::start(&dir.join(COPY))?;
        let source = Member::start(&dir.join(SOURCE))?;
        let private = Private { dir: dir.into(), source, copy };
        private.await_admission()?;
        Ok(private)
    }

    /// The source admits applications once it has heard from the copy that nobody else owns the group.
    fn await_admission(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        let hello = Request::Hello { version: VERSION, group: Some(GROUP.into()), program: LAUNCHER.into() };
        loop {
            match self.agent().ask(&hello) {
                Err(_) if Instant::now() < deadline => thread::sleep(LOOK),
                answered => return answered.map(drop),
            }
        }
    }

    /// The source's agent, to speak to.
    pub fn agent(&self) -> &Agent {
        &self.source.agent
    }

    /// Has them finish, and removes what only they needed.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.source.stop()?;
        self.copy.stop()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.source.end();
        self.copy.end();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Member {
    fn start(dir: &Path) -> Result<Member, Failure> {
        // The agent says READY=1 to its service manager, which is us.
        let notify = dir.join("notify");
        let told = UnixDatagram::bind(&notify).map_err(Failure::system(notify.display()))?;
        let log = dir.join(LOG);
        let log = fs::File::create(&log).map_err(Failure::system(log.display()))?;
        let child = Command::new(pmemhad()?)
            .arg("--config")
            .arg(dir.join(CONF))
            .env("NOTIFY_SOCKET", &notify)
            .env_remove("LD_PRELOAD")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // An interrupt from the terminal is for the program; the agents end after it.
            .process_group(0)
            .spawn()
            .map_err(Failure::system("starting pmemhad"))?;
        let agent = Agent::new(Some(dir.join("run/pmemhad.sock")));
        let mut member = Member { dir: dir.into(), child, agent };
        member.await_ready(&told).inspect_err(|_| member.end())?;
        Ok(member)
    }

    fn stop(&mut self) -> Result<(), Failure> {
        self.agent.ask(&Request::Shutdown {})?;
        let status = self.child.wait().map_err(Failure::system("waiting for pmemhad"))?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(SOFTWARE, format!("the agent ended with {status}:\n{}", self.diagnostics())))
    }

    /// Ends the agent if it still runs, and the holder of its logs, which belong to this run only.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let socket = self.dir.join("run").join(HOLDER_SOCKET);
        if socket.exists()
            && let Ok(holder) = Holder::find_or_start(&socket, Path::new("/nonexistent"))
        {
            let _ = holder.finish();
        }
    }

    fn await_ready(&mut self, told: &UnixDatagram) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        told.set_read_timeout(Some(LOOK)).map_err(Failure::system("waiting for pmemhad"))?;
        let mut message = [0; 256];
        while Instant::now() < deadline {
            if let Ok(n) = told.recv(&mut message)
                && message[..n].starts_with(b"READY=1")
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().map_err(Failure::system("waiting for pmemhad"))? {
                return Err(Failure::new(
                    SOFTWARE,
                    format!("the agent ended with {status} before it served:\n{}", self.diagnostics()),
                ));
            }
        }
        Err(Failure::new(SOFTWARE, format!("the agent does not serve:\n{}", self.diagnostics())))
    }

    fn diagnostics(&self) -> String {
        let log = fs::read_to_string(self.dir.join(LOG)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

fn common(home: &Path, node: &str, own: SocketAddr, peer: &str, address: SocketAddr) -> String {
    format!(
        "[node]\nname = \"{node}\"\nstate_dir = {}\nruntime_dir = {}\nlisten = \"{own}\"\n\n\
         [tls]\nca = {}\ncert = {}\nkey = {}\n\n\
         [[peer]]\nname = \"{peer}\"\naddress = \"{address}\"\n\n",
        quote(&home.join("state")),
        quote(&home.join("run")),
        quote(&home.join("ca.pem")),
        quote(&home.join("node.pem")),
        quote(&home.join("node.key")),
    )
}

fn group_section(wanted: &Wanted<'_>) -> String {
    let protect = serde_json::Value::from(wanted.protect.to_vec());
    let archive =
        wanted.archive.map_or(String::new(), |dir| format!("archive = {{ dir = {} }}\n", quote(dir)));
    format!(
        "[[group]]\nname = \"{GROUP}\"\nprotect = {protect}\ndestinations = [\"{COPY}\"]\ncommit = \"{}\"\n{archive}",
        wanted.commit
    )
}

fn replica_section(wanted: &Wanted<'_>) -> String {
    let image = quote(wanted.image);
    format!("[[replica]]\ngroup = \"{GROUP}\"\nfrom = [\"{SOURCE}\"]\ndir = {image}\nencrypt = false\n")
}

/// A TOML string; JSON's are a subset.
fn quote(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// Free at this moment; should another program take it before the agent does, the agent says so.
fn free_port() -> Result<SocketAddr, Failure> {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(Failure::system("a free port"))
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().mode(0o700).create(dir);
    made.map_err(|e| Failure::new(CANT_CREATE, format!("{}: {e}", dir.display())))
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|e| Failure::new(CANT_CREATE, format!("{}: {e}", file.display())))
}

/// The agent's program: beside this one.
fn pmemhad() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(Failure::system("finding pmemhad"))?;
    Ok(own.with_file_name("pmemhad"))
}

/// How often an agent is looked at while it starts.
const LOOK: Duration = Duration::from_millis(20);

const CONF: &str = "pmemhad.conf";
const LOG: &str = "pmemhad.log";
