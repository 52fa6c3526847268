//! Validation of a configuration as a whole: what no single key can tell.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::message::{Fault, Step};
use super::model::{FabricKind, Group, LargePages, Replica};
use super::units::exact_bytes;
use super::{Config, MAX_GROUPS, power};
use crate::agent::placement;
use crate::fabric::tls::MAX_NODE_NAME;
use crate::failover::{OnDeath, Trigger};
use crate::log::format::{MAX_RING, MIN_RING};
use crate::node::largepage::{period, policy};
use crate::types::Level;

/// Longest name of a group: it becomes a file name and part of messages.
const MAX_NAME: usize = 64;

/// Most destinations of a group: each costs two threads, a connection and a channel at either end.
const MAX_DESTINATIONS: usize = 16;

/// Longest wait that may be configured; more is a typing error, and would hang an application.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Everything that is wrong; nothing if the configuration can be used.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let mut found = Faults::default();
    check_node(config, &mut found);
    check_peers(config, &mut found);
    check_unique(config, &mut found);
    check_number(config, &mut found);
    for (i, group) in config.groups.iter().enumerate() {
        check_group(config, i, group, &mut found);
    }
    for (i, replica) in config.replicas.iter().enumerate() {
        check_replica(config, i, replica, &mut found);
    }
    check_placement(config, &mut found);
    check_directories(config, &mut found);
    found.into_inner()
}

/// What was found so far. A path's numbers are indices of arrays.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub fn add(&mut self, path: &[&str], what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Fault { path: steps(path), what: what.into(), remedy: remedy.into(), unless: None });
    }

    /// As [`Faults::add`], of what is not as it should be because something is absent at `absent`.
    pub fn add_absent(
        &mut self,
        absent: &[&str],
        path: &[&str],
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let unless = Some(steps(absent));
        self.0.push(Fault { path: steps(path), what: what.into(), remedy: remedy.into(), unless });
    }

    pub fn into_inner(self) -> Vec<Fault> {
        self.0
    }

    fn name(&mut self, path: &[&str], name: &str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) || name.starts_with('.') {
            self.add(
                path,
                format!("`{name}` is no usable name"),
                format!("use 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`, not starting with `.`"),
            );
        }
    }

    /// Node names stand in certificates as host names.
    fn node_name(&mut self, path: &[&str], name: &str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let fits = name.len() <= MAX_NODE_NAME && name.chars().all(plain);
        if !fits || !edge(name.chars().next()) || !edge(name.chars().last()) {
            self.add(
                path,
                format!("`{name}` cannot name a node"),
                format!("use 1 to {MAX_NODE_NAME} letters, digits, `-` or `.`, as in a host name"),
            );
        }
    }

    pub fn absolute(&mut self, path: &[&str], value: &Path) {
        if !value.is_absolute() {
            self.add(path, format!("`{}` is no absolute path", value.display()), "write it from `/` on");
        }
    }

    pub fn wait(&mut self, path: &[&str], value: Duration) {
        if value > MAX_WAIT {
            self.add(path, format!("{value:?} is longer than a day"), "choose a shorter one");
        }
    }
}

fn steps(path: &[&str]) -> Vec<Step> {
    path.iter().map(|s| s.parse().map_or_else(|_| Step::Key(s.to_string()), Step::Index)).collect()
}

fn check_node(config: &Config, found: &mut Faults) {
    let node = &config.node;
    found.node_name(&["node", "name"], &node.name);
    found.absolute(&["node", "state_dir"], &node.state_dir);
    found.absolute(&["node", "runtime_dir"], &node.runtime_dir);
    let networked = !config.replicas.is_empty() || config.groups.iter().any(|g| !g.destinations.is_empty());
    if networked && node.listen.is_none() {
        found.add_absent(
            &["node", "listen"],
            &["node", "listen"],
            "missing, but this node talks to others",
            "name an address that they can reach, such as \"10.0.0.1:7475\"",
        );
    }
    if node.advertise.is_none() && node.data_address().is_some_and(|a| a.ip().is_unspecified()) {
        let key = if node.data_listen.is_some() { "data_listen" } else { "listen" };
        found.add_absent(
            &["node", "advertise"],
            &["node", key],
            "all addresses of this node, but others must be told one of them",
            "name one address, or set `advertise` in [node] to the host that they reach",
        );
    }
    match &config.tls {
        None if networked => found.add_absent(
            &["tls"],
            &["tls"],
            "missing, but this node talks to others",
            "`pmemha init` makes certificates; name them in [tls] as ca, cert and key",
        ),
        None => {}
        Some(tls) => {
            found.absolute(&["tls", "ca"], &tls.ca);
            found.absolute(&["tls", "cert"], &tls.cert);
            found.absolute(&["tls", "key"], &tls.key);
        }
    }
    if config.rdma.port == Some(0) {
        found.add(&["rdma", "port"], "ports are counted from 1", "leave it out, or see `rdma link`");
    }
    power::check(config.power.as_ref(), &config.budget, found);
    if let Some(large) = &config.largepages {
        check_large_pages(large, found);
    }
}

