//! Fencing: what a promotion rests on.

use std::sync::atomic::Ordering;

use pmemha::fabric::{FabricError, RemoteAccess};
use pmemha_testkit::wait::eventually;

use crate::rig::{PATIENCE, Rig, content, fill};

/// A hundred times, at different points of a stream of writes both small and large.
pub fn after_revoke_returned_no_byte_lands(rig: &Rig) {
    for round in 0..100u64 {
        let (left, right) = rig.pair();
        let large = round % 2 == 0;
        let bytes = if large { 4 << 20 } else { 256 << 10 };
        let from = left.memory(bytes, RemoteAccess::Local);
        let to = right.memory(bytes, RemoteAccess::Write);
        fill(&from, round);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Until it fails, so that writes are in flight whenever the revocation comes.
                for i in 0.. {
                    let posted = if large {
                        left.write((&from, 0, bytes), (to.key(), 0), Some(i))
                    } else {
                        let at = (i * 64) as usize % bytes;
                        left.write((&from, at, 64), (to.key(), at as u64), Some(i))
                    };
                    match posted {
                        Ok(()) => {}
                        Err(FabricError::Busy { .. }) => {
                            left.end.poll(&mut Vec::new());
                            std::thread::yield_now();
                        }
                        Err(_) => break,
                    }
                }
            });
            let last = (round as usize * 30_000 % bytes) & !63;
            eventually("writes are landing", PATIENCE, || to.memory().u64(last).load(Ordering::Relaxed) != 0);
            right.end.revoke().unwrap();
            to.memory().zero(0, bytes);
            left.closed();
        });
        right.closed();
        assert!(content(&to).iter().all(|b| *b == 0), "round {round}: bytes landed after the revocation");
    }
}

pub fn a_revoked_peer_is_told_so(rig: &Rig) {
    for len in [8, 8 << 20] {
        let (left, right) = rig.pair();
        let from = left.memory(8 << 20, RemoteAccess::Local);
        let to = right.memory(8 << 20, RemoteAccess::Write);
        let posted = 10;
        (0..posted).for_each(|i| left.write((&from, 0, len), (to.key(), 0), Some(i)).unwrap());
        right.end.revoke().unwrap();
        let ended = left.completions(posted as usize);
        assert!(ended.iter().map(|c| c.id).eq(0..posted));
        let failed = ended.iter().skip_while(|c| c.result.is_ok());
        for completion in failed {
            assert!(matches!(completion.result, Err(FabricError::Revoked { .. })), "{completion:?}");
        }
        left.closed();
        let late = left.write((&from, 0, 8), (to.key(), 0), Some(99));
        assert!(matches!(late, Err(FabricError::Revoked { .. })), "{late:?}");
    }
}

pub fn revoke_ends_our_own_requests_too(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(32 << 20, RemoteAccess::Local);
    let to = right.memory(32 << 20, RemoteAccess::Write);
    (0..4).for_each(|i| left.write((&from, 0, 32 << 20), (to.key(), 0), Some(i)).unwrap());
    left.end.revoke().unwrap();
    assert!(left.completions(4).iter().any(|c| c.result.is_err()));
    left.closed();
    right.closed();
}

pub fn revoke_is_repeatable_and_works_on_a_dead_endpoint(rig: &Rig) {
    let (left, right) = rig.pair();
    right.end.revoke().unwrap();
    right.end.revoke().unwrap();
    left.closed();
    left.end.revoke().unwrap();
    right.closed();
    right.end.revoke().unwrap();
}
