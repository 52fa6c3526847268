//! `pmemha-perf latency`: from a store to its acknowledgement at each level, beside what the network alone takes.
//!
//! Ours is what an application sees: store, capture, drain, wait, with both agents at work. Operations are due by a fixed
//! schedule, see [`crate::schedule`]. Peers run before and after it in each round.

use std::time::Duration;

use clap::{Args, ValueEnum};
use pmemha::types::Level;

use crate::Outcome;
use crate::app::App;
use crate::fabric::{Kind, Lane, Port, open};
use crate::figures::Times;
use crate::pair::{Pair, Spec, Usage, usage};
use crate::peers::librpma::{self, Librpma, Mode};
use crate::peers::{Found, perftest, pingpong, take};
use crate::report::{Aim, Output, Report, Row, Series};
use crate::schedule;

/// Options of `pmemha-perf latency`.
#[derive(Args, Debug)]
pub struct Options {
    /// What records travel over
    #[arg(long, value_enum, default_value_t)]
    fabric: Kind,
    /// Bytes of an epoch, several sizes in turn
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576])]
    sizes: Vec<usize>,
    /// Levels, in turn
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Reach::Received, Reach::Durable, Reach::Applied])]
    levels: Vec<Reach>,
    /// What the destination declares: battery, eadr (the source reads back what it wrote), pmem or disk
    #[arg(long, default_value = "battery", value_parser = ["battery", "eadr", "pmem", "disk"])]
    durability: String,
    /// Operations of a round; sizes above 64 KiB have fewer
    #[arg(long, default_value_t = 2000)]
    count: usize,
    /// Rounds; each measures every contestant once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Microseconds between two operations; without it, twice of what one takes
    #[arg(long)]
    interval_us: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// A level that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reach {
    /// In the destination's memory.
    Received,
    /// Survives the loss of the source.
    Durable,
    /// In the image.
    Applied,
}

/// Size for which there are aims.
const EPOCH: usize = 64;

/// Bytes of a round at most, so that large sizes do not take for ever.
const ROUND_BYTES: usize = 128 << 20;

/// Bytes of the region.
const REGION: usize = 8 << 20;

/// Ring at either end.
const RING: usize = 64 << 20;

/// The rows whose peers are a read after a write, on an adapter that is a program.
const LATENCY_ONLY: &str = "latency only";

/// Measures, and tells a row for each level, size and peer.
pub fn run(options: &Options) -> Outcome<()> {
    let spec = Spec { durability: options.durability.clone(), ..Spec::new(options.fabric, RING as u64) };
    let steps = options.sizes.len() * options.rounds * (options.levels.len() + 1);
    let mut report = Report::new("latency", &options.output, steps);
    let bench = Bench::open(options, &mut report)?;
    let pair = Pair::start(&spec)?;
    let app = App::attach(&pair.alpha, REGION)?;
    pair.alpha.await_streaming();
    for &size in &options.sizes {
        let mut seen = Seen::new(&options.levels);
        for round in 1..=options.rounds {
            for ours in &mut seen.ours {
                report.step(format!("{size} B, round {round}: {:?}", ours.level));
                let before = usages(&pair);
                ours.times.push(&bench.wait(&app, ours.level, size)?);
                ours.note_usage(&before, &usages(&pair), bench.operations(size));
            }
            report.step(format!("{size} B, round {round}: peers"));
            bench.peers(&mut seen, &mut report, size)?;
        }
        bench.tell(seen, size, &mut report);
    }
    app.leave()?;
    bench.notes(&mut report);
    report.finish()
}

/// Who takes part in a wait.
const PARTS: [&str; 3] = ["application", "source's agent", "destination's agent"];

/// What each of [`PARTS`] has had of the processors.
fn usages(pair: &Pair) -> [Usage; PARTS.len()] {
    [std::process::id(), pair.alpha.pid(), pair.beta.pid()].map(usage)
}

/// Ours of one size and level, over the rounds.
struct Ours {
    level: Reach,
    times: Times,
    /// Microseconds an operation that each part ran, and waited for a processor.
    used: [(Vec<f64>, Vec<f64>); PARTS.len()],
}

