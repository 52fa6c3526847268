//! Two machines with Soft-RoCE between them and NVDIMMs of their own: an unmodified PMDK program runs on one, over
//! `fabric = "verbs"`, its files on DAX, and something is cut: the power of a machine, the cable, the lives of program and
//! agent at once.
//!
//! After each cut the promises hold. A machine that was cut is booted on the same NVDIMM; what a promotion would yield from what
//! it finds there keeps the program's own invariants (promise 1) and has everything that was acknowledged (2); a handover has
//! everything that was published (3); never more than one machine runs the program (4), which goes on through whatever happens
//! elsewhere (5). Then everything is well again, and the next cut comes.
//!
//! Where a cut is to come in the middle of something, the moment is chosen by condition, and what recovery or the source says of it
//! is asserted and printed: that records had landed unseen, were being applied, or that a first sync was unfinished.
//!
//! `PMEMHA_CUTS` are made on one pair of machines (7 in `make test`: one of each kind, in an order by chance, and one more). The seed is printed;
//! `PMEMHA_CUT_SEED` makes the same choices again (moments differ as far as the emulators' scheduling does).

mod cuts;
mod node;
mod rig;

use std::collections::BTreeMap;
use std::time::Instant;

use pmemha_testkit::chance::Chance;
use pmemha_testkit::node::Binaries;

use cuts::Kind;
use rig::Rig;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// Cuts in `make test`.
const CUTS: usize = 7;

#[test]
fn whatever_is_cut_nothing_acknowledged_is_lost_and_one_machine_runs_the_program() {
    let cuts = std::env::var("PMEMHA_CUTS").map_or(CUTS, |n| n.parse().expect("PMEMHA_CUTS is a number"));
    let mut chance = Chance::from_env("PMEMHA_CUT_SEED");
    let began = Instant::now();
    let say = |what: &str| println!("{:5.1} s  {what}", began.elapsed().as_secs_f32());
    let mut rig = Rig::boot(&mut chance, &say);

    let (mut kinds, mut made) = (Vec::new(), BTreeMap::new());
    for cut in 1..=cuts {
        if kinds.is_empty() {
            kinds = Kind::all(&mut chance);
        }
        let kind = kinds.pop().expect("filled just now");
        let what = kind.cut(&mut rig, &mut chance);
        say(&format!("cut {cut} of {cuts}, {kind}: {what}"));
        *made.entry(kind.to_string()).or_insert(0) += 1;
    }
    // `scripts/soak` adds these lines up.
    for (kind, count) in &made {
        println!("cuts of {kind}: {count}");
    }
    let kinds = Kind::all(&mut chance).len();
    assert!(made.len() == kinds.min(cuts), "not every kind of cut was made: {made:?}");
}
