//! The header that C programs compile against is the one that the library was built from, and the library shows nothing but
//! what the header declares.
//!
//! `PMEMHA_UPDATE_HEADER=1 cargo test --test header` rewrites `include/pmemha.h` after a change of `src/capi`.

use std::collections::BTreeSet;
use std::process::Command;

use pmemha_testkit::dirs::repo;
use pmemha_testkit::install::library;

#[test]
fn the_checked_in_header_is_the_generated_one() {
    let path = repo().join("include/pmemha.h");
    // Of this very build: the build script has just made it for the library that this test links.
    let generated = pmemha::capi::HEADER;
    if std::env::var_os("PMEMHA_UPDATE_HEADER").is_some() {
        std::fs::write(&path, generated).expect("include/ is writable");
    }
    let checked_in = std::fs::read_to_string(&path).expect("include/pmemha.h is checked in");
    let differs = checked_in.lines().zip(generated.lines()).find(|(a, b)| a != b);
    assert!(
        checked_in == generated,
        "include/pmemha.h is stale, first at {differs:?}: run PMEMHA_UPDATE_HEADER=1 cargo test --test header"
    );
}

#[test]
fn the_library_exports_what_the_header_declares_and_nothing_else() {
    let declared: BTreeSet<String> = pmemha::capi::HEADER
        .lines()
        .filter(|line| !line.trim_start().starts_with(['*', '/', '#']))
        .filter_map(|line| line.split_once('(').map(|(before, _)| before))
        .filter_map(|before| before.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("pmemha_"))
        .map(str::to_owned)
        .collect();
    assert!(declared.len() > 10, "{declared:?}");
    let listing = output("nm", &["-D", "--defined-only"]);
    let exported: BTreeSet<String> =
        listing.lines().filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned).collect();
    assert_eq!(exported, declared);
}

#[test]
fn the_library_needs_nothing_that_is_not_on_every_machine() {
    let dynamic = output("readelf", &["-d", "-W"]);
    let of = |tag: &str| -> BTreeSet<String> {
        let lines = dynamic.lines().filter(|line| line.contains(tag));
        lines.filter_map(|l| Some(l.split_once('[')?.1.split_once(']')?.0.to_owned())).collect()
    };
    assert_eq!(of("(SONAME)"), BTreeSet::from(["libpmemha.so.0".to_owned()]));
    let base = ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux-x86-64.so.2"];
    let strange: Vec<String> = of("(NEEDED)").into_iter().filter(|n| !base.contains(&n.as_str())).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

fn output(tool: &str, arguments: &[&str]) -> String {
    let out = Command::new(tool).args(arguments).arg(library()).output().expect("binutils are installed");
    assert!(out.status.success(), "{tool}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("symbols are ASCII")
}
