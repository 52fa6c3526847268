//! What `make demo` shows is what happens: nothing acknowledged is lost, and the exit code says so.

use std::process::{Command, Stdio};

use pmemha_testkit::programs;
use serde_json::Value;

#[test]
fn the_demo_loses_nothing_that_was_acknowledged() {
    let out = Command::new(env!("CARGO_BIN_EXE_pmemha"))
        .arg("demo")
        .env("PMEMHA_PRELOAD", programs::preload())
        .stdin(Stdio::null())
        .output()
        .expect("pmemha runs");
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{:?}\n{said}\n{complained}", out.status);
    let last: Value = serde_json::from_str(said.lines().last().expect("a last line")).expect("it is JSON");
    let number = |name: &str| last[name].as_f64().unwrap_or_else(|| panic!("no {name} in {last}"));
    assert_eq!(number("lost"), 0.0, "{said}");
    assert!(number("acknowledged") > 0.0, "{said}");
    assert!(number("recovered") >= number("acknowledged"), "{said}");
    assert!(number("saved_ms") <= number("app_running_ms"), "{said}");
}
