//! Every benchmark runs, tells rows in the documented form, and draws a page: with counts so small that the figures mean
//! nothing.

mod rows;

use std::io::Write;
use std::path::Path;

use serde_json::Value;

use rows::{aims, peers, rows};

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
fn scale_counts_threads_and_destinations_and_copies_regions() {
    let rows = rows("scale --threads 1,2 --destinations 1,2 --count 1000 --region-mib 1 --rounds 1");
    assert_eq!(peers(&rows, "append, 2 threads"), ["memcpy+clwb"]);
    for what in ["append", "shipping"] {
        assert!(rows.iter().any(|row| row["what"] == format!("{what}, 1 destination")), "{what}: {rows:#?}");
        assert_eq!(peers(&rows, &format!("{what}, 2 destinations")), ["1 destination"]);
    }
    assert_eq!(peers(&rows, "first copy"), ["own fabric write"]);
}

#[test]
fn placements_stand_beside_spreading_with_their_aims() {
    let rows = rows("placement --seconds 6 --trace constant");
    assert!(peers(&rows, "power, constant 10 %").iter().any(|name| name == "spread"), "{rows:#?}");
    assert_eq!(aims(&rows, "power, constant 20 %"), ["<= 0.75"]);
    assert_eq!(aims(&rows, "last gasp, gathered then"), [">= 1.5"]);
    assert!(rows.iter().all(|row| row["label"] == "simulated"), "{rows:#?}");
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
    assert_eq!(peers(&rows, "persist"), ["bare", "bare, PMEM_NO_FLUSH=1"]);
    assert_eq!(peers(&rows, "persist, flushing"), ["bare"]);
    for (mode, aim) in [("hashmap", ">= 0.85"), ("tx", ">= 0.6")] {
        assert_eq!(aims(&rows, mode), [aim]);
        assert_eq!(aims(&rows, &format!("{mode}, flushing")), [aim]);
    }
}

#[test]
fn large_pages_stand_beside_other_orders() {
    if let Err(why) = pmemha::node::kernel::tables::PageTables::open() {
        let _ = writeln!(std::io::stderr(), "\nskipped: large pages: page tables cannot be read here: {why}");
        return;
    }
    let rows = rows("largepages --kinds anon --ranges 20 --shares 20 --time-ms 8 --rounds 1");
    let all = ["address order", "random", "oracle", "all small"];
    assert_eq!(peers(&rows, "reads, anon"), [all, all].concat());
    assert_eq!(aims(&rows, "gain of what the policy maps, anon"), [">= 0.9"]);
    assert!(
        rows.iter().any(|row| row["what"] == "sampling, anon" && row["ours"].as_f64() > Some(0.0)),
        "{rows:#?}"
    );
}
