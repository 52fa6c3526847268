//! A cable that is cut: silence, which only unanswered packets tell of.

use std::fs;

use pmemha::fabric::{FabricError, RemoteAccess};

use crate::cable::{Cable, ENDS};
use crate::rig::{content, fill, pattern};

const BYTES: usize = 64 << 10;

/// What the first adapter has counted.
fn counted(what: &str) -> u64 {
    let file = format!("/sys/class/infiniband/{}/ports/1/hw_counters/{what}", ENDS[0].1);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file}: {e}")).trim().parse().unwrap()
}

#[test]
fn a_cut_cable_ends_a_connection_after_a_bounded_number_of_repetitions() {
    let Some(cable) = Cable::lay() else { return };
    let rig = cable.rig();
    let (left, right) = rig.pair();
    let from = left.memory(BYTES, RemoteAccess::Local);
    let to = right.memory(BYTES, RemoteAccess::Write);
    left.write((&from, 0, BYTES), (to.key(), 0), Some(1)).unwrap();
    assert_eq!(left.successes(1), [1]);

    let given_up = counted("retry_exceeded_err");
    cable.cut();
    // The control connection goes another way, so only the adapter can tell.
    left.write((&from, 0, 8), (to.key(), 0), Some(2)).unwrap();
    let lost = left.failure();
    assert!(
        matches!(&lost, FabricError::Disconnected { reason, .. } if reason.contains("does not answer")),
        "{lost}"
    );
    assert_eq!(counted("retry_exceeded_err") - given_up, 1);
    left.closed();
    right.closed();

    cable.heal();
    let (left, right) = rig.pair();
    let from = left.memory(BYTES, RemoteAccess::Local);
    let to = right.memory(BYTES, RemoteAccess::Write);
    fill(&from, 7);
    left.write((&from, 0, BYTES), (to.key(), 0), Some(1)).unwrap();
    assert_eq!(left.successes(1), [1]);
    assert!(content(&to) == pattern(BYTES, 7));
}

#[test]
fn a_cable_that_is_mended_at_once_costs_a_connection_nothing() {
    let Some(cable) = Cable::lay() else { return };
    let (left, right) = cable.rig().pair();
    let from = left.memory(BYTES, RemoteAccess::Local);
    let to = right.memory(BYTES, RemoteAccess::Write);
    fill(&from, 9);
    cable.cut();
    left.write((&from, 0, BYTES), (to.key(), 0), Some(1)).unwrap();
    cable.heal();
    assert_eq!(left.successes(1), [1]);
    assert!(content(&to) == pattern(BYTES, 9));
}
