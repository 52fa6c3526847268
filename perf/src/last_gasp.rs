//! `pmemha-perf last-gasp`: how fast the rest of the log drains when the power fails, beside the network and memory.

use std::time::Duration;

use clap::Args;

use crate::Outcome;
use crate::fabric::{Kind, Port};
use crate::handover::{self, Figure, Handover};
use crate::peers::{iperf3, memory, perftest, take};
use crate::report::{Aim, Output, Report, Row};

/// Options of `pmemha-perf last-gasp`.
#[derive(Args, Debug)]
pub struct Options {
    /// What the rest travels over
    #[arg(long, value_enum, default_value_t)]
    fabric: Kind,
    /// MiB of log that are left to ship, several sizes in turn
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    exposure_mib: Vec<usize>,
    /// Bytes of a message of ib_write_bw: its best size
    #[arg(long, default_value_t = 65536)]
    peer_size: usize,
    /// Bytes that ib_write_bw moves in each measurement
    #[arg(long, default_value_t = 64 << 20)]
    peer_bytes: usize,
    /// Rounds; each measures every contestant once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    output: Output,
}

/// Bytes of the region.
const REGION: usize = 8 << 20;

/// Of each peer that runs for a time.
const TIME: Duration = Duration::from_secs(1);

/// What is read by a copy in one piece.
const PIECE: usize = 1 << 20;

/// Measures, and tells rows for each exposure.
pub fn run(options: &Options) -> Outcome<()> {
    let mut report = Report::new("last-gasp", &options.output, options.rounds * options.exposure_mib.len());
    let port = if options.fabric == Kind::Verbs { Some(Port::find()?) } else { None };
    let name = if port.is_some() { perftest::WRITE_BANDWIDTH } else { iperf3::NAME };
    for &mib in &options.exposure_mib {
        let (mut seen, mut network, mut copied) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            report.step(format!("{mib} MiB, round {round}"));
            let rate = match &port {
                Some(port) => {
                    let count = options.peer_bytes / options.peer_size;
                    take(&mut report, perftest::bandwidth(port, options.peer_size, count))?
                }
                None => take(&mut report, iperf3::bandwidth(TIME))?,
            };
            network.extend(rate.map(|rate| rate / 1e6));
            copied.push(memory::bandwidth(true, PIECE, 64 * PIECE, TIME / 8)? / 1e6);
            seen.push(handover::once(options.fabric, REGION, mib << 20)?);
        }
        tell(&seen, (mib << 20) as u64, (name, network), copied, &mut report);
    }
    report.note(
        "The rate is that of the bytes which were not at the heir when the power failed, from that moment until all were durable \
         there: it includes noticing and freezing, during which shipping goes on. The power's watcher looks at a file.",
    );
    report.finish()
}

fn tell(
    seen: &[Handover],
    size: u64,
    network: (&'static str, Vec<f64>),
    copied: Vec<f64>,
    report: &mut Report,
) {
    let of = |f: &dyn Fn(&Handover) -> f64| seen.iter().map(f).collect::<Vec<f64>>();
    let rate = of(&|h| h.exposure as f64 / h.durable);
    let row = || Row::new("last gasp", Some(size), "MB/s", rate.clone().into());
    if !network.1.is_empty() {
        report.push(row().beside(network.0, network.1.into()).aiming(Some(Aim::AtLeast(0.95))));
    }
    report.push(row().beside(memory::MEMCPY_CLWB, copied.into()));
    let times: [(&str, Figure); 4] = [
        ("failure noticed", |h| h.noticed / 1e3),
        ("first byte after notice", |h| (h.first_byte - h.noticed) / 1e3),
        ("rest durable", |h| h.durable / 1e3),
        ("saved sent", |h| h.saved / 1e3),
    ];
    for (what, figure) in times {
        report.push(Row::new(what, Some(size), "ms", of(&figure).into()));
    }
    report.push(Row::new("left when frozen", Some(size), "MB", of(&|h| h.left as f64 / 1e6).into()));
}
