//! The thread that feeds a group's archive: a second consumer of the log beside the shipper.
//!
//! It promises the application that an archive never holds it up: an archive that cannot be written is given up at once, its
//! claim on the ring with it, and begun anew after a pause that grows. Whatever it begins or goes on with, it asks for a copy of the
//! regions, so that the archive's images are whole from that copy's end on. Started by `agent::source`.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::space::Space;
use super::sync::Requester;
use crate::locks::lock;
use crate::log::format::RecordHeader;
use crate::log::region::wall_clock_ns;
use crate::log::{Batch, Consumer, LogRegion, Owner};
use crate::replica::archive::{ArchiveConfig, ArchiveError, ArchiveWriter};
use crate::replica::store::Bytes;
use crate::types::Lsn;

/// Largest batch: the cost of a system call vanishes in it.
const MAX_BATCH: u64 = 1 << 20;

/// Bytes appended at most before they are made durable, as a part of the ring, whose space they hold until then.
const SYNC_SHARE: u64 = 8;

/// How often an empty log is looked at. The log wakes one sleeper only, which is the shipper.
const LOOK: Duration = Duration::from_millis(5);

/// How often the archive's bounds are looked at.
const RETAIN: Duration = Duration::from_secs(5);

/// First pause after a failure. Every attempt asks for a copy of all regions, so pauses grow.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause after a failure: an operator who made room sees the archive come back within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What an archiver works with.
pub struct Archiving {
    /// The log.
    pub log: Arc<LogRegion>,
    /// The archive.
    pub config: ArchiveConfig,
    /// Whether the log may continue what the archive holds: not so if it was made anew.
    pub resumes: bool,
    /// Where this consumer reports what it no longer needs, and as which.
    pub space: (Arc<Space>, usize),
    /// Asks for the copy that an archive begins with.
    pub copies: Requester,
    /// Sees the header of every record.
    pub observe: Box<dyn Fn(&RecordHeader) + Send>,
    /// Hears what happened to the archive.
    pub tell: Box<dyn Fn(&News<'_>) + Send>,
}

/// What happens to an archive.
#[derive(Debug)]
pub enum News<'a> {
    /// Records are archived from here on.
    Begun(Lsn),
    /// It cannot be written; another attempt follows after the pause.
    Failed(&'a ArchiveError, Duration),
    /// The log is damaged: nothing more is archived from it.
    Ended(&'a crate::log::PoisonError),
}

/// How an archive is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveView {
    /// Every record below is durable in it; `None` while it is not written.
    pub durable: Option<Lsn>,
    /// Why it was last given up.
    pub last_error: Option<String>,
}

/// The thread. Dropped, it archives what is published and ends.
pub struct Archiver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    stop: bool,
    view: ArchiveView,
}

impl Archiver {
    /// Starts to archive.
    pub fn start(name: &str, archiving: Archiving) -> io::Result<Archiver> {
        let shared = Arc::<Shared>::default();
        let work = Work::new(archiving, shared.clone());
        let thread = thread::Builder::new().name(format!("archive-{name}")).spawn(move || work.run())?;
        Ok(Archiver { shared, thread: Some(thread) })
    }

    /// How the archive is.
    pub fn view(&self) -> ArchiveView {
        self.shared.lock().view.clone()
    }
}

impl Drop for Archiver {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.stopped.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

struct Work {
    archiving: Archiving,
    consumer: Consumer,
    shared: Arc<Shared>,
    /// `None` after a failure: then records are only passed over.
    writer: Option<ArchiveWriter>,
    unsynced: u64,
    /// When to try to write again.
    again: Instant,
    pause: Duration,
    retained: Instant,
}

impl Work {
    fn new(archiving: Archiving, shared: Arc<Shared>) -> Work {
        Work {
            consumer: archiving.space.0.consumer(archiving.space.1).expect("an archive never lets go"),
            shared,
            writer: None,
            unsynced: 0,
            again: Instant::now(),
            pause: FIRST_PAUSE,
            retained: Instant::now(),
            archiving,
        }
    }

