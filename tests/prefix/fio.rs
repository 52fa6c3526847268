//! fio, which verifies its blocks itself: engines libpmem and mmap.
//!
//! fio writes each block of a file once, in an order that it logs, and says nothing when a block has become durable. But its own
//! order says enough: a block in an image was written after every earlier flush had returned. So, of the newest block that an
//! image holds, all blocks that were flushed before it was written have been acknowledged; and fio must find them whole.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pmemha_testkit::node::Node;

use crate::recording::{CALM, record};
use crate::walk::{Points, each_image};
use crate::{CONTROL_FINDS, CONTROL_POINTS, DROP_ONE_IN, POINTS, seeds, spoil};

const BLOCK: usize = 4096;

/// Images that one run of fio verifies: its start takes longer than its work.
const BATCH: usize = 50;

/// How a run of fio flushes.
struct Engine {
    name: &'static str,
    options: &'static [&'static str],
    /// Every block is flushed when it has been written; else fio logs its flushes.
    each_block: bool,
}

const LIBPMEM: Engine = Engine { name: "libpmem", options: &["--direct=1", "--sync=1"], each_block: true };
const MMAP: Engine = Engine { name: "mmap", options: &["--fsync=8"], each_block: false };

#[test]
fn every_prefix_of_fio_on_libpmem() {
    holds(&LIBPMEM);
}

#[test]
fn every_prefix_of_fio_on_mmap() {
    holds(&MMAP);
}

#[test]
fn fio_on_libpmem_with_losses_is_found_out() {
    notices_losses(&LIBPMEM);
}

#[test]
fn fio_on_mmap_with_losses_is_found_out() {
    notices_losses(&MMAP);
}

fn holds(engine: &Engine) {
    for seed in seeds() {
        let run = Run::make(engine, seed);
        let wrong = run.verify(&run.node.archive(), POINTS, seed);
        println!(
            "fio {}, seed {seed}: {POINTS} of {} LSNs, {} wrong",
            engine.name,
            run.entries.len(),
            wrong.len()
        );
        assert!(wrong.is_empty(), "fio {} with seed {seed}: {:#?}", engine.name, wrong);
    }
}

fn notices_losses(engine: &Engine) {
    let run = Run::make(engine, 1);
    let spoilt = run.node.dir().join("spoilt");
    let dropped = spoil::drop_records(&run.node.archive(), &spoilt, DROP_ONE_IN);
    let wrong = run.verify(&spoilt, CONTROL_POINTS, 1);
    println!("fio {} with losses: {CONTROL_POINTS} LSNs, {} wrong", engine.name, wrong.len());
    assert!(wrong.len() >= CONTROL_FINDS, "{dropped} records are missing, {} prefixes wrong", wrong.len());
}

/// A run of fio.
struct Run {
    node: Node,
    entries: Vec<pmemha::replica::archive::Entry>,
    /// Offsets of blocks in the order of writing; a flush lies between one part and the next.
    parts: Vec<Vec<usize>>,
}

impl Run {
    fn make(engine: &Engine, seed: u64) -> Run {
        let (node, entries) = record(&CALM, &|node, _| {
            // A file of the right size is not laid out first, which would double the log.
            let file = fs::File::create(node.files().join(FILE)).expect("our own directory");
            file.set_len(FILE_BYTES).expect("our own file");
            let mut fio = node.preloaded(Path::new("fio"));
            fio.args(["--name=j", "--thread", "--rw=randwrite", "--bs=4k"])
                .args(["--verify=crc32c", "--do_verify=0"])
                .arg(format!("--size={FILE_BYTES}"))
                .arg(format!("--randseed={seed}"))
                .arg(format!("--ioengine={}", engine.name))
                .args(engine.options)
                .arg(format!("--filename={}", node.files().join(FILE).display()))
                .arg(format!("--write_iolog={}", order(node).display()))
                .current_dir(node.dir());
            fio
        });
        let parts = read_order(&order(&node), engine.each_block);
        Run { node, entries, parts }
    }

