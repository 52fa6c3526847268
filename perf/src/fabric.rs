//! The fabrics as benchmarks use them: chosen by an option, with a connection whose two ends are both here.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use hdrhistogram::Histogram;
use pmemha::fabric::meeting::{Meeting, MeetingConfig};
use pmemha::fabric::tcp::TcpFabric;
use pmemha::fabric::tls::{TlsIdentity, make_authority, make_node_certificate};
use pmemha::fabric::verbs::{Choice, Selected, VerbsFabric};
use pmemha::fabric::{Completion, Endpoint, Fabric, Local, Registration, RemoteAccess, Write};
use pmemha::region::memory::{Access, SharedMem};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::Outcome;
use crate::figures::round_of_times;

/// What bytes travel over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Sockets, over loopback, not encrypted.
    #[default]
    Tcp,
    /// RDMA, from an adapter to itself.
    Verbs,
}

impl Kind {
    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tcp => "tcp",
            Kind::Verbs => "verbs",
        }
    }
}

/// An RDMA adapter of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// Its name.
    pub name: String,
    /// Whether it is a program of the kernel's (Soft-RoCE): the processor is the adapter then.
    pub software: bool,
}

/// Where the kernel lists adapters.
const ADAPTERS: &str = "/sys/class/infiniband";

/// Below it are devices that no hardware stands behind.
const VIRTUAL: &str = "/sys/devices/virtual";

/// The adapters of this machine.
pub fn adapters() -> Vec<Adapter> {
    let entries = fs::read_dir(ADAPTERS).into_iter().flatten().flatten();
    let adapter = |entry: fs::DirEntry| Adapter {
        name: entry.file_name().to_string_lossy().into_owned(),
        software: entry.path().canonicalize().is_ok_and(|path| path.starts_with(VIRTUAL)),
    };
    entries.map(adapter).collect()
}

/// The port that verbs uses here, which peers are to use, too.
#[derive(Clone, Debug)]
pub struct Port {
    /// Adapter, port and address.
    pub chosen: Selected,
    /// See [`Adapter::software`].
    pub software: bool,
}

impl Port {
    /// The one that the fabric would choose.
    pub fn find() -> Outcome<Port> {
        let chosen = VerbsFabric::probe(&Choice::default())?;
        let software = adapters().iter().any(|a| a.name == chosen.device && a.software);
        Ok(Port { chosen, software })
    }

    /// Its address as that of a network.
    pub fn address(&self) -> IpAddr {
        Ipv6Addr::from(self.chosen.gid.address).to_canonical()
    }
}

/// Opens a fabric; `encrypted` is for tcp, verbs never is.
pub fn open(kind: Kind, encrypted: bool) -> Outcome<Arc<dyn Fabric>> {
    let secure = encrypted || kind == Kind::Verbs;
    let keys = tempfile::tempdir()?;
    let identity = if secure { Some(identity(keys.path())?) } else { None };
    let config = MeetingConfig { listen: "127.0.0.1:0".parse()?, advertise: None, identity };
    Ok(match kind {
        Kind::Tcp => Arc::new(TcpFabric::new(config)?),
        Kind::Verbs => Arc::new(VerbsFabric::over(Meeting::start(config)?, Choice::default())),
    })
}

/// A connection with a ring at either end.
pub struct Lane {
    left: Arc<dyn Endpoint>,
    /// Only has to live.
    _right: Arc<dyn Endpoint>,
    log: Arc<dyn Registration>,
    landing: Arc<dyn Registration>,
    ring: usize,
}

/// See [`Lane::hold_engine`].
pub struct Held {
    _gate: mpsc::Sender<()>,
}

/// Longest time for something to happen on a connection to ourselves.
const SOON: Duration = Duration::from_secs(30);

impl Lane {
    /// Connects a fabric with itself; `ring` bytes at either end.
    pub fn open(fabric: &dyn Fabric, ring: usize) -> Outcome<Lane> {
        let deadline = Instant::now() + SOON;
        let offer = fabric.offer()?;
        let address = offer.address();
        // Neither end is complete before the other one is.
        let (left, right) = std::thread::scope(|scope| {
            let accepting = scope.spawn(|| offer.accept(deadline));
            let left = fabric.connect(&address, deadline);
            (left, accepting.join().expect("accept does not panic"))
        });
        let (left, right) = (left?, right?);
        let log = left.register(touched_ring(ring)?, RemoteAccess::Local)?;
        let landing = right.register(touched_ring(ring)?, RemoteAccess::Write)?;
        Ok(Lane { left, _right: right, log, landing, ring })
    }