    fn run(mut self) {
        if let Err(poison) = self.archive() {
            tracing::error!(error = %poison, "the archive ends");
            (self.archiving.tell)(&News::Ended(&poison));
            let mut state = self.shared.lock();
            state.view = ArchiveView { durable: None, last_error: Some(poison.to_string()) };
        }
    }

    /// Until told to stop and at the end of the log, or until the log turns out to be damaged.
    fn archive(&mut self) -> Result<(), crate::log::PoisonError> {
        loop {
            // Looked at before the log is: what was published before the order to stop is archived.
            let stop = self.shared.lock().stop;
            if stop {
                self.archiving.log.publish_filled(&Owner::confirmed_dead);
            } else if self.writer.is_none() && Instant::now() >= self.again {
                self.open()?;
            }
            let most = MAX_BATCH.min(self.archiving.log.spec().ring_bytes / 4);
            match self.consumer.next_batch(most)? {
                Some(batch) => self.take(&batch),
                None => {
                    self.sync();
                    if stop {
                        return Ok(());
                    }
                    self.retain();
                    self.rest();
                }
            }
        }
    }

    /// Opens the archive and goes on where it ends if the ring still holds that for us, else begins anew. What was passed
    /// over after a failure is not held for us, though a slower destination may keep it in the ring for a while.
    fn open(&mut self) -> Result<(), crate::log::PoisonError> {
        let generation = self.archiving.log.spec().generation;
        let begun = ArchiveWriter::open(self.archiving.config.clone()).and_then(|mut writer| {
            let end = writer.position().filter(|p| self.archiving.resumes && p.generation == generation);
            let at = end.filter(|p| self.consumer.holds(p.lsn)).map(|p| p.lsn);
            at.map(|at| writer.begin(generation, at)).transpose()?;
            Ok((writer, at))
        });
        match begun {
            Ok((writer, Some(at))) => {
                self.consumer.skip_to(at);
                self.begun(writer, at);
            }
            Ok((mut writer, None)) => {
                let from = self.pass_over()?;
                match writer.begin(generation, from) {
                    Ok(()) => self.begun(writer, from),
                    Err(error) => self.fail(&error),
                }
            }
            Err(error) => self.fail(&error),
        }
        Ok(())
    }

    fn begun(&mut self, writer: ArchiveWriter, from: Lsn) {
        self.writer = Some(writer);
        self.unsynced = 0;
        self.shared.lock().view.durable = Some(from);
        // Nobody knows whether the last copy before this attempt was complete.
        self.archiving.copies.request_for_newcomer(false);
        (self.archiving.tell)(&News::Begun(from));
    }

    /// Reads what is published without archiving it; returns its end. It means nothing to a copy that begins after it.
    fn pass_over(&mut self) -> Result<Lsn, crate::log::PoisonError> {
        let most = self.archiving.log.spec().ring_bytes;
        while let Some(batch) = self.consumer.next_batch(most)? {
            self.take(&batch);
        }
        Ok(self.consumer.position())
    }

