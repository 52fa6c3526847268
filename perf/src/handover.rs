//! Handovers, measured: `pmemha-perf last-gasp` (how fast the rest of the log drains) and `pmemha-perf failover` (how long
//! until the application runs on the heir).
//!
//! Each round has a pair of its own, and an application that is a process of its own, since it is frozen and ends. Its agent is
//! stopped while the application fills the log; then the power fails, and the agent goes on: it wakes up to so much of a log,
//! and to the failure. Times are those of both agents' events, on one clock.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use pmemha::agent::clock::WallTime;
use pmemha_testkit::node::Node;
use serde_json::Value;

use crate::Outcome;
use crate::app::App;
use crate::fabric::Kind;
use crate::pair::{Pair, Spec};

/// A figure of one handover.
pub type Figure = fn(&Handover) -> f64;

/// How a group was handed over; times in microseconds since the power failed.
#[derive(Clone, Copy, Debug)]
pub struct Handover {
    /// Bytes of log that were not at the heir when the power failed.
    pub exposure: u64,
    /// Those of them that were left when the application had been frozen: shipping goes on meanwhile.
    pub left: u64,
    /// When the last gasp began: the failure was noticed.
    pub noticed: f64,
    /// When the first byte of the rest left.
    pub first_byte: f64,
    /// When the heir had everything durably.
    pub durable: f64,
    /// When the heir was told so.
    pub saved: f64,
    /// When the heir had verified the image and owned it.
    pub promoted: f64,
    /// When the application had been started there.
    pub runs: f64,
}

/// Hands a group over whose application has filled `fill` bytes of log; its region has `region` bytes.
pub fn once(fabric: Kind, region: usize, fill: usize) -> Outcome<Handover> {
    let log_size = (fill as u64 * 2).next_power_of_two().max(SMALLEST_RING);
    let pair = Pair::start(&Spec { handover: true, ..Spec::new(fabric, log_size) })?;
    let mut app = Application::start(&pair.alpha, region)?;
    pair.alpha.await_streaming();
    pair.alpha.stand_still();
    let exposure = app.fill(fill)?;
    let cut = SystemTime::now();
    pair.alpha.set_power(false);
    pair.alpha.go_on();
    let at = |event: &Value| since(cut, event);
    let began = pair
        .alpha
        .await_event_that("that a last gasp began", |e| e["detail"]["what"].get("gasp_began").is_some());
    let durable = pair.alpha.await_event_that("tail_durable", |e| e["kind"] == "tail_durable");
    let saved = pair.alpha.await_event_that("saved", |e| e["kind"] == "saved");
    let promoted = pair.beta.await_event_that("promoted", |e| e["detail"]["what"] == "promoted");
    let runs = pair.beta.await_event_that("application_runs", |e| e["detail"]["what"] == "application_runs");
    let tail = &durable["detail"];
    let took = |name: &str| tail[name].as_f64();
    let (ended, lasted) = (at(&durable)?, took("took_us").ok_or("no time in tail_durable")?);
    Ok(Handover {
        exposure,
        left: tail["exposure_bytes"].as_u64().ok_or("no exposure in tail_durable")?,
        noticed: at(&began)?,
        // Without a rest there is no first byte.
        first_byte: ended - lasted + took("first_byte_us").unwrap_or(lasted),
        durable: ended,
        saved: at(&saved)?,
        promoted: at(&promoted)?,
        runs: at(&runs)?,
    })
}

/// Smallest ring: enough for a first sync to go on beside the application.
const SMALLEST_RING: u64 = 4 << 20;

fn since(cut: SystemTime, event: &Value) -> Outcome<f64> {
    let time = event["time"].as_str().and_then(WallTime::parse).ok_or("an event without a time")?;
    let us = |t: SystemTime| t.duration_since(UNIX_EPOCH).map(|d| d.as_secs_f64() * 1e6);
    Ok(us(time.0)? - us(cut)?)
}

/// The application, a process of its own.
struct Application {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Application {
    fn start(node: &Node, region: usize) -> Outcome<Application> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("filler")
            .args(["--socket".as_ref(), node.socket().as_os_str()])
            .args(["--file".as_ref(), node.files().join("data").as_os_str()])
            .args(["--bytes", &region.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let says = BufReader::new(child.stdout.take().expect("piped"));
        let mut application = Application { child, says };
        match &*application.hear()? {
            PROTECTED => Ok(application),
            said => Err(format!("the application said {said:?}").into()),
        }
    }

    /// Bytes of log that `bytes` of stores have become.
    fn fill(&mut self, bytes: usize) -> Outcome<u64> {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{bytes}")?;
        let said = self.hear()?;
        Ok(said.parse().map_err(|_| format!("the application said {said:?}"))?)
    }

    fn hear(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // The handover may have ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Options of the hidden command that is the application.
#[derive(Args, Debug)]
pub struct Filler {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    file: PathBuf,
    #[arg(long)]
    bytes: usize,
}

/// Bytes of one of its epochs.
const EPOCH: usize = 4096;

/// What it says when its file is.
const PROTECTED: &str = "protected";

/// Protects a file, and fills as much log as each line of its input says.
pub fn filler(options: &Filler) -> Outcome<()> {
    let app = App::attach_to(&options.socket, &options.file, options.bytes)?;
    println!("{PROTECTED}");
    for line in std::io::stdin().lines() {
        let (bytes, before): (usize, _) = (line?.parse()?, app.drain());
        (0..bytes / EPOCH).for_each(|i| app.capture(i, EPOCH));
        println!("{}", app.drain().since(before));
    }
    Ok(())
}

/// What the heir starts in place of the application: it lives until it is ended.
pub fn stand_in() -> Outcome<()> {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}
