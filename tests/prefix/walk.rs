//! Going through an archive, and having the image looked at at chosen records.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pmemha::log::format::Kind;
use pmemha::replica::archive::{Entry, Replayer};
use pmemha::types::Lsn;

use crate::checker::Checker;
use crate::programs::Program;
use crate::recording::Recording;
use crate::witness::Acknowledgements;

/// Consecutive records in a dense run.
const RUN: usize = 20;

/// Records after which the image is to be looked at, by their indexes.
pub struct Points(BTreeSet<usize>);

impl Points {
    /// `wanted` of those with a consistent image: half of them evenly spread from the first to the last, the others in runs of
    /// consecutive records, at places that `seed` chooses.
    pub fn choose(entries: &[Entry], wanted: usize, seed: u64) -> Points {
        let first = 1 + entries.iter().position(|e| e.kind == Kind::SyncEnd).expect("a first copy");
        let count = entries.len() - first;
        assert!(count >= wanted, "{count} records are too few for {wanted} LSNs");
        let spread = wanted / 2;
        let mut chosen: BTreeSet<usize> =
            (0..spread).map(|i| first + i * (count - 1) / (spread - 1).max(1)).collect();
        let mut chance = Chance(seed);
        while chosen.len() < wanted {
            let start = first + chance.below(count);
            for index in (start..entries.len()).take(RUN) {
                if chosen.len() < wanted {
                    chosen.insert(index);
                }
            }
        }
        Points(chosen)
    }

    /// At most `limit` of the records with a consistent image that `is_one` picks, evenly spread.
    pub fn of_those(entries: &[Entry], limit: usize, is_one: impl Fn(&Entry) -> bool) -> Points {
        let first = 1 + entries.iter().position(|e| e.kind == Kind::SyncEnd).expect("a first copy");
        let picked: Vec<usize> = (first..entries.len()).filter(|i| is_one(&entries[*i])).collect();
        Points((0..limit).map(|i| picked[i * (picked.len() - 1) / (limit - 1)]).collect())
    }

    /// Where the chosen records end.
    pub fn lsns(&self, entries: &[Entry]) -> Vec<Lsn> {
        self.0.iter().map(|i| entries[*i].next).collect()
    }
}

/// What was found.
#[derive(Default)]
pub struct Verdict {
    /// LSNs looked at.
    pub points: usize,
    /// A line for each at which something was wrong.
    pub wrong: Vec<String>,
    /// How often a state brought the checker down.
    pub restarts: usize,
    pub seconds: f64,
}

/// Replays `archive`, the recording's own or one made from it, and has the program check its files at `points`.
pub fn walk(
    program: &Program,
    seed: u64,
    archive: PathBuf,
    recording: &Recording,
    acknowledged: &Acknowledgements,
    points: &Points,
) -> Verdict {
    let began = Instant::now();
    let command = || program.check_many(seed);
    let mut checker = Checker::new(&command);
    let mut verdict = Verdict::default();
    each_image(
        &archive,
        recording.dir(),
        &recording.files(),
        &points.lsns(recording.entries()),
        |lsn, dir| {
            verdict.points += 1;
            let paths: Vec<String> =
                program.files.iter().map(|f| dir.join(f).display().to_string()).collect();
            let found = checker.ask(&paths.join(" "));
            let judged = found.and_then(|found| judge(&found, acknowledged, lsn));
            verdict.wrong.extend(judged.err().map(|why| format!("at {lsn}: {why}")));
        },
    );
    (verdict.restarts, verdict.seconds) = (checker.restarts, began.elapsed().as_secs_f64());
    verdict
}

/// Each thread's operations are those acknowledged, or one more.
fn judge(found: &[u64], acknowledged: &Acknowledgements, lsn: Lsn) -> Result<(), String> {
    for (thread, found) in found.iter().enumerate() {
        let least = acknowledged.at(thread, lsn);
        if !(least..=least + 1).contains(found) {
            return Err(format!("thread {thread}: {least} acknowledged, {found} found"));
        }
    }
    Ok(())
}

/// Replays `archive` and hands out, at each of the rising `lsns`, a copy of its files: the directory that stands for `files`, the
/// program's. A copy, since looking at a pool or a database changes it. All that is made is made below `scratch`.
pub fn each_image(
    archive: &Path,
    scratch: &Path,
    files: &Path,
    lsns: &[Lsn],
    mut look: impl FnMut(Lsn, &Path),
) {
    let (image, point) = (scratch.join("image"), scratch.join("point"));
    let mut replayer = Replayer::open(archive, &image).expect("the archive can be replayed");
    for lsn in lsns {
        assert_eq!(replayer.advance_to(*lsn).expect("the archive can be replayed"), *lsn);
        replayer.materialise(&point).expect("a consistent image");
        look(*lsn, &point.join(files.strip_prefix("/").expect("an absolute path")));
        // Nothing is made where there are no files yet.
        let _ = fs::remove_dir_all(&point);
    }
    fs::remove_dir_all(&image).expect("our own directory");
}

/// A plain generator (splitmix64): the same choices on every machine.
pub struct Chance(pub u64);

impl Chance {
    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}
