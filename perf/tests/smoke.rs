//! Every benchmark runs, tells rows in the documented form, and draws a page: with counts so small that the figures mean
//! nothing.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs a benchmark; its facts and rows. Peers that are absent are left out.
fn rows(arguments: &str) -> Vec<Value> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let page = dir.path().join("page.html");
    let out = Command::new(env!("CARGO_BIN_EXE_pmemha-perf"))
        .args(arguments.split_whitespace())
        .args(["--json", "--html"])
        .arg(&page)
        .output()
        .expect("pmemha-perf runs");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{arguments}: {said}{}", String::from_utf8_lossy(&out.stderr));
    let mut lines = said.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    let facts = lines.next().expect("facts come first");
    assert!(facts["facts"]["kernel"].is_string(), "{arguments}: {facts}");
    let rows: Vec<Value> = lines.filter(|line| line["absent"].is_null()).collect();
    assert!(!rows.is_empty(), "{arguments}: no row");
    rows.iter().for_each(check);
    check_page(&page, rows.len());
    rows
}

fn check(row: &Value) {
    for key in ["what", "size", "unit", "ours", "peer", "peer_name", "ratio", "spread", "aim", "met", "label"]
    {
        assert!(row.get(key).is_some(), "no {key}: {row}");
    }
    assert!(
        row["what"].is_string() && row["unit"].is_string() && row["ours"].as_f64().is_some_and(|f| f >= 0.0),
        "{row}"
    );
    let spread = &row["spread"]["ours"];
    assert!(
        spread[0].as_f64() <= row["ours"].as_f64() && row["ours"].as_f64() <= spread[1].as_f64(),
        "{row}"
    );
    assert_eq!(row["peer"].is_f64(), row["ratio"].is_f64(), "{row}");
    let alone = row["aim"].as_str().is_some_and(|aim| aim.starts_with("ours "));
    let judged = row["aim"].is_string() && (alone || row["ratio"].is_f64());
    assert_eq!(row["met"].is_boolean(), judged, "{row}");
}

/// The aims of the rows of `what`, each once.
fn aims(rows: &[Value], what: &str) -> Vec<String> {
    let of = rows.iter().filter(|row| row["what"] == what);
    let mut aims: Vec<String> = of.filter_map(|row| Some(row["aim"].as_str()?.to_owned())).collect();
    aims.dedup();
    aims
}

fn check_page(page: &Path, rows: usize) {
    let text = std::fs::read_to_string(page).expect("the page was written");
    assert_eq!(text.matches("<tr class").count(), rows, "a line of the table for each row");
    assert!(!text.contains("NaN") && !text.contains("src="), "complete, and needs nothing from elsewhere");
}

fn peers(rows: &[Value], what: &str) -> Vec<String> {
    let of = rows.iter().filter(|row| row["what"] == what);
    of.filter_map(|row| Some(row["peer_name"].as_str()?.to_owned())).collect()
}

#[test]
fn append_stands_beside_memcpy() {
    let rows = rows("append --bytes 64,256 --count 1000 --rounds 2 --ring-mib 4");
    assert_eq!(peers(&rows, "append"), ["memcpy", "memcpy+clwb", "memcpy", "memcpy+clwb"]);
    assert!(rows[0]["percentiles"]["p99"].is_f64(), "{}", rows[0]);
    assert_eq!(aims(&rows, "append"), ["ours < 0.1"]);
    assert!(rows.iter().all(|row| row["size"] == 64 || row["aim"].is_null()), "{rows:#?}");
}

#[test]
fn apply_stands_beside_memcpy() {
    let rows = rows("apply --bytes 4096 --region-mib 8 --rounds 1");
    assert_eq!(peers(&rows, "apply"), ["memcpy"]);
    assert_eq!(aims(&rows, "apply"), [">= 0.5"]);
}

#[test]
fn latency_has_every_level_beside_what_the_network_takes() {
    let rows = rows("latency --sizes 64,4096 --count 20 --rounds 2");
    for (what, peer) in [
        ("wait(RECEIVED)", "tcp round trip"),
        ("wait(DURABLE)", "own fabric write+read"),
        ("wait(APPLIED)", "own fabric write+read"),
    ] {
        assert!(peers(&rows, what).iter().any(|name| name == peer), "{what}: {rows:#?}");
    }
}

#[test]
fn bandwidth_and_shipping_stand_beside_the_network_and_memory() {
    let rows = rows("bandwidth --sizes 65536,1048576 --time-ms 100 --rounds 1");
    assert!(peers(&rows, "fabric write").iter().any(|name| name == "memcpy+clwb"), "{rows:#?}");
    assert!(rows.iter().any(|row| row["what"] == "log shipping"), "{rows:#?}");
}

#[test]
fn a_last_gasp_drains_what_was_exposed() {
    let rows = rows("last-gasp --exposure-mib 1 --rounds 1");
    assert!(rows.iter().any(|row| row["what"] == "last gasp"), "{rows:#?}");
    assert!(rows.iter().any(|row| row["what"] == "first byte after notice"), "{rows:#?}");
}

#[test]
fn a_failover_is_the_sum_of_its_steps() {
    let rows = rows("failover --region-mib 1 --rounds 1");
    let figure = |row: &Value| row["ours"].as_f64().expect("a figure");
    let (whole, steps): (Vec<&Value>, Vec<&Value>) = rows.iter().partition(|row| row["what"] == "failover");
    let sum: f64 = steps.into_iter().map(figure).sum();
    assert!((figure(whole[0]) - sum).abs() < 0.01, "{rows:#?}");
}

#[test]
fn scale_counts_threads_and_copies_regions() {
    let rows = rows("scale --threads 1,2 --count 1000 --region-mib 1 --rounds 1");
    assert_eq!(peers(&rows, "append, 2 threads"), ["memcpy+clwb"]);
    assert_eq!(peers(&rows, "first copy"), ["own fabric write"]);
}

#[test]
fn tcp_is_told_plain_and_encrypted() {
    let rows = rows("tcp --time-ms 100 --count 100 --rounds 1");
    for what in ["write, plain", "write, encrypted", "write to completion"] {
        assert!(rows.iter().any(|row| row["what"] == what), "{what}: {rows:#?}");
    }
    assert_eq!(aims(&rows, "write, plain"), [">= 0.9"]);
}

#[test]
fn overhead_compares_a_program_bare_and_protected() {
    let pmemha = Path::new(env!("CARGO_BIN_EXE_pmemha-perf")).with_file_name("pmemha");
    let rows = rows(&format!(
        "overhead --modes persist,hashmap,tx --count 2000 --warm 100 --rounds 1 --pmemha {}",
        pmemha.display()
    ));
    assert_eq!(peers(&rows, "persist"), ["bare"]);
    assert_eq!((aims(&rows, "hashmap"), aims(&rows, "tx")), (vec![">= 0.85".into()], vec![">= 0.6".into()]));
}
