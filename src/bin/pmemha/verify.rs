//! `pmemha verify`, `pmemha scrub`: has the agent compare the group's files with a destination's image, and tells what it finds.

use std::num::NonZeroU64;
use std::thread;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use pmemha::agent::config::{format_bytes, parse_rate};
use pmemha::agent::status::{RangeStatus, VerifyStatus};
use pmemha::session::wire::{Reply, Request};

use crate::agent::{Agent, unexpected};
use crate::failure::{Failure, UNAVAILABLE};
use crate::output::{json_line, print};

/// `pmemha verify`
#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    compared: Compared,
    /// Where something is found, bring the destination what differs; it does not count meanwhile
    #[arg(long)]
    repair: bool,
}

/// `pmemha scrub`
#[derive(Args)]
pub struct Scrub {
    #[command(flatten)]
    compared: Compared,
}

/// What is compared, and how it is told.
#[derive(Args)]
struct Compared {
    /// The group
    group: String,
    /// The destination's node; the first one that counts if none is named
    node: Option<String>,
    /// Compare no more than this in a second, such as 100MiB/s
    #[arg(long, value_parser = parse_rate, value_name = "RATE")]
    rate: Option<u64>,
    /// What is found as one JSON document
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// Exit code: whether something was found that no record tells of.
    pub fn execute(self, agent: &Agent) -> Result<u8, Failure> {
        let (node, found) = self.compared.compare(agent, self.repair)?;
        if !self.compared.json {
            tell(found.ranges.iter())?;
            let outcome = match found.unrecorded_bytes {
                0 if found.unflushed_bytes == 0 => {
                    format!("equal to the copy at {node}, up to LSN {}", found.lsn)
                }
                0 => format!("the copy at {node} has everything that was flushed, up to LSN {}", found.lsn),
                n => format!("{} differ from the copy at {node} without a record", format_bytes(n)),
            };
            summarise(&found, &outcome)?;
        }
        Ok(if found.unrecorded_bytes > 0 { FOUND } else { 0 })
    }
}

impl Scrub {
    /// Exit code: whether something was found that was not flushed.
    pub fn execute(self, agent: &Agent) -> Result<u8, Failure> {
        let (_, found) = self.compared.compare(agent, false)?;
        if !self.compared.json {
            tell(found.ranges.iter().filter(|range| range.unflushed))?;
            let outcome = match found.unflushed_bytes {
                0 => "everything was flushed",
                _ => "whole cache lines that were not flushed are listed",
            };
            summarise(&found, outcome)?;
        }
        Ok(if found.unflushed_bytes > 0 { FOUND } else { 0 })
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    group: &'a str,
    node: &'a str,
    #[serde(flatten)]
    found: &'a VerifyStatus,
}

impl Compared {
    /// Has it compared, and waits for the end; with which node.
    fn compare(&self, agent: &Agent, repair: bool) -> Result<(String, VerifyStatus), Failure> {
        let (group, node) = (self.group.clone(), self.node.clone());
        let (node, run) = match agent.ask(&Request::Verify {
            group,
            node,
            rate: self.rate.and_then(NonZeroU64::new),
            repair,
        })? {
            Reply::Verifying { node, run } => (node, run),
            other => return Err(unexpected(&other)),
        };
        // Drawn on standard error, and only on a terminal.
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left") {
            bar.set_style(style);
        }
        let found = loop {
            let rows = agent.group(&self.group)?.destinations;
            let row = rows.into_iter().find(|row| row.node == node);
            let verify = row.and_then(|row| row.verify).filter(|verify| verify.run == run);
            // The agent was restarted, or another comparison has begun since.
            let gone = || Failure::new(UNAVAILABLE, "the agent does not know of this comparison any more");
            let verify = verify.ok_or_else(gone)?;
            if verify.ended.is_some() {
                break verify;
            }
            if let Some(progress) = verify.progress {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
            }
            thread::sleep(LOOK);
        };
        bar.finish_and_clear();
        if self.json {
            json_line(&Document { group: &self.group, node: &node, found: &found })?;
        }
        match &found.error {
            Some(why) => {
                Err(Failure::new(UNAVAILABLE, format!("the comparison with {node} ended early: {why}")))
            }
            None => Ok((node, found)),
        }
    }
}

fn tell<'a>(ranges: impl Iterator<Item = &'a RangeStatus>) -> Result<(), Failure> {
    for RangeStatus { path, offset, bytes, unflushed, .. } in ranges {
        let what = if *unflushed { "not flushed" } else { "differs" };
        let path: String = path.chars().filter(|c| !c.is_control()).collect();
        print(&format!("{what:<12} {path}  {offset:#x}..{:#x}  {bytes} bytes\n", offset + bytes))?;
    }
    Ok(())
}

fn summarise(found: &VerifyStatus, outcome: &str) -> Result<(), Failure> {
    let mut text = format!("{} compared: {outcome}", format_bytes(found.compared_bytes));
    if found.unflushed_bytes > 0 {
        text += &format!("; {} were stored and not flushed", format_bytes(found.unflushed_bytes));
    }
    if found.ranges_more > 0 {
        text += &format!("; {} ranges are not listed", found.ranges_more);
    }
    if found.repairs {
        text += "; the destination is brought what differs";
    }
    print(&format!("{text}\n"))
}

/// How often the agent is asked how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// Something was found.
const FOUND: u8 = 1;
