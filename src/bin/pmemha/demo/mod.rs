//! `pmemha demo`: a PMDK program outlives its machine, on this one.
//!
//! Two agents with separate state, one program, a power cut, the same program on the other node, and a comparison of what it
//! had acknowledged with what it finds there. Every number shown is measured in the run that shows it.

mod machines;
mod program;
mod story;

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use pmemha::agent::config::format_bytes;
use serde::Serialize;

use self::machines::Machines;
use self::program::{Found, Lines, Program};
use self::story::{Story, micros_between};
use crate::failure::{Failure, SOFTWARE};
use crate::local_agent::make_dir;
use crate::output::{json_line, print};
use crate::run::find_preload;

/// How long the application runs before the power goes.
const RUN: Duration = Duration::from_secs(2);

/// Time between two lines of numbers.
const PERIOD: Duration = Duration::from_millis(250);

/// Any step is done within this time, on a machine that is busy with other things.
const STEP: Duration = Duration::from_secs(60);

/// How often a step is looked at: the precision of `app_running_ms`.
const LOOK: Duration = Duration::from_millis(1);

/// Where directories in memory are made: memory that a battery would back.
const MEMORY: &str = "/dev/shm";

/// `pmemha demo`
#[derive(Args)]
pub struct Demo {}

/// The last line.
#[derive(Serialize)]
struct Summary {
    acknowledged: u64,
    recovered: u64,
    lost: u64,
    exposure_bytes: Option<u64>,
    first_byte_us: Option<i64>,
    saved_ms: Option<f64>,
    app_running_ms: f64,
}

/// One power cut.
struct Outcome {
    before: Lines,
    found: Found,
    per_second: f64,
    story: Story,
    running_us: i64,
}

impl Outcome {
    fn lost(&self) -> u64 {
        self.before.lost(self.found)
    }

    fn is_whole(&self) -> bool {
        self.lost() == 0 && self.found.damaged == 0 && self.before.acknowledged > 0
    }
}

impl Demo {
    /// Runs it; the exit code is 0 if nothing was lost nor damaged.
    pub fn execute(self) -> Result<u8, Failure> {
        let stage = Stage::new()?;
        let preload = find_preload()?;
        print("A PMDK program outlives its machine\n\n")?;
        step("kv is PMDK's own map example (hashmap_tx), compiled now; it knows nothing of pmemha")?;
        let program = Program::compile(&stage.dir)?;

        step("alpha runs kv, beta receives its persistent memory; every drain waits until beta has it")?;
        let first = stage.cut_power(&program, &preload, "received", true)?;
        print(&format!("\n{}\n", first.story.timeline.render()))?;
        step(&verdict(&first))?;

        step("once more without waiting: kv runs on at once, its memory follows behind")?;
        let second = stage.cut_power(&program, &preload, "local", false)?;
        step(&verdict(&second))?;
        print(&comparison(&first, &second))?;

        json_line(&Summary {
            acknowledged: first.before.acknowledged,
            recovered: first.found.keys,
            lost: first.lost(),
            exposure_bytes: first.story.exposure_bytes,
            first_byte_us: first.story.first_byte_us,
            saved_ms: first.story.saved_us.map(milliseconds),
            app_running_ms: milliseconds(first.running_us),
        })?;
        Ok(if first.is_whole() && second.is_whole() { 0 } else { 1 })
    }
}

/// Where the demo plays, and whether it is to go on.
struct Stage {
    dir: PathBuf,
    interrupted: Arc<AtomicBool>,
}

