//! A full file system: nothing is lost, nothing dies, and it goes on when there is room again.

use std::fs;
use std::sync::Arc;

use pmemha::log::format::Kind;
use pmemha::replica::applier::ApplierConfig;
use pmemha::replica::recover;
use pmemha::replica::store::disk::DiskStore;
use pmemha::types::{Durability, Lsn};
use pmemha_testkit::small_disk::SmallDisk;

use super::oracle::prefixes;
use super::stream::{Builder, FIRST, GROUP, fresh, land};

const RING: u64 = 256 << 10;

#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path(), 2 << 20);
    let durability = Durability::Battery;
    let config = ApplierConfig {
        store: Arc::new(DiskStore::new(durability)),
        dir: disk.path().join("replica"),
        group: GROUP,
        durability,
    };
    let mut stream = Builder::new();
    stream.begin().create(1, "/src/one", 4 << 20).end();
    for i in 0..25 {
        stream.data(1, i * 4096 * 7, &[i as u8 + 1; 4096]).push(
            Kind::RegionRename,
            1,
            0,
            format!("/src/{i}").as_bytes(),
        );
    }
    let oracle = prefixes(FIRST, &stream.records);
    let (mut applier, _) = recover::open(config.clone()).unwrap();
    let ring = applier.take_stream(fresh(RING, FIRST)).unwrap();
    // Room for some of the stream only.
    disk.fill_but(15);
    stream.records.iter().for_each(|(h, p)| land(&ring, h, p));
    let full = recover::drain(&mut applier).unwrap_err();
    assert!(full.is_temporary() && full.to_string().contains("No space left"), "{full}");
    assert!(applier.applied() < stream.at && applier.durable() == stream.at);
    assert!(applier.images().cursor().lsn > Lsn(stream.records[2].0.lsn), "some of it was applied");
    // Still full, also for one that starts anew.
    assert!(recover::open(config.clone()).is_err());
    disk.make_room();
    applier.reopen().unwrap();
    recover::drain(&mut applier).unwrap();
    let (lsn, want) = oracle.last().unwrap().1.clone().unwrap();
    assert_eq!(applier.images().promotable().unwrap().lsn, lsn);
    let regions = applier.images().regions();
    assert!(fs::read(&regions[0].path).unwrap() == want[&1].1);
    assert_eq!(regions[0].entry.name, want[&1].0);
}
