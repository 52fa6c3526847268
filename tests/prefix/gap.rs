//! A gap: the agent does not run for a while, the ring fills, and the application runs ahead of its log.
//!
//! What the program does in a gap is in no prefix until the sync that closes the gap is complete, and no drain in it returns an
//! LSN that a prefix before reaches. From the sync's end on, every prefix holds all of it.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use pmemha::log::format::{Kind, cell};
use pmemha_testkit::node::Node;
use pmemha_testkit::wait;

use crate::programs::ENDLESS;
use crate::recording::{Conditions, Recording, is_ahead, records, syncs, word};
use crate::report;
use crate::walk::{Points, walk};

/// LSNs before the gap, and as many after it.
const POINTS: usize = 15;

/// Bytes of records before the gap and after it: some hundred operations.
const ENOUGH: u64 = 1 << 20;

/// Waits for room no longer than the agent is stopped, and longer than a busy machine keeps it from running.
const SMALL_RING: Conditions<'static> = Conditions {
    group: "log_size = \"4MiB\"\non_full = \"block\"\nblock_limit = \"2s\"",
    gaps: 1,
    meanwhile: &stop_until_ahead,
};

#[test]
fn what_was_done_in_a_gap_is_in_every_prefix_after_the_sync_that_closes_it() {
    let recording = Recording::under(&SMALL_RING, &ENDLESS, 1);
    let entries = recording.entries();
    let last = |kind| entries.iter().rfind(|e| e.kind == kind).expect("a sync closed the gap");
    let (begin, end) = (last(Kind::SyncBegin).lsn, last(Kind::SyncEnd).lsn);
    let in_gap = recording.acknowledged().count_at(begin);
    assert!(in_gap > 0, "something was done in the gap");
    // At the gap's beginning the clock stood still, so only below it does it tell one operation from the next.
    let before = Points::of_those(entries, POINTS, |entry| entry.next < begin);
    let after = Points::of_those(entries, POINTS, |entry| entry.lsn >= end);
    for points in [before, after] {
        let verdict = walk(&ENDLESS, 1, recording.archive(), &recording, recording.acknowledged(), &points);
        report(&ENDLESS, 1, &recording, &verdict);
        assert!(verdict.wrong.is_empty(), "gap from {begin} to {end}: {:#?}", verdict.wrong);
    }
}

/// Stops the agent in the middle of the program's work until the program has gone ahead; ends the program when the log has
/// come to hold more of its work again.
fn stop_until_ahead(node: &Node, log: &Path, program: &mut Child) -> bool {
    let published = || word(log, cell::PUBLISHED);
    let another = |from: u64| {
        wait::until("more records", SOON, || (!is_ahead(log) && published() > from + ENOUGH).then_some(()));
    };
    another(published());
    node.stand_still();
    wait::until("the program to go ahead", SOON, || is_ahead(log).then_some(()));
    node.go_on();
    wait::until("the gap to be made good in the archive", SOON, || {
        (syncs(&records(node)?) > 1).then_some(())
    });
    another(published());
    program.kill().expect("our own child");
    true
}

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(60);
