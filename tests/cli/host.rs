//! `pmemha largepages` and `pmemha memory` on a real process, and what they answer where there is none.

use std::io::Write;
use std::process::{Command, Output};

use pmemha_testkit::ranges::{RANGE, Ranges};
use serde_json::Value;

use super::{BINARIES, said};

fn pmemha(arguments: &str) -> Output {
    Command::new(BINARIES.cli).args(arguments.split(' ')).output().expect("pmemha runs")
}

fn document(arguments: &str) -> Value {
    let out = pmemha(arguments);
    assert_eq!(out.status.code(), Some(0), "{arguments}: {}", said(&out));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{arguments}: {e}: {}", said(&out)))
}

/// Says so past what the harness captures.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "\nskipped: {why}");
}

/// Dense ranges are used without end by a program; what is printed must be what the kernel has of it.
#[test]
fn largepages_ranks_a_running_process_and_maps_the_best_only_when_told_to() {
    let mut program = Ranges::start("anon", "DDDDDDDD----");
    program.tell("run 600000");
    let first = program.base() / RANGE;
    let told = document(&format!("largepages --json --periods 5 --period-ms 200 {}", program.pid()));
    assert_eq!((&told["settled"], &told["acted"]), (&true.into(), &false.into()), "{told:#}");
    assert_eq!(told["totals"]["mapped"], 0, "{told:#}");
    if told["source"] != "page-tables" {
        return skipped(&format!("largepages by page tables: {}", told["source_reason"]));
    }
    let best: Vec<u64> = told["ranking"]
        .as_array()
        .expect("a list")
        .iter()
        .take(8)
        .filter_map(|s| s["range"].as_u64())
        .collect();
    assert!(best.iter().all(|range| (first..first + 8).contains(range)), "{told:#}");
    let told = document(&format!("largepages --json --act --periods 7 --period-ms 200 {}", program.pid()));
    let grown = told["large_bytes"].as_u64().zip(told["large_bytes_before"].as_u64()).expect("bytes");
    let mapped = told["totals"]["mapped"].as_u64().expect("a number");
    println!("{mapped} mapped, large bytes {grown:?}");
    assert!(mapped >= 6 && grown.0 >= grown.1 + mapped * RANGE, "{told:#}");
}

#[test]
fn memory_says_what_a_process_uses_and_what_is_missing_and_takes_nothing() {
    let mut program = Ranges::start("anon", "DDDD--------");
    program.tell("run 600000");
    let out = pmemha(&format!("memory --json --need 1TiB --interval 300ms {}", program.pid()));
    if out.status.code() == Some(77) {
        return skipped(&format!("memory of a process: {}", String::from_utf8_lossy(&out.stderr).trim()));
    }
    let told: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&out)));
    let classes = &told["tenants"][0]["classes"];
    let (active, inactive) = (&classes["active_anonymous"], &classes["inactive_anonymous"]);
    assert!(inactive["least"].as_u64().is_some_and(|b| b >= 13 << 20), "{told:#}");
    assert!(inactive["least"].as_u64() <= inactive["most"].as_u64() && active["bytes"].is_u64(), "{told:#}");
    assert!(told["plan"]["short"].as_u64().is_some_and(|b| b > 900 << 30), "{told:#}");
    assert!(
        program.pid() > 0 && said(&pmemha(&format!("memory {}", program.pid()))).contains("pages sampled")
    );
}

/// A directory stands for a control group of version 1, of which the command only reads.
#[test]
fn memory_looks_at_a_group_of_version_one_and_refuses_to_lower_its_limit() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = [
        ("memory.usage_in_bytes", "67108864\n"),
        ("memory.limit_in_bytes", "134217728\n"),
        ("memory.stat", "total_inactive_file 33554432\n"),
    ];
    for (file, text) in files {
        std::fs::write(dir.path().join(file), text).expect("a file");
    }
    let group = dir.path().display();
    let out = pmemha(&format!("memory --need 16MiB {group}"));
    assert_eq!(out.status.code(), Some(1), "nothing can be had: {}", said(&out));
    assert!(said(&out).contains("no memory.reclaim") && said(&out).contains("32.0 MiB"), "{}", said(&out));
    let out = pmemha(&format!("memory --act --need 16MiB {group}"));
    assert_eq!(out.status.code(), Some(69), "{}", said(&out));
    assert!(
        said(&out).contains("version 2") && said(&out).contains("limit is not lowered"),
        "{}",
        said(&out)
    );
    for (file, text) in files {
        assert_eq!(std::fs::read_to_string(dir.path().join(file)).expect("it is there"), text, "{file}");
    }
}

#[test]
fn what_is_not_there_is_said_with_its_exit_code() {
    let mut child = Command::new("true").spawn().expect("it runs");
    child.wait().expect("it ends");
    for (arguments, code, words) in [
        (format!("largepages {}", child.id()), 69, "no process"),
        (format!("largepages --threshold 600 {}", child.id()), 64, "from 1 to 512"),
        ("memory /nowhere".into(), 64, "no control group"),
        ("memory --within 5s 1".into(), 64, "--need"),
        ("memory --need much 1".into(), 64, "is no size"),
    ] {
        let out = pmemha(&arguments);
        assert_eq!(out.status.code(), Some(code), "{arguments}: {}", said(&out));
        assert!(said(&out).contains(words), "{arguments}: {}", said(&out));
    }
}
