//! The archive: every moment that it covers can be had again, whatever retention and crashes did.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pmemha::log::format::Kind;
use pmemha::replica::archive::{ArchiveConfig, ArchiveError, ArchiveWriter, Out, Replayer, list, replay};
use pmemha::replica::store::Bytes;
use pmemha::types::Lsn;
use pmemha_testkit::small_disk::SmallDisk;

use super::oracle::{Promotable, prefixes_as};
use super::stream::{Builder, FIRST, GENERATION, GROUP};

/// An archive's: no copy is for it alone.
const NO_STREAM: u32 = 0;

fn config(dir: &Path) -> ArchiveConfig {
    ArchiveConfig { dir: dir.join("archive"), group: GROUP, keep_bytes: 1 << 30, keep_age: None }
}

/// Archives the stream in batches of some records, at times 1000, 2000, …
fn archived(dir: &Path, stream: &Builder) -> ArchiveWriter {
    let mut writer = ArchiveWriter::open(config(dir)).unwrap();
    writer.begin(GENERATION, FIRST).unwrap();
    append(&mut writer, stream, FIRST);
    writer
}

fn append(writer: &mut ArchiveWriter, stream: &Builder, from: Lsn) {
    let bytes = stream.bytes();
    let slice = |a: Lsn, b: Lsn| &bytes[(a.0 - FIRST.0) as usize..(b.0 - FIRST.0) as usize];
    let rest: Vec<_> = stream.records.iter().filter(|(h, _)| h.lsn >= from.0).collect();
    for (i, batch) in rest.chunks(7).enumerate() {
        let (start, end) = (Lsn(batch[0].0.lsn), batch[batch.len() - 1].0.next());
        writer.append(Bytes::Slice(slice(start, end)), 1000 * (i as u64 + 1)).unwrap();
    }
    writer.sync().unwrap();
}

/// Steps through the archive and compares each moment with the oracle; returns how many were consistent.
fn check_all(dir: &Path, oracle: &[(Lsn, Promotable)], work: &Path) -> usize {
    let mut replayer = Replayer::open(&dir.join("archive"), &work.join("scratch")).unwrap();
    let mut consistent = 0;
    loop {
        let at = replayer.position().lsn;
        let want =
            oracle.iter().find(|(lsn, _)| *lsn == at).unwrap().1.as_ref().filter(|(lsn, _)| *lsn == at);
        assert_eq!(replayer.is_consistent(), want.is_some(), "at {at}");
        if let Some((_, want)) = want {
            consistent += 1;
            let out = work.join("out");
            let regions = replayer.materialise(&out).unwrap();
            assert_eq!(regions.len(), want.len(), "at {at}");
            for region in &regions {
                let (name, bytes) = &want[&region.region.0];
                assert_eq!(region.path, out.join(name.trim_start_matches('/')));
                assert!(fs::read(&region.path).unwrap() == *bytes, "at {at}: {name}");
            }
            let _ = fs::remove_dir_all(out);
        }
        if replayer.step().unwrap().is_none() {
            break;
        }
    }
    drop(replayer);
    fs::remove_dir_all(work.join("scratch")).unwrap();
    consistent
}

#[test]
fn every_moment_can_be_had_again() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let stream = Builder::random_for_several(31, 500);
    let oracle = prefixes_as(NO_STREAM, FIRST, &stream.records);
    archived(dir.path(), &stream);
    assert!(check_all(dir.path(), &oracle, dir.path()) > 200);
    let entries: Vec<_> = list(&dir.path().join("archive")).unwrap().map(Result::unwrap).collect();
    let want: Vec<_> = stream.records.iter().map(|(h, _)| (Lsn(h.lsn), h.next(), h.len)).collect();
    assert_eq!(entries.iter().map(|e| (e.lsn, e.next, e.bytes)).collect::<Vec<_>>(), want);
    assert!(entries.is_sorted_by_key(|e| e.time) && entries[0].time == 1000);
    assert_eq!(entries[0].kind, Kind::Data);
}

#[test]
fn writing_goes_on_after_a_cut_at_any_byte() {
    let stream = Builder::random_for_several(32, 40);
    let oracle = prefixes_as(NO_STREAM, FIRST, &stream.records);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    drop(archived(dir.path(), &stream));
    let segment = dir.path().join("archive/era-1").join(format!("seg-{:020}", FIRST.0));
    let whole = fs::read(&segment).unwrap();
    for cut in (64..whole.len()).step_by(311) {
        fs::write(&segment, &whole[..cut]).unwrap();
        let mut writer = ArchiveWriter::open(config(dir.path())).unwrap();
        let at = writer.position().unwrap();
        writer.begin(GENERATION, at.lsn).unwrap();
        append(&mut writer, &stream, at.lsn);
        drop(writer);
        assert!(!dir.path().join("archive/era-2").exists(), "cut at {cut}");
        check_all(dir.path(), &oracle, dir.path());
    }
}

