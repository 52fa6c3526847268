//! `pmemha-perf bandwidth`: bytes a second of the fabric at several batch sizes, and of log shipping as a whole, beside what
//! the network and memory can do.
//!
//! The fabric's part is what shipping does: consecutive batches of a ring to the same offsets of a landing ring, a few in
//! flight. Shipping is an application that stores, captures and drains as fast as it is let (`on_full = "block"`); what counts
//! is what the destination has received.

use std::time::{Duration, Instant};

use clap::Args;
use pmemha::types::Level;

use crate::Outcome;
use crate::app::App;
use crate::fabric::{Kind, Lane, Port, open};
use crate::pair::{Pair, Spec, usage};
use crate::peers::{iperf3, memory, perftest, take};
use crate::report::{Aim, Output, Report, Row};

/// Options of `pmemha-perf bandwidth`.
#[derive(Args, Debug)]
pub struct Options {
    /// What bytes travel over
    #[arg(long, value_enum, default_value_t)]
    fabric: Kind,
    /// Bytes of a batch, several sizes in turn
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 16384, 65536, 262144, 1048576, 4194304])]
    sizes: Vec<usize>,
    /// Batches in flight
    #[arg(long, default_value_t = 8)]
    depth: usize,
    /// Milliseconds of each measurement; iperf3 takes whole seconds
    #[arg(long, default_value_t = 2000)]
    time_ms: u64,
    /// Bytes that ib_write_bw moves in each measurement
    #[arg(long, default_value_t = 64 << 20)]
    peer_bytes: usize,
    /// Bytes of an epoch of the shipped log
    #[arg(long, default_value_t = 4096)]
    epoch: usize,
    /// Rounds; each measures every contestant once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    output: Output,
}

/// Ring at either end.
const RING: usize = 64 << 20;

/// Bytes of the region that the shipped log changes.
const REGION: usize = 8 << 20;

/// Buffer of the copies, beyond any cache's second level.
const BUFFER: usize = 64 << 20;

/// Rates are told in this unit.
const MB: f64 = 1e6;

/// Share of the network that is aimed at.
const AIM: Aim = Aim::AtLeast(0.95);

/// Measures, and tells a row for each size and peer.
pub fn run(options: &Options) -> Outcome<()> {
    let mut report = Report::new("bandwidth", &options.output, options.rounds * (options.sizes.len() + 1));
    let network = Network::open(options)?;
    let pipeline = Pipeline::start(options)?;
    let mut sizes: Vec<Size> = options.sizes.iter().map(|size| Size::new(*size)).collect();
    let (mut shipped, mut best, mut source, mut destination) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let mut most = None;
        let stream = network.stream(&mut report)?;
        for size in &mut sizes {
            report.step(format!("round {round}: {} B", size.bytes));
            let peer = network.measure(size, stream, &mut report)?;
            most = most.max_by_rate(peer);
        }
        report.step(format!("round {round}: log shipping"));
        let round = pipeline.ship()?;
        shipped.push(round.rate / MB);
        source.push(round.source_us);
        destination.push(round.destination_us);
        best.extend(most);
    }
    for size in sizes {
        size.tell(network.name(), &mut report);
    }
    let row = Row::new("log shipping", Some(options.epoch as u64), "MB/s", shipped.into());
    report.push(if best.is_empty() {
        row
    } else {
        row.beside(network.name(), best.into()).aiming(Some(AIM))
    });
    for (what, us) in [("source's agent, an epoch", source), ("destination's agent, an epoch", destination)] {
        report.push(Row::new(what, Some(options.epoch as u64), "us of CPU", us.into()));
    }
    report.note(
        "Log shipping is compared with the peer at its best size of the same round. It is what an application gets through, with \
         everything applied at the destination.",
    );
    pipeline.app.leave()?;
    report.finish()
}

trait MaxByRate {
    fn max_by_rate(self, other: Self) -> Self;
}

impl MaxByRate for Option<f64> {
    fn max_by_rate(self, other: Self) -> Self {
        self.into_iter().chain(other).reduce(f64::max)
    }
}

/// MB/s at one size, round by round.
struct Size {
    bytes: usize,
    ours: Vec<f64>,
    network: Vec<f64>,
    memcpy: Vec<f64>,
    flushed: Vec<f64>,
}

