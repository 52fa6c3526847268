//! `pmemha-perf placement`: power and latency of placements over packages, in the model of `pmemha::node::placement::sim`.
//!
//! Simulated: no machine here has two packages. The figures that the model runs on, with their sources, are in that module's
//! `parameters`.

use std::path::PathBuf;

use clap::Args;

use pmemha::node::placement::sim::gasp::{Manner, ship};
use pmemha::node::placement::sim::parameters::{CONSTANT, PACKAGES, TRACE};
use pmemha::node::placement::sim::peers::Peer;
use pmemha::node::placement::sim::run::{Outcome as Ran, run as play};
use pmemha::node::placement::sim::traces::Trace;

use crate::Outcome;
use crate::report::{Aim, Chart, Curve, Output, Report, Row};

/// Options of `pmemha-perf placement`.
#[derive(Args, Debug)]
pub struct Options {
    /// Seconds of each trace, of the model's time
    #[arg(long, default_value_t = TRACE)]
    seconds: f64,
    /// Packages of the model
    #[arg(long, default_value_t = PACKAGES, value_parser = some_packages)]
    packages: usize,
    /// Only traces whose names hold this
    #[arg(long, default_value = "")]
    trace: String,
    /// Rounds, each with requests of its own
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Write the curves of power over load as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// A machine of one package has nothing to place on, and one of more than eight is not what the figures stand for.
fn some_packages(text: &str) -> Result<usize, String> {
    let packages = text.parse().ok().filter(|n| (2..=8).contains(n));
    packages.ok_or_else(|| format!("`{text}` is no number from 2 to 8"))
}

/// Label of every row.
const SIMULATED: &str = "simulated";

/// Of a trace: what each peer made of it, in the order of [`Peer::ALL`], a run a round.
struct Compared {
    trace: Trace,
    runs: Vec<Vec<Ran>>,
}

impl Compared {
    fn of(&self, peer: Peer, figure: impl Fn(&Ran) -> f64) -> Vec<f64> {
        let at = Peer::ALL.iter().position(|other| *other == peer).unwrap_or(0);
        self.runs[at].iter().map(figure).collect()
    }
}

/// Plays every placement on every trace, and tells rows.
pub fn run(options: &Options) -> Outcome<()> {
    let traces: Vec<Trace> =
        Trace::all().into_iter().filter(|trace| trace.name().contains(&options.trace)).collect();
    if traces.is_empty() {
        let names: Vec<String> = Trace::all().iter().map(Trace::name).collect();
        return Err(
            format!("no trace is named like `{}`; there are: {}", options.trace, names.join("; ")).into()
        );
    }
    let mut report = Report::new("placement", &options.output, traces.len() * Peer::ALL.len());
    let compared: Vec<Compared> = traces.into_iter().map(|trace| compare(trace, options, &report)).collect();
    compared.iter().for_each(|compared| tell(compared, &mut report));
    let all = |peer| {
        let rounds = 0..options.rounds as usize;
        rounds
            .map(|round| compared.iter().map(|c| c.of(peer, |run| run.moves as f64)[round]).sum::<f64>())
            .collect::<Vec<f64>>()
    };
    report.push(
        row("moves, all traces", "groups", all(Peer::Ours))
            .beside(Peer::Repack.name(), all(Peer::Repack).into())
            .aiming(Some(Aim::AtMost(0.1))),
    );
    tell_gasp(options, &mut report);
    let chart = chart(&compared);
    if let Some(path) = &options.svg {
        std::fs::write(path, chart.standalone()).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    report.draw(chart);
    report.note(
        "Simulated. Power is of all packages and their memory. The baiting adversary is played against pmemha, and what it asked is then asked of the others. \
         At 2 and 5 % of load packages that are spread to already sleep on their own: repacking every epoch shows what there is to save.",
    );
    report.finish()
}

fn compare(trace: Trace, options: &Options, report: &Report) -> Compared {
    let mut runs: Vec<Vec<Ran>> = Peer::ALL.iter().map(|_| Vec::new()).collect();
    for seed in 1..=options.rounds {
        let mut asked = trace.clone();
        // Ours first: an adversary that watches watches us.
        for (at, peer) in Peer::ALL.iter().enumerate().rev() {
            report.step(format!("{}: {}", trace.name(), peer.name()));
            let ran = play(&asked, &mut *peer.start(), options.packages, options.seconds, seed);
            if asked == Trace::Bait {
                asked = Trace::Recorded(trace.name(), ran.loads.clone());
            }
            runs[at].push(ran);
        }
    }
    Compared { trace, runs }
}

fn row(what: impl Into<String>, unit: &'static str, ours: Vec<f64>) -> Row {
    Row::new(what, None, unit, ours.into()).labelled(Some(SIMULATED))
}

fn tell(compared: &Compared, report: &mut Report) {
    let name = compared.trace.name();
    let saved = match compared.trace {
        Trace::Constant(load) if load <= 0.10 => 0.60,
        Trace::Constant(load) if load <= 0.20 => 0.75,
        _ => 1.01,
    };
    for peer in Peer::ALL.into_iter().filter(|peer| *peer != Peer::Ours) {
        let first = peer == Peer::Spread;
        let mut put = |what: &str, unit, scale: f64, aim, figure: fn(&Ran) -> f64| {
            let of = |peer| compared.of(peer, |run| figure(run) * scale);
            report.push(
                row(format!("{what}, {name}"), unit, of(Peer::Ours))
                    .beside(peer.name(), of(peer).into())
                    .aiming(first.then_some(aim)),
            );
        };
        put("power", "W", 1.0, Aim::AtMost(saved), |run| run.watts);
        put("p99", "ms", 1e3, Aim::AtMost(1.01), |run| run.p99);
        if !first {
            put("moves", "groups", 1.0, Aim::AtMost(0.1), |run| run.moves as f64);
        }
    }
}

fn tell_gasp(options: &Options, report: &mut Report) {
    let of = |manner| -> Vec<f64> {
        (1..=options.rounds)
            .map(|seed| ship(manner, options.packages, seed).bytes_per_joule() / 1e6)
            .collect()
    };
    for (what, manner) in
        [("last gasp, gathered then", Manner::Gathered), ("last gasp, gathered before", Manner::Settled)]
    {
        report.push(
            row(what, "MB/J", of(manner))
                .beside("unmanaged", of(Manner::Unmanaged).into())
                .aiming(Some(Aim::AtLeast(1.5))),
        );
    }
}

/// Power over load, of every placement.
fn chart(compared: &[Compared]) -> Chart {
    let curve = |peer: Peer| {
        let point = |c: &Compared| match c.trace {
            Trace::Constant(load) => Some((load * 100.0, c.of(peer, |run| run.watts)[0])),
            _ => None,
        };
        Curve {
            name: peer.name().into(),
            ours: peer == Peer::Ours,
            points: compared.iter().filter_map(point).collect(),
        }
    };
    debug_assert!(CONSTANT.is_sorted());
    Chart {
        title: "power over load, simulated".into(),
        x: ("load, % of the machine", |load| format!("{load:.0}")),
        x_step: 2.0,
        y: "W",
        curves: Peer::ALL.into_iter().map(curve).collect(),
    }
}
