//! `pmemha-perf tcp`: the tcp fabric's bandwidth and latency over loopback, plain and encrypted, with iperf3 and a bare round
//! trip beside it.
//!
//! Bandwidth is what shipping does: consecutive batches of a ring, written to the same offsets of a landing ring,
//! a few in flight, the last of each signalled. iperf3 runs one stream for as long, in turns with us, so that whatever
//! else the machine does hits both; the figure to look at is the ratio.

use std::time::Duration;

use clap::Args;

use crate::Outcome;
use crate::fabric::{Kind, Lane, open};
use crate::figures::Times;
use crate::peers::{iperf3, pingpong, take};
use crate::report::{Aim, Output, Report, Row, Series};

/// Options of `pmemha-perf tcp`.
#[derive(Args, Debug)]
pub struct Options {
    /// Bytes of one batch
    #[arg(long, default_value_t = 1 << 20)]
    batch: usize,
    /// Batches in flight
    #[arg(long, default_value_t = 8)]
    depth: usize,
    /// Bytes of the ring at either end
    #[arg(long, default_value_t = 64 << 20)]
    ring: usize,
    /// Milliseconds of each measurement of bandwidth; iperf3 takes whole seconds
    #[arg(long, default_value_t = 2000)]
    time_ms: u64,
    /// Writes of each measurement of latency
    #[arg(long, default_value_t = 5000)]
    count: usize,
    /// Rounds; each measures every contestant once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Leave out TLS
    #[arg(long)]
    plain_only: bool,
    #[command(flatten)]
    output: Output,
}

/// Share of one stream of iperf3 that is aimed at without encryption, which iperf3 has none of.
const AIM: Aim = Aim::AtLeast(0.9);

/// Bytes of the writes whose latency is measured.
const SIZES: [usize; 2] = [64, 4096];

/// Measures, and tells a row a figure.
pub fn run(options: &Options) -> Outcome<()> {
    let mut report = Report::new("tcp", &options.output, options.rounds);
    let plain = Lane::open(&*open(Kind::Tcp, false)?, options.ring)?;
    let mut lanes = vec![("plain", plain, Vec::new(), Some(AIM))];
    if !options.plain_only {
        lanes.push(("encrypted", Lane::open(&*open(Kind::Tcp, true)?, options.ring)?, Vec::new(), None));
    }
    let time = Duration::from_millis(options.time_ms);
    let mut stream = Vec::new();
    let mut latency: [(Times, Times); SIZES.len()] = Default::default();
    for round in 1..=options.rounds {
        report.step(format!("round {round}"));
        stream.extend(take(&mut report, iperf3::bandwidth(time))?.map(|rate| rate / 1e6));
        for (_, lane, rates, _) in &mut lanes {
            rates.push(lane.bandwidth(options.batch, options.depth, time)? / 1e6);
        }
        for (size, (ours, peer)) in SIZES.into_iter().zip(&mut latency) {
            ours.push(&lanes[0].1.write(size, options.count)?);
            peer.push(&pingpong::latency(size, options.count)?);
        }
    }
    for (name, _, rates, aim) in lanes {
        let row =
            Row::new(format!("write, {name}"), Some(options.batch as u64), "MB/s", rates.into()).aiming(aim);
        report.push(if stream.is_empty() { row } else { row.beside(iperf3::NAME, stream.clone().into()) });
    }
    for (size, (ours, peer)) in SIZES.into_iter().zip(&latency) {
        let row = Row::new("write to completion", Some(size as u64), "us", Series::of_times(ours));
        report.push(row.beside(pingpong::NAME, Series::of_times(peer)));
    }
    report.note("Latency is that of one write after the other, plain: no schedule.");
    report.finish()
}
