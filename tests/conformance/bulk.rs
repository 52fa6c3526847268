//! Much data, in both directions, on several connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pmemha::fabric::{Local, RemoteAccess};

use crate::rig::{Node, Rig, content, fill, pattern};

pub fn one_write_of_64_mib_lands_whole(rig: &Rig) {
    let (left, right) = rig.pair();
    let len = 64 << 20;
    let from = left.memory(len, RemoteAccess::Local);
    let to = right.memory(len, RemoteAccess::Write);
    fill(&from, 4);
    left.write((&from, 0, len), (to.key(), 0), Some(1)).unwrap();
    assert_eq!(left.successes(1), [1]);
    assert!(content(&to) == content(&from));
}

fn send_bulk(node: &Node, to: pmemha::fabric::RemoteKey, seed: u64) {
    let from = node.memory(8 << 20, RemoteAccess::Local);
    fill(&from, seed);
    (0..16).for_each(|i| node.write((&from, 0, 8 << 20), (to, 0), (i == 15).then_some(i)).unwrap());
    assert_eq!(node.successes(1), [15]);
}

/// Far more in flight than any socket buffer holds, in both directions.
pub fn both_sides_may_send_bulk_at_once(rig: &Rig) {
    let (left, right) = rig.pair();
    let (at_left, at_right) =
        (left.memory(8 << 20, RemoteAccess::Write), right.memory(8 << 20, RemoteAccess::Write));
    std::thread::scope(|scope| {
        scope.spawn(|| send_bulk(&left, at_right.key(), 1));
        scope.spawn(|| send_bulk(&right, at_left.key(), 2));
    });
    assert!(content(&at_right) == pattern(8 << 20, 1) && content(&at_left) == pattern(8 << 20, 2));
}

pub fn both_sides_may_read_bulk_at_once(rig: &Rig) {
    let (left, right) = rig.pair();
    let len = 8 << 20;
    let (at_left, at_right) = (left.memory(len, RemoteAccess::Read), right.memory(len, RemoteAccess::Read));
    fill(&at_left, 1);
    fill(&at_right, 2);
    let read = |node: &Node, key, seed| {
        let into = node.memory(len, RemoteAccess::Local);
        (0..8).for_each(|i| node.end.read(Local { memory: &into, offset: 0, len }, key, 0, i).unwrap());
        assert!(node.successes(8).into_iter().eq(0..8));
        assert!(content(&into) == pattern(len, seed));
    };
    std::thread::scope(|scope| {
        scope.spawn(|| read(&left, at_right.key(), 2));
        scope.spawn(|| read(&right, at_left.key(), 1));
    });
}

pub fn registrations_come_and_go_while_bulk_lands(rig: &Rig) {
    let (left, right) = rig.pair();
    let to = right.memory(8 << 20, RemoteAccess::Write);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send_bulk(&left, to.key(), 1);
            done.store(true, Ordering::Release);
        });
        let mut keys = std::collections::HashSet::new();
        while !done.load(Ordering::Acquire) {
            assert!(keys.insert(right.memory(4096, RemoteAccess::Write).key().key), "a key was used twice");
            left.memory(4096, RemoteAccess::Local);
        }
    });
    assert!(content(&to) == pattern(8 << 20, 1));
}

/// Posting takes moments, however long the sending takes.
pub fn posting_bulk_does_not_wait_for_the_network(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(64 << 20, RemoteAccess::Local);
    let to = right.memory(64 << 20, RemoteAccess::Write);
    left.write((&from, 0, 64 << 20), (to.key(), 0), Some(0)).unwrap();
    left.successes(1);
    let start = Instant::now();
    (0..8).for_each(|i| left.write((&from, 0, 64 << 20), (to.key(), 0), Some(i)).unwrap());
    let posted = start.elapsed();
    left.successes(8);
    let sent = start.elapsed();
    assert!(posted < sent / 4, "posting took {posted:?} of {sent:?}");
}

pub fn two_endpoints_do_not_disturb_each_other(rig: &Rig) {
    let ((busy_left, busy_right), (left, right)) = (rig.pair(), rig.pair());
    let sink = busy_right.memory(8 << 20, RemoteAccess::Write);
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| send_bulk(&busy_left, sink.key(), 3));
        fill(&from, 9);
        for i in 0..100 {
            left.write((&from, 0, 4096), (to.key(), 0), Some(i)).unwrap();
            assert_eq!(left.successes(1), [i]);
        }
        busy.join().unwrap();
    });
    drop(busy_left);
    busy_right.closed();
    left.write((&from, 0, 4096), (to.key(), 0), Some(7)).unwrap();
    assert_eq!(left.successes(1), [7], "the end of one is not the other's");
    assert_eq!(left.end.wait(Duration::ZERO), pmemha::fabric::Wake::TimedOut);
}
