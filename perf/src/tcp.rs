//! `pmemha-perf tcp`: the tcp fabric's bandwidth and latency over loopback, with iperf3 beside it.
//!
//! Bandwidth is what shipping does: consecutive batches of a ring, written to the same offsets of a landing ring,
//! a few in flight, the last of each signalled. iperf3 runs one stream for as long, in turns with us, so that whatever
//! else the machine does hits both; the figure to look at is the ratio.

use std::error::Error;
use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use pmemha::fabric::meeting::MeetingConfig;
use pmemha::fabric::tcp::TcpFabric;
use pmemha::fabric::tls::{TlsIdentity, make_authority, make_node_certificate};
use pmemha::fabric::{Endpoint, Fabric, Local, Registration, RemoteAccess, Write};
use pmemha::region::memory::{Access, SharedMem};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// Options of `pmemha-perf tcp`.
#[derive(Args, Debug)]
pub struct Options {
    /// Bytes of one batch.
    #[arg(long, default_value_t = 1 << 20)]
    batch: usize,
    /// Batches in flight.
    #[arg(long, default_value_t = 8)]
    depth: usize,
    /// Bytes of the ring at either end.
    #[arg(long, default_value_t = 64 << 20)]
    ring: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Rounds; each measures every contestant once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Leave out TLS.
    #[arg(long)]
    plain_only: bool,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Runs the benchmark and prints a line a figure, then one JSON line.
pub fn run(options: &Options) -> Outcome<()> {
    let plain = Lane::open(options, None)?;
    let keys = tempfile::tempdir()?;
    let encrypted = match options.plain_only {
        true => None,
        false => Some(Lane::open(options, Some(identity(keys.path())?))?),
    };
    let mut figures = Figures::default();
    for round in 1..=options.rounds {
        figures.peer.extend(iperf3(options.seconds)?);
        figures.plain.push(plain.bandwidth(options)?);
        if let Some(lane) = &encrypted {
            figures.encrypted.push(lane.bandwidth(options)?);
        }
        println!("round {round}: {figures}");
    }
    let latency = [64, 4096].map(|len| plain.latency(len));
    let mut report = figures.report();
    for (len, histogram) in [64, 4096].into_iter().zip(latency) {
        let histogram = histogram?;
        let micros = |q| histogram.value_at_quantile(q) as f64 / 1e3;
        println!("write of {len} B to completion: p50 {:.1} us, p99 {:.1} us", micros(0.5), micros(0.99));
        report[format!("write_{len}_p50_us")] = micros(0.5).into();
        report[format!("write_{len}_p99_us")] = micros(0.99).into();
    }
    println!("{report}");
    Ok(())
}

/// A connection with a ring at either end.
struct Lane {
    left: Arc<dyn Endpoint>,
    /// Only has to live.
    _right: Arc<dyn Endpoint>,
    log: Arc<dyn Registration>,
    landing: Arc<dyn Registration>,
}

impl Lane {
    fn open(options: &Options, identity: Option<TlsIdentity>) -> Outcome<Lane> {
        let config = MeetingConfig { listen: "127.0.0.1:0".parse()?, advertise: None, identity };
        let fabric = TcpFabric::new(config)?;
        let offer = fabric.offer()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let left = fabric.connect(&offer.address(), deadline)?;
        let right = offer.accept(deadline)?;
        let log = left.register(ring(options.ring)?, RemoteAccess::Local)?;
        let landing = right.register(ring(options.ring)?, RemoteAccess::Write)?;
        Ok(Lane { left, _right: right, log, landing })
    }

