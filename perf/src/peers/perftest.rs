//! perftest: `ib_write_lat`, `ib_read_lat` and `ib_write_bw`, from the adapter to itself.

use std::process::Command;

use hdrhistogram::Histogram;
use pmemha_testkit::net::free_port;

use super::{Found, Server, bounded, find_program, missing, text_of};
use crate::Outcome;
use crate::fabric::Port;
use crate::figures::round_of_times;

/// Round trips of writes: two processes write to each other in turns.
pub const WRITE_LATENCY: &str = "ib_write_lat";
/// Reads, from post to completion.
pub const READ_LATENCY: &str = "ib_read_lat";
/// Writes, many in flight.
pub const WRITE_BANDWIDTH: &str = "ib_write_bw";

/// Fewer iterations it refuses.
const FEWEST: usize = 5;

/// perftest's MB.
const MIB: f64 = (1 << 20) as f64;

/// Nanoseconds of a round trip of `size` bytes.
pub fn latency(tool: &'static str, port: &Port, size: usize, count: usize) -> Found<Histogram<u64>> {
    // It tells half of the round trip of two writes, and the whole of a read.
    let factor = if tool == WRITE_LATENCY { 2.0 } else { 1.0 };
    let Ok(text) = run(tool, port, size, count, &["-U"])? else { return Ok(Err(missing(tool, "perftest"))) };
    let times = samples(&text, factor);
    if times.is_empty() {
        return Err(format!("{tool} told no times: {text}").into());
    }
    Ok(Ok(times))
}

/// Bytes a second of writes of `size` bytes.
pub fn bandwidth(port: &Port, size: usize, count: usize) -> Found<f64> {
    let Ok(text) = run(WRITE_BANDWIDTH, port, size, count, &[])? else {
        return Ok(Err(missing(WRITE_BANDWIDTH, "perftest")));
    };
    match average(&text, size) {
        Some(rate) => Ok(Ok(rate * MIB)),
        None => Err(format!("{WRITE_BANDWIDTH} told no figure: {text}").into()),
    }
}

/// What the client printed; nothing where it is not installed.
fn run(tool: &str, port: &Port, size: usize, count: usize, more: &[&str]) -> Outcome<Result<String, ()>> {
    if find_program(tool).is_none() {
        return Ok(Err(()));
    }
    let (tcp, chosen) = (free_port(), &port.chosen);
    let command = || -> Command {
        let mut command = bounded(tool);
        // -F: does not mind a processor whose clock changes.
        command.args(["-F", "-d", &chosen.device, "-i", &chosen.port.to_string()]);
        command.args(["-x", &chosen.gid.index.to_string(), "-p", &tcp.to_string()]);
        command.args(["-s", &size.to_string(), "-n", &count.max(FEWEST).to_string()]);
        command.args(more);
        command
    };
    let _server = Server::start(command(), tcp)?;
    let mut client = command();
    client.arg("127.0.0.1");
    Ok(Ok(text_of(client)?))
}

/// The lines `number, microseconds` of -U.
fn samples(text: &str, factor: f64) -> Histogram<u64> {
    let mut times = round_of_times();
    for line in text.lines() {
        let Some((number, micros)) = line.split_once(',') else { continue };
        if let (Ok(_), Ok(micros)) = (number.trim().parse::<u64>(), micros.trim().parse::<f64>()) {
            times.saturating_record((micros * 1e3 * factor) as u64);
        }
    }
    times
}

/// MB/s: size, iterations, peak, average, rate of messages.
fn average(text: &str, size: usize) -> Option<f64> {
    let size = size.to_string();
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() >= 5 && row[0] == size).find_map(|row| row[3].parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perftest_prints_is_understood() {
        let latency = " local address: LID 0000\n#, usec\n1, 10.5\n2, 11.5\n#bytes #iterations t_min[usec]\n 64 2 10.5, 3\n";
        let times = samples(latency, 2.0);
        assert_eq!(times.len(), 2);
        assert!((times.max() as f64 - 23_000.0).abs() < 50.0, "{}", times.max());
        let bandwidth = " #bytes #iterations BW peak[MB/sec] BW average[MB/sec] MsgRate[Mpps]\n 65536 1000 50.1 48.2 0.0007\n";
        assert_eq!(average(bandwidth, 65536), Some(48.2));
        assert_eq!(average(bandwidth, 4096), None);
    }
}
