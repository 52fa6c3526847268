//! The power goes at operation k, for every k; after it, what can be promoted is what the oracle says.

use std::path::Path;
use std::sync::Arc;

use pmemha::log::format::{MIN_RING, RECORD_HEADER};
use pmemha::replica::applier::{Applier, ApplierConfig, ApplyError};
use pmemha::replica::image::ImageError;
use pmemha::replica::recover;
use pmemha::types::{Durability, Lsn};
use pmemha_testkit::chance::Chance;
use pmemha_testkit::sim_store::SimStore;
use zerocopy::IntoBytes;

use super::oracle::{Promotable, Regions, prefixes};
use super::stream::{Builder, FIRST, GENERATION, GROUP, fresh, goes_on, land};
use pmemha::replica::StreamStart;

const RING: u64 = MIN_RING;

fn config(store: &SimStore) -> ApplierConfig {
    ApplierConfig {
        store: Arc::new(store.clone()),
        dir: "/replica".into(),
        group: GROUP,
        durability: Durability::Disk,
    }
}

/// What the destination told its source.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    durable: Lsn,
    applied: Lsn,
}

/// Ships the stream from where the destination stands to its end, in batches, as long as the power lasts.
fn ship(
    applier: &mut Applier,
    stream: &Builder,
    chance: &mut Chance,
    told: &mut Told,
) -> Result<(), ApplyError> {
    let from = applier.landed().max(FIRST);
    let anew = from == FIRST;
    let ring = applier.take_stream(if anew { fresh(RING, from) } else { goes_on(RING, from) })?;
    let mut left = stream.records.iter().filter(|(h, _)| h.lsn >= from.0).peekable();
    while left.peek().is_some() {
        for _ in 0..1 + chance.below(6) {
            // A source never writes over what was not acknowledged as applied.
            let Some((header, payload)) = left.next_if(|(h, _)| h.next().since(applier.applied()) <= RING)
            else {
                break;
            };
            land(&ring, header, payload);
        }
        if let Some((torn, payload)) = left.peek().filter(|(h, _)| h.next().since(applier.applied()) <= RING)
        {
            // Of the next one some bytes have landed.
            let at = torn.lsn as usize % RING as usize;
            ring.write(at, torn.as_bytes());
            ring.write(at + RECORD_HEADER as usize, &payload[..payload.len() / 2]);
        }
        while applier.receive()? {
            told.durable = applier.durable();
            applier.apply()?;
            if chance.below(3) == 0 {
                applier.persist()?;
                told.applied = applier.applied();
            }
        }
        applier.persist()?;
        told.applied = applier.applied();
    }
    Ok(())
}

fn is_power_cut(e: &ApplyError) -> bool {
    e.to_string().contains("power cut")
}

/// What the replica would yield, as the oracle puts it.
fn yields(store: &SimStore, applier: &Applier) -> Promotable {
    let promotable = applier.images().promotable()?;
    let regions = applier.images().regions();
    let read = |p: &Path| store.content(p);
    let regions: Regions =
        regions.iter().map(|r| (r.entry.id.0, (r.entry.name.clone(), read(&r.path)))).collect();
    Some((promotable.lsn, regions))
}

fn check(store: &SimStore, applier: &Applier, oracle: &[(Lsn, Promotable)], told: Told, what: &str) {
    let end = applier.landed();
    assert!(end >= told.durable, "{what}: acknowledged as durable up to {}, found {end}", told.durable);
    assert!(applier.images().is_whole(), "{what}: whole");
    let (_, want) = oracle.iter().find(|(lsn, _)| *lsn == end.max(FIRST)).expect("a record boundary");
    let have = yields(store, applier);
    let place = |p: &Promotable| p.as_ref().map(|(lsn, _)| *lsn);
    assert_eq!(place(&have), place(want), "{what}: place at {end}");
    assert!(have == *want, "{what}: bytes at {end} differ");
}

