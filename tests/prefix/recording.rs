//! A program's run under the preload library, its log archived by a real agent.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pmemha::log::format::{Kind, cell};
use pmemha::replica::archive::{Entry, list};
use pmemha::types::Lsn;
use pmemha_testkit::node::{Binaries, Node, archiving};
use pmemha_testkit::wait;

use crate::programs::Program;
use crate::witness::Acknowledgements;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// Under what conditions a program runs.
pub struct Conditions<'a> {
    /// The group's lines in the agent's configuration.
    pub group: &'a str,
    /// Gaps in the log, each of which a sync must have made good at the end.
    pub gaps: usize,
    /// Called, with the agent's node and its log region, while the program runs. It may kill the program, and says whether it did.
    pub meanwhile: &'a dyn Fn(&Node, &Path, &mut Child) -> bool,
}

/// No gap, which would leave LSNs without an image: the program waits for room. The limit is for a machine that is very busy.
pub const CALM: Conditions<'static> = Conditions {
    group: "log_size = \"64MiB\"\non_full = \"block\"\nblock_limit = \"60s\"",
    gaps: 0,
    meanwhile: &|_, _, _| false,
};

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(60);

/// What a run left behind. Removed on drop.
pub struct Recording {
    node: Node,
    entries: Vec<Entry>,
    acknowledged: Acknowledgements,
}

impl Recording {
    /// Runs the program to its end; its archive is complete then.
    pub fn make(program: &Program, seed: u64) -> Recording {
        let made = Recording::under(&CALM, program, seed);
        assert_eq!(made.acknowledged.count() as u64, program.operations * program.threads as u64);
        made
    }

    /// The same under other conditions, under which it may not come to its end.
    pub fn under(conditions: &Conditions<'_>, program: &Program, seed: u64) -> Recording {
        let (node, entries) = record(conditions, &|node, clock| {
            let mut command = node.preloaded(program.executable());
            command.env("WORKLOAD_CLOCK", clock).env("WORKLOAD_WITNESS", notes(node));
            program.run(&mut command, &node.files(), seed);
            command
        });
        let acknowledged = Acknowledgements::read(&notes(&node), program.threads);
        let end = entries[entries.len() - 1].next;
        assert!(acknowledged.last() <= end, "acknowledged up to {}, archived to {end}", acknowledged.last());
        Recording { node, entries, acknowledged }
    }

    /// The archive.
    pub fn archive(&self) -> PathBuf {
        self.node.archive()
    }

    /// Its records.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What the program noted.
    pub fn acknowledged(&self) -> &Acknowledgements {
        &self.acknowledged
    }

    /// Where the program's files were; regions are named below it.
    pub fn files(&self) -> PathBuf {
        self.node.files()
    }

    /// A directory in memory for whatever is made from the recording.
    pub fn dir(&self) -> &Path {
        self.node.dir()
    }
}

/// Runs what `command` makes, given a node and its clock, and returns the node, its agent stopped, and what is in its archive.
pub fn record(conditions: &Conditions<'_>, command: &dyn Fn(&Node, &str) -> Command) -> (Node, Vec<Entry>) {
    let mut node = archiving(BINARIES, conditions.group);
    node.start();
    // Its first copy, of nothing, is over: what the program does lies behind, and has an image at each record.
    wait::until("the archive to begin", SOON, || records(&node).filter(|entries| syncs(entries) > 0));
    let log = log_region(node.pid());
    let mut command = command(&node, &format!("{}@{}", log.display(), cell::PUBLISHED));
    let mut program =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let killed = (conditions.meanwhile)(&node, &log, &mut program);
    let output = program.wait_with_output().expect("our own child");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() || killed, "{}: {said}", output.status);
    assert!(!said.contains("pmemha["), "the library complains: {said}");

    let entries = wait::until("the archive to be complete", SOON, || {
        let end = archived(&node).filter(|at| !is_ahead(&log) && *at >= Lsn(word(&log, cell::PUBLISHED)))?;
        let entries = records(&node)?;
        (syncs(&entries) > conditions.gaps && entries.last()?.next >= end).then_some(entries)
    });
    // One at the beginning, and one for each gap.
    assert_eq!(syncs(&entries), 1 + conditions.gaps, "times that all was copied");
    node.kill();
    (node, entries)
}

/// What the archive holds, if it can be read at the moment.
pub fn records(node: &Node) -> Option<Vec<Entry>> {
    list(&node.archive()).ok()?.collect::<Result<_, _>>().ok()
}

/// Syncs that are complete.
pub fn syncs(entries: &[Entry]) -> usize {
    entries.iter().filter(|entry| entry.kind == Kind::SyncEnd).count()
}

/// Whether the application runs ahead of the log.
pub fn is_ahead(log: &Path) -> bool {
    word(log, cell::TAIL) & cell::AHEAD != 0
}

fn notes(node: &Node) -> PathBuf {
    node.dir().join("notes")
}

/// How far the archive is durable.
fn archived(node: &Node) -> Option<Lsn> {
    let status = node.try_status()?;
    status["groups"][0]["archive"]["lsn_durable"].as_u64().map(Lsn)
}

/// The agent's only log region, as a file that others can open.
fn log_region(agent: u32) -> PathBuf {
    let descriptors = fs::read_dir(format!("/proc/{agent}/fd")).expect("our own child");
    let is_log =
        |fd: &PathBuf| fs::read_link(fd).is_ok_and(|to| to.to_string_lossy().contains("memfd:pmemha-log"));
    descriptors
        .map(|entry| entry.expect("our own child").path())
        .find(is_log)
        .expect("the agent has a descriptor of its log region")
}

/// A word of the log region.
pub fn word(log: &Path, at: usize) -> u64 {
    let mut word = [0; 8];
    let file = fs::File::open(log).expect("a log region");
    file.read_exact_at(&mut word, at as u64).expect("the page of cells");
    u64::from_le_bytes(word)
}
