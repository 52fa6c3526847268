//! Reads, and their place among writes.

use pmemha::fabric::{Local, RemoteAccess};

use crate::rig::{Rig, content, fill, pattern};

pub fn a_read_sees_all_writes_before_it(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(200_000, RemoteAccess::Local);
    let back = left.memory(200_000, RemoteAccess::Local);
    let to = right.memory(200_000, RemoteAccess::Write);
    for round in 0..20 {
        fill(&from, round);
        left.write((&from, 0, 200_000), (to.key(), 0), None).unwrap();
        let into = Local { memory: &back, offset: 0, len: 200_000 };
        left.end.read(into, to.key(), 0, round).unwrap();
        assert_eq!(left.successes(1), [round]);
        assert!(content(&back) == pattern(200_000, round), "round {round}");
    }
}

pub fn reads_and_writes_complete_in_posting_order(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(1 << 20, RemoteAccess::Local);
    let to = right.memory(1 << 20, RemoteAccess::Write);
    for i in 0..200u64 {
        if i % 3 == 0 {
            let len = if i % 2 == 0 { 1 << 20 } else { 8 };
            left.end.read(Local { memory: &from, offset: 0, len }, to.key(), 0, i).unwrap();
        } else {
            left.write((&from, 0, 64), (to.key(), 0), Some(i)).unwrap();
        }
    }
    assert!(left.successes(200).into_iter().eq(0..200));
}

pub fn a_long_read_arrives_whole(rig: &Rig) {
    let (left, right) = rig.pair();
    let len = (8 << 20) + 4096;
    let into = left.memory(len, RemoteAccess::Local);
    let source = right.memory(len, RemoteAccess::Read);
    fill(&source, 8);
    let part = Local { memory: &into, offset: 4096, len: 8 << 20 };
    left.end.read(part, source.key(), 77, 1).unwrap();
    left.successes(1);
    let (got, sent) = (content(&into), content(&source));
    assert!(got[4096..] == sent[77..77 + (8 << 20)]);
    assert!(got[..4096].iter().all(|b| *b == 0), "and nowhere else");
}
