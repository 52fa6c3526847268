//! Promise 1 on real programs' logs: every prefix of the log is a state that a power cut could have left.
//!
//! A program that knows nothing of pmemha runs once under the preload library, with a real agent that archives its log
//! ([`recording`]). The archive is replayed record by record, and at many of its records, evenly spread and in dense runs of
//! consecutive ones, a copy of the image is handed to the program's own checker ([`walk`], [`checker`]). It must open, keep its
//! invariants, and hold each thread's operations up to the last that had been acknowledged by that LSN, and at most one more
//! ([`witness`] says how operations and LSNs are related). The negative controls drop one record in fifty ([`spoil`]): the same
//! check must then find violations.
//!
//! `PMEMHA_PREFIX_POINTS` says at how many LSNs of the six libpmemobj and libpmem workloads together (2,040 unless set; soak:
//! 50,000). Each of the seven other programs and modes gets as many as one of them. More are reached in rounds, each a new run with
//! another seed. `PMEMHA_PREFIX_SEED` is the seed of the first round, 1 unless set.

mod checker;
mod fio;
mod gap;
mod programs;
mod recording;
mod spoil;
mod walk;
mod witness;

use programs::Program;
use recording::Recording;
use walk::{Points, Verdict, walk};
use witness::Acknowledgements;

/// LSNs of a program in a round: six of them make 2,040.
const POINTS: usize = 340;

/// LSNs of a negative control.
const CONTROL_POINTS: usize = 150;

/// At how many of them at least it must find something wrong. Programs differ: what a workload writes over soon heals, and
/// its checker looks no further back than a prefix allows.
const CONTROL_FINDS: usize = 10;

/// One record in this many is dropped in a negative control.
const DROP_ONE_IN: u64 = 50;

/// The seeds of the runs of each program that it takes to reach the LSNs wanted.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|n| n.parse::<u64>().unwrap_or_else(|_| panic!("{name}={n} is no number")))
    };
    let of_a_round = 6 * POINTS as u64;
    let rounds = number("PMEMHA_PREFIX_POINTS").map_or(1, |points| points.div_ceil(of_a_round).max(1));
    let first = number("PMEMHA_PREFIX_SEED").unwrap_or(1);
    first..first + rounds
}

/// Every prefix that is looked at holds what was acknowledged, and nothing impossible.
fn holds(program: &Program) {
    for seed in seeds() {
        let recording = Recording::make(program, seed);
        let points = Points::choose(recording.entries(), POINTS, seed);
        let verdict = walk(program, seed, recording.archive(), &recording, recording.acknowledged(), &points);
        report(program, seed, &recording, &verdict);
        let shown = &verdict.wrong[..verdict.wrong.len().min(5)];
        assert!(
            shown.is_empty(),
            "{} with seed {seed}: {} wrong: {shown:#?}",
            program.name,
            verdict.wrong.len()
        );
    }
}

/// The same check is not fooled by a log that lacks a record here and there.
fn notices_losses(program: &Program) {
    let recording = Recording::make(program, 1);
    let spoilt = recording.dir().join("spoilt");
    let dropped = spoil::drop_records(&recording.archive(), &spoilt, DROP_ONE_IN);
    assert!(dropped > 10, "{}: only {dropped} records dropped", program.name);
    let points = Points::choose(recording.entries(), CONTROL_POINTS, 1);
    let verdict = walk(program, 1, spoilt, &recording, recording.acknowledged(), &points);
    report(program, 1, &recording, &verdict);
    assert!(
        verdict.wrong.len() >= CONTROL_FINDS,
        "{}: {dropped} records are missing, and only {} of {} prefixes were found wrong",
        program.name,
        verdict.wrong.len(),
        verdict.points
    );
}

fn report(program: &Program, seed: u64, recording: &Recording, verdict: &Verdict) {
    println!(
        "{}, seed {seed}: {} of {} LSNs, {} acknowledgements, {} wrong, {} checkers brought down, {:.1} s",
        program.name,
        verdict.points,
        recording.entries().len(),
        recording.acknowledged().count(),
        verdict.wrong.len(),
        verdict.restarts,
        verdict.seconds,
    );
}

macro_rules! programs {
    ($($program:ident => $holds:ident, $control:ident;)*) => { $(
        #[test]
        fn $holds() {
            holds(&programs::$program);
        }

        #[test]
        fn $control() {
            notices_losses(&programs::$program);
        }
    )* };
}

programs! {
    TX => every_prefix_of_transactions, transactions_with_losses_are_found_out;
    ATOMIC => every_prefix_of_the_atomic_api, the_atomic_api_with_losses_is_found_out;
    MEMCPY => every_prefix_of_copies_with_flags, copies_with_losses_are_found_out;
    HUGE => every_prefix_of_huge_objects, huge_objects_with_losses_are_found_out;
    RAW => every_prefix_of_raw_persists, raw_persists_with_losses_are_found_out;
    THREADS => every_prefix_of_four_threads, four_threads_with_losses_are_found_out;
    PMEM2 => every_prefix_of_libpmem2, libpmem2_with_losses_is_found_out;
    LMDB => every_prefix_of_lmdb_by_writes, lmdb_by_writes_with_losses_is_found_out;
    LMDB_WRITEMAP => every_prefix_of_lmdb_by_msync, lmdb_by_msync_with_losses_is_found_out;
    SQLITE => every_prefix_of_sqlite_wal, sqlite_wal_with_losses_is_found_out;
    SQLITE_CUT => every_prefix_of_a_log_that_another_process_cuts, a_cut_log_with_losses_is_found_out;
}

/// The relation of acknowledgements to LSNs is as tight as it can be: were it off by one record, it would show.
#[test]
fn an_acknowledgement_claimed_one_record_early_is_found_out() {
    let recording = Recording::make(&programs::RAW, 1);
    let early: Acknowledgements = recording.acknowledged().one_record_early(recording.entries());
    let points = Points::of_those(recording.entries(), CONTROL_POINTS, |entry| early.is_one(entry.next));
    let verdict = walk(&programs::RAW, 1, recording.archive(), &recording, &early, &points);
    assert_eq!(verdict.wrong.len(), verdict.points, "the last record of an operation is what makes it count");
}
