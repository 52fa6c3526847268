//! An agent for one run: source and destination in one `pmemhad`, over loopback, stopped when the program has ended.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pmemha::agent::daemon::HOLDER_SOCKET;
use pmemha::agent::holder::Holder;
use pmemha::fabric::tls::{make_authority, make_node_certificate};
use pmemha::session::wire::Request;

use crate::agent::Agent;
use crate::failure::{CANT_CREATE, Failure, SOFTWARE};

/// Name of the node in its certificate and configuration.
const NODE: &str = "local";

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

/// The agent. Dropped without [`Private::stop`], it is killed.
pub struct Private {
    dir: PathBuf,
    child: Child,
    agent: Agent,
}

impl Private {
    /// Starts it, with its state in the new directory `dir`, and waits until it serves.
    pub fn start(dir: &Path, wanted: &Wanted<'_>) -> Result<Private, Failure> {
        let create = |e: std::io::Error| Failure::new(CANT_CREATE, format!("{}: {e}", dir.display()));
        fs::DirBuilder::new().mode(0o700).create(dir).map_err(create)?;
        let tls = |e| Failure::new(SOFTWARE, format!("{e}"));
        let authority = make_authority().map_err(tls)?;
        authority.write(&dir.join("ca.pem"), &dir.join("ca.key")).map_err(tls)?;
        let certificate = make_node_certificate(&authority, NODE).map_err(tls)?;
        certificate.write(&dir.join("node.pem"), &dir.join("node.key")).map_err(tls)?;
        let conf = dir.join("pmemhad.conf");
        fs::write(&conf, configuration(dir, wanted)?).map_err(create)?;

        // The agent says READY=1 to its service manager, which is us.
        let notify = dir.join("notify");
        let told = UnixDatagram::bind(&notify).map_err(create)?;
        let log = fs::File::create(dir.join("pmemhad.log")).map_err(create)?;
        let child = Command::new(pmemhad()?)
            .arg("--config")
            .arg(&conf)
            .env("NOTIFY_SOCKET", &notify)
            .env_remove("LD_PRELOAD")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(Failure::system("starting pmemhad"))?;
        let agent = Agent::new(Some(dir.join("run/pmemhad.sock")));
        let mut private = Private { dir: dir.into(), child, agent };
        private.await_ready(&told)?;
        Ok(private)
    }

    /// It, to speak to.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Has it finish, and removes what only it needed.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.agent.ask(&Request::Shutdown {})?;
        let status = self.child.wait().map_err(Failure::system("waiting for pmemhad"))?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(SOFTWARE, format!("the agent ended with {status}:\n{}", self.diagnostics())))
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
        let log = fs::read_to_string(self.dir.join("pmemhad.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The logs that it keeps belong to this run only.
        let socket = self.dir.join("run").join(HOLDER_SOCKET);
        if socket.exists()
            && let Ok(holder) = Holder::find_or_start(&socket, Path::new("/nonexistent"))
        {
            let _ = holder.finish();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn configuration(dir: &Path, wanted: &Wanted<'_>) -> Result<String, Failure> {
    // Free at this moment; should another program take it before the agent does, the agent says so.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .map_err(Failure::system("a free port"))?;
    let quote = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let protect = serde_json::Value::from(wanted.protect.to_vec());
    let mut text = format!(
        "[node]\nname = \"{NODE}\"\nstate_dir = {}\nruntime_dir = {}\nlisten = \"{port}\"\n\n\
         [tls]\nca = {}\ncert = {}\nkey = {}\n\n\
         [[group]]\nname = \"{GROUP}\"\nprotect = {protect}\ndestinations = [\"{NODE}\"]\ncommit = \"{}\"\n",
        quote(&dir.join("state")),
        quote(&dir.join("run")),
        quote(&dir.join("ca.pem")),
        quote(&dir.join("node.pem")),
        quote(&dir.join("node.key")),
        wanted.commit,
    );
    if let Some(archive) = wanted.archive {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "archive = {{ dir = {} }}", quote(archive));
    }
    let _ = write!(
        text,
        "\n[[replica]]\ngroup = \"{GROUP}\"\nfrom = [\"{NODE}\"]\ndir = {}\nencrypt = false\n",
        quote(wanted.image)
    );
    Ok(text)
}

/// The agent's program: beside this one.
fn pmemhad() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(Failure::system("finding pmemhad"))?;
    Ok(own.with_file_name("pmemhad"))
}

/// How often the agent's process is looked at while it starts.
const LOOK: Duration = Duration::from_millis(100);
