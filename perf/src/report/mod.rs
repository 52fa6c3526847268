//! What a benchmark tells: rows on the terminal, or as JSON, and a page.
//!
//! Rows go to standard output, progress to standard error: a bar where that is a terminal, else nothing.

mod facts;
mod page;
mod row;
mod svg;

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

pub use row::{Aim, Row, Series};
pub use svg::{Chart, Curve};

use crate::Outcome;

/// How a benchmark tells its results.
#[derive(Args, Clone, Debug, Default)]
pub struct Output {
    /// Print a line of JSON a row, after one with the facts of this machine
    #[arg(long)]
    json: bool,
    /// Write a self-contained page with curves
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A peer that could not be measured, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// The peer.
    pub name: &'static str,
    /// What to do about it.
    pub remedy: String,
}

/// What one run has found. [`Report::finish`] tells it.
pub struct Report {
    bench: &'static str,
    output: Output,
    bar: ProgressBar,
    rows: Vec<Row>,
    absent: Vec<Absent>,
    notes: Vec<String>,
    charts: Vec<Chart>,
}

impl Report {
    /// A report of `bench` whose progress has `steps`.
    pub fn new(bench: &'static str, output: &Output, steps: usize) -> Report {
        let bar = ProgressBar::new(steps as u64);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} {msg}");
        bar.set_style(style.expect("a constant template"));
        Report {
            bench,
            output: output.clone(),
            bar,
            rows: Vec::new(),
            absent: Vec::new(),
            notes: Vec::new(),
            charts: Vec::new(),
        }
    }

    /// A step begins.
    pub fn step(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
        self.bar.inc(1);
    }

    /// Adds a row.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Notes that a peer is missing, once.
    pub fn lacks(&mut self, absent: Absent) {
        if !self.absent.contains(&absent) {
            self.absent.push(absent);
        }
    }

    /// Says how the figures came about.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a chart to the page, before those of the rows.
    pub fn draw(&mut self, chart: Chart) {
        self.charts.push(chart);
    }

    /// Prints the rows and writes the page.
    pub fn finish(self) -> Outcome<()> {
        self.bar.finish_and_clear();
        let facts = facts::gather();
        if self.output.json {
            println!("{}", json!({ "bench": self.bench, "facts": facts, "notes": self.notes }));
            self.absent.iter().for_each(|a| println!("{}", json!({ "absent": a.name, "remedy": a.remedy })));
            self.rows.iter().for_each(|row| println!("{}", row.json()));
        } else {
            self.rows.iter().for_each(|row| println!("{}", line(row)));
            self.notes.iter().for_each(|note| println!("note: {note}"));
            self.absent.iter().for_each(|a| println!("not measured: {}: {}", a.name, a.remedy));
        }
        if let Some(path) = &self.output.html {
            let page = page::render(self.bench, &facts, &self.rows, &self.absent, &self.notes, &self.charts);
            std::fs::write(path, page).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(())
    }
}

/// A row for a person.
fn line(row: &Row) -> String {
    let size = row.size.map_or(String::new(), bytes);
    let mut text = format!("{:<28} {size:>8}  {} {}", row.what, row.ours.spread(), row.unit);
    if let (Some((name, peer)), Some(ratio)) = (&row.peer, row.ratio()) {
        text += &format!("; {name} {}; ratio {ratio}", peer.spread());
    }
    if let (Some(aim), Some(met)) = (row.aim, row.met()) {
        text += &format!("; aim {} {}", aim.text(), if met { "met" } else { "MISSED" });
    }
    if let Some(label) = row.label {
        text += &format!(" [{label}]");
    }
    text
}

/// A size as people write it.
pub fn bytes(size: u64) -> String {
    match size {
        s if s >= 1 << 20 && s.is_multiple_of(1 << 20) => format!("{} MiB", s >> 20),
        s if s >= 1 << 10 && s.is_multiple_of(1 << 10) => format!("{} KiB", s >> 10),
        s => format!("{s} B"),
    }
}
