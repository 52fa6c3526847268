//! What a peer may touch, and what happens when it tries more.

use pmemha::fabric::{FabricError, Local, RemoteAccess, RemoteKey};
use pmemha_testkit::wait::eventually;

use crate::rig::{Node, PATIENCE, Rig, content, fill};

/// The request at `left` fails, and the connection with it, on both sides.
fn ends_in_refusal(left: &Node, right: &Node) {
    let failure = left.failure();
    assert!(matches!(failure, FabricError::Access(_)), "{failure}");
    left.closed();
    right.closed();
}

pub fn a_write_past_the_end_is_refused_before_it_is_sent(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(8192, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    for (offset, len) in [(0, 4097), (4096, 1), (u64::MAX, 2), (u64::MAX - 8, 8)] {
        let refused = left.write((&from, 0, len), (to.key(), offset), Some(1));
        assert!(matches!(refused, Err(FabricError::Access(_))), "{offset}+{len}: {refused:?}");
        let refused = left.end.read(Local { memory: &from, offset: 0, len }, to.key(), offset, 1);
        assert!(matches!(refused, Err(FabricError::Access(_))), "{offset}+{len}: {refused:?}");
    }
    let refused = left.write((&from, 8000, 193), (to.key(), 0), Some(1));
    assert!(matches!(refused, Err(FabricError::Access(_))), "beyond local memory: {refused:?}");
    left.write((&from, 0, 4096), (to.key(), 0), Some(2)).unwrap();
    assert_eq!(left.successes(1), [2], "the connection is none the worse");
}

/// The peer checks for itself: a hostile writer lies about the registration's length.
pub fn a_forged_length_is_refused_by_the_peer(rig: &Rig) {
    for len in [1, 300_000] {
        let (left, right) = rig.pair();
        let from = left.memory(1 << 20, RemoteAccess::Local);
        fill(&from, 1);
        let ring = right.ring(1 << 20, RemoteAccess::Write);
        let forged = RemoteKey { len: 1 << 40, ..ring.key() };
        left.write((&from, 0, len), (forged, (1 << 20) - len as u64 / 2), Some(1)).unwrap();
        ends_in_refusal(&left, &right);
        assert!(content(&ring).iter().all(|b| *b == 0), "nothing landed");
    }
}

pub fn a_wrong_key_ends_the_connection(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    fill(&from, 1);
    let to = right.memory(4096, RemoteAccess::Write);
    let forged = RemoteKey { key: to.key().key ^ 1, ..to.key() };
    left.write((&from, 0, 8), (forged, 0), Some(1)).unwrap();
    ends_in_refusal(&left, &right);
    assert_eq!(content(&to)[..8], [0; 8]);
}

pub fn memory_registered_for_reading_is_not_written(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    fill(&from, 1);
    let to = right.memory(4096, RemoteAccess::Read);
    left.end.read(Local { memory: &from, offset: 100, len: 8 }, to.key(), 0, 1).unwrap();
    assert_eq!(left.successes(1), [1]);
    left.write((&from, 0, 8), (to.key(), 0), Some(2)).unwrap();
    ends_in_refusal(&left, &right);
    assert_eq!(content(&to)[..8], [0; 8]);
}

pub fn memory_registered_as_local_is_not_read(rig: &Rig) {
    let (left, right) = rig.pair();
    let into = left.memory(4096, RemoteAccess::Local);
    let secret = right.memory(4096, RemoteAccess::Local);
    fill(&secret, 1);
    left.end.read(Local { memory: &into, offset: 0, len: 4096 }, secret.key(), 0, 1).unwrap();
    ends_in_refusal(&left, &right);
    assert!(content(&into).iter().all(|b| *b == 0));
}

pub fn memory_registered_for_writing_can_be_read(rig: &Rig) {
    let (left, right) = rig.pair();
    let into = left.memory(4096, RemoteAccess::Local);
    let open = right.memory(4096, RemoteAccess::Write);
    fill(&open, 1);
    left.end.read(Local { memory: &into, offset: 0, len: 4096 }, open.key(), 0, 1).unwrap();
    assert_eq!(left.successes(1), [1]);
    assert!(content(&into) == content(&open));
}

/// Also while writes to it are landing: once the registration is gone, the memory does not change any more.
pub fn a_deregistered_key_is_dead(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4 << 20, RemoteAccess::Local);
    fill(&from, 1);
    let to = right.memory(4 << 20, RemoteAccess::Write);
    let (memory, key) = (to.memory().clone(), to.key());
    left.write((&from, 0, 4 << 20), (key, 0), None).unwrap();
    eventually("it is landing", PATIENCE, || memory.u64(0).load(std::sync::atomic::Ordering::Relaxed) != 0);
    drop(to);
    memory.zero(0, memory.len());
    left.write((&from, 0, 4 << 20), (key, 0), Some(1)).ok();
    right.closed();
    left.closed();
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    assert!(bytes.iter().all(|b| *b == 0), "bytes landed after deregistration");
}

pub fn a_key_of_one_endpoint_means_nothing_on_another(rig: &Rig) {
    let ((one_left, one_right), (two_left, two_right)) = (rig.pair(), rig.pair());
    let from = two_left.memory(4096, RemoteAccess::Local);
    fill(&from, 1);
    let to = one_right.memory(4096, RemoteAccess::Write);
    two_left.write((&from, 0, 8), (to.key(), 0), Some(1)).unwrap();
    ends_in_refusal(&two_left, &two_right);
    assert_eq!(content(&to)[..8], [0; 8]);
    let own = one_left.memory(4096, RemoteAccess::Local);
    one_left.write((&own, 0, 8), (to.key(), 0), Some(2)).unwrap();
    assert_eq!(one_left.successes(1), [2], "the other connection lives on");
}

pub fn a_source_registered_elsewhere_is_refused(rig: &Rig) {
    let ((left, right), (other, _other_right)) = (rig.pair(), rig.pair());
    let to = right.memory(4096, RemoteAccess::Write);
    let foreign = other.memory(4096, RemoteAccess::Local);
    let refused = left.write((&foreign, 0, 8), (to.key(), 0), Some(1));
    assert!(matches!(refused, Err(FabricError::Access(_))), "{refused:?}");
}

pub fn a_read_into_memory_registered_elsewhere_is_refused(rig: &Rig) {
    let ((left, right), (other, _other_right)) = (rig.pair(), rig.pair());
    let to = right.memory(4096, RemoteAccess::Write);
    let foreign = other.memory(4096, RemoteAccess::Local);
    let refused = left.end.read(Local { memory: &foreign, offset: 0, len: 8 }, to.key(), 0, 1);
    assert!(matches!(refused, Err(FabricError::Access(_))), "{refused:?}");
}