    /// Bytes a second of batches that go round the ring, `depth` of them in flight, each of them signalled.
    pub fn bandwidth(&self, batch: usize, depth: usize, time: Duration) -> Outcome<f64> {
        let (mut completions, mut in_flight, mut at) = (Vec::new(), 0, 0);
        let (start, mut moved) = (Instant::now(), 0);
        while start.elapsed() < time || in_flight > 0 {
            while in_flight < depth && start.elapsed() < time {
                let len = batch.min(self.ring - at);
                self.post(at, len)?;
                at = (at + len) % self.ring;
                in_flight += 1;
                moved += len;
            }
            self.left.wait(SOON);
            self.left.poll(&mut completions);
            in_flight -= completions.len();
            completions.drain(..).try_for_each(|completion| completion.result)?;
        }
        Ok(moved as f64 / start.elapsed().as_secs_f64())
    }

    /// Nanoseconds from post to completion, one write at a time.
    pub fn write(&self, len: usize, count: usize) -> Outcome<Histogram<u64>> {
        self.times(count, |i| self.post(i * 64 % 4096, len))
    }

    /// As [`Lane::write`], with a read of the last bytes behind it: its end proves that the write has been placed.
    pub fn write_and_read(&self, len: usize, count: usize) -> Outcome<Histogram<u64>> {
        let proof = self.left.register(Arc::new(SharedMem::anonymous(4096)?), RemoteAccess::Local)?;
        self.times(count, |i| {
            let at = i * 64 % 4096;
            self.left.write(&[self.request(at, len, None)])?;
            let into = Local { memory: &proof, offset: 0, len: PROOF };
            Ok(self.left.read(into, self.landing.key(), (at + len.saturating_sub(PROOF)) as u64, 0)?)
        })
    }

    /// Writes one behind the other, the last of them signalled, for [`Lane::post_all`].
    pub fn writes(&self, count: usize, len: usize) -> Vec<Write<'_>> {
        (0..count).map(|i| self.request(i * len, len, (i + 1 == count).then_some(0))).collect()
    }

    /// Posts all at once.
    #[inline]
    pub fn post_all(&self, writes: &[Write<'_>]) -> Outcome<()> {
        Ok(self.left.write(writes)?)
    }

    /// Takes what has completed; how many there were.
    #[inline]
    pub fn poll(&self, completions: &mut Vec<Completion>) -> usize {
        self.left.poll(completions)
    }

    /// Keeps the connection's own thread from taking completions, until what this returns is dropped.
    pub fn hold_engine(&self) -> Outcome<Held> {
        let ((told, tells), (gate, opens)) = (mpsc::channel(), mpsc::channel());
        let opens = Mutex::new(opens);
        // That thread says that it is there, and waits.
        self.left.on_event(Box::new(move || {
            let _ = told.send(());
            if let Ok(opens) = opens.lock() {
                let _: Result<(), _> = opens.recv();
            }
        }));
        tells.recv_timeout(SOON)?;
        Ok(Held { _gate: gate })
    }

    fn times(&self, count: usize, mut begin: impl FnMut(usize) -> Outcome<()>) -> Outcome<Histogram<u64>> {
        let (mut times, mut completions) = (round_of_times(), Vec::<Completion>::new());
        for i in 0..count {
            let start = Instant::now();
            begin(i)?;
            while self.left.poll(&mut completions) == 0 {
                self.left.wait(SOON);
            }
            times.saturating_record(start.elapsed().as_nanos() as u64);
            completions.drain(..).try_for_each(|completion| completion.result)?;
        }
        Ok(times)
    }

    fn post(&self, at: usize, len: usize) -> Outcome<()> {
        Ok(self.left.write(&[self.request(at, len, Some(0))])?)
    }

    fn request(&self, at: usize, len: usize, signal: Option<u64>) -> Write<'_> {
        let local = Local { memory: &self.log, offset: at, len };
        Write { local, remote: self.landing.key(), remote_offset: at as u64, immediate: None, signal }
    }
}

/// Bytes that are read back to prove a write's placement: what librpma's flush reads.
const PROOF: usize = 8;

fn touched_ring(bytes: usize) -> Outcome<Arc<SharedMem>> {
    let fd = memfd_create("ring", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, bytes as u64)?;
    let ring = SharedMem::map_ring(fd.as_fd(), 0, bytes, Access::ReadWrite)?;
    // Touched, so that no page fault is measured.
    let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    (0..bytes).step_by(noise.len()).for_each(|at| ring.write(at, &noise));
    Ok(Arc::new(ring))
}

fn identity(dir: &Path) -> Outcome<TlsIdentity> {
    let at = |name: &str| dir.join(name);
    let authority = make_authority()?;
    authority.write(&at("ca.pem"), &at("ca.key"))?;
    make_node_certificate(&authority, "perf")?.write(&at("node.pem"), &at("node.key"))?;
    Ok(TlsIdentity::load(&at("ca.pem"), &at("node.pem"), &at("node.key"))?)
}
