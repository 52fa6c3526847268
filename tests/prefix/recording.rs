//! A program's run under the preload library, its log archived by a real agent.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
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

/// A gap would leave LSNs without an image, so the program waits for room; the limit is for a machine that is very busy.
const GROUP: &str = "log_size = \"64MiB\"\non_full = \"block\"\nblock_limit = \"60s\"";

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
        let (node, entries) = record(&mut |node, clock| {
            let mut command = node.preloaded(program.executable());
            command.env("WORKLOAD_CLOCK", clock).env("WORKLOAD_WITNESS", notes(node));
            program.run(&mut command, &node.files(), seed);
            command
        });
        let acknowledged = Acknowledgements::read(&notes(&node), program.threads);
        assert_eq!(acknowledged.count() as u64, program.operations * program.threads as u64);
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
pub fn record(command: &mut dyn FnMut(&Node, &str) -> Command) -> (Node, Vec<Entry>) {
    let mut node = archiving(BINARIES, GROUP);
    node.start();
    wait::until("the archive to begin", SOON, || archived(&node));
    let log = log_region(node.pid());
    let clock = format!("{}@{}", log.display(), cell::PUBLISHED);
    let output = command(&node, &clock).output().expect("the program starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(!said.contains("pmemha["), "the library complains: {said}");

    let published = published(&log);
    wait::until("the archive to be complete", SOON, || archived(&node).filter(|at| *at >= published));
    let status = node.try_status().expect("the agent answers");
    assert_eq!(status["groups"][0]["log"]["times_ahead"], 0, "the ring was too small for this test");
    node.kill();
    let entries: Vec<Entry> =
        list(&node.archive()).expect("an archive").map(|e| e.expect("a record")).collect();
    let syncs = entries.iter().filter(|e| e.kind == Kind::SyncEnd).count();
    assert_eq!(syncs, 1, "consistent from the first copy's end on, without a gap");
    (node, entries)
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

fn published(log: &Path) -> Lsn {
    let mut word = [0; 8];
    let file = fs::File::open(log).expect("a log region");
    file.read_exact_at(&mut word, cell::PUBLISHED as u64).expect("the page of cells");
    Lsn(u64::from_le_bytes(word))
}