fn check_large_pages(large: &LargePages, found: &mut Faults) {
    if !(1..=policy::PAGES).contains(&large.threshold) {
        let what = format!("{} pages of the {} of a range", large.threshold, policy::PAGES);
        found.add(&["largepages", "threshold"], what, "choose 1 to 512, such as 64");
    }
    if large.budget == 0 {
        found.add(
            &["largepages", "budget"],
            "nothing would be mapped large",
            "choose 1 or more, or leave [largepages] out",
        );
    }
    if !(period::SHORTEST..=period::LONGEST).contains(&large.period) {
        let what = format!("{:?} is no useful period", large.period);
        found.add(&["largepages", "period"], what, "choose one from \"200ms\" to \"60s\"");
    }
}

fn check_peers(config: &Config, found: &mut Faults) {
    for (i, peer) in config.peers.iter().enumerate() {
        let i = i.to_string();
        found.node_name(&["peer", &i, "name"], &peer.name);
        let port = peer.address.rsplit_once(':').and_then(|(host, port)| {
            (!host.is_empty()).then_some(())?;
            port.parse::<u16>().ok().filter(|p| *p != 0)
        });
        if port.is_none() {
            found.add(
                &["peer", &i, "address"],
                format!("`{}` is no address", peer.address),
                "write host:port, such as \"beta.example:7475\" or \"[fd00::2]:7475\"",
            );
        }
        if peer.name == config.node.name {
            found.add(&["peer", &i, "name"], "is this node's own name", "list only other nodes as peers");
        }
    }
}

fn check_unique(config: &Config, found: &mut Faults) {
    let lists: [(&str, &str, Vec<&str>); 3] = [
        ("peer", "name", config.peers.iter().map(|p| p.name.as_str()).collect()),
        ("group", "name", config.groups.iter().map(|g| g.name.as_str()).collect()),
        ("replica", "group", config.replicas.iter().map(|r| r.group.as_str()).collect()),
    ];
    for (list, key, names) in lists {
        let mut seen = HashMap::new();
        for (i, name) in names.iter().enumerate() {
            if let Some(first) = seen.insert(*name, i) {
                found.add(
                    &[list, &i.to_string(), key],
                    format!("`{name}` stands twice (also {list}[{first}])"),
                    "names are unique; rename or remove one",
                );
            }
        }
    }
}

fn check_number(config: &Config, found: &mut Faults) {
    let groups = config.groups.len();
    if groups + config.replicas.len() <= MAX_GROUPS {
        return;
    }
    let (list, index) = match MAX_GROUPS.checked_sub(groups) {
        Some(room) => ("replica", room),
        None => ("group", MAX_GROUPS),
    };
    found.add(
        &[list, &index.to_string()],
        format!("is one more than the {MAX_GROUPS} groups and replicas that a node may have"),
        "move some to another node",
    );
}

