//! `pmemha log`: what an archive holds, and the files as they were at any of its moments.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use pmemha::agent::clock::WallTime;
use pmemha::replica::archive::{self, Out};
use pmemha::types::Lsn;

use crate::failure::{CANT_CREATE, DATA, Failure};
use crate::output::{json_line, print};

/// `pmemha log`
#[derive(Args)]
pub struct Log {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List an archive's records
    List {
        /// The archive
        dir: PathBuf,
        /// A JSON object a line, with the fields that pmemha(1) lists
        #[arg(long)]
        json: bool,
    },
    /// Build the files as they were at an LSN
    Replay {
        /// The archive
        dir: PathBuf,
        /// All records that end at or below it are in the result: one of `end` of `list`, for the state after that record
        #[arg(long, value_name = "LSN")]
        to: u64,
        /// File to make, or a directory that exists for a group of several files
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

impl Log {
    pub fn execute(self) -> Result<(), Failure> {
        match self.command {
            Command::List { dir, json } => list(&dir, json),
            Command::Replay { dir, to, out } => replay(&dir, Lsn(to), out),
        }
    }
}

fn list(dir: &std::path::Path, as_json: bool) -> Result<(), Failure> {
    let wrong = |e| Failure::new(DATA, e);
    let entries = archive::list(dir).map_err(wrong)?;
    if !as_json {
        print(&row("lsn", "end", "bytes", "region", "kind", "archived"))?;
    }
    for entry in entries {
        let entry = entry.map_err(wrong)?;
        if as_json {
            json_line(&entry)?;
            continue;
        }
        let region = entry.region.map_or("-".into(), |r| r.to_string());
        let [lsn, end] = [entry.lsn, entry.next].map(|lsn| lsn.to_string());
        let time = WallTime(UNIX_EPOCH + Duration::from_nanos(entry.time)).to_string();
        print(&row(&lsn, &end, &entry.bytes.to_string(), &region, entry.word(), &time))?;
    }
    Ok(())
}

fn row(lsn: &str, end: &str, bytes: &str, region: &str, kind: &str, archived: &str) -> String {
    format!("{lsn:>16} {end:>16} {bytes:>10} {region:>6} {kind:<10} {archived}\n")
}

fn replay(dir: &std::path::Path, to: Lsn, out: PathBuf) -> Result<(), Failure> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        let message =
            format!("--out: there is no directory `{}`; make it, or correct the path", parent.display());
        return Err(Failure::new(CANT_CREATE, message));
    }
    // Drawn on standard error, and only on a terminal.
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left") {
        bar.set_style(style);
    }
    let out = if out.is_dir() { Out::Dir(out) } else { Out::File(out) };
    let replayed = archive::replay(dir, to, &out, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let replayed = replayed.map_err(|e| {
        let code = if matches!(e, archive::ArchiveError::Io { .. }) { CANT_CREATE } else { DATA };
        Failure::new(code, e)
    })?;
    json_line(&json!({ "records": replayed.records, "at": replayed.at, "regions": replayed.regions }))
}
