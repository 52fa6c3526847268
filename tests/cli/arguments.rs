//! Exit codes and messages of commands that cannot be carried out.

use std::fs;
use std::process::Command;

use super::{BINARIES, said};

/// Of `pmemha(1)`: the arguments do not fit together.
const USAGE: i32 = 64;
/// An archive cannot be read.
const DATA: i32 = 65;
/// No agent answers.
const UNAVAILABLE: i32 = 69;
/// An output cannot be made.
const CANT_CREATE: i32 = 73;

#[test]
fn what_cannot_be_done_ends_with_the_documented_code_and_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let many = (0..18).fold("init made".to_owned(), |all, n| format!("{all} --node n{n}=h:{n}"));
    for (arguments, code, words) in [
        ("", USAGE, "Usage"),
        ("frobnicate", USAGE, "frobnicate"),
        ("run", USAGE, "<CMD>"),
        ("run --protect x", USAGE, "<CMD>"),
        ("run -- true", USAGE, "--protect"),
        ("run --commit durable -- true", USAGE, "--protect"),
        ("run --protect x --commit soon -- true", USAGE, "durable"),
        ("init made --node alpha", USAGE, "NAME=HOST:PORT"),
        (&many, USAGE, "17 nodes"),
        ("init made --node ../alpha=10.0.0.1:7475", USAGE, "letters"),
        ("init made --node alpha=10.0.0.1:7475 --node beta=nowhere", USAGE, "host:port"),
        ("init made --node alpha=10.0.0.1:7475 --node alpha=10.0.0.2:7475", USAGE, "alpha"),
        ("init exists", CANT_CREATE, "does not exist yet"),
        ("log list absent", DATA, "absent"),
        ("log replay exists --to 0 --out copy", DATA, "exists"),
        ("log replay exists --to 0 --out made/copy", CANT_CREATE, "`made`"),
        ("status", UNAVAILABLE, "nobody.sock"),
        ("last-gasp app", UNAVAILABLE, "nobody.sock"),
    ] {
        fs::create_dir_all(dir.path().join("exists")).expect("an own directory");
        let out = Command::new(BINARIES.cli)
            .args(arguments.split_whitespace())
            .current_dir(&dir)
            .env("PMEMHA_SOCKET", dir.path().join("nobody.sock"))
            .env("PMEMHA_PRELOAD", "/nonexistent/preload.so")
            .output()
            .expect("pmemha runs");
        assert_eq!(out.status.code(), Some(code), "pmemha {arguments}: {}", said(&out));
        assert!(out.stdout.is_empty(), "pmemha {arguments}: {}", said(&out));
        let complaint = String::from_utf8_lossy(&out.stderr);
        assert!(complaint.contains(words), "pmemha {arguments}: no `{words}` in: {complaint}");
        assert!(!dir.path().join("made").exists(), "pmemha {arguments}: left something behind");
    }
}

#[test]
fn help_and_version_are_no_failures() {
    for argument in ["--help", "--version"] {
        let out = Command::new(BINARIES.cli).arg(argument).output().expect("pmemha runs");
        assert!(out.status.success() && !out.stdout.is_empty(), "{}", said(&out));
    }
}