    /// Bytes a second of batches that go round the ring.
    fn bandwidth(&self, options: &Options) -> Outcome<f64> {
        let (mut completions, mut in_flight, mut at) = (Vec::new(), 0, 0);
        let (start, mut moved) = (Instant::now(), 0);
        let until = Duration::from_secs(options.seconds);
        while start.elapsed() < until || in_flight > 0 {
            while in_flight < options.depth && start.elapsed() < until {
                let len = options.batch.min(options.ring - at);
                self.post(at, len)?;
                at = (at + len) % options.ring;
                in_flight += 1;
                moved += len;
            }
            self.left.wait(Duration::from_secs(1));
            self.left.poll(&mut completions);
            for completion in completions.drain(..) {
                completion.result?;
                in_flight -= 1;
            }
        }
        Ok(moved as f64 / start.elapsed().as_secs_f64())
    }

    /// Nanoseconds from post to completion, one write at a time.
    fn latency(&self, len: usize) -> Outcome<Histogram<u64>> {
        let mut histogram = Histogram::new(3)?;
        let mut completions = Vec::new();
        for i in 0..5_000 {
            let start = Instant::now();
            self.post(i * 64 % 4096, len)?;
            while self.left.poll(&mut completions) == 0 {
                self.left.wait(Duration::from_secs(1));
            }
            histogram.record(start.elapsed().as_nanos() as u64)?;
            completions.drain(..).try_for_each(|completion| completion.result)?;
        }
        Ok(histogram)
    }

    fn post(&self, at: usize, len: usize) -> Outcome<()> {
        let local = Local { memory: &self.log, offset: at, len };
        let remote = self.landing.key();
        self.left.write(&[Write {
            local,
            remote,
            remote_offset: at as u64,
            immediate: None,
            signal: Some(0),
        }])?;
        Ok(())
    }
}

fn ring(bytes: usize) -> Outcome<Arc<SharedMem>> {
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

/// Bytes a second of one iperf3 stream; none where it is not installed.
fn iperf3(seconds: u64) -> Outcome<Option<f64>> {
    const PORT: &str = "45201";
    let server = Command::new("iperf3").args(["-s", "-1", "-p", PORT]).stdout(Stdio::null()).spawn();
    let Ok(mut server) = server else {
        eprintln!("iperf3 is not installed: no peer to compare with (apt-get install iperf3)");
        return Ok(None);
    };
    let client = || -> Outcome<Option<f64>> {
        for _ in 0..50 {
            let seconds = seconds.to_string();
            let output = Command::new("iperf3")
                .args(["-c", "127.0.0.1", "-p", PORT, "-J", "-t", &seconds])
                .stderr(Stdio::null())
                .output()?;
            let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            if let Some(bits) = report["end"]["sum_received"]["bits_per_second"].as_f64() {
                return Ok(Some(bits / 8.0));
            }
            // The server has not come up yet.
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("iperf3 gave no figure".into())
    };
    let figure = client();
    let _ = server.kill();
    server.wait()?;
    figure
}

/// Bytes a second, round by round.
#[derive(Default)]
struct Figures {
    peer: Vec<f64>,
    plain: Vec<f64>,
    encrypted: Vec<f64>,
}

impl Figures {
    /// The ratio of ours to iperf3's, median of the rounds' ratios.
    fn ratio(&self, ours: &[f64]) -> Option<f64> {
        median(ours.iter().zip(&self.peer).map(|(ours, peer)| ours / peer).collect())
    }

    fn report(&self) -> serde_json::Value {
        let gigabytes = |of: &[f64]| median(of.to_vec()).map(|rate| rate / 1e9);
        serde_json::json!({
            "iperf3_gb_per_s": gigabytes(&self.peer),
            "plain_gb_per_s": gigabytes(&self.plain),
            "plain_to_iperf3": self.ratio(&self.plain),
            "encrypted_gb_per_s": gigabytes(&self.encrypted),
            "encrypted_to_iperf3": self.ratio(&self.encrypted),
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, rates) in [("iperf3", &self.peer), ("plain", &self.plain), ("encrypted", &self.encrypted)]
        {
            if let Some(rate) = rates.last() {
                write!(f, "{separator}{name} {:.2} GB/s", rate / 1e9)?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
