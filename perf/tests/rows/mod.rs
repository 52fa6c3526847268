//! Runs `pmemha-perf` and checks that its rows have the documented form.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs a benchmark; its facts and rows. Peers that are absent are left out.
pub fn rows(arguments: &str) -> Vec<Value> {
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
    let has_ratio = row["peer"].as_f64().is_some_and(|peer| peer != 0.0);
    assert_eq!(has_ratio, row["ratio"].is_f64(), "{row}");
    let alone = row["aim"].as_str().is_some_and(|aim| aim.starts_with("ours "));
    let judged = row["aim"].is_string() && (alone || row["ratio"].is_f64());
    assert_eq!(row["met"].is_boolean(), judged, "{row}");
}

/// The aims of the rows of `what`, each once.
pub fn aims(rows: &[Value], what: &str) -> Vec<String> {
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

pub fn peers(rows: &[Value], what: &str) -> Vec<String> {
    let of = rows.iter().filter(|row| row["what"] == what);
    of.filter_map(|row| Some(row["peer_name"].as_str()?.to_owned())).collect()
}