/// Runs the stream with the power cut at operation `k` (and again `k2` operations into recovery), then to its end.
fn run(
    stream: &Builder,
    oracle: &[(Lsn, Promotable)],
    seed: u64,
    k: u64,
    k2: Option<u64>,
    lossy: bool,
) -> bool {
    let mut chance = Chance::seeded(seed ^ k.wrapping_mul(77));
    let what = format!("seed {seed}, cut at {k}, then {k2:?}, lossy {lossy}");
    let mut store = SimStore::new();
    let mut told = Told::default();
    store.cut_after(k);
    let first =
        recover::open(config(&store)).and_then(|(mut a, _)| ship(&mut a, stream, &mut chance, &mut told));
    let was_cut = match first {
        Ok(()) => false,
        Err(e) if is_power_cut(&e) => true,
        Err(e) => panic!("{what}: {e}"),
    };
    store = store.after_crash(&mut chance, lossy);
    if let Some(k2) = k2 {
        store.cut_after(k2);
        match recover::open(config(&store)) {
            Ok(_) => {}
            Err(e) if is_power_cut(&e) => {}
            Err(e) => panic!("{what}: second: {e}"),
        }
        store = store.after_crash(&mut chance, lossy);
    }
    let (mut applier, recovery) = recover::open(config(&store)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(recovery.set_aside.is_none(), "{what}: {recovery:?}");
    check(&store, &applier, oracle, told, &what);
    ship(&mut applier, stream, &mut chance, &mut told).unwrap_or_else(|e| panic!("{what}: to the end: {e}"));
    check(&store, &applier, oracle, told, &format!("{what}, at the end"));
    assert_eq!(applier.landed(), stream.at, "{what}");
    was_cut
}

/// Until the cut lies behind the stream's end; returns how many cuts there were.
fn every_cut(seed: u64, records: usize, lossy: bool, second: bool) -> u64 {
    let stream = Builder::random(seed, records);
    let oracle = prefixes(FIRST, &stream.records);
    let mut k = 1;
    while run(&stream, &oracle, seed, k, second.then_some(1 + k % 23), lossy) {
        k += 1;
    }
    k - 1
}

#[test]
fn a_power_cut_at_any_operation_leaves_a_prefix_with_everything_acknowledged() {
    let cuts: u64 = (1..5).map(|seed| every_cut(seed, 70, true, false)).sum();
    assert!(cuts > 1000, "only {cuts} cuts");
}

#[test]
fn a_second_cut_during_recovery_changes_nothing() {
    assert!(every_cut(11, 60, true, true) > 200);
}

#[test]
fn the_death_of_the_process_at_any_operation_leaves_a_prefix_too() {
    assert!(every_cut(21, 90, false, true) > 200);
}

#[test]
fn long_streams_wrap_the_ring_many_times() {
    let stream = Builder::random(5, 1500);
    assert!(stream.at.since(FIRST) > 10 * RING);
    let oracle = prefixes(FIRST, &stream.records);
    for k in [500, 1500, 2500, 3500] {
        run(&stream, &oracle, 5, k, None, true);
    }
}

#[test]
fn a_lost_ring_makes_a_half_applied_image_unpromotable_until_it_is_mended() {
    let stream = Builder::random(6, 120);
    let oracle = prefixes(FIRST, &stream.records);
    let mut torn = 0;
    for k in (50..900).step_by(7) {
        let (store, mut chance) = (SimStore::new(), Chance::seeded(k));
        store.cut_after(k);
        let done = recover::open(config(&store))
            .and_then(|(mut a, _)| ship(&mut a, &stream, &mut chance, &mut Told::default()));
        if done.is_ok() {
            break;
        }
        let store = store.after_crash(&mut chance, true);
        use pmemha::replica::store::Store;
        store.remove_file(Path::new("/replica/landing")).unwrap();
        let (mut applier, recovery) = recover::open(config(&store)).unwrap();
        match yields(&store, &applier) {
            // Whatever it offers must be a state of the source.
            Some((lsn, regions)) => {
                assert!(oracle.iter().any(|(_, p)| *p == Some((lsn, regions.clone()))), "cut at {k}: {lsn}")
            }
            None => torn += u32::from(recovery.torn),
        }
        ship(&mut applier, &stream, &mut chance, &mut Told::default()).unwrap();
        check(&store, &applier, &oracle, Told::default(), &format!("cut at {k}, mended"));
    }
    assert!(torn > 3, "only {torn} torn images met");
}

#[test]
fn a_cut_in_the_middle_of_a_sync_keeps_the_old_image() {
    let mut stream = Builder::one_region(1);
    let end = stream.at;
    stream.begin().create(1, "/src/one", 8192).data(1, 0, &[2; 4096]);
    let (store, mut chance) = (SimStore::new(), Chance::seeded(1));
    let (mut applier, _) = recover::open(config(&store)).unwrap();
    ship(&mut applier, &stream, &mut chance, &mut Told::default()).unwrap();
    drop(applier);
    let store = store.after_crash(&mut chance, true);
    let (applier, _) = recover::open(config(&store)).unwrap();
    let (lsn, regions) = yields(&store, &applier).unwrap();
    assert_eq!(lsn, end);
    assert!(regions[&1].1 == vec![1; 8192]);
    assert!(!applier.images().promotable().unwrap().live);
}

#[test]
fn records_that_do_not_follow_are_refused() {
    let store = SimStore::new();
    let (mut applier, _) = recover::open(config(&store)).unwrap();
    ship(&mut applier, &Builder::one_region(1), &mut Chance::seeded(1), &mut Told::default()).unwrap();
    let end = applier.landed();
    let gap = applier.take_stream(goes_on(RING, end.advance(64)));
    assert!(matches!(gap, Err(ApplyError::Gap { .. })));
    let stale =
        applier.take_stream(StreamStart { generation: pmemha::types::Generation(2), ..fresh(RING, end) });
    assert!(matches!(stale, Err(ApplyError::Stale { .. })));
    // With a sync the gap is fine, and the image stands still until that is complete.
    applier.take_stream(fresh(RING, end.advance(64))).unwrap();
    let still = applier.images().promotable().unwrap();
    assert_eq!((still.lsn, still.live), (end, false));
    assert!(matches!(
        ImageError::OutOfOrder { got: end, generation: GENERATION, want: end, want_generation: GENERATION },
        e if !e.is_temporary()
    ));
}
