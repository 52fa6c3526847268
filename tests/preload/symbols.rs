//! What the library exports; what it needs, `tests/verbs_layout` says.

use std::collections::BTreeSet;
use std::process::Command;

use pmemha_testkit::programs::preload;

const EXPORTED: &str = include_str!("exported.txt");

#[test]
fn exactly_the_listed_symbols_are_exported_and_none_has_a_version() {
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(preload()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let found: BTreeSet<&str> = text.lines().filter_map(|l| l.split(' ').next_back()).collect();
    let versioned: Vec<_> = found.iter().filter(|s| s.contains('@')).collect();
    assert!(versioned.is_empty(), "a versioned symbol is silently not used: {versioned:?}");
    let listed: BTreeSet<&str> = EXPORTED.split_whitespace().collect();
    let extra: Vec<_> = found.difference(&listed).collect();
    let missing: Vec<_> = listed.difference(&found).collect();
    assert!(extra.is_empty() && missing.is_empty(), "extra {extra:?}, missing {missing:?}");
}
