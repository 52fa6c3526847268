//! `pmemha doctor`: its exit code, and its JSON, on machines that are written down and on this one.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use pmemha_testkit::node::{Pair, PairOptions};
use serde_json::Value;

use super::{BINARIES, said};

fn doctor(arguments: &[&str]) -> Output {
    Command::new(BINARIES.cli).arg("doctor").args(arguments).output().expect("pmemha runs")
}

fn port(root: &Path, state: &str) {
    let port = root.join("sys/class/infiniband/mlx5_0/ports/1");
    fs::create_dir_all(&port).expect("an own directory");
    fs::write(port.join("state"), state).expect("an own directory");
}

#[test]
fn trouble_is_the_exit_code_one_and_marked() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().to_str().expect("UTF-8");
    port(dir.path(), "1: DOWN\n");
    let out = doctor(&["--root", root]);
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(said(&out).contains("! trouble  rdma_port: mlx5_0 port 1: 1: DOWN"), "{}", said(&out));
    port(dir.path(), "4: ACTIVE\n");
    let out = doctor(&["--root", root]);
    assert_eq!(out.status.code(), Some(0), "{}", said(&out));
}

#[test]
fn this_machine_is_told_as_one_document() {
    let out = doctor(&["--json"]);
    let document: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&out)));
    let findings = document["findings"].as_array().expect("findings");
    for check in ["rdma", "memlock", "processor", "dirty_pages", "freezer"] {
        let mut of = findings.iter().filter(|f| f["check"].as_str().is_some_and(|c| c.starts_with(check)));
        assert!(
            of.next().is_some_and(|f| f["found"].is_string() && f["means"].is_string()),
            "{check}: {document:#}"
        );
    }
    let trouble = findings.iter().any(|f| f["verdict"] == "trouble");
    assert_eq!(document["verdict"] == "trouble", trouble);
    assert_eq!(out.status.code(), Some(i32::from(trouble)));
}

#[test]
fn the_agent_that_runs_is_told_with_its_limit_and_the_keeper_of_its_logs_is_not() {
    let pair = Pair::start(BINARIES, &PairOptions::default());
    let out = doctor(&["--json"]);
    let document: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&out)));
    let findings = document["findings"].as_array().expect("findings");
    let agents: Vec<&str> = findings
        .iter()
        .filter(|f| f["check"] == "memlock_agent")
        .filter_map(|f| f["found"].as_str())
        .collect();
    for node in [&pair.alpha, &pair.beta] {
        let own = format!("(process {})", node.pid());
        assert_eq!(
            agents.iter().filter(|found| found.contains(&own)).count(),
            1,
            "{}: {agents:?}",
            node.name
        );
    }
    // Other tests' agents may run beside; what each is, its command line says.
    for found in agents {
        let pid =
            found.split_once("(process ").and_then(|(_, rest)| rest.split_once(')')).expect("a process").0;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!line.contains("\0hold\0"), "{found}: {line}");
    }
}