impl Ours {
    fn note_usage(&mut self, before: &[Usage], after: &[Usage], operations: usize) {
        let each = |after: Duration, before: Duration| {
            after.saturating_sub(before).as_secs_f64() * 1e6 / operations as f64
        };
        for (used, (before, after)) in self.used.iter_mut().zip(before.iter().zip(after)) {
            used.0.push(each(after.runs, before.runs));
            used.1.push(each(after.waits, before.waits));
        }
    }

    fn tell_usage(&self, what: &str, size: usize, report: &mut Report) {
        for (part, (runs, waits)) in PARTS.iter().zip(&self.used) {
            for (does, us) in [("runs", runs), ("waits for a processor", waits)] {
                let what = format!("{what}: {part} {does}");
                report.push(Row::new(what, Some(size as u64), "us", us.clone().into()));
            }
        }
    }
}

/// Times of one size, over the rounds.
struct Seen {
    ours: Vec<Ours>,
    /// With the peer's name, and whether it proves durability.
    peers: Vec<(&'static str, bool, Times)>,
}

impl Seen {
    fn new(levels: &[Reach]) -> Seen {
        let ours = |level: &Reach| Ours { level: *level, times: Times::default(), used: Default::default() };
        Seen { ours: levels.iter().map(ours).collect(), peers: Vec::new() }
    }

    fn push(&mut self, name: &'static str, durable: bool, round: &hdrhistogram::Histogram<u64>) {
        if !self.peers.iter().any(|p| p.0 == name) {
            self.peers.push((name, durable, Times::default()));
        }
        let peer = self.peers.iter_mut().find(|p| p.0 == name).expect("there by now");
        peer.2.push(round);
    }
}

struct Bench<'o> {
    options: &'o Options,
    lane: Lane,
    /// On verbs.
    port: Option<Port>,
    librpma: Option<Librpma>,
    /// Has the program of librpma.
    _dir: tempfile::TempDir,
}

impl<'o> Bench<'o> {
    fn open(options: &'o Options, report: &mut Report) -> Outcome<Bench<'o>> {
        let dir = tempfile::tempdir()?;
        let port = if options.fabric == Kind::Verbs { Some(Port::find()?) } else { None };
        let librpma = if port.is_some() { take(report, Librpma::build(dir.path()))? } else { None };
        let lane = Lane::open(&*open(options.fabric, false)?, RING)?;
        Ok(Bench { options, lane, port, librpma, _dir: dir })
    }

    fn count(&self, size: usize) -> usize {
        self.options.count.min(ROUND_BYTES / size).max(1)
    }

    /// Operations of a round of ours.
    fn operations(&self, size: usize) -> usize {
        self.count(size) + if self.options.interval_us.is_some() { 0 } else { schedule::PROBES }
    }

    /// A round of ours.
    fn wait(&self, app: &App, level: Reach, size: usize) -> Outcome<hdrhistogram::Histogram<u64>> {
        let level = match level {
            Reach::Received => Level::Received,
            Reach::Durable => Level::Durable,
            Reach::Applied => Level::Applied,
        };
        let one = |i: usize| app.wait(app.persist(i, size), level);
        let interval = match self.options.interval_us {
            Some(us) => Duration::from_micros(us),
            None => schedule::interval(one)?,
        };
        schedule::run(self.count(size), interval, one)
    }

    /// A round of every peer.
    fn peers(&self, seen: &mut Seen, report: &mut Report, size: usize) -> Outcome<()> {
        let count = self.count(size);
        seen.push(OWN_WRITE, false, &self.lane.write(size, count)?);
        seen.push(OWN_WRITE_READ, true, &self.lane.write_and_read(size, count)?);
        let Some(port) = &self.port else {
            seen.push(pingpong::NAME, false, &pingpong::latency(size, count)?);
            return Ok(());
        };
        for (tool, durable) in [(perftest::WRITE_LATENCY, false), (perftest::READ_LATENCY, true)] {
            if let Some(times) = take(report, perftest::latency(tool, port, size, count))? {
                seen.push(tool, durable, &times);
            }
        }
        if let Some(librpma) = &self.librpma {
            seen.push(librpma::WRITE, false, &librpma.latency(Mode::Write, port, size, count)?);
            seen.push(librpma::WRITE_FLUSH, true, &librpma.latency(Mode::WriteFlush, port, size, count)?);
        }
        if let Some(times) = take(report, two_sided(port, size, count))? {
            seen.push(TWO_SIDED, false, &times);
        }
        Ok(())
    }

    fn tell(&self, seen: Seen, size: usize, report: &mut Report) {
        for ours in &seen.ours {
            let level = &ours.level;
            let what = format!("wait({})", format!("{level:?}").to_uppercase());
            let row = || Row::new(&*what, Some(size as u64), "us", Series::of_times(&ours.times));
            // What proves durability is the peer of what promises it; APPLIED goes beyond every peer.
            let fits = |durable: bool| (*level != Reach::Received) == durable;
            for (name, _, times) in seen.peers.iter().filter(|p| fits(p.1)) {
                let aim = self.aim(*level, name, size);
                let label = self.label(*level, name);
                report.push(row().beside(name, Series::of_times(times)).aiming(aim).labelled(label));
            }
            if size == EPOCH {
                ours.tell_usage(&what, size, report);
            }
        }
    }

    fn aim(&self, level: Reach, peer: &str, size: usize) -> Option<Aim> {
        let bare_write = [perftest::WRITE_LATENCY, librpma::WRITE].contains(&peer);
        match level {
            Reach::Received if size == EPOCH && bare_write => Some(Aim::AtMost(1.25)),
            Reach::Durable if peer == librpma::WRITE_FLUSH && self.options.durability == "battery" => {
                Some(Aim::Below(1.0))
            }
            Reach::Durable if peer == librpma::WRITE_FLUSH => Some(Aim::AtMost(1.0)),
            _ => None,
        }
    }

    /// A read after a write proves placement to an adapter's memory; where the adapter is the processor, it only takes time.
    fn label(&self, level: Reach, peer: &str) -> Option<&'static str> {
        let software = self.port.as_ref().is_some_and(|port| port.software);
        let reads = [OWN_WRITE_READ, librpma::WRITE_FLUSH, perftest::READ_LATENCY].contains(&peer);
        (software && reads && level != Reach::Received).then_some(LATENCY_ONLY)
    }

