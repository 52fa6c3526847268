//! `pmemha-perf apply`: how fast a destination applies a landed stream, beside memcpy of the same bytes.
//!
//! The stream comes from a real log (appender, consumer) and is copied into the landing ring outside the clock. The clock runs
//! while the applier checks it (header, CRC32C), copies it into the image and stores its position. The peer copies the same
//! payloads from the same ring to the same offsets of a mapped file, and checks nothing. Both take turns.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use pmemha::log::format::{Kind, RECORD_HEADER, RecordHeader, RegionPayload};
use pmemha::log::{Appender, Consumer, LogRegion, LogSpec};
use pmemha::region::memory::{Access, SharedMem};
use pmemha::replica::StreamStart;
use pmemha::replica::applier::{Applier, ApplierConfig};
use pmemha::replica::store::disk::DiskStore;
use pmemha::types::{Durability, RegionId};

use crate::Outcome;
use crate::peers::memory::MEMCPY;
use crate::report::{Aim, Output, Report, Row};

/// Options of `pmemha-perf apply`.
#[derive(Args, Debug)]
pub struct Options {
    /// Payload bytes of a record, several sizes in turn
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 4096, 65536])]
    bytes: Vec<usize>,
    /// Bytes of the region that they go to, in MiB
    #[arg(long, default_value_t = 64)]
    region_mib: u64,
    /// Rounds; each measures both once
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Where image and peer's file are: persistent memory, or what stands for it
    #[arg(long, default_value = "/dev/shm")]
    dir: std::path::PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Ring at either end; half of it is filled in each round.
const RING: u64 = 64 << 20;

/// Share of memcpy's rate that is aimed at.
const AIM: Aim = Aim::AtLeast(0.5);

/// The one region.
const REGION: RegionId = RegionId(1);

/// Measures, and tells a row for each size.
pub fn run(options: &Options) -> Outcome<()> {
    let mut report = Report::new("apply", &options.output, options.bytes.len() * options.rounds);
    for &bytes in &options.bytes {
        let dir = tempfile::tempdir_in(&options.dir)?;
        let mut rig = Rig::new(dir.path(), options.region_mib << 20)?;
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            report.step(format!("{bytes} B, round {round}"));
            let moved = rig.fill(bytes)?;
            let rate = |took: Duration| moved as f64 / took.as_secs_f64() / 1e6;
            peer.push(rate(rig.memcpy()));
            ours.push(rate(rig.apply()?));
        }
        let row = Row::new("apply", Some(bytes as u64), "MB/s", ours.into());
        report.push(row.beside(MEMCPY, peer.into()).aiming(Some(AIM)));
    }
    report.finish()
}

/// A log, a destination beside it, and the peer's file.
struct Rig {
    app: Appender,
    consumer: Consumer,
    applier: Applier,
    landing: Arc<SharedMem>,
    peer: SharedMem,
    /// What the clock is to see, of the present round.
    headers: Vec<RecordHeader>,
    places: Places,
}

impl Rig {
    fn new(dir: &std::path::Path, region_bytes: u64) -> Outcome<Rig> {
        let spec = LogSpec { ring_bytes: RING, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec)?;
        let app = Appender::for_agent(log.clone(), 1)?;
        let durability = Durability::Battery;
        let store = Arc::new(DiskStore::new(durability));
        let config = ApplierConfig { store, dir: dir.join("replica"), group: spec.group, durability };
        let (mut applier, _) = Applier::open(config)?;
        let landing = applier.take_stream(StreamStart {
            generation: spec.generation,
            log: spec.id,
            ring_bytes: RING,
            from: spec.first_lsn,
            fresh: Some(1),
        })?;
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(dir.join("peer"))?;
        file.set_len(region_bytes)?;
        let peer = SharedMem::map(file.as_fd(), 0, region_bytes as usize, Access::ReadWrite)?;
        let consumer = Consumer::new(log, spec.first_lsn);
        let places = Places { region_bytes, state: 1 };
        let mut rig = Rig { app, consumer, applier, landing, peer, headers: Vec::new(), places };
        rig.sync(region_bytes)?;
        Ok(rig)
    }

    /// A first sync that writes every page, so that no page is touched for the first time under the clock.
    fn sync(&mut self, region_bytes: u64) -> Outcome<()> {
        use zerocopy::IntoBytes;
        self.append(Kind::SyncBegin, 0, &[])?;
        let mut create = RegionPayload { size: region_bytes, mode: 0o600, reserved: 0 }.as_bytes().to_vec();
        create.extend(b"/pmemha-perf/region");
        self.append(Kind::RegionCreate, 0, &create)?;
        let piece = vec![1; 1 << 20];
        for offset in (0..region_bytes).step_by(piece.len()) {
            self.append(Kind::Data, offset, &piece)?;
            self.land()?;
            self.apply()?;
        }
        self.peer.write(0, &vec![1; region_bytes as usize]);
        self.append(Kind::SyncEnd, 0, &[])?;
        self.land()?;
        self.apply()?;
        Ok(())
    }

    fn append(&mut self, kind: Kind, offset: u64, payload: &[u8]) -> Outcome<()> {
        let appended = self.app.append(kind, REGION, offset, payload);
        appended.map_err(|_| "the ring is full although it was just freed")?;
        Ok(())
    }

    /// Fills half the ring with records at scattered places and lands it; payload bytes.
    fn fill(&mut self, bytes: usize) -> Outcome<u64> {
        let span = bytes as u64 + RECORD_HEADER;
        let count = RING / 2 / span;
        let payload: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
        for _ in 0..count {
            let offset = self.places.next(bytes as u64);
            self.append(Kind::Data, offset, &payload)?;
        }
        self.headers = self.land()?;
        Ok(count * bytes as u64)
    }

    /// Copies what was appended to the landing ring, as a one-sided write does.
    fn land(&mut self) -> Outcome<Vec<RecordHeader>> {
        self.app.drain();
        let log = self.app.log().clone();
        let mut headers = Vec::new();
        while let Some(batch) = self.consumer.next_batch(RING)? {
            let at = (batch.start.0 % RING) as usize;
            log.ring().copy_to(at, &self.landing, at, batch.end.since(batch.start) as usize);
            headers.extend(batch.headers);
        }
        log.set_free(self.consumer.position());
        Ok(headers)
    }

    fn apply(&mut self) -> Outcome<Duration> {
        let start = Instant::now();
        while self.applier.receive()? {
            self.applier.apply()?;
            if self.applier.must_persist() {
                self.applier.persist()?;
            }
        }
        self.applier.persist()?;
        Ok(start.elapsed())
    }

    fn memcpy(&self) -> Duration {
        let start = Instant::now();
        for header in &self.headers {
            let from = ((header.lsn + RECORD_HEADER) % RING) as usize;
            let (_, offset) = header.place();
            self.landing.copy_to(from, &self.peer, offset as usize, header.len as usize);
        }
        start.elapsed()
    }
}

/// Scattered places in the region, the same from run to run.
struct Places {
    region_bytes: u64,
    state: u64,
}

impl Places {
    fn next(&mut self, bytes: u64) -> u64 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let slots = self.region_bytes / bytes;
        (self.state >> 20) % slots * bytes
    }
}
