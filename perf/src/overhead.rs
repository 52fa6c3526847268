//! `pmemha-perf overhead`: an unmodified libpmemobj program bare, and protected by `pmemha run`, in turns.
//!
//! On tmpfs with PMEM_IS_PMEM_FORCE=1, so that libpmemobj flushes lines as it does on persistent memory. The program has one
//! core, the agents (a source and a destination, over the tcp fabric) another: what is measured is what the application pays.
//!
//! Protected memory on tmpfs is not flushed ([`MemoryKind::is_dram`](pmemha::region::kind::MemoryKind::is_dram)). So there
//! are two of each side: with flushes, as on an NVDIMM, and without, as in DRAM behind a battery.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::Outcome;
use crate::peers::{find_program, missing};
use crate::report::{Aim, Output, Report, Row};

/// Options of `pmemha-perf overhead`.
#[derive(Args, Debug)]
pub struct Options {
    /// Where the pools are
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// The command `pmemha`; its neighbours are used too
    #[arg(long, default_value = "target/release/pmemha")]
    pmemha: PathBuf,
    /// Operations under the clock
    #[arg(long, default_value_t = 500_000)]
    count: u64,
    /// Operations before: the first sync goes on meanwhile
    #[arg(long, default_value_t = 500_000)]
    warm: u64,
    /// Rounds; each measures every contestant once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Core of the program
    #[arg(long, default_value_t = 0)]
    program_cpu: u32,
    /// Core of the agents
    #[arg(long, default_value_t = 1)]
    agent_cpu: u32,
    /// What to run
    #[arg(long, value_delimiter = ',', default_values = ["hashmap", "tx", "persist"])]
    modes: Vec<String>,
    #[command(flatten)]
    output: Output,
}

/// Where Debian puts PMDK's examples.
const EXAMPLES: &str = "/usr/share/doc/libpmemobj-dev/examples";

/// The peer: the same program alone.
const BARE: &str = "bare";

/// The same where it knows that it need not flush.
const BARE_UNFLUSHED: &str = "bare, PMEM_NO_FLUSH=1";

/// Has a protected program flush as on an NVDIMM.
const ALWAYS_FLUSH: (&str, &str) = ("PMEMHA_LOCAL_FLUSH", "always");

/// Has a bare one not flush.
const NO_FLUSH: (&str, &str) = ("PMEM_NO_FLUSH", "1");

/// Measures, and tells three rows for each mode: flushing beside bare, ours beside bare, ours beside bare without flushes.
pub fn run(options: &Options) -> Outcome<()> {
    let mut report = Report::new("overhead", &options.output, options.modes.len() * options.rounds);
    if !Path::new(EXAMPLES).exists() || find_program("cc").is_none() {
        report.lacks(missing(BARE, "gcc libc6-dev libpmemobj-dev"));
        return report.finish();
    }
    let dir = tempfile::tempdir_in(&options.dir)?;
    let program = compile(dir.path())?;
    for mode in &options.modes {
        let [mut bare, mut bare_unflushed, mut flushing, mut ours] = [const { Vec::new() }; 4];
        for round in 1..=options.rounds {
            report.step(format!("{mode}, round {round}"));
            let bare_command = || bare_command(options, &program);
            let protected_command = || protected_command(options, &program, dir.path());
            let rate = |command| rate(command, options, mode, dir.path()).map(|rate| rate / 1e3);
            bare.push(rate(bare_command())?);
            bare_unflushed.push(rate(with_variable(bare_command(), NO_FLUSH))?);
            flushing.push(rate(with_variable(protected_command(), ALWAYS_FLUSH))?);
            ours.push(rate(protected_command())?);
        }
        let row = |what: &str, ours: &Vec<f64>| Row::new(what, None, "k/s", ours.clone().into());
        let flushes = format!("{mode}, flushing");
        report.push(row(&flushes, &flushing).beside(BARE, bare.clone().into()).aiming(aim(mode)));
        report.push(row(mode, &ours).beside(BARE, bare.into()).aiming(aim(mode)));
        report.push(row(mode, &ours).beside(BARE_UNFLUSHED, bare_unflushed.into()));
    }
    report.finish()
}

/// Share of the bare program's rate that is aimed at.
fn aim(mode: &str) -> Option<Aim> {
    match mode {
        "hashmap" => Some(Aim::AtLeast(0.85)),
        "tx" => Some(Aim::AtLeast(0.6)),
        _ => None,
    }
}

fn compile(dir: &Path) -> Outcome<PathBuf> {
    let (source, program) = (dir.join("overhead.c"), dir.join("overhead"));
    std::fs::write(&source, include_str!("../programs/overhead.c"))?;
    std::fs::write(dir.join("ex_common.h"), include_str!("../../demo/ex_common.h"))?;
    let examples = ["map/map.c", "map/map_hashmap_tx.c", "hashmap/hashmap_tx.c"];
    let compiled = Command::new("cc")
        .args(["-std=gnu11", "-O2"])
        .arg(format!("-I{}", dir.display()))
        .args(["map", "hashmap"].map(|sub| format!("-I{EXAMPLES}/{sub}")))
        .arg("-o")
        .args([&program, &source])
        .args(examples.map(|name| format!("{EXAMPLES}/{name}")))
        .args(["-lpmemobj", "-lpmem"])
        .output()?;
    if !compiled.status.success() {
        return Err(format!("cc: {}", String::from_utf8_lossy(&compiled.stderr)).into());
    }
    Ok(program)
}

fn with_variable(mut command: Command, (name, value): (&str, &str)) -> Command {
    command.env(name, value);
    command
}

fn bare_command(options: &Options, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &options.program_cpu.to_string()]).arg(program);
    command
}

fn protected_command(options: &Options, program: &Path, dir: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &options.agent_cpu.to_string()]).arg(&options.pmemha);
    command.args(["run", "--protect"]).arg(dir.join("pool")).arg("--to").arg(dir.join("image"));
    command.args(["--", "taskset", "-c", &options.program_cpu.to_string()]).arg(program);
    command
}

/// Runs it once; operations a second.
fn rate(mut command: Command, options: &Options, mode: &str, dir: &Path) -> Outcome<f64> {
    let pool = dir.join("pool");
    command.arg(mode).arg(&pool).args([options.warm.to_string(), options.count.to_string()]);
    let output = command.env("PMEM_IS_PMEM_FORCE", "1").output()?;
    std::fs::remove_file(&pool)?;
    // Only a protected run leaves one.
    let _ = std::fs::remove_dir_all(dir.join("image"));
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match said.trim().parse() {
        Ok(rate) if output.status.success() => Ok(rate),
        _ => Err(format!("{command:?}: {}: {said}{complained}", output.status).into()),
    }
}
