//! `pmemha-perf failover`: from the failure of the power to the application's start on the heir, step by step.

use clap::Args;

use crate::Outcome;
use crate::fabric::Kind;
use crate::handover::{self, Figure};
use crate::report::{Output, Report, Row};

/// Options of `pmemha-perf failover`.
#[derive(Args, Debug)]
pub struct Options {
    /// What the rest travels over
    #[arg(long, value_enum, default_value_t)]
    fabric: Kind,
    /// MiB of the region, several sizes in turn
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64, 256])]
    region_mib: Vec<usize>,
    /// KiB of log that are left to ship
    #[arg(long, default_value_t = 256)]
    exposure_kib: usize,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    output: Output,
}

/// Measures, and tells a row for each step and size.
pub fn run(options: &Options) -> Outcome<()> {
    let mut report = Report::new("failover", &options.output, options.rounds * options.region_mib.len());
    for &mib in &options.region_mib {
        let mut seen = Vec::new();
        for round in 1..=options.rounds {
            report.step(format!("{mib} MiB, round {round}"));
            seen.push(handover::once(options.fabric, mib << 20, options.exposure_kib << 10)?);
        }
        let steps: [(&str, Figure); 6] = [
            ("failover", |h| h.runs),
            ("1 notice", |h| h.noticed),
            ("2 freeze and drain", |h| h.durable - h.noticed),
            ("3 tell the heir", |h| h.saved - h.durable),
            ("4 revoke, apply, verify", |h| h.promoted - h.saved),
            ("5 place and start", |h| h.runs - h.promoted),
        ];
        for (what, figure) in steps {
            let rounds: Vec<f64> = seen.iter().map(|h| figure(h) / 1e3).collect();
            report.push(Row::new(what, Some((mib << 20) as u64), "ms", rounds.into()));
        }
    }
    report.note("No peer: nothing else on this machine takes a program over. Times are of both agents' events, on one clock.");
    report.note("Until the heir has started the program; what that needs to open its files is its own.");
    report.finish()
}
