//! What `pmemha init` makes is enough for two agents to find, trust and replicate to each other.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use pmemha::agent::config::Config;
use pmemha_testkit::node::Node;
use pmemha_testkit::{dirs, programs};

use super::{BINARIES, said};

#[test]
fn two_nodes_replicate_by_what_init_made_for_them() {
    for host in ["127.0.0.1".to_owned(), own_address().to_string(), "localhost".to_owned()] {
        let mut nodes = ["alpha", "beta"].map(|name| Node::new(BINARIES, name));
        let made = dirs::in_memory();
        let dir = made.path().join("init");
        let out = Command::new(BINARIES.cli)
            .arg("init")
            .arg(&dir)
            .args(nodes.iter().flat_map(|n| ["--node".into(), format!("{}={host}:{}", n.name, n.port)]))
            .output()
            .expect("pmemha runs");
        assert!(out.status.success(), "{}", said(&out));
        let [alpha, beta] = &mut nodes;
        install(&dir, alpha, beta);
        install(&dir, beta, alpha);
        beta.start();
        alpha.start();

        let file = alpha.files().join("notes.pool");
        let out = alpha
            .cli()
            .env("PMEMHA_PRELOAD", programs::preload())
            .args(["run", "--group", "from-alpha", "--", "/bin/sh", "-c"])
            .arg(format!("printf '{host}' | dd of={} conv=fsync status=none", file.display()))
            .output()
            .expect("pmemha runs");
        assert!(out.status.success(), "{}", said(&out));
        let row = alpha.await_streaming();
        assert_eq!((&row["node"], &row["encrypted"]), (&"beta".into(), &true.into()), "by {host}: {row:#}");

        // An exit that is heard of while the order freezes the program would call the order off.
        alpha.await_group("the program to have ended", |g| (g["state"] == "stopped").then_some(()));
        let out = alpha.cli().args(["last-gasp", "from-alpha"]).output().expect("pmemha runs");
        assert!(out.status.success(), "{}", said(&out));
        beta.await_group("the group, by the operator's order", |g| (g["role"] == "source").then_some(()));
        let event = beta.await_event("files_placed");
        assert!(event["applied_us"].is_u64() && event["placed_us"].is_u64(), "{event}");
        let placed = fs::read_to_string(beta.files().join("notes.pool")).expect("the placed file");
        assert_eq!(placed, host);
    }
}

#[test]
fn each_of_three_nodes_ships_to_the_others_and_follows_whoever_owns_a_group() {
    let made = dirs::in_memory();
    let dir = made.path().join("init");
    let mut init = Command::new(BINARIES.cli);
    let nodes = ["alpha", "beta", "gamma"].map(|name| format!("--node={name}=10.0.0.1:7475"));
    let out = init.arg("init").arg(&dir).args(nodes).output().expect("pmemha runs");
    assert!(out.status.success(), "{}", said(&out));
    let text = fs::read_to_string(dir.join("beta/pmemhad.conf")).expect("a configuration");
    let config = Config::parse(&text, Path::new("pmemhad.conf")).expect("one that can be used");
    assert_eq!(config.groups[0].destinations, ["alpha", "gamma"]);
    let from: Vec<_> = config.replicas.iter().map(|r| (r.group.as_str(), r.from.clone())).collect();
    let names = |names: [&str; 2]| names.map(String::from).to_vec();
    assert_eq!(from, [("from-alpha", names(["alpha", "gamma"])), ("from-gamma", names(["gamma", "alpha"]))]);
}

#[test]
fn keys_are_for_their_owner_alone() {
    let made = dirs::in_memory();
    let dir = made.path().join("init");
    let out = Command::new(BINARIES.cli).arg("init").arg(&dir).output().expect("pmemha runs");
    assert!(out.status.success(), "{}", said(&out));
    let mode = |path: &Path| fs::metadata(path).expect("made").permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for key in ["ca.key", "alpha/node.key", "beta/node.key"] {
        assert_eq!(mode(&dir.join(key)), 0o600, "{key}");
    }
    assert!(!dir.join("alpha/ca.key").exists(), "the authority's key stays off the nodes");
}

/// Copies what `init` made for `node` to where it says, and edits the configuration as its comments ask for.
fn install(made: &Path, node: &Node, other: &Node) {
    let etc = node.dir().join("etc");
    fs::create_dir(&etc).expect("an own directory");
    for entry in fs::read_dir(made.join(node.name)).expect("made for the node").flatten() {
        fs::copy(entry.path(), etc.join(entry.file_name())).expect("an own directory");
    }
    let mut text = fs::read_to_string(etc.join("pmemhad.conf")).expect("a configuration");
    let (own, theirs) = (node.dir().display(), other.files());
    for (what, by) in [
        ("/etc/pmemha".to_owned(), format!("{own}/etc")),
        ("# state_dir = \"/var/lib/pmemha\"".to_owned(), format!("state_dir = \"{own}/state\"")),
        ("# runtime_dir = \"/run/pmemha\"".to_owned(), format!("runtime_dir = \"{own}/run\"")),
        (format!("/var/lib/pmemha-replica/from-{}", other.name), format!("{own}/replica")),
        (
            format!("# paths = {{ \"/mnt/pmem/{0}\" = \"/mnt/pmem/{0}\" }}", other.name),
            format!("paths = {{ \"{}\" = \"{own}/files\" }}", theirs.display()),
        ),
        (format!("/mnt/pmem/{}", node.name), format!("{own}/files")),
    ] {
        assert!(text.contains(&what), "no {what} in the configuration:\n{text}");
        text = text.replace(&what, &by);
    }
    fs::write(node.config(), text).expect("an own directory");
}

/// An address of this machine that is not loopback's.
fn own_address() -> IpAddr {
    // Nothing is sent: the kernel only chooses the address that it would send from.
    let chosen = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    chosen.expect("this test needs a machine with an address besides loopback's").ip()
}
