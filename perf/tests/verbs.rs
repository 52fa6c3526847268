//! What the benchmarks tell over RDMA, its peers beside it: with counts so small that the figures mean nothing. Needs an adapter
//! and the peers of `soft-roce/packages`.

mod rows;

use rows::{aims, peers, rows};

#[test]
fn latency_stands_beside_perftest_and_librpma() {
    let rows = rows("latency --fabric verbs --sizes 64 --count 20 --rounds 1");
    for (what, peer) in [
        ("wait(RECEIVED)", "ib_write_lat"),
        ("wait(RECEIVED)", "librpma write"),
        ("wait(RECEIVED)", "own fabric write"),
        ("wait(DURABLE)", "librpma write+flush"),
        ("wait(APPLIED)", "own fabric write+read"),
    ] {
        assert!(peers(&rows, what).iter().any(|name| name == peer), "{what}, {peer}: {rows:#?}");
    }
    assert_eq!(aims(&rows, "wait(RECEIVED)"), ["<= 1.25"]);
}

#[test]
fn bandwidth_stands_beside_ib_write_bw() {
    let rows = rows("bandwidth --fabric verbs --sizes 65536 --time-ms 100 --peer-bytes 1048576 --rounds 1");
    for what in ["fabric write", "log shipping"] {
        assert!(peers(&rows, what).iter().any(|name| name == "ib_write_bw"), "{what}: {rows:#?}");
    }
}

#[test]
fn a_last_gasp_stands_beside_ib_write_bw() {
    let rows = rows("last-gasp --fabric verbs --exposure-mib 1 --peer-bytes 1048576 --rounds 1");
    assert!(peers(&rows, "last gasp").iter().any(|name| name == "ib_write_bw"), "{rows:#?}");
    assert!(rows.iter().any(|row| row["what"] == "first byte after notice"), "{rows:#?}");
}

// Without the group of one destination beside it: five agents are more than an emulator's two processors carry.
#[test]
fn scale_ships_to_two_destinations_and_copies_regions() {
    let rows =
        rows("scale --fabric verbs --threads 1 --destinations 2 --count 1000 --region-mib 1 --rounds 1");
    assert!(rows.iter().any(|row| row["what"] == "shipping, 2 destinations"), "{rows:#?}");
    assert_eq!(peers(&rows, "append, 1 threads"), ["memcpy+clwb"]);
    assert_eq!(peers(&rows, "first copy"), ["own fabric write"]);
}
