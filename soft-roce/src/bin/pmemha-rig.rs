//! `pmemha-rig`: boots a machine, runs a command in it, and ends as the command did. `soft-roce/run` sets up what it
//! needs and calls it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use pmemha_rig::{Machine, MachineSpec, RigError, Status};

/// Run a command in an emulated machine with a Soft-RoCE device and persistent memory.
#[derive(Parser)]
struct Arguments {
    /// Virtual processors of the machine
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// DRAM of the machine, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u32,
    /// Kill the command after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    /// Program and arguments; the environment and the working directory are ours
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(Status::Exited(code)) => ExitCode::from(code as u8),
        Ok(Status::Killed(signal)) => ExitCode::from(128 + signal as u8),
        Err(e) => {
            eprintln!("soft-roce: {e}");
            ExitCode::from(RIG_FAILED)
        }
    }
}

fn run(arguments: &Arguments) -> Result<Status, RigError> {
    let started = Instant::now();
    let spec =
        MachineSpec { cpus: arguments.cpus, memory_mib: arguments.memory, ..MachineSpec::alone("soft-roce") };
    let machine = Machine::boot(spec)?;
    eprintln!(
        "soft-roce: machine ready after {:.1} s, its log is {}",
        started.elapsed().as_secs_f32(),
        machine.log().display()
    );
    let (program, rest) =
        arguments.command.split_first().map_or(("", &[][..]), |(p, rest)| (p.as_str(), rest));
    let mut command = machine.command(program).args(rest).limit(Duration::from_secs(arguments.timeout));
    for (name, value) in std::env::vars_os() {
        if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
            command = command.env(name, value);
        }
    }
    if let Some(dir) = std::env::current_dir().ok().and_then(|dir| dir.into_os_string().into_string().ok()) {
        command = command.dir(dir);
    }
    Ok(command.inherit_output().output()?.status)
}

/// As of `env`, `timeout` and the like: they failed, not the command.
const RIG_FAILED: u8 = 125;