    fn notes(&self, report: &mut Report) {
        let Options { fabric, durability, interval_us, .. } = self.options;
        report.note(format!(
            "One destination, by {}, both agents and the application on this machine; durability \"{durability}\".",
            fabric.name()
        ));
        let interval = interval_us.map_or("twice what one takes".into(), |us| format!("{us} us apart"));
        report.note(format!(
            "Ours: an operation is due by a fixed schedule, {interval}, and its time counts from then, not from when it began: a \
             stall counts for everything that was due meanwhile (no coordinated omission)."
        ));
        report.note(
            "Peers run one operation after the other, as their own programs do: a stall counts once, which flatters their upper \
             percentiles.",
        );
        if self.port.as_ref().is_some_and(|port| port.software) {
            report.note(
                "The adapter is a program (Soft-RoCE). \"latency only\": a read after a write proves nothing of persistence there.",
            );
        }
    }
}

/// A write of our fabric, to its completion: the part of ours that is not agents.
const OWN_WRITE: &str = "own fabric write";
/// The same with a read behind it.
const OWN_WRITE_READ: &str = "own fabric write+read";

#[cfg(feature = "two-sided")]
const TWO_SIDED: &str = crate::peers::two_sided::NAME;
#[cfg(not(feature = "two-sided"))]
const TWO_SIDED: &str = "ibverbs SEND";

#[cfg(feature = "two-sided")]
fn two_sided(port: &Port, size: usize, count: usize) -> Found<hdrhistogram::Histogram<u64>> {
    Ok(Ok(crate::peers::two_sided::latency(port, size, count)?))
}

#[cfg(not(feature = "two-sided"))]
fn two_sided(_port: &Port, _size: usize, _count: usize) -> Found<hdrhistogram::Histogram<u64>> {
    let remedy = "not built in: scripts/setup scripts/packages perf/packages, then cargo build -p pmemha-perf --features two-sided";
    Ok(Err(crate::report::Absent { name: TWO_SIDED, remedy: remedy.into() }))
}
