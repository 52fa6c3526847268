//! `pmemha doctor`: its exit code, and its JSON, on machines that are written down and on this one.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

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
