use super::stretches::{extent, runs};
use super::*;
use crate::log::format::MIN_RING;
use crate::log::{Consumer, LogSpec};
use crate::types::PAGE;
use std::thread;
use zerocopy::IntoBytes;

#[test]
fn runs_are_what_is_true_in_a_row() {
    let flags = [true, true, false, true, false, false, true];
    assert_eq!(runs(flags.into_iter()), [(0, 2), (3, 1), (6, 1)]);
    assert!(runs([false; 3].into_iter()).is_empty());
}

/// Number, name and length of each region.
type Listing = Vec<(u16, &'static str, u64)>;

/// What a group says of its regions, one time after the other; the last listing stays. Without any it cannot say.
struct Script {
    appender: Appender,
    listings: Mutex<Vec<Listing>>,
    still: AtomicBool,
}

impl SyncSource for Script {
    fn appender(&self) -> &Appender {
        &self.appender
    }

    fn regions(&self) -> io::Result<Vec<SyncRegion>> {
        let mut listings = lock(&self.listings);
        let now = match listings.len() {
            0 => return Err(io::Error::other("no listing")),
            1 => listings[0].clone(),
            _ => listings.remove(0),
        };
        let region = |(id, name, len): (u16, &str, u64)| {
            let file = tempfile::tempfile_in("/dev/shm")?;
            file.set_len(len)?;
            let mut creation = RegionPayload { size: len, mode: 0o600, reserved: 0 }.as_bytes().to_vec();
            creation.extend(name.as_bytes());
            Ok(SyncRegion {
                id: RegionId(id),
                creation,
                len,
                file: file.into(),
                changed: false,
                held: Arc::new(()),
            })
        };
        now.into_iter().map(region).collect()
    }

    fn is_still(&self) -> bool {
        self.still.load(SeqCst)
    }

    fn destinations(&self) -> usize {
        1
    }

    fn reader(&self, _stream: u32) -> Option<bool> {
        Some(true)
    }
}

/// A log with the smallest ring, and a group of these listings that writes to it.
fn scripted(listings: Vec<Listing>) -> (OwnedFd, Arc<LogRegion>, Arc<Script>) {
    let spec = LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() };
    let (fd, log) = LogRegion::create(&spec).unwrap();
    let appender = Appender::for_agent(log.clone(), 1).unwrap();
    (fd, log, Arc::new(Script { appender, listings: Mutex::new(listings), still: AtomicBool::new(false) }))
}

impl Script {
    /// An eighth of the ring; whether it had room.
    fn append(&self) -> bool {
        let bytes = [0; MIN_RING as usize / 8];
        self.appender.append(Kind::Filler, RegionId(0), 0, &bytes).is_ok()
    }

    /// Every reader has taken everything.
    fn read(&self) {
        let log = self.appender.log();
        log.set_free(log.publish_filled(&|_| false));
    }
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        thread::yield_now();
    }
}

#[test]
fn a_copy_that_was_asked_for_is_owed_until_somebody_has_made_it() {
    let (_fd, log, source) = scripted(vec![vec![(1, "a", 4096)]]);
    let start = || Syncer::start("test", source.clone()).unwrap();
    assert!(!start().is_active());
    // More than half of the ring: it cannot begin.
    assert!((0..5).all(|_| source.append()));
    let first = start();
    first.request();
    assert!(log.owes(Debt::Copy), "already when the request returns");
    drop(first);
    let second = start();
    assert!(second.is_active(), "the one before could not make it");
    source.read();
    until(|| !second.is_active());
    assert!(!log.owes(Debt::Copy) && second.view().end == log.tail());
    drop(second);
    assert!(!start().is_active(), "it has been made");
}

#[test]
fn the_copy_that_closes_a_gap_is_owed_once_its_beginning_is_in_the_log() {
    let (_fd, log, source) = scripted(Vec::new());
    while source.append() {}
    source.read();
    let start = || Syncer::start("test", source.clone()).unwrap();
    let first = start();
    first.set_flowing(true);
    until(|| first.view().error.is_some());
    drop(first);
    assert!(!log.is_ahead() && log.owes(Debt::Copy));
    lock(&source.listings).push(vec![(1, "a", 4096)]);
    let second = start();
    until(|| !second.is_active());
    assert!(!log.owes(Debt::Copy) && second.view().end == log.tail());
}

