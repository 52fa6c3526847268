//! `pmemhad check`: what an operator is told before the agent is started.

use std::fs;
use std::process::{Command, Output};

use super::{BINARIES, said};

/// Of `pmemhad(8)`: the arguments do not fit together.
const USAGE: i32 = 64;
/// The configuration cannot be used.
const CONFIG: i32 = 78;

fn agent(arguments: &[&str]) -> Output {
    Command::new(BINARIES.agent).args(arguments).output().expect("pmemhad runs")
}

#[test]
fn everything_that_is_wrong_is_said_at_once_also_of_the_machine() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (file, at) = (dir.path().join("pmemhad.conf"), dir.path().display());
    let text = format!(
        "[node]\nname = \"alpha\"\nstate_dir = \"{at}/state\"\nruntime_dir = \"{at}/run\"\nlissten = \"127.0.0.1:1\"\n\
         [grup]\n\
         [tls]\nca = \"{at}/ca.pem\"\ncert = \"{at}/node.pem\"\nkey = \"{at}/node.key\"\n\
         [[group]]\nname = \"db\"\non_full = \"blokc\"\nusers = [\"no-such-user\"]\ncommand = [\"{at}/no-such-program\"]\n"
    );
    fs::write(&file, text).expect("an own directory");
    let file = file.to_str().expect("a path in ASCII");
    let out = agent(&["check", file]);
    assert_eq!(out.status.code(), Some(CONFIG), "{}", said(&out));
    let complaint = String::from_utf8_lossy(&out.stderr);
    for (line, word) in [
        (5, "did you mean `listen`?"),
        (6, "did you mean `group`?"),
        (8, "ca.pem"),
        (9, "node.pem"),
        (10, "node.key"),
        (13, "did you mean `block`?"),
        (14, "no-such-user"),
        (15, "no-such-program"),
    ] {
        let told = |l: &&str| l.contains(&format!("pmemhad.conf:{line}: ")) && l.contains(word);
        assert_eq!(complaint.lines().filter(told).count(), 1, "{word} in line {line}: {complaint}");
    }
    let out = agent(&["--config", file]);
    assert_eq!(out.status.code(), Some(CONFIG), "{}", said(&out));
}

#[test]
fn wrong_arguments_end_with_the_documented_code() {
    for arguments in [&["frobnicate"][..], &["--frobnicate"], &["hold"]] {
        let out = agent(arguments);
        assert_eq!(out.status.code(), Some(USAGE), "{arguments:?}: {}", said(&out));
    }
    for argument in ["--help", "--version"] {
        let out = agent(&[argument]);
        assert!(out.status.success() && !out.stdout.is_empty(), "{}", said(&out));
    }
}

#[test]
fn one_is_not_spoken_of_as_many() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("pmemhad.conf");
    fs::write(&file, "[node]\nname = \"alpha\"\n[[group]]\nname = \"db\"\n").expect("an own directory");
    let out = agent(&["check", file.to_str().expect("a path in ASCII")]);
    assert!(out.status.success(), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stdout).contains("0 peers, 1 group, 0 replicas"), "{}", said(&out));
}
