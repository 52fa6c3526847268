//! `pmemha-perf`: what pmemha costs and how fast it is, its peers in the same run.

mod append;
mod apply;
mod figures;
mod instructions;
mod overhead;
mod tcp;

use clap::{Parser, Subcommand};

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
    /// The same, in instructions: counted one by one
    Instructions(instructions::Options),
    /// An unmodified libpmemobj program bare and protected
    Overhead(overhead::Options),
    /// The tcp fabric beside iperf3
    Tcp(tcp::Options),
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Cli::parse().what {
        What::Append(options) => append::run(&options),
        What::Apply(options) => apply::run(&options),
        What::Instructions(options) => instructions::run(&options),
        What::Overhead(options) => overhead::run(&options),
        What::Tcp(options) => tcp::run(&options),
    }
}