#[test]
fn what_changes_while_regions_are_created_is_created_as_it_is() {
    let (_fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
    let listings = vec![
        vec![(1, "a", 4096), (2, "b", 4096), (3, "c", 4096)],
        // The first was renamed and grew, another took its name; the second is gone; one that is new speaks for itself.
        vec![(1, "d", 8192), (9, "a", 4096), (3, "c", 4096), (10, "e", 4096)],
    ];
    let appender = Appender::for_agent(log.clone(), 1).unwrap();
    let source = Arc::new(Script { appender, listings: Mutex::new(listings), still: AtomicBool::new(false) });
    let syncer = Syncer::start("test", source).unwrap();
    syncer.set_flowing(true);
    syncer.request();
    let mut consumer = Consumer::new(log.clone(), log.spec().first_lsn);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(kind, _)| *kind != Kind::SyncEnd as u8) {
        match consumer.next_batch(1 << 20).unwrap() {
            Some(batch) => seen.extend(batch.headers.iter().map(|h| (h.kind, h.place().0.0))),
            None => thread::yield_now(),
        }
    }
    let create = |id| (Kind::CopyCreate as u8, id);
    let begin = (Kind::SyncBegin as u8, 0);
    let (unlink, end) = ((Kind::CopyUnlink as u8, 2), (Kind::SyncEnd as u8, 0));
    assert_eq!(seen, [begin, create(1), create(2), create(3), unlink, create(1), create(9), end]);
}

#[test]
fn a_program_whose_files_never_rest_is_told_of_and_copied_once_they_do() {
    let (_fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
    let names = ["a", "b"].into_iter().cycle().take(MAX_LOOKS as usize + 1);
    let listings = names.map(|name| vec![(1, name, 4096)]).collect();
    let appender = Appender::for_agent(log.clone(), 1).unwrap();
    let syncer = Syncer::start(
        "test",
        Arc::new(Script { appender, listings: Mutex::new(listings), still: AtomicBool::new(false) }),
    )
    .unwrap();
    syncer.request();
    until(|| syncer.view().error.is_some_and(|error| error.contains("faster than they are looked at")));
    until(|| !syncer.is_active());
    assert_eq!(syncer.view().error, None);
}

#[test]
fn a_file_that_is_truncated_under_the_copy_is_copied_as_far_as_it_goes() {
    let (_fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 3 * PAGE], 0).unwrap();
    let cut = Shrinking { file, appender: Appender::for_agent(log.clone(), 1).unwrap() };
    let syncer = Syncer::start("test", Arc::new(cut)).unwrap();
    syncer.request();
    until(|| !syncer.is_active());
    let mut consumer = Consumer::new(log.clone(), log.spec().first_lsn);
    let batch = consumer.next_batch(1 << 20).unwrap().unwrap();
    let data = |h: &&crate::log::format::RecordHeader| h.kind == Kind::CopyData as u8;
    assert_eq!(batch.headers.iter().filter(data).map(|h| h.len as usize).sum::<usize>(), PAGE);
    assert_eq!(batch.headers.last().unwrap().kind, Kind::SyncEnd as u8);
    assert_eq!(syncer.view().error, None);
}

/// A file of three pages that has one left once it is listed.
struct Shrinking {
    file: std::fs::File,
    appender: Appender,
}

impl SyncSource for Shrinking {
    fn appender(&self) -> &Appender {
        &self.appender
    }

    fn regions(&self) -> io::Result<Vec<SyncRegion>> {
        let len = 3 * PAGE as u64;
        let mut creation = RegionPayload { size: len, mode: 0o600, reserved: 0 }.as_bytes().to_vec();
        creation.extend(b"a");
        let file = self.file.try_clone()?.into();
        self.file.set_len(PAGE as u64)?;
        Ok(vec![SyncRegion { id: RegionId(1), creation, len, file, changed: false, held: Arc::new(()) }])
    }