fn check_group(config: &Config, index: usize, group: &Group, found: &mut Faults) {
    let i = index.to_string();
    let key = |k: &'static str| -> [&str; 3] { ["group", &i, k] };
    found.name(&key("name"), &group.name);
    for (n, pattern) in group.protect.iter().enumerate() {
        let n = n.to_string();
        let at = ["group", i.as_str(), "protect", &n];
        found.absolute(&at, Path::new(pattern));
        if let Err(e) = glob::Pattern::new(pattern) {
            found.add(&at, format!("`{pattern}` is no pattern: {}", e.msg), "see glob(7)");
        }
    }
    if !group.log_size.is_power_of_two() || !(MIN_RING..=MAX_RING).contains(&group.log_size) {
        let near = group.log_size.clamp(MIN_RING, MAX_RING).next_power_of_two();
        found.add(
            &key("log_size"),
            format!("{} bytes is not a power of two between 64KiB and 4GiB", group.log_size),
            format!("use \"{}\"", exact_bytes(near)),
        );
    }
    found.wait(&key("block_limit"), group.block_limit);
    if group.commit_timeout != Duration::MAX {
        found.wait(&key("commit_timeout"), group.commit_timeout);
    }
    found.wait(&key("freeze_deadline"), group.freeze_deadline);
    check_destinations(config, &i, group, found);
    if let Some(archive) = &group.archive {
        found.absolute(&["group", &i, "archive", "dir"], &archive.dir);
        if archive.keep_bytes < group.log_size {
            found.add_absent(
                &key("log_size"),
                &["group", &i, "archive", "keep_bytes"],
                "is smaller than log_size, so not even the log would fit",
                "allow the size of the protected files and several times log_size",
            );
        }
    }
    if group.on_death == OnDeath::Restart && group.command.is_empty() {
        found.add_absent(
            &key("command"),
            &key("on_death"),
            "`restart` needs a command to start",
            "add command = [\"/path/of/program\"]",
        );
    }
    if let Some(dir) = &group.working_dir {
        found.absolute(&key("working_dir"), dir);
    }
    check_command("group", &i, "command", &group.command, found);
}

