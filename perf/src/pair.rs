//! Two agents on this machine, source and destination of one group, as a benchmark needs them.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pmemha::fabric::tls::{Pem, make_authority, make_node_certificate};
use pmemha_testkit::node::{Binaries, Node};
use serde_json::Value;

use crate::Outcome;
use crate::fabric::Kind;

/// The group.
pub const GROUP: &str = "app";

/// What the pair is to be like.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What records travel over; tcp unencrypted.
    pub fabric: Kind,
    /// The destination's `durability`.
    pub durability: String,
    /// Bytes of the ring.
    pub log_size: u64,
    /// Whether the source watches a file for its power, and the heir starts this program, as `stand_in`, after a
    /// promotion.
    pub handover: bool,
}

/// The agents.
pub struct Pair {
    /// The source.
    pub alpha: Node,
    /// The destination.
    pub beta: Node,
}

impl Pair {
    /// Starts both.
    pub fn start(spec: &Spec) -> Outcome<Pair> {
        let binaries = binaries()?;
        let mut pair = Pair { alpha: Node::new(binaries, "alpha"), beta: Node::new(binaries, "beta") };
        let authority = make_authority()?;
        let (alpha, beta) = (&pair.alpha, &pair.beta);
        configure(alpha, beta, &authority, &source(alpha, spec)?)?;
        configure(beta, alpha, &authority, &destination(alpha, beta, spec)?)?;
        alpha.set_power(true);
        pair.beta.start();
        pair.alpha.start();
        let open = |group: &Value| (group["state"] != "opening").then_some(());
        pair.alpha.await_group("a group that is open", open);
        Ok(pair)
    }
}

/// What the threads of a process have had of the processors, those that have ended left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on a processor.
    pub runs: Duration,
    /// Time ready to run, and waiting for one.
    pub waits: Duration,
}

/// Of a process, by its id.
pub fn usage(pid: u32) -> Usage {
    let mut usage = Usage::default();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let mut nanos = text.split_whitespace().filter_map(|n| n.parse().ok()).map(Duration::from_nanos);
        usage.runs += nanos.next().unwrap_or_default();
        usage.waits += nanos.next().unwrap_or_default();
    }
    usage
}

fn source(alpha: &Node, spec: &Spec) -> Outcome<String> {
    let mut text = String::new();
    if spec.handover {
        write!(text, "[power]\nsource = \"file\"\npath = {}\n\n", quote(&alpha.power()))?;
    }
    // `block`: a benchmark measures how fast records go, not how fast an application can outrun them.
    write!(
        text,
        "[[group]]\nname = \"{GROUP}\"\nprotect = [{}]\ndestinations = [\"beta\"]\nlog_size = \"{}KiB\"\n\
         on_full = \"block\"\nblock_limit = \"60s\"\n",
        quote(&alpha.files().join("*")),
        spec.log_size >> 10,
    )?;
    Ok(text)
}

fn destination(alpha: &Node, beta: &Node, spec: &Spec) -> Outcome<String> {
    let mut text = String::new();
    write!(
        text,
        "[[replica]]\ngroup = \"{GROUP}\"\nfrom = [\"alpha\"]\ndir = {}\nfabric = \"{}\"\nencrypt = false\n\
         durability = \"{}\"\npaths = {{ {} = {} }}\n",
        quote(&beta.replica()),
        spec.fabric.name(),
        spec.durability,
        quote(&alpha.files()),
        quote(&beta.files()),
    )?;
    if spec.handover {
        writeln!(text, "start = [{}, \"stand-in\"]", quote(&std::env::current_exe()?))?;
    }
    Ok(text)
}

fn configure(node: &Node, peer: &Node, authority: &Pem, rest: &str) -> Outcome<()> {
    let (dir, tls) = (node.dir(), node.dir().join("tls"));
    fs::write(tls.join("ca.pem"), &authority.certificate)?;
    make_node_certificate(authority, node.name)?.write(&tls.join("node.pem"), &tls.join("node.key"))?;
    let text = format!(
        "[node]\nname = \"{}\"\nstate_dir = {}\nruntime_dir = {}\nlisten = \"127.0.0.1:{}\"\n\n\
         [tls]\nca = {}\ncert = {}\nkey = {}\n\n[[peer]]\nname = \"{}\"\naddress = \"127.0.0.1:{}\"\n\n{rest}",
        node.name,
        quote(&dir.join("state")),
        quote(&dir.join("run")),
        node.port,
        quote(&tls.join("ca.pem")),
        quote(&tls.join("node.pem")),
        quote(&tls.join("node.key")),
        peer.name,
        peer.port,
    );
    Ok(fs::write(node.config(), text)?)
}

/// A TOML string; JSON's are a subset.
fn quote(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// `pmemhad` and `pmemha`: beside this program, where cargo puts all three.
fn binaries() -> Outcome<Binaries> {
    let own = std::env::current_exe()?;
    let beside = |name: &str| -> Outcome<&'static str> {
        let path: PathBuf = own.with_file_name(name);
        if !path.exists() {
            return Err(format!(
                "no {}: build it as this program was built (cargo build --bins)",
                path.display()
            )
            .into());
        }
        // A few bytes a run, and the fixture's own tests know the paths when they are compiled.
        Ok(path.to_string_lossy().into_owned().leak())
    };
    Ok(Binaries { agent: beside("pmemhad")?, cli: beside("pmemha")? })
}