    fn is_still(&self) -> bool {
        false
    }

    fn destinations(&self) -> usize {
        1
    }
}

#[test]
fn extents_skip_holes_and_cover_data() {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(10 << 20).unwrap();
    let fd = OwnedFd::from(file.try_clone().unwrap());
    assert_eq!(extent(&fd, 0, 10 << 20).unwrap(), None);
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", (5 << 20) + 17).unwrap();
    let (start, end) = extent(&fd, 0, 10 << 20).unwrap().unwrap();
    assert!(start <= (5 << 20) + 17 && end > (5 << 20) + 17 && start.is_multiple_of(PAGE as u64));
    assert_eq!(extent(&fd, end, 10 << 20).unwrap(), None);
}

/// The records in the log from its beginning on.
fn records(log: &Arc<LogRegion>) -> Vec<crate::log::format::RecordHeader> {
    let batch = Consumer::new(log.clone(), log.spec().first_lsn).next_batch(1 << 20).unwrap();
    batch.map(|batch| batch.headers).unwrap_or_default()
}

#[test]
fn whoever_comes_back_in_the_middle_of_a_copy_knows_whether_one_is_for_it() {
    let (_fd, _log, source) = scripted(vec![vec![(1, "a", 4096)]]);
    source.still.store(true, SeqCst);
    let syncer = Syncer::start("test", source).unwrap();
    syncer.request_for_one(7, false);
    assert!(syncer.is_active() && syncer.is_for(7) && !syncer.is_for(8));
    syncer.request_for_newcomer(false);
    assert!(syncer.is_for(8));
}

#[test]
fn a_copy_for_newcomers_says_so_and_waits_while_the_log_is_held_still() {
    let (_fd, log, source) = scripted(vec![vec![(1, "a", 4096)]]);
    source.still.store(true, SeqCst);
    let syncer = Syncer::start("test", source.clone()).unwrap();
    syncer.request_for_newcomer(false);
    thread::sleep(5 * LOOK);
    assert!(records(&log).is_empty() && syncer.is_active() && !syncer.is_active_for_all());
    source.still.store(false, SeqCst);
    until(|| !syncer.is_active());
    let begin = records(&log)[0];
    assert_eq!((begin.kind, CopyFor::of(&begin)), (Kind::SyncBegin as u8, Some(CopyFor::Newcomers)));
    assert!(!log.owes(Debt::Newcomer) && !log.owes(Debt::Copy));
}

#[test]
fn a_copy_for_all_serves_newcomers_and_does_not_wait() {
    let (_fd, log, source) = scripted(vec![vec![(1, "a", 4096)]]);
    source.still.store(true, SeqCst);
    let syncer = Syncer::start("test", source).unwrap();
    syncer.request_for_newcomer(false);
    assert!(!syncer.is_active_for_all());
    syncer.request();
    assert!(syncer.is_active_for_all());
    until(|| !syncer.is_active());
    assert!(
        records(&log).iter().all(|h| h.kind != Kind::SyncBegin as u8 || CopyFor::of(h) == Some(CopyFor::All))
    );
    assert!(!log.owes(Debt::Newcomer) && !log.owes(Debt::Copy));
}

#[test]
fn whoever_joins_during_a_copy_gets_another_one_and_does_not_cut_it() {
    let (_fd, log, source) = scripted(vec![vec![(1, "a", 4096)]]);
    // The copy begins, and waits for what the group has to say of its regions.
    let gate = lock(&source.listings);
    let syncer = Syncer::start("test", source.clone()).unwrap();
    syncer.request_for_newcomer(false);
    until(|| log.tail() > log.spec().first_lsn);
    syncer.request_for_newcomer(false);
    drop(gate);
    until(|| !syncer.is_active());
    let kinds = records(&log).into_iter().map(|h| h.kind).filter(|k| *k != Kind::CopyCreate as u8);
    let copy = [Kind::SyncBegin as u8, Kind::SyncEnd as u8];
    assert_eq!(kinds.collect::<Vec<_>>(), [copy, copy].concat());
}