fn check_destinations(config: &Config, i: &str, group: &Group, found: &mut Faults) {
    for (at, name) in group.destinations.iter().enumerate() {
        let (n, before) = (at.to_string(), &group.destinations[..at]);
        let at = ["group", i, "destinations", &n];
        if *name == config.node.name {
            found.add(
                &at,
                format!("`{name}` is this node: a copy here would be lost together with the original"),
                "name another node; for copies on this one, set `archive`",
            );
        } else if !config.peers.iter().any(|p| p.name == *name) {
            let known: Vec<_> = config.peers.iter().map(|p| p.name.as_str()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            found.add_absent(
                &["peer"],
                &at,
                format!("there is no peer `{name}`"),
                format!("add a [[peer]] of that name (known: {known})"),
            );
        }
        if before.contains(name) {
            found.add(&at, format!("`{name}` stands twice"), "remove one");
        }
    }
    if group.destinations.len() > MAX_DESTINATIONS {
        found.add(
            &["group", i, "destinations"],
            format!("more than {MAX_DESTINATIONS} destinations"),
            "remove some: each has a thread and a connection here",
        );
    }
    if group.destinations.len() > 1 && group.trigger == Trigger::SaveStarted {
        found.add(
            &["group", i, "trigger"],
            "`save-started` names the heir before it is known which destination holds everything",
            "use \"saved\", or name one destination",
        );
    }
    if group.destinations.is_empty() && group.commit > Level::Local {
        found.add_absent(
            &["group", i, "destinations"],
            &["group", i, "commit"],
            "waits for a destination, and there is none",
            "name one in destinations, or use commit = \"local\"",
        );
    }
    if group.destinations.is_empty() && group.budget == power::BudgetMode::Enforce {
        found.add_absent(
            &["group", i, "destinations"],
            &["group", i, "budget"],
            "`enforce` bounds what a destination lacks, and there is none",
            "name one in destinations, or use budget = \"alarm\"",
        );
    }
    if group.destinations.is_empty() && group.on_death == OnDeath::Failover {
        found.add_absent(
            &["group", i, "destinations"],
            &["group", i, "on_death"],
            "`failover` needs a destination to fail over to",
            "name one in destinations, or use \"restart\" or \"none\"",
        );
    }
}

fn check_replica(config: &Config, index: usize, replica: &Replica, found: &mut Faults) {
    let i = index.to_string();
    found.name(&["replica", &i, "group"], &replica.group);
    found.absolute(&["replica", &i, "dir"], &replica.dir);
    if replica.from.len() > MAX_DESTINATIONS {
        found.add(
            &["replica", &i, "from"],
            format!("more than {MAX_DESTINATIONS} nodes"),
            "remove some: after a promotion they are the destinations",
        );
    }
    if replica.from.is_empty() {
        let at = ["replica", i.as_str(), "from"];
        found.add_absent(&at, &at, "names no node", "name the nodes that may ship the group");
    }
    for (n, name) in replica.from.iter().enumerate() {
        if replica.from[..n].contains(name) {
            found.add(
                &["replica", &i, "from", &n.to_string()],
                format!("`{name}` stands twice"),
                "remove one",
            );
        }
        if *name == config.node.name {
            found.add(
                &["replica", &i, "from", &n.to_string()],
                format!("`{name}` is this node"),
                "name the other nodes that may ship the group",
            );
        } else if !config.peers.iter().any(|p| p.name == *name) {
            found.add_absent(
                &["peer"],
                &["replica", &i, "from", &n.to_string()],
                format!("there is no peer `{name}`"),
                "add a [[peer]] of that name",
            );
        }
    }
    for (source, local) in &replica.paths {
        let name = source.to_string_lossy();
        let at = ["replica", i.as_str(), "paths", &name];
        found.absolute(&at, source);
        found.absolute(&at, local);
    }
    if replica.fabric == FabricKind::Verbs && replica.encrypt == Some(true) {
        found.add(
            &["replica", &i, "encrypt"],
            "RDMA does not encrypt",
            "leave it out and see to the network (isolated, IPsec or MACsec), or use fabric = \"tcp\"",
        );
    }
    if let Some(dir) = &replica.working_dir {
        found.absolute(&["replica", &i, "working_dir"], dir);
    }
    check_command("replica", &i, "start", &replica.start, found);
}

fn check_placement(config: &Config, found: &mut Faults) {
    let groups = config.placement.iter().flat_map(|placement| &placement.groups).enumerate();
    for (i, group) in groups {
        let n = i.to_string();
        found.name(&["placement", "group", &n, "name"], &group.name);
        found.absolute(&["placement", "group", &n, "cgroup"], &group.cgroup);
        let placed = config.placement.iter().flat_map(|placement| &placement.groups[..i]);
        let taken = config.groups.iter().map(|group| &group.name).chain(placed.map(|group| &group.name));
        if taken.chain([&placement::OWN.to_owned()]).any(|name| *name == group.name) {
            found.add(
                &["placement", "group", &n, "name"],
                format!("`{}` is another group's", group.name),
                "give it a name of its own; applications that the agent starts, and the agent, are placed without being named",
            );
        }
    }
}

fn check_command(list: &str, i: &str, key: &str, command: &[String], found: &mut Faults) {
    let Some(program) = command.first() else { return };
    if !Path::new(program).is_absolute() {
        found.add(
            &[list, i, key],
            format!("`{program}` is no absolute path"),
            "name the program by its full path, so that PATH cannot change what is started",
        );
    }
}

/// Directories that the agent fills must not lie in each other, nor receive what is protected.
fn check_directories(config: &Config, found: &mut Faults) {
    let mut dirs: Vec<(Vec<String>, &Path)> = Vec::new();
    for (i, group) in config.groups.iter().enumerate() {
        if let Some(archive) = &group.archive {
            dirs.push((vec!["group".into(), i.to_string(), "archive".into(), "dir".into()], &archive.dir));
        }
    }
    for (i, replica) in config.replicas.iter().enumerate() {
        dirs.push((vec!["replica".into(), i.to_string(), "dir".into()], &replica.dir));
    }
    for (n, (key, dir)) in dirs.iter().enumerate() {
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        for (_, earlier) in &dirs[..n] {
            if dir.starts_with(earlier) || earlier.starts_with(dir) {
                found.add(
                    &key,
                    format!("`{}` overlaps `{}`", dir.display(), earlier.display()),
                    "give each replica and archive a directory of its own",
                );
            }
        }
        for group in &config.groups {
            let inside = |p: &&String| glob::Pattern::new(p).is_ok_and(|p| p.matches_path(&dir.join("x")));
            if let Some(pattern) = group.protect.iter().find(inside) {
                found.add(
                    &key,
                    format!("`{}` lies in what group `{}` protects (`{pattern}`)", dir.display(), group.name),
                    "put it elsewhere, or narrow the pattern",
                );
            }
        }
    }
}
