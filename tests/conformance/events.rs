//! Immediates, sleeping and waking.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pmemha::fabric::{RemoteAccess, Wake};
use pmemha_testkit::wait::eventually;

use crate::rig::{Node, PATIENCE, Rig, content, fill, pattern, write};

fn write_immediate(
    node: &Node,
    from: (&crate::rig::Memory, usize, usize),
    key: pmemha::fabric::RemoteKey,
    value: u32,
) {
    let mut posted = write(from, (key, 0), None);
    posted.immediate = Some(value);
    node.end.write(&[posted]).unwrap();
}

pub fn an_immediate_comes_after_its_bytes(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(300_000, RemoteAccess::Local);
    let to = right.memory(300_000, RemoteAccess::Write);
    for round in 0..30 {
        fill(&from, round);
        write_immediate(&left, (&from, 0, 300_000), to.key(), round as u32);
        let mut seen = None;
        eventually("the immediate came", PATIENCE, || {
            seen = right.end.take_immediate();
            seen.is_some()
        });
        assert_eq!(seen, Some(round as u32));
        assert!(content(&to) == pattern(300_000, round), "round {round} announced before it was in place");
    }
}

pub fn immediates_keep_their_order(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    (0..100).for_each(|i| write_immediate(&left, (&from, 0, (i % 3) as usize * 8), to.key(), i));
    let mut seen = Vec::new();
    eventually("all immediates came", PATIENCE, || {
        seen.extend(right.end.take_immediate());
        seen.len() == 100
    });
    assert!(seen.into_iter().eq(0..100));
    assert_eq!(right.end.take_immediate(), None);
}

pub fn an_immediate_wakes_a_sleeper(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| right.end.wait(PATIENCE));
        write_immediate(&left, (&from, 0, 0), to.key(), 1);
        assert_eq!(sleeper.join().unwrap(), Wake::Ready);
    });
    assert_eq!(right.end.wait(PATIENCE), Wake::Ready, "it can still be taken");
    assert_eq!(right.end.take_immediate(), Some(1));
    assert_eq!(right.end.wait(Duration::ZERO), Wake::TimedOut);
}

pub fn a_completion_wakes_a_sleeper(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| left.end.wait(PATIENCE));
        left.write((&from, 0, 8), (to.key(), 0), Some(1)).unwrap();
        assert_eq!(sleeper.join().unwrap(), Wake::Ready);
    });
    assert_eq!(left.successes(1), [1]);
}

pub fn an_interrupt_wakes_one_wait(rig: &Rig) {
    let (left, _right) = rig.pair();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| left.end.wait(PATIENCE));
        left.end.interrupt();
        assert_eq!(sleeper.join().unwrap(), Wake::Ready);
    });
    assert_eq!(left.end.wait(Duration::ZERO), Wake::TimedOut, "it is used up");
    left.end.interrupt();
    assert_eq!(left.end.wait(PATIENCE), Wake::Ready, "it waits for the next one");
}

pub fn a_wait_without_events_times_out(rig: &Rig) {
    let (left, _right) = rig.pair();
    let start = Instant::now();
    assert_eq!(left.end.wait(Duration::from_millis(30)), Wake::TimedOut);
    assert!(start.elapsed() >= Duration::from_millis(30));
}

fn counted(node: &Node) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    node.end.on_event(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    count
}

pub fn callbacks_tell_of_completions_immediates_and_the_end(rig: &Rig) {
    let (left, right) = rig.pair();
    let (at_left, at_right) = (counted(&left), counted(&right));
    // Setting one may call it for what was before: wait until that is over.
    eventually("the first calls", PATIENCE, || {
        at_left.load(Ordering::Relaxed) == 1 && at_right.load(Ordering::Relaxed) == 1
    });
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    left.write((&from, 0, 8), (to.key(), 0), Some(1)).unwrap();
    eventually("told of a completion", PATIENCE, || at_left.load(Ordering::Relaxed) == 2);
    assert_eq!(left.successes(1), [1]);
    assert_eq!(at_right.load(Ordering::Relaxed), 1, "bytes land without a word");
    write_immediate(&left, (&from, 0, 8), to.key(), 1);
    eventually("told of an immediate", PATIENCE, || at_right.load(Ordering::Relaxed) == 2);
    drop(left);
    eventually("told of the end", PATIENCE, || at_right.load(Ordering::Relaxed) == 3);
    right.closed();
}

pub fn a_callback_set_late_hears_of_what_was_before(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    left.write((&from, 0, 8), (to.key(), 0), Some(1)).unwrap();
    assert_eq!(left.end.wait(PATIENCE), Wake::Ready);
    let count = counted(&left);
    eventually("told late", PATIENCE, || count.load(Ordering::Relaxed) > 0);
}
