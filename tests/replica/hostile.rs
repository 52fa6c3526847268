//! Whatever bytes land: no panic, nothing outside the replica's directory, and what was there stays good.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pmemha::log::format::RecordHeader;
use pmemha::replica::applier::{Applier, ApplierConfig};
use pmemha::replica::landing::{Landing, LandingError};
use pmemha::replica::recover;
use pmemha::replica::store::disk::DiskStore;
use pmemha::types::{Durability, GroupId};
use proptest::prelude::*;

use super::stream::{Builder, FIRST, GENERATION, GROUP, LOG, fresh, goes_on, land};
use pmemha::replica::landing::Of;

const OF: Of = Of { generation: GENERATION, log: LOG };

const RING: u64 = 64 << 10;

fn config(dir: &Path) -> ApplierConfig {
    let durability = Durability::Battery;
    ApplierConfig {
        store: Arc::new(DiskStore::new(durability)),
        dir: dir.join("replica"),
        group: GROUP,
        durability,
    }
}

/// A replica with a consistent image of one region, in a directory beside which nothing may appear.
fn with_image(dir: &Path) -> (Applier, Builder) {
    let (mut applier, _) = recover::open(config(dir)).unwrap();
    let ring = applier.take_stream(fresh(RING, FIRST)).unwrap();
    let stream = Builder::one_region(7);
    stream.records.iter().for_each(|(h, p)| land(&ring, h, p));
    recover::drain(&mut applier).unwrap();
    (applier, stream)
}

fn only_the_replica(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().all(|e| e.unwrap().file_name() == "replica")
}

/// Records with valid checksums and any content.
fn records() -> impl Strategy<Value = Vec<(u8, u16, u64, Vec<u8>)>> {
    let place = prop_oneof![0u64..20_000, Just((1 << 48) - 1), any::<u64>().prop_map(|x| x >> 16)];
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80),
        any::<u64>().prop_map(|x| x.to_le_bytes().to_vec()),
        "(/|\\.\\.|a|\u{0}){1,12}".prop_map(|name| {
            let mut bytes = vec![0, 16, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
            bytes.extend(name.into_bytes());
            bytes
        }),
    ];
    prop::collection::vec((1u8..10, 0u16..6, place, payload), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn sealed_records_of_any_content_harm_nothing(records in records()) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (mut applier, mut stream) = with_image(dir.path());
        let ring = applier.take_stream(goes_on(RING, stream.at)).unwrap();
        let before = stream.records.len();
        for (kind, region, offset, payload) in records {
            stream.push(pmemha::log::format::Kind::from_byte(kind).unwrap(), region, offset, &payload);
        }
        stream.records[before..].iter().for_each(|(h, p)| land(&ring, h, p));
        let outcome = recover::drain(&mut applier);
        prop_assert!(only_the_replica(dir.path()));
        if let Err(e) = outcome {
            // Refused at a record: what was before it is still good, also after opening again.
            prop_assert!(!e.is_temporary() || e.to_string().contains("cannot"), "{}", e);
            let have = applier.images().promotable();
            drop(applier);
            let (again, _) = Applier::open(config(dir.path())).unwrap();
            prop_assert_eq!(again.images().promotable(), have);
        }
    }

    #[test]
    fn garbage_in_the_ring_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..200), plausible: bool) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (mut applier, stream) = with_image(dir.path());
        let ring = applier.take_stream(goes_on(RING, stream.at)).unwrap();
        let at = (stream.at.0 % RING) as usize;
        ring.write(at, &bytes);
        if plausible {
            ring.write(at, &stream.at.0.to_le_bytes());
            ring.u32(at + 24).store(GENERATION.0, std::sync::atomic::Ordering::Relaxed);
        }
        let before = applier.images().promotable();
        prop_assert!(!applier.receive().unwrap());
        prop_assert_eq!(applier.images().promotable(), before);
    }

    #[test]
    fn any_header_is_judged_without_a_panic(word in any::<[u64; 4]>(), lsn in any::<u64>()) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = DiskStore::new(Durability::Battery);
        let landing = Landing::create(&store, dir.path(), GROUP, OF, RING).unwrap();
        let lsn = lsn & !31;
        let header = RecordHeader {
            lsn, len: word[0] as u32, owner: 0, state: 2, kind: word[1] as u8, place: word[2],
            generation: GENERATION.0, crc: word[3] as u32,
        };
        land(landing.memory(), &header, &[]);
        let found = landing.record(pmemha::types::Lsn(lsn));
        prop_assert!(found.is_none() || found == Some(header));
    }
}

#[test]
fn every_subset_of_words_of_a_record_over_an_old_slot_is_no_record_but_the_whole() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = DiskStore::new(Durability::Battery);
    let landing = Landing::create(&store, dir.path(), GROUP, OF, RING).unwrap();
    let mut old = Builder::new();
    old.data(1, 0, &[1; 64]);
    let mut new = Builder::new();
    new.at = FIRST.advance(RING);
    new.data(1, 0, &[2; 64]);
    let bytes = |b: &Builder| {
        let (h, p) = &b.records[0];
        [zerocopy::IntoBytes::as_bytes(h), p.as_slice()].concat()
    };
    let (old, new, lsn) = (bytes(&old), bytes(&new), FIRST.advance(RING));
    let words = old.len() / 8;
    for subset in 0u32..1 << words {
        for word in 0..words {
            let from = if subset >> word & 1 == 1 { &new } else { &old };
            landing.memory().write(landing.offset(lsn) + 8 * word, &from[8 * word..8 * word + 8]);
        }
        let same = (0..words).all(|w| subset >> w & 1 == 1 || old[8 * w..8 * w + 8] == new[8 * w..8 * w + 8]);
        assert_eq!(landing.record(lsn).is_some(), same, "subset {subset:b}");
    }
}

#[test]
fn a_foreign_or_damaged_ring_is_set_aside_and_never_used() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = DiskStore::new(Durability::Battery);
    let create = || drop(Landing::create(&store, dir.path(), GROUP, OF, RING).unwrap());
    create();
    let foreign = Landing::open(&store, dir.path(), GroupId([9; 16]));
    assert!(matches!(foreign, Err(LandingError::SetAside { what: "belongs to another group", .. })));
    assert!(Landing::open(&store, dir.path(), GROUP).unwrap().is_none());
    let path = dir.path().join("landing");
    for byte in [0, 9, 30, 45, 63] {
        create();
        let mut bytes = fs::read(&path).unwrap();
        bytes[byte] ^= 1;
        fs::write(&path, bytes).unwrap();
        let Err(LandingError::SetAside { aside, .. }) = Landing::open(&store, dir.path(), GROUP) else {
            panic!("byte {byte} was not noticed")
        };
        assert!(aside.exists() && !path.exists());
    }
    create();
    fs::File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    assert!(matches!(Landing::open(&store, dir.path(), GROUP), Err(LandingError::SetAside { .. })));
    assert!(matches!(
        Landing::create(&store, dir.path(), GROUP, OF, 100_000),
        Err(LandingError::Size { bytes: 100_000 })
    ));
}

#[test]
fn a_directory_of_another_group_is_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    drop(with_image(dir.path()));
    let other = ApplierConfig { group: GroupId([9; 16]), ..config(dir.path()) };
    let Err(refused) = Applier::open(other) else { panic!("opened") };
    assert!(refused.to_string().contains("another group"), "{refused}");
}