#[test]
fn retention_folds_the_oldest_segments_and_a_fold_cut_short_is_repeated() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut stream = Builder::random_for_several(33, 300);
    // Enough for several segments of the smallest size.
    stream.begin().create(1, "/src/big", 1 << 20);
    for i in 0..900u64 {
        stream.data(1, (i % 200) * 4096, &[i as u8; 4096]);
        if i == 10 {
            stream.end();
        }
    }
    let oracle = prefixes_as(NO_STREAM, FIRST, &stream.records);
    let mut small = config(dir.path());
    small.keep_bytes = 1 << 20;
    let mut writer = ArchiveWriter::open(small).unwrap();
    writer.begin(GENERATION, FIRST).unwrap();
    append(&mut writer, &stream, FIRST);
    let before = writer.status().unwrap();
    assert!(before.segments >= 3 && before.from.unwrap().lsn == FIRST);
    let first = dir.path().join("archive/era-1").join(format!("seg-{:020}", FIRST.0));
    let first_bytes = fs::read(&first).unwrap();
    // While somebody reads, nothing is folded.
    let reading = list(&dir.path().join("archive")).unwrap();
    assert_eq!(writer.retain(0).unwrap(), 0);
    drop(reading);
    assert!(writer.retain(0).unwrap() >= 2);
    let after = writer.status().unwrap();
    assert!(after.bytes < before.bytes && after.from.unwrap().lsn > FIRST);
    assert!(check_all(dir.path(), &oracle, dir.path()) > 50);
    // As if the power had gone after the base was durable and before the segment was removed.
    fs::write(&first, first_bytes).unwrap();
    assert!(writer.retain(0).unwrap() >= 1);
    assert!(!first.exists());
    check_all(dir.path(), &oracle, dir.path());
}

#[test]
fn age_bounds_it_too() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut writer = ArchiveWriter::open(ArchiveConfig {
        keep_age: Some(Duration::from_nanos(500)),
        keep_bytes: 1 << 30,
        ..config(dir.path())
    })
    .unwrap();
    writer.begin(GENERATION, FIRST).unwrap();
    append(&mut writer, &Builder::one_region(1), FIRST);
    // What is being written stays, however old; a stretch before a gap goes as a whole.
    assert_eq!(writer.retain(1_000_000).unwrap(), 0);
    let end = writer.position().unwrap().lsn;
    writer.begin(GENERATION, end.advance(64)).unwrap();
    assert_eq!(writer.retain(1_200).unwrap(), 0);
    assert_eq!(writer.retain(1_000_000).unwrap(), 1);
    assert!(!dir.path().join("archive/era-1").exists());
}

#[test]
fn a_replay_says_what_it_cannot_do() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let archive = dir.path().join("archive");
    let mut stream = Builder::one_region(1);
    let consistent = stream.at;
    stream.begin();
    let syncing = stream.at;
    stream.create(1, "/src/one", 64).create(2, "/src/../two", 64).end();
    archived(dir.path(), &stream);
    let run = |to: Lsn, out: &Out| replay(&archive, to, out, &mut |_, _| {});
    let file = Out::File(dir.path().join("file"));
    let done = run(consistent, &file).unwrap();
    assert_eq!(done.at.lsn, consistent);
    assert!(fs::read(dir.path().join("file")).unwrap() == [1; 8192]);
    assert!(run(consistent, &file).is_err(), "written over");
    let other = Out::File(dir.path().join("other"));
    assert!(matches!(run(stream.at, &other), Err(ArchiveError::NotOneRegion { regions: 2, .. })));
    let out = Out::Dir(dir.path().join("dir"));
    let earlier = Some(consistent);
    assert!(
        matches!(run(syncing, &out), Err(ArchiveError::NotConsistent { earlier: e, .. }) if e == earlier)
    );
    assert!(matches!(run(stream.at.advance(32), &out), Err(ArchiveError::OutOfRange { .. })));
    assert!(matches!(run(stream.at, &out), Err(ArchiveError::Unfit { .. })));
    assert!(!dir.path().join("two").exists());
    assert!(
        fs::read_dir(dir.path()).unwrap().all(|e| !e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("replay"))
    );
}

#[test]
fn an_archive_goes_on_wherever_a_full_disk_cut_it_short() {
    let mut stream = Builder::new();
    stream.begin().create(1, "/src/one", 1 << 20).end();
    // As much as the smallest segment holds, so that what follows begins another one.
    (0..260).for_each(|i| _ = stream.data(1, i % 256 * 4096, &[i as u8; 4096]));
    let (bytes, before) = (stream.bytes(), stream.at);
    stream.data(1, 0, &[9; 64]);
    let last = stream.bytes().split_off(bytes.len());
    let (mut rotated, mut begun) = (Vec::new(), Vec::new());
    for pages in 0..16 {
        let (dir, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let disk = SmallDisk::mount(dir.path(), 2 << 20);
        let config = ArchiveConfig { keep_bytes: 1 << 20, ..config(dir.path()) };
        let archive = &config.dir;
        let mut writer = ArchiveWriter::open(config.clone()).unwrap();
        writer.begin(GENERATION, FIRST).unwrap();
        writer.append(Bytes::Slice(&bytes), 1000).unwrap();
        writer.sync().unwrap();
        disk.fill_but(pages);
        rotated.push(writer.append(Bytes::Slice(&last), 2000).and_then(|()| writer.sync()).is_ok());
        drop(writer);
        // An agent begins anew behind what it had to pass over, again and again.
        let begin = |at: Lsn| ArchiveWriter::open(config.clone())?.begin(GENERATION, at);
        begun.push(begin(stream.at.advance(64)).is_ok());
        let listed: Vec<_> = list(archive).unwrap().map(Result::unwrap).collect();
        assert!(listed.iter().any(|entry| entry.next == before), "{pages} pages");
        disk.make_room();
        begin(stream.at.advance(128)).unwrap_or_else(|e| panic!("{pages} pages: {e}"));
        let out = work.path().join("file");
        replay(archive, before, &Out::File(out.clone()), &mut |_, _| {}).unwrap();
        assert!(fs::read(out).unwrap().chunks(4096).enumerate().all(|(i, page)| page == [i as u8; 4096]));
    }
    for outcomes in [rotated, begun] {
        assert!(outcomes.contains(&false) && outcomes.contains(&true), "{outcomes:?}");
    }
}
