//! librpma, PMDK's library for remote persistent memory: a write, and a write with its flush, by `programs/rpma.c`.

use std::path::{Path, PathBuf};
use std::process::Command;

use hdrhistogram::Histogram;
use pmemha_testkit::net::free_port;

use super::{Found, bounded, find_program, missing, text_of};
use crate::Outcome;
use crate::fabric::Port;
use crate::figures::round_of_times;

/// Name of a write in rows.
pub const WRITE: &str = "librpma write";
/// Name of a write and flush in rows.
pub const WRITE_FLUSH: &str = "librpma write+flush";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `rpma_write` to its completion.
    Write,
    /// `rpma_write`, then `rpma_flush` to its completion: a read after the write.
    WriteFlush,
}

/// The program, compiled.
pub struct Librpma(PathBuf);

impl Librpma {
    /// Compiles it into `dir`.
    pub fn build(dir: &Path) -> Found<Librpma> {
        if find_program("cc").is_none() {
            return Ok(Err(missing(WRITE_FLUSH, "gcc libc6-dev librpma-dev")));
        }
        let (source, program) = (dir.join("rpma.c"), dir.join("rpma"));
        std::fs::write(&source, include_str!("../../programs/rpma.c"))?;
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O2", "-Wall", "-Werror", "-o"]).args([&program, &source]);
        let compiled = cc.args(["-lrpma", "-libverbs"]).output()?;
        let complaint = String::from_utf8_lossy(&compiled.stderr);
        match compiled.status.success() {
            true => Ok(Ok(Librpma(program))),
            false if complaint.contains("librpma.h") => Ok(Err(missing(WRITE_FLUSH, "librpma-dev"))),
            false => Err(format!("compiling rpma.c: {complaint}").into()),
        }
    }

    /// Nanoseconds from post to completion.
    pub fn latency(&self, mode: Mode, port: &Port, size: usize, count: usize) -> Outcome<Histogram<u64>> {
        let mut command = bounded(&self.0.to_string_lossy());
        command.args([port.address().to_string(), free_port().to_string()]);
        command.arg(if mode == Mode::Write { "write" } else { "flush" });
        command.args([size.to_string(), count.to_string()]);
        let mut times = round_of_times();
        for line in text_of(command)?.lines() {
            times.saturating_record(line.parse()?);
        }
        Ok(times)
    }
}
