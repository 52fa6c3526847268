//! Order, placement and completion of writes.

use std::sync::atomic::Ordering;

use pmemha::fabric::{FabricError, RemoteAccess};
use pmemha_testkit::wait::eventually;

use crate::rig::{PATIENCE, Rig, content, fill, pattern, write};

/// Each write carries a counter to two places; the peer must never see the second ahead of the first.
pub fn writes_land_in_the_order_of_posting(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(1 << 20, RemoteAccess::Local);
    let to = right.memory(1 << 20, RemoteAccess::Write);
    let rounds = 2_000u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=rounds {
                let at = (round % 4096 * 8) as usize;
                from.memory().u64(at).store(round, Ordering::Relaxed);
                // Small and large in turns: they travel differently.
                let len = if round % 50 == 0 { 100_000 } else { 8 };
                let pair = [
                    write((&from, at, len), (to.key(), 4096), None),
                    write((&from, at, 8), (to.key(), 0), Some(round)),
                ];
                while let Err(refused) = left.end.write(&pair) {
                    assert!(matches!(refused, FabricError::Busy { .. }), "{refused}");
                    left.end.wait(PATIENCE);
                    left.end.poll(&mut Vec::new());
                }
            }
        });
        let mut seen = 0;
        eventually("the last round landed", PATIENCE, || {
            let second = to.memory().u64(0).load(Ordering::Acquire);
            let first = to.memory().u64(4096).load(Ordering::Acquire);
            assert!(first >= second, "round {second} landed before its predecessor, which holds {first}");
            assert!(second >= seen, "went back from {seen} to {second}");
            seen = second;
            second == rounds
        });
    });
}

pub fn a_completion_implies_placement_of_everything_before(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(300_000, RemoteAccess::Local);
    let to = right.memory(300_000, RemoteAccess::Write);
    for round in 0..50 {
        fill(&from, round);
        left.write((&from, 0, 100), (to.key(), 0), None).unwrap();
        left.write((&from, 100, 290_000), (to.key(), 100), None).unwrap();
        left.write((&from, 290_100, 9_900), (to.key(), 290_100), Some(round)).unwrap();
        assert_eq!(left.successes(1), [round]);
        assert!(content(&to) == pattern(300_000, round), "round {round} completed before it was in place");
    }
}

pub fn gathered_batches_complete_by_their_last(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(64 * 100, RemoteAccess::Local);
    let to = right.memory(64 * 100, RemoteAccess::Write);
    let under = left.memory(64 * 100, RemoteAccess::Local);
    fill(&from, 1);
    fill(&under, 2);
    // What the first one writes lies under what the others write: order shows in the end.
    let mut batch = vec![write((&under, 0, 6400), (to.key(), 0), None)];
    batch.extend(
        (0..100).map(|i| write((&from, i * 64, 64), (to.key(), i as u64 * 64), (i == 99).then_some(7))),
    );
    left.end.write(&batch).unwrap();
    assert_eq!(left.successes(1), [7]);
    assert!(content(&to) == pattern(6400, 1));
}

pub fn a_source_that_runs_past_a_rings_end_is_sent_whole(rig: &Rig) {
    let (left, right) = rig.pair();
    let ring = left.ring(1 << 16, RemoteAccess::Local);
    fill(&ring, 5);
    let to = right.memory(1 << 16, RemoteAccess::Write);
    let start = (1 << 16) - 1000;
    left.write((&ring, start, 50_000), (to.key(), 0), Some(1)).unwrap();
    left.successes(1);
    let expected: Vec<u8> = pattern(1 << 16, 5).into_iter().cycle().skip(start).take(50_000).collect();
    assert!(content(&to)[..50_000] == expected);
}

pub fn a_ring_is_seen_once_by_the_peer(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let ring = right.ring(1 << 16, RemoteAccess::Write);
    assert_eq!(ring.key().len, 1 << 16);
    let end = 1 << 16;
    left.write((&from, 0, 100), (ring.key(), end - 100), Some(1)).unwrap();
    left.successes(1);
    let beyond = left.write((&from, 0, 100), (ring.key(), end - 99), Some(2));
    assert!(matches!(beyond, Err(FabricError::Access(_))), "{beyond:?}");
}

pub fn unsignalled_writes_are_covered_by_a_later_signal(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    fill(&from, 3);
    // Many times the limit in all: what is covered frees its place.
    for round in 0..20 {
        for i in 0..left.end.limit() - 1 {
            let at = i * 8 % 4000;
            left.write((&from, at, 8), (to.key(), at as u64), None).unwrap();
        }
        left.write((&from, 0, 4096), (to.key(), 0), Some(round)).unwrap();
        assert_eq!(left.successes(1), [round]);
    }
    assert!(content(&to) == pattern(4096, 3));
}

pub fn a_write_of_nothing_still_completes(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    left.write((&from, 0, 0), (to.key(), 0), Some(9)).unwrap();
    assert_eq!(left.successes(1), [9]);
}

pub fn many_small_writes_all_land(rig: &Rig) {
    let (left, right) = rig.pair();
    let count = 100_000;
    let from = left.memory(count * 8, RemoteAccess::Local);
    let to = right.memory(count * 8, RemoteAccess::Write);
    fill(&from, 11);
    let mut seen = Vec::new();
    for i in 0..count {
        seen.extend(left.write_patiently((&from, i * 8, 8), (to.key(), i as u64 * 8), i as u64));
    }
    let rest = left.completions(count - seen.len());
    let ids: Vec<_> = seen.into_iter().chain(rest).map(|c| c.result.map(|()| c.id).unwrap()).collect();
    assert!(ids.into_iter().eq(0..count as u64), "completions come once each, in order");
    assert!(content(&to) == pattern(count * 8, 11));
}

pub fn more_than_the_limit_is_refused_and_nothing_of_it_posted(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    fill(&from, 1);
    let batch: Vec<_> =
        (0..=left.end.limit()).map(|i| write((&from, 0, 8), (to.key(), 0), Some(i as u64))).collect();
    assert!(matches!(left.end.write(&batch), Err(FabricError::Busy { .. })));
    left.write((&from, 8, 8), (to.key(), 8), Some(5_000)).unwrap();
    assert_eq!(left.successes(1), [5_000]);
    assert_eq!(content(&to)[..8], [0; 8], "nothing of the refused batch landed");
    left.end.write(&batch[1..]).unwrap();
    assert!(left.successes(left.end.limit()).into_iter().eq(1..=left.end.limit() as u64));
}

pub fn completions_that_nobody_polls_are_bounded(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    let mut posted = 0;
    let refused = loop {
        match left.write((&from, 0, 8), (to.key(), 0), Some(posted)) {
            Ok(()) => posted += 1,
            Err(e) => break e,
        }
        assert!(posted <= left.end.limit() as u64);
    };
    assert!(matches!(refused, FabricError::Busy { .. }), "{refused}");
    assert_eq!(left.successes(posted as usize).len(), left.end.limit());
}
