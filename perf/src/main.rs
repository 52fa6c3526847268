//! `pmemha-perf`: what pmemha costs and how fast it is, its peers in the same run. `docs/performance.md` has the method.

mod app;
mod append;
mod apply;
mod bandwidth;
mod fabric;
mod failover;
mod figures;
mod handover;
mod instructions;
mod largepages;
mod last_gasp;
mod latency;
mod overhead;
mod pair;
mod peers;
mod placement;
mod report;
mod scale;
mod schedule;
mod tcp;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a benchmark may end with, for a person.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Benchmarks of pmemha with its peers beside it.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A capture beside memcpy and CLWB
    Append(append::Options),
    /// A destination applying a stream beside memcpy
    Apply(apply::Options),
    /// The fabric and log shipping beside ib_write_bw or iperf3, and memcpy
    Bandwidth(bandwidth::Options),
    /// From the failure of the power to the application's start on the heir
    Failover(failover::Options),
    /// A capture, in instructions: counted one by one
    Instructions(instructions::Options),
    /// What large pages gain a program, by how many of its ranges have them and in which order
    #[command(name = "largepages")]
    LargePages(largepages::Options),
    /// How fast the rest of the log drains when the power fails
    LastGasp(last_gasp::Options),
    /// From a store to its acknowledgement at each level, beside the network's latency
    Latency(latency::Options),
    /// An unmodified libpmemobj program bare and protected
    Overhead(overhead::Options),
    /// Power and latency of placements over packages, simulated
    Placement(placement::Options),
    /// What grows with threads, with destinations and with the size of regions
    Scale(scale::Options),
    /// The tcp fabric beside iperf3
    Tcp(tcp::Options),
    /// The application of a handover
    #[command(hide = true)]
    Filler(handover::Filler),
    /// What an heir starts
    #[command(hide = true)]
    StandIn,
}

fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::Append(options) => append::run(&options),
        What::Apply(options) => apply::run(&options),
        What::Bandwidth(options) => bandwidth::run(&options),
        What::Failover(options) => failover::run(&options),
        What::Instructions(options) => instructions::run(&options),
        What::LargePages(options) => largepages::run(&options),
        What::LastGasp(options) => last_gasp::run(&options),
        What::Latency(options) => latency::run(&options),
        What::Overhead(options) => overhead::run(&options),
        What::Placement(options) => placement::run(&options),
        What::Scale(options) => scale::run(&options),
        What::Tcp(options) => tcp::run(&options),
        What::Filler(options) => handover::filler(&options),
        What::StandIn => handover::stand_in(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("pmemha-perf: {e}");
            ExitCode::FAILURE
        }
    }
}