impl Stage {
    fn new() -> Result<Stage, Failure> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let told = interrupted.clone();
        ctrlc::set_handler(move || told.store(true, Ordering::Relaxed))
            .map_err(|e| Failure::new(SOFTWARE, format!("handling signals: {e}")))?;
        let dir = Path::new(MEMORY).join(format!("pmemha-demo-{}", std::process::id()));
        make_dir(&dir)?;
        Ok(Stage { dir, interrupted })
    }

    /// Two fresh nodes, one power cut.
    fn cut_power(
        &self,
        program: &Program,
        preload: &Path,
        commit: &str,
        tell: bool,
    ) -> Result<Outcome, Failure> {
        let dir = self.dir.join(commit);
        let mut machines = Machines::start(&dir, program, preload, commit)?;
        let outcome = self.play(&mut machines, program, tell);
        let outcome = outcome.map_err(|failure| match failure {
            Failure::Told { code, message } if !self.is_interrupted() => {
                Failure::new(code, format!("{message}\n{}", machines.diagnostics()))
            }
            failure => failure,
        });
        machines.empty_battery(program);
        drop(machines);
        program.kill_everywhere();
        let removed = fs::remove_dir_all(&dir).map_err(Failure::system(dir.display()));
        outcome.and_then(|outcome| removed.map(|()| outcome))
    }

    fn play(&self, machines: &mut Machines, program: &Program, tell: bool) -> Result<Outcome, Failure> {
        self.until("kv to run at alpha, protected", machines, |m| Ok(m.protected()?.then_some(())))?;
        let per_second = self.watch(machines)?;

        let cut = machines.cut_power()?;
        if tell {
            step("line power at alpha is cut: it freezes kv, ships the rest on battery, and tells beta")?;
        }
        let (found, opened) = self.until("kv to run at beta", machines, |m| {
            Ok(m.beta.lines().found.map(|found| (found, SystemTime::now())))
        })?;
        let mut story = Story::new(cut, &machines.alpha.events()?, &machines.beta.events()?);
        let running_us = micros_between(cut, opened);
        story.tell("beta", running_us, "kv has checked every key, goes on");
        machines.empty_battery(program);
        if tell {
            step(
                "beta has promoted its image and started kv; alpha's battery is empty, all of it is killed",
            )?;
        }
        // Read last: whatever alpha could still have said after beta had opened its pool would show as lost.
        let before = machines.alpha.lines();
        Ok(Outcome { before, found, per_second, story, running_us })
    }

    /// Shows numbers while the application runs; keys a second.
    fn watch(&self, machines: &mut Machines) -> Result<f64, Failure> {
        let live = io::stdout().is_terminal();
        let (began, first) = (Instant::now(), machines.alpha.lines().acknowledged);
        let mut next = began + PERIOD;
        loop {
            self.until("the next numbers", machines, |_| Ok((Instant::now() >= next).then_some(())))?;
            next += PERIOD;
            let acknowledged = machines.alpha.lines().acknowledged;
            let elapsed = began.elapsed();
            let stream = machines.alpha.stream()?;
            let line = format!(
                "    {acknowledged:>8} keys acknowledged    LSN {:>11}    exposure {:>10}",
                stream.lsn_published.0,
                format_bytes(stream.exposure_bytes)
            );
            let over = elapsed >= RUN;
            if live {
                print(&format!("\r{line}{}", if over { "\n" } else { "" }))?;
            } else if over {
                print(&format!("{line}\n"))?;
            }
            if over {
                return Ok((acknowledged - first) as f64 / elapsed.as_secs_f64());
            }
        }
    }

    /// Looks until `probe` yields something.
    fn until<T>(
        &self,
        what: &str,
        machines: &mut Machines,
        mut probe: impl FnMut(&Machines) -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + STEP;
        loop {
            if let Some(found) = probe(machines)? {
                return Ok(found);
            }
            machines.check()?;
            if self.is_interrupted() {
                return Err(Failure::new(INTERRUPTED, "interrupted; everything it started is gone"));
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(
                    SOFTWARE,
                    format!("waited {} s in vain for {what}", STEP.as_secs()),
                ));
            }
            thread::sleep(LOOK);
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn step(what: &str) -> Result<(), Failure> {
    print(&format!("  • {what}\n"))
}

fn verdict(outcome: &Outcome) -> String {
    format!(
        "compared: {} keys acknowledged at alpha, {} found at beta: {} lost, {} damaged",
        outcome.before.acknowledged,
        outcome.found.keys,
        outcome.lost(),
        outcome.found.damaged
    )
}

fn comparison(first: &Outcome, second: &Outcome) -> String {
    let row = |name: &str, o: &Outcome| {
        let exposure = o.story.exposure_bytes.map_or_else(|| "unknown".into(), format_bytes);
        let running = milliseconds(o.running_us);
        format!("    {name:<22} {:>10.0} {exposure:>21} {running:>17.1} ms\n", o.per_second)
    };
    format!(
        "\n    {:<22} {:>10} {:>21} {:>20}\n{}{}\n",
        "",
        "inserts/s",
        "exposure at the cut",
        "kv runs again after",
        row("waits for beta", first),
        row("does not wait", second)
    )
}

fn milliseconds(us: i64) -> f64 {
    us as f64 / 1e3
}

/// As a shell reports a program that was interrupted.
const INTERRUPTED: u8 = 130;
