//! A replica attached over a real fabric: acknowledged, woken from sleep, faulted and mended.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmemha::fabric::meeting::MeetingConfig;
use pmemha::fabric::tcp::TcpFabric;
use pmemha::fabric::{Endpoint, Fabric, Local, Registration, RemoteAccess, RemoteKey, Write};
use pmemha::region::memory::SharedMem;
use pmemha::replica::ack::{ACK_BYTES, AckCell, COUNTS, FAULTED, SLEEPING};
use pmemha::replica::applier::ApplierConfig;
use pmemha::replica::store::disk::DiskStore;
use pmemha::replica::{ImageHealth, Link, Replica};
use pmemha::types::{Durability, Lsn};

use super::stream::{Builder, FIRST, GROUP, fresh, goes_on};

const RING: u64 = 64 << 10;

/// Longest wait for something that should happen at once.
const SOON: Duration = Duration::from_secs(20);

struct Source {
    /// Keeps the listeners.
    _fabrics: [TcpFabric; 2],
    end: Arc<dyn Endpoint>,
    theirs: Arc<dyn Endpoint>,
    acks: Arc<dyn Registration>,
    staging: Arc<dyn Registration>,
}

fn fabric() -> TcpFabric {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    TcpFabric::new(MeetingConfig { listen, advertise: None, identity: None }).unwrap()
}

impl Source {
    fn new() -> Source {
        let fabrics = [fabric(), fabric()];
        let offer = fabrics[1].offer().unwrap();
        let (address, deadline) = (offer.address(), Instant::now() + SOON);
        let (end, theirs) = std::thread::scope(|scope| {
            let accepting = scope.spawn(|| offer.accept(deadline).unwrap());
            (fabrics[0].connect(&address, deadline).unwrap(), accepting.join().unwrap())
        });
        let memory = |len| Arc::new(SharedMem::anonymous(len).unwrap());
        let acks = end.register(memory(4096), RemoteAccess::Write).unwrap();
        let staging = end.register(memory(RING as usize), RemoteAccess::Local).unwrap();
        Source { _fabrics: fabrics, end, theirs, acks, staging }
    }

    fn ship(&self, ring: RemoteKey, stream: &Builder, from: Lsn, wake: bool) {
        let bytes = &stream.bytes()[(from.0 - FIRST.0) as usize..];
        self.staging.memory().write(0, bytes);
        let local = Local { memory: &self.staging, offset: 0, len: bytes.len() };
        let immediate = wake.then_some(1);
        let write = Write { local, remote: ring, remote_offset: from.0 % RING, immediate, signal: None };
        self.end.write(&[write]).unwrap();
    }

    fn ack(&self) -> Option<AckCell> {
        let mut bytes = [0; ACK_BYTES];
        self.acks.memory().read(0, &mut bytes);
        AckCell::decode(&bytes)
    }

    /// Looks at every acknowledgement for long enough that a destination has slept or tried again some times.
    fn watch(&self, look: impl Fn(AckCell)) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(2500) {
            look(self.ack().expect("an acknowledgement"));
            self.end.wait(Duration::from_millis(10));
            while self.end.take_immediate().is_some() {}
        }
    }

    fn until(&self, what: &str, fits: impl Fn(&AckCell) -> bool) -> AckCell {
        let start = Instant::now();
        loop {
            if let Some(ack) = self.ack().filter(&fits) {
                return ack;
            }
            assert!(start.elapsed() < SOON, "never {what}: {:?}", self.ack());
            self.end.wait(Duration::from_millis(10));
            while self.end.take_immediate().is_some() {}
        }
    }
}

fn open(dir: &Path) -> Replica {
    let durability = Durability::Battery;
    let store = Arc::new(DiskStore::new(durability));
    Replica::open(ApplierConfig { store, dir: dir.join("replica"), group: GROUP, durability }).unwrap().0
}

fn attach(replica: &mut Replica, source: &Source, from: Lsn, anew: bool) -> RemoteKey {
    let start = if anew { fresh(RING, from) } else { goes_on(RING, from) };
    let ring = replica.take_stream(start).unwrap();
    let ring = source.theirs.register(ring, RemoteAccess::Write).unwrap();
    let key = ring.key();
    // Registered for as long as the process lives: this test ends before that matters.
    std::mem::forget(ring);
    replica.attach(Link { endpoint: source.theirs.clone(), ack: source.acks.key(), notify: true }).unwrap();
    key
}

