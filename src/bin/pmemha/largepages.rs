//! `pmemha largepages`: which ranges of a process earn large pages; maps them where it is told to.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use pmemha::agent::config::format_bytes;
use pmemha::node::largepage::actuator::{Advice, Outcome};
use pmemha::node::largepage::governor::{Governor, Step, Totals};
use pmemha::node::largepage::policy::{Action, Asked, Range, Settings, Standing};
use pmemha::node::largepage::source::{self, Kind};
use rustix::io::Errno;
use serde::Serialize;

use crate::failure::{Failure, NO_PERMISSION, SOFTWARE, UNAVAILABLE, USAGE};
use crate::output::{json_line, print};

/// `pmemha largepages`
#[derive(Args)]
pub struct LargePages {
    /// Process to look at
    #[arg(value_name = "PID")]
    pid: u32,
    /// Map the best ranges large; without this, it is only said which ones they are
    #[arg(long)]
    act: bool,
    /// Periods to count, the first phase of 4 included
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    periods: u32,
    /// Shortest period in milliseconds: it grows until counting costs a hundredth of a processor at most
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(200..=60_000))]
    period_ms: u64,
    /// Pages of a range's 512 that must be in use, on average, for it to be mapped large
    #[arg(long, default_value_t = Settings::default().threshold, value_parser = pages)]
    threshold: f64,
    /// Ranges mapped large in a period at most
    #[arg(long, default_value_t = Settings::default().budget)]
    budget: usize,
    /// Ranges of the ranking to show
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

fn pages(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| (1.0..=512.0).contains(n));
    number.ok_or_else(|| format!("`{text}` is no number of pages from 1 to 512"))
}

/// What is printed.
#[derive(Serialize)]
struct Told {
    pid: u32,
    source: Kind,
    /// Why the source is not the finest one.
    source_reason: Option<String>,
    settled: bool,
    acted: bool,
    ranges: usize,
    large_bytes_before: u64,
    large_bytes: u64,
    period_ms: u64,
    totals: Totals,
    actions: Vec<(Action, Option<Outcome>)>,
    ranking: Vec<Standing>,
}

impl LargePages {
    /// Counts, ranks, acts if asked to, and tells.
    pub fn execute(self) -> Result<(), Failure> {
        if self.budget == 0 {
            return Err(Failure::new(USAGE, "--budget 0 maps nothing: leave out --act for a dry run"));
        }
        let (bits, reason) = source::best(self.pid);
        let advice = Advice::on(self.pid).map_err(|e| self.failed(&e))?;
        let settings = Settings { threshold: self.threshold, budget: self.budget, ..Settings::default() };
        let shortest = Duration::from_millis(self.period_ms);
        let (proc, advice) = (Path::new("/proc"), Box::new(advice));
        let mut governor = Governor::new(proc, self.pid, bits, advice, settings, shortest);
        let (mut actions, mut large_bytes_before) = (Vec::new(), None);
        let mut last = self.step(&mut governor)?;
        for _ in 0..self.periods {
            let due = Instant::now() + governor.pause();
            thread::sleep(due.saturating_duration_since(Instant::now()));
            last = self.step(&mut governor)?;
            large_bytes_before.get_or_insert(last.large_bytes.0);
            if self.act {
                actions.append(&mut last.actions);
            } else {
                actions = std::mem::take(&mut last.actions);
            }
        }
        let mut ranking = governor.standings();
        ranking.truncate(self.top);
        let told = Told {
            pid: self.pid,
            source: last.source,
            source_reason: reason.map(|e| e.to_string()),
            settled: last.settled,
            acted: self.act,
            ranges: last.ranges,
            large_bytes_before: large_bytes_before.unwrap_or(0),
            large_bytes: last.large_bytes.1,
            period_ms: governor.pause().as_millis() as u64,
            totals: governor.totals(),
            actions,
            ranking,
        };
        if self.json { json_line(&told) } else { print(&text(&told)) }
    }

    fn step(&self, governor: &mut Governor) -> Result<Step, Failure> {
        governor.step(self.act, Asked::default()).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        let pid = self.pid;
        match error.kind() {
            _ if is_gone(error) => {
                Failure::new(UNAVAILABLE, format!("there is no process {pid}, or it has ended"))
            }
            io::ErrorKind::PermissionDenied => Failure::new(
                NO_PERMISSION,
                format!(
                    "process {pid} may not be looked at: {error}; run this as root, or as the process's user"
                ),
            ),
            _ => Failure::new(SOFTWARE, format!("process {pid}: {error}")),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

fn text(told: &Told) -> String {
    let source = match told.source {
        Kind::PageTables => "access bits of its page tables",
        Kind::ReferencedOfMapping => "accesses of whole mappings, taken as spread evenly",
        Kind::WriteLog => "written pages",
    };
    let Totals { periods, mapped, demoted, busy, refused, counting_us, .. } = told.totals;
    let mut out = format!(
        "process {}: {} ranges of 2 MiB, by {source}; {periods} periods, now of {} ms, counting took {:.1} ms\n",
        told.pid,
        told.ranges,
        told.period_ms,
        counting_us as f64 / 1e3
    );
    if let Some(reason) = &told.source_reason {
        out += &format!("  nothing finer, since: {reason}\n");
    }
    if !told.settled {
        out += "  first phase: the counts settle, and nothing is mapped large yet; count more --periods\n";
    }
    out += &format!(
        "  large: {} before, {} now; mapped {mapped}, demoted {demoted}, put off {busy}, refused {refused}\n",
        format_bytes(told.large_bytes_before),
        format_bytes(told.large_bytes)
    );
    for (action, outcome) in &told.actions {
        let (what, range) = match action {
            Action::Map(range) => ("large", range),
            Action::Demote(range) => ("small", range),
        };
        match outcome {
            None => out += &format!("  would map {what}: {}\n", place(*range)),
            Some(Outcome::Done) => {}
            Some(Outcome::Busy(why) | Outcome::Refused(why)) => {
                out += &format!("  not mapped {what}: {}: {why}\n", place(*range));
            }
        }
    }
    out += "              range   pages in use   in vain   score\n";
    for s in &told.ranking {
        let mark = if s.large {
            "  large"
        } else if s.refused {
            "  refused"
        } else {
            ""
        };
        out += &format!(
            "{:>19}   {:>12.0}   {:>7.0}   {:>5.0}{mark}\n",
            place(s.range),
            s.ccv,
            s.in_vain,
            s.score
        );
    }
    out
}

fn place(range: Range) -> String {
    format!("{:#x}", range.start())
}