    fn take(&mut self, batch: &Batch) {
        batch.headers.iter().for_each(&self.archiving.observe);
        let log = self.archiving.log.clone();
        let Some(writer) = &mut self.writer else { return self.done(batch.end) };
        let ring = log.spec().ring_bytes;
        let len = batch.end.since(batch.start);
        // The ring is mapped twice in succession, so that a batch is in one piece.
        let bytes = Bytes::Shared {
            memory: log.ring(),
            offset: (batch.start.0 & (ring - 1)) as usize,
            len: len as usize,
        };
        match writer.append(bytes, wall_clock_ns()) {
            Ok(()) => {
                self.unsynced += len;
                if self.unsynced >= ring / SYNC_SHARE {
                    self.sync();
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Makes durable what was appended, and lets go of its space.
    fn sync(&mut self) {
        let Some(writer) = self.writer.as_mut().filter(|_| self.unsynced > 0) else { return };
        match writer.sync() {
            Ok(place) => {
                self.unsynced = 0;
                self.pause = FIRST_PAUSE;
                if let Some(place) = place {
                    self.shared.lock().view.durable = Some(place.lsn);
                    self.done(place.lsn);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    fn retain(&mut self) {
        if self.retained.elapsed() < RETAIN {
            return;
        }
        self.retained = Instant::now();
        if let Some(Err(error)) = self.writer.as_mut().map(|w| w.retain(wall_clock_ns())) {
            self.fail(&error);
        }
    }

    /// Gives the archive up for now. The ring is let go at once.
    fn fail(&mut self, error: &ArchiveError) {
        tracing::error!(%error, "the archive cannot be written");
        self.writer = None;
        (self.archiving.tell)(&News::Failed(error, self.pause));
        self.shared.lock().view = ArchiveView { durable: None, last_error: Some(error.to_string()) };
        self.again = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.done(self.consumer.position());
    }

    fn done(&self, lsn: Lsn) {
        let (space, who) = &self.archiving.space;
        space.done(*who, lsn);
    }

    fn rest(&self) {
        let state = self.shared.lock();
        drop(self.shared.stopped.wait_timeout_while(state, LOOK, |state| !state.stop));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::{Kind, MIN_RING};
    use crate::log::{Appender, LogSpec};
    use crate::ship::sync::{SyncRegion, SyncSource, Syncer};
    use crate::types::{GroupId, RegionId};

    struct NoRegions(Appender);

    impl SyncSource for NoRegions {
        fn appender(&self) -> &Appender {
            &self.0
        }
        fn regions(&self) -> io::Result<Vec<SyncRegion>> {
            Ok(Vec::new())
        }
        fn is_still(&self) -> bool {
            false
        }
        fn destinations(&self) -> usize {
            1
        }
    }

    #[test]
    fn an_archive_that_was_given_up_does_not_go_back_to_what_only_the_destination_still_holds() {
        let spec = LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        let first = log.free();
        // The destination, consumer 0, acknowledges nothing.
        let space = Space::new(log.clone(), (1, 1), 0, false);
        let copying = Appender::attach(log.clone(), 2).unwrap();
        let syncer = Syncer::start("archive-test", Arc::new(NoRegions(copying))).unwrap();
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut work = Work::new(
            Archiving {
                log: log.clone(),
                config: ArchiveConfig {
                    dir: dir.path().join("archive"),
                    group: GroupId([1; 16]),
                    keep_bytes: 1 << 20,
                    keep_age: None,
                },
                resumes: true,
                space: (space, 1),
                copies: syncer.requester(),
                observe: Box::new(|_| {}),
                tell: Box::new(|_| {}),
            },
            Arc::default(),
        );
        let app = Appender::attach(log.clone(), 1).unwrap();
        let record = || {
            app.append(Kind::Data, RegionId(1), 0, &[1; 64]).unwrap();
            app.drain()
        };
        work.open().unwrap();
        let durable = record();
        let batch = work.consumer.next_batch(MAX_BATCH).unwrap().unwrap();
        work.take(&batch);
        work.sync();
        assert_eq!(work.shared.lock().view.durable, Some(durable));
        let lost = record();
        let batch = work.consumer.next_batch(MAX_BATCH).unwrap().unwrap();
        work.take(&batch);
        let source = io::Error::from_raw_os_error(libc::ENOSPC);
        work.fail(&ArchiveError::Io { what: "write", path: dir.path().to_owned(), source });

        work.open().unwrap();
        assert_eq!(log.free(), first, "the destination holds all of it");
        assert_eq!(work.consumer.position(), lost, "given free by this consumer, and yet to be read again");
        assert_eq!(work.shared.lock().view.durable, Some(lost), "begun anew behind it");
    }
}