impl Size {
    fn new(bytes: usize) -> Size {
        Size { bytes, ours: Vec::new(), network: Vec::new(), memcpy: Vec::new(), flushed: Vec::new() }
    }

    fn tell(self, network: &'static str, report: &mut Report) {
        let row = || Row::new("fabric write", Some(self.bytes as u64), "MB/s", self.ours.clone().into());
        if !self.network.is_empty() {
            report.push(row().beside(network, self.network.into()));
        }
        report.push(row().beside(memory::MEMCPY, self.memcpy.into()));
        report.push(row().beside(memory::MEMCPY_CLWB, self.flushed.into()));
    }
}

/// The fabric, and what carries the same bytes without us.
struct Network<'o> {
    options: &'o Options,
    lane: Lane,
    /// On verbs.
    port: Option<Port>,
}

impl<'o> Network<'o> {
    fn open(options: &'o Options) -> Outcome<Network<'o>> {
        let port = if options.fabric == Kind::Verbs { Some(Port::find()?) } else { None };
        Ok(Network { options, lane: Lane::open(&*open(options.fabric, false)?, RING)?, port })
    }

    fn name(&self) -> &'static str {
        if self.port.is_some() { perftest::WRITE_BANDWIDTH } else { iperf3::NAME }
    }

    /// iperf3 knows no sizes: once a round, in MB/s.
    fn stream(&self, report: &mut Report) -> Outcome<Option<f64>> {
        if self.port.is_some() {
            return Ok(None);
        }
        Ok(take(report, iperf3::bandwidth(self.time()))?.map(|rate| rate / MB))
    }

    /// Everybody at one size; the network's rate in MB/s.
    fn measure(&self, size: &mut Size, stream: Option<f64>, report: &mut Report) -> Outcome<Option<f64>> {
        let bytes = size.bytes;
        let network = match &self.port {
            Some(port) => {
                let count = self.options.peer_bytes / bytes;
                take(report, perftest::bandwidth(port, bytes, count))?.map(|rate| rate / MB)
            }
            None => stream,
        };
        size.network.extend(network);
        size.ours.push(self.lane.bandwidth(bytes, self.options.depth, self.time())? / MB);
        size.memcpy.push(memory::bandwidth(false, bytes, BUFFER, self.time() / 8)? / MB);
        size.flushed.push(memory::bandwidth(true, bytes, BUFFER, self.time() / 8)? / MB);
        Ok(network)
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.options.time_ms)
    }
}

/// An application and two agents.
struct Pipeline<'o> {
    options: &'o Options,
    app: App,
    pair: Pair,
}

/// A round of shipping.
struct Shipped {
    /// Bytes of log a second that the destination received.
    rate: f64,
    /// Processor time of all threads of the source's agent, an epoch.
    source_us: f64,
    /// The same of the destination's.
    destination_us: f64,
}

impl<'o> Pipeline<'o> {
    fn start(options: &'o Options) -> Outcome<Pipeline<'o>> {
        let pair = Pair::start(&Spec::new(options.fabric, RING as u64))?;
        let app = App::attach(&pair.alpha, REGION)?;
        pair.alpha.await_streaming();
        Ok(Pipeline { options, app, pair })
    }

    fn ship(&self) -> Outcome<Shipped> {
        let cpu = || (usage(self.pair.alpha.pid()).runs, usage(self.pair.beta.pid()).runs);
        let cpu_before = cpu();
        let (app, time) = (&self.app, Duration::from_millis(self.options.time_ms));
        let (start, before) = (Instant::now(), app.received());
        let (mut i, mut last) = (0, before);
        while start.elapsed() < time {
            last = app.persist(i, self.options.epoch);
            i += 1;
        }
        app.wait(last, Level::Received)?;
        let rate = app.received().since(before) as f64 / start.elapsed().as_secs_f64();
        app.wait(last, Level::Applied)?;
        let cpu_after = cpu();
        let each =
            |after: Duration, before: Duration| after.saturating_sub(before).as_secs_f64() * 1e6 / i as f64;
        Ok(Shipped {
            rate,
            source_us: each(cpu_after.0, cpu_before.0),
            destination_us: each(cpu_after.1, cpu_before.1),
        })
    }
}