    /// Lines about what is wrong, at most one an image.
    fn verify(&self, archive: &Path, points: usize, seed: u64) -> Vec<String> {
        let lsns = Points::choose(&self.entries, points, seed).lsns(&self.entries);
        let end = lsns[lsns.len() - 1];
        let (mut batch, mut wrong) = (Batch::new(self.node.dir()), Vec::new());
        each_image(archive, self.node.dir(), &self.node.files(), &lsns, |lsn, dir| {
            let kept = batch.dir.join(format!("at-{lsn}"));
            if fs::rename(dir.join(FILE), &kept).is_err() {
                // The file had not been made yet.
                return;
            }
            let image = fs::read(&kept).expect("our own file");
            // The archive's end holds everything; before, the newest block tells.
            let flushed = if lsn == end { self.parts.len() } else { self.newest_part(&image) };
            batch.add(&kept, self.parts[..flushed].iter().flatten());
            if batch.images == BATCH {
                wrong.extend(batch.verify());
            }
        });
        wrong.extend(batch.verify());
        wrong
    }

    /// The last part of which the image holds a block.
    fn newest_part(&self, image: &[u8]) -> usize {
        let holds = |at: &usize| image.get(*at..*at + BLOCK).is_some_and(|block| is_written(block, *at));
        self.parts.iter().rposition(|part| part.iter().any(holds)).unwrap_or(0)
    }
}

/// Whether fio's job wrote this block: it begins with fio's header for verification.
fn is_written(block: &[u8], at: usize) -> bool {
    block[..2] == 0xacca_u16.to_le_bytes() && block[16..24] == (at as u64).to_le_bytes()
}

/// Images to be verified by one run of fio: told by a log of reads.
struct Batch {
    dir: PathBuf,
    reads: String,
    images: usize,
}

impl Batch {
    fn new(node: &Path) -> Batch {
        let dir = node.join("batch");
        fs::create_dir(&dir).expect("our own directory");
        Batch { dir, reads: HEAD.into(), images: 0 }
    }

    /// Adds an image and the blocks that it must hold.
    fn add<'a>(&mut self, image: &Path, blocks: impl Iterator<Item = &'a usize>) {
        let mut blocks = blocks.peekable();
        if blocks.peek().is_none() {
            return;
        }
        let name = image.display();
        write!(self.reads, "{name} add\n{name} open\n").expect("writing to a String");
        blocks.for_each(|at| writeln!(self.reads, "{name} read {at} {BLOCK}").expect("writing to a String"));
        writeln!(self.reads, "{name} close").expect("writing to a String");
        self.images += 1;
    }

    /// The images in which fio finds a block wrong; a new batch begins.
    fn verify(&mut self) -> BTreeSet<String> {
        let reads = self.dir.join("reads");
        fs::write(&reads, std::mem::replace(&mut self.reads, HEAD.into())).expect("our own directory");
        let mut wrong = BTreeSet::new();
        if std::mem::take(&mut self.images) > 0 {
            let output = Command::new("fio")
                .args(["--name=j", "--thread", "--rw=randread", "--bs=4k", "--ioengine=psync"])
                .args(["--verify=crc32c", "--continue_on_error=verify"])
                .arg(format!("--read_iolog={}", reads.display()))
                .current_dir(&self.dir)
                .output()
                .expect("fio is installed by scripts/setup");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let image = |line: &str| line.split("/at-").nth(1)?.split([' ', ',']).next().map(str::to_owned);
            wrong = said.lines().filter(|line| line.contains("verify")).filter_map(image).collect();
            assert!(output.status.success() || !wrong.is_empty(), "fio failed otherwise: {said}");
        }
        for entry in fs::read_dir(&self.dir).expect("our own directory") {
            fs::remove_file(entry.expect("an entry").path()).expect("our own file");
        }
        wrong
    }
}

fn order(node: &Node) -> PathBuf {
    node.dir().join("order")
}

/// Reads fio's log of what it did: lines of time, file, action, offset and length.
fn read_order(log: &Path, each_block: bool) -> Vec<Vec<usize>> {
    let text = fs::read_to_string(log).expect("fio's log");
    let mut parts = vec![Vec::new()];
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, _, "write", offset, _] => {
                let part = parts.last_mut().expect("never empty");
                part.push(offset.parse().expect("an offset"));
                if each_block {
                    parts.push(Vec::new());
                }
            }
            [_, _, "sync", ..] => parts.push(Vec::new()),
            _ => {}
        }
    }
    assert_eq!(parts.iter().flatten().count(), FILE_BYTES as usize / BLOCK, "every block once");
    parts
}

const FILE: &str = "file";

const FILE_BYTES: u64 = 2 << 20;

const HEAD: &str = "fio version 2 iolog\n";
