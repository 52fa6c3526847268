//! Agents on this machine, source and destinations of one group, as a benchmark needs them.

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

/// What the agents are to be like.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What records travel over; tcp unencrypted.
    pub fabric: Kind,
    /// How many destinations the group has, at most [`MOST_DESTINATIONS`]. A wait is for all of them.
    pub destinations: usize,
    /// Each destination's `durability`.
    pub durability: String,
    /// Bytes of the ring.
    pub log_size: u64,
    /// Whether the source watches a file for its power, and the heir starts this program, as `stand_in`, after a
    /// promotion.
    pub handover: bool,
}

impl Spec {
    /// One destination, behind a battery, and no handover.
    pub fn new(fabric: Kind, log_size: u64) -> Spec {
        Spec { fabric, destinations: 1, durability: "battery".into(), log_size, handover: false }
    }
}

/// The most destinations that a benchmark has: with more, the agents on one machine would measure each other.
pub const MOST_DESTINATIONS: usize = DESTINATIONS.len();

/// What they are called, in the order of the configuration.
const DESTINATIONS: [&str; 3] = ["beta", "gamma", "delta"];

/// The agents.
pub struct Pair {
    /// The source.
    pub alpha: Node,
    /// The first destination.
    pub beta: Node,
    /// The destinations behind it.
    pub further: Vec<Node>,
}

impl Pair {
    /// Starts all.
    pub fn start(spec: &Spec) -> Outcome<Pair> {
        let binaries = binaries()?;
        let node = |name| Node::new(binaries, name);
        let further = DESTINATIONS[1..spec.destinations].iter().copied().map(node).collect();
        let mut pair = Pair { alpha: node("alpha"), beta: node("beta"), further };
        let authority = make_authority()?;
        let alpha = &pair.alpha;
        configure(alpha, &pair.destinations().collect::<Vec<_>>(), &authority, &source(&pair, spec)?)?;
        for node in pair.destinations() {
            configure(node, &[alpha], &authority, &destination(alpha, node, spec)?)?;
        }
        alpha.set_power(true);
        pair.beta.start();
        pair.further.iter_mut().for_each(Node::start);
        pair.alpha.start();
        let open = |group: &Value| (group["state"] != "opening").then_some(());
        pair.alpha.await_group("a group that is open", open);
        Ok(pair)
    }

    /// Waits until every destination counts, with everything applied that was published until now.
    pub fn await_streaming(&self) {
        for which in 0..=self.further.len() {
            self.alpha.await_streaming_to(which);
        }
    }

    fn destinations(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.beta).chain(&self.further)
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

fn source(pair: &Pair, spec: &Spec) -> Outcome<String> {
    let alpha = &pair.alpha;
    let names: Vec<&str> = pair.destinations().map(|node| node.name).collect();
    let mut text = String::new();
    if spec.handover {
        write!(text, "[power]\nsource = \"file\"\npath = {}\n\n", quote(&alpha.power()))?;
    }
    // `block`: a benchmark measures how fast records go, not how fast an application can outrun them.
    write!(
        text,
        "[[group]]\nname = \"{GROUP}\"\nprotect = [{}]\ndestinations = {}\n\
         log_size = \"{}KiB\"\ncommit_over = \"all\"\non_full = \"block\"\nblock_limit = \"60s\"\n",
        quote(&alpha.files().join("*")),
        Value::from(names),
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

fn configure(node: &Node, peers: &[&Node], authority: &Pem, rest: &str) -> Outcome<()> {
    let (dir, tls) = (node.dir(), node.dir().join("tls"));
    fs::write(tls.join("ca.pem"), &authority.certificate)?;
    make_node_certificate(authority, node.name)?.write(&tls.join("node.pem"), &tls.join("node.key"))?;
    let mut text = format!(
        "[node]\nname = \"{}\"\nstate_dir = {}\nruntime_dir = {}\nlisten = \"127.0.0.1:{}\"\n\n\
         [tls]\nca = {}\ncert = {}\nkey = {}\n\n",
        node.name,
        quote(&dir.join("state")),
        quote(&dir.join("run")),
        node.port,
        quote(&tls.join("ca.pem")),
        quote(&tls.join("node.pem")),
        quote(&tls.join("node.key")),
    );
    for peer in peers {
        write!(text, "[[peer]]\nname = \"{}\"\naddress = \"127.0.0.1:{}\"\n\n", peer.name, peer.port)?;
    }
    Ok(fs::write(node.config(), text + rest)?)
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