#[test]
fn records_are_acknowledged_and_a_sleeping_destination_is_woken() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (source, mut replica) = (Source::new(), open(dir.path()));
    let ring = attach(&mut replica, &source, FIRST, true);
    let mut stream = Builder::one_region(3);
    let synced = stream.at;
    source.ship(ring, &stream, FIRST, false);
    let ack = source.until("applied", |a| a.applied == synced.0 && a.flags & SLEEPING != 0);
    assert!(ack.flags & COUNTS != 0 && ack.counts_from == synced.0 && ack.durable == synced.0);
    assert_eq!(ack.digest, stream.records.iter().fold(0, |d, (h, _)| pmemha::log::digest::chain(d, h)));
    // It sleeps for up to a second; an immediate wakes it at once. Were it not heard, these would take twenty.
    let start = Instant::now();
    for i in 0..20 {
        let from = stream.at;
        stream.data(1, 64 * i, &[i as u8; 64]);
        source.ship(ring, &stream, from, true);
        source.until("applied after sleep", |a| a.applied == stream.at.0 && a.flags & SLEEPING != 0);
    }
    assert!(start.elapsed() < SOON / 2);
    let status = replica.status();
    assert!(status.attached && status.image == ImageHealth::Consistent && status.applied == stream.at);
    replica.detach();
    assert!(!replica.status().attached);
}

#[test]
fn an_idle_destination_is_silent() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (source, mut replica) = (Source::new(), open(dir.path()));
    let ring = attach(&mut replica, &source, FIRST, true);
    let stream = Builder::one_region(3);
    source.ship(ring, &stream, FIRST, false);
    let asleep = source.until("asleep", |a| a.applied == stream.at.0 && a.flags & SLEEPING != 0);
    source.watch(|ack| assert_eq!(ack, asleep));
}

#[test]
fn it_resumes_where_it_stood_after_a_restart() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut stream = Builder::one_region(3);
    let source = Source::new();
    let mut replica = open(dir.path());
    let ring = attach(&mut replica, &source, FIRST, true);
    source.ship(ring, &stream, FIRST, false);
    source.until("applied", |a| a.applied == stream.at.0);
    drop(replica);
    let mut replica = open(dir.path());
    assert_eq!(replica.status().received, stream.at);
    let (source, from) = (Source::new(), stream.at);
    let ring = attach(&mut replica, &source, from, false);
    stream.data(1, 0, &[9; 64]);
    source.ship(ring, &stream, from, true);
    source.until("applied", |a| a.applied == stream.at.0 && a.flags & COUNTS != 0);
}

#[test]
fn a_fault_is_said_and_ends_when_it_is_mended() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut stream = Builder::one_region(3);
    let (source, mut replica) = (Source::new(), open(dir.path()));
    let ring = attach(&mut replica, &source, FIRST, true);
    source.ship(ring, &stream, FIRST, false);
    source.until("applied", |a| a.applied == stream.at.0);
    // The image's directory goes away: metadata can no longer be changed.
    let (image, away) = (dir.path().join("replica/image-1"), dir.path().join("replica/away"));
    std::fs::rename(&image, &away).unwrap();
    let (from, applied) = (stream.at, stream.at);
    stream.create(2, "/src/two", 64);
    source.ship(ring, &stream, from, true);
    source.until("faulted", |a| a.flags & FAULTED != 0);
    // It tries again and again, and must not take what is gone for nothing: no record may count as applied.
    stream.data(2, 0, &[7; 64]);
    let second = stream.records[stream.records.len() - 2].0.next();
    source.ship(ring, &stream, second, true);
    source.watch(|ack| assert!(ack.flags & FAULTED != 0 && ack.applied == applied.0, "{ack:?}"));
    let status = replica.status();
    assert!(status.faulted.is_some() && !status.poisoned, "{status:?}");
    std::fs::rename(&away, &image).unwrap();
    source.until("mended", |a| a.applied == stream.at.0 && a.flags & (COUNTS | FAULTED) == COUNTS);
    assert!(replica.status().faulted.is_none());
}
