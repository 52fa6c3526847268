//! The kinds of cuts. Each ends with everything as it was before: `alpha` owns the group, `beta` follows.

use std::fmt;
use std::time::Duration;

use pmemha_rig::FSDAX;
use pmemha_testkit::chance::Chance;

use super::rig::{Rig, generation};

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The lives of the source's program and agent, at once.
    ProgramAndAgent,
    /// The power of the source's machine, after `saved`.
    SourceAfterSaved,
    /// The power of the destination's machine, while records land that its agent has not seen yet.
    DestinationLanding,
    /// The power of the destination's machine, while its agent applies what lands.
    DestinationApplying,
    /// The power of the destination's machine, in its first sync.
    DestinationInFirstSync,
    /// The cable.
    Cable,
}

/// While an agent stands still, the program waits for it so long, once,
const PATIENCE: Duration = Duration::from_millis(500);

/// and then goes on for at most so long: its records land.
const LANDING: Duration = Duration::from_millis(1500);

/// What has landed then is applied in about so long.
const APPLYING: Duration = Duration::from_millis(300);

/// The first sync takes about as long.
const COPYING: Duration = Duration::from_millis(1500);

/// After `saved`, a machine's batteries last for at most so long.
const LEFT: Duration = Duration::from_millis(300);

/// A cable is cut for at most so long; a connection is given up after 5 s of silence.
const SILENCE: Duration = Duration::from_secs(8);

/// A file of the group beside the program's, so that a first sync takes a while.
const BALLAST_MIB: u32 = 8;

impl Kind {
    /// One of each, in an order by chance.
    pub fn all(chance: &mut Chance) -> Vec<Kind> {
        let mut kinds = vec![
            Kind::ProgramAndAgent,
            Kind::SourceAfterSaved,
            Kind::DestinationLanding,
            Kind::DestinationApplying,
            Kind::DestinationInFirstSync,
            Kind::Cable,
        ];
        for last in (1..kinds.len()).rev() {
            kinds.swap(last, chance.below(last as u64 + 1) as usize);
        }
        kinds
    }

    /// Cuts, recovers, proves. In words, what was found.
    pub fn cut(self, rig: &mut Rig, chance: &mut Chance) -> String {
        match self {
            Kind::ProgramAndAgent => program_and_agent(rig, chance),
            Kind::SourceAfterSaved => source_after_saved(rig, chance),
            Kind::DestinationLanding => destination(rig, chance, false),
            Kind::DestinationApplying => destination(rig, chance, true),
            Kind::DestinationInFirstSync => first_sync(rig, chance),
            Kind::Cable => cable(rig, chance),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::ProgramAndAgent => "the lives of the source's program and agent",
            Kind::SourceAfterSaved => "the source's power after `saved`",
            Kind::DestinationLanding => "the destination's power while records land",
            Kind::DestinationApplying => "the destination's power while records are applied",
            Kind::DestinationInFirstSync => "the destination's power in its first sync",
            Kind::Cable => "the cable",
        })
    }
}

/// The next agent finds the program dead, and does what `on_death` says.
fn program_and_agent(rig: &mut Rig, chance: &mut Chance) -> String {
    let (claim, program) = rig.moment(chance);
    let agent = rig.alpha.agent();
    let before = generation(&claim.group);
    rig.alpha.sh(&format!("kill -9 {program} {agent}"));
    rig.alpha.agent_was_killed();
    // Nobody runs, so this is what had been done; and each of it had been published.
    let done = rig.alpha.done();
    let here = chance.below(2) == 0;
    let on_death = if here { "restart" } else { "failover" };
    rig.alpha.sh(&format!("sed -i 's/^on_death = .*/on_death = \"{on_death}\"/' {FSDAX}/etc/pmemhad.conf"));
    rig.start_alpha();
    let found = if here {
        let again = rig
            .alpha
            .await_group("another program to run", |g| super::node::program(g).filter(|now| *now != program));
        rig.alpha.await_map_sync(again);
        assert_eq!((rig.alpha.writers(), rig.beta.writers()), (1, 0), "one writer");
        rig.alpha.found_at_start()
    } else {
        let found = rig.assert_taken_over(before, done);
        assert_eq!((rig.alpha.writers(), rig.beta.writers()), (0, 1), "one writer");
        rig.hand_back();
        found
    };
    assert!(found >= done, "{done} were done, {found} found");
    format!("on_death = {on_death}; {done} done, {found} found")
}

/// The heir has, or gets, the word that the rest of the log is with it. The returned machine starts nothing, whether it reaches
/// the heir at once or only later.
fn source_after_saved(rig: &mut Rig, chance: &mut Chance) -> String {
    let (claim, _) = rig.moment(chance);
    let before = generation(&claim.group);
    let saved = rig.alpha.beside(&format!(
        "pmemha events --since 0 | grep --line-buffered '\"kind\":\"saved\"' | grep --line-buffered '\"round\":\"{before}[.]'"
    ));
    rig.line_power(false);
    saved.until("saved").unwrap_or_else(|e| panic!("{e}"));
    // The program is frozen.
    let done = if chance.below(2) == 0 { rig.alpha.done() } else { claim.done };
    chance.pass(LEFT);
    let starts = rig.alpha.starts();
    let off = rig.alpha.cut_power();
    drop(saved);
    let found = rig.assert_taken_over(before, done);

    rig.alpha.boot(off);
    let alone = chance.below(2) == 0;
    if alone {
        rig.cable.cut();
        rig.start_alpha();
        rig.alpha.await_group("its state without the heir", |g| (g["state"] != "opening").then_some(()));
        rig.beta.await_progress(20);
        assert_eq!(rig.alpha.writers(), 0, "a second writer at a machine that hears of nobody");
        rig.cable.heal();
    } else {
        rig.start_alpha();
    }
    rig.alpha.await_state(&["standby"]);
    rig.beta.await_progress(20);
    assert_eq!((rig.alpha.writers(), rig.beta.writers()), (0, 1), "one writer");
    assert_eq!(rig.alpha.starts(), starts, "the returned machine has started the program");
    rig.hand_back();
    let way = if alone { "returned with the cable cut" } else { "returned" };
    format!("{done} done, {found} found by the heir; {way}")
}

/// The program goes on; what is found on the destination's machine is a prefix that has everything acknowledged; it catches up.
///
/// The agent stands still for a while, and the source's adapter writes on all the same; `applying`: then the agent goes on.
fn destination(rig: &mut Rig, chance: &mut Chance, applying: bool) -> String {
    let (claim, program) = rig.moment(chance);
    let agent = rig.beta.stand_still();
    std::thread::sleep(PATIENCE);
    chance.pass(LANDING);
    let on = applying.then(|| rig.beta.beside(&format!("kill -CONT {agent}")));
    if applying {
        chance.pass(APPLYING);
    }
    let off = rig.beta.cut_power();
    drop(on);
    rig.alpha.await_progress(20);
    rig.beta.boot(off);
    let what = rig.prove(&claim);
    rig.beta.start();
    assert_went_on(rig, program);
    what
}

/// A destination that has lost all that it had gets a first copy, is cut in it, and gets another one.
fn first_sync(rig: &mut Rig, chance: &mut Chance) -> String {
    let (_, program) = rig.moment(chance);
    let ballast = format!("{FSDAX}/files/ballast");
    rig.alpha.sh(&format!(
        "[ -e {ballast} ] || {{ yes ballast | head -c {BALLAST_MIB}M >{ballast}.new && mv {ballast}.new {ballast} && \
         pmemha run --group app -- sh -c ': <>{ballast}'; }}"
    ));
    rig.beta.kill();
    rig.beta.sh(&format!("rm -rf {FSDAX}/state {FSDAX}/replica"));
    rig.beta.start();
    rig.beta.await_group("a first sync", |g| {
        let row = &g["destinations"][0];
        (row["state"] == "syncing" || row["state"] == "streaming").then_some(())
    });
    chance.pass(COPYING);
    let group = rig.alpha.group();
    let done = rig.alpha.done();
    let counted = group["destinations"][0]["state"] == "streaming";
    let off = rig.beta.cut_power();
    rig.alpha.await_progress(20);
    rig.beta.boot(off);
    let mut copy = rig.copy_of_beta();
    let what = match copy.promote() {
        Ok(files) => {
            let found = files.check(rig.mode()).unwrap_or_else(|why| panic!("{}: {why}", rig.mode()));
            format!("the copy was complete, with {found} of {done}")
        }
        Err(why) => {
            assert!(!counted, "the source counted on a copy that cannot be promoted: {why}; {group:#}");
            assert!(why.contains("no consistent copy"), "{why}");
            "nothing that could be promoted".to_owned()
        }
    };
    rig.beta.start();
    assert_went_on(rig, program);
    what
}

/// The program goes on all the while, and what was missed is caught up on.
fn cable(rig: &mut Rig, chance: &mut Chance) -> String {
    let (_, program) = rig.moment(chance);
    rig.cable.cut();
    let before = rig.alpha.done();
    rig.alpha.await_progress(20);
    chance.pass(SILENCE);
    let state = rig.alpha.group()["destinations"][0]["state"].clone();
    let done = rig.alpha.done() - before;
    rig.cable.heal();
    assert_went_on(rig, program);
    let row = rig.alpha.await_streaming();
    let how = if row["resumed"] == true { "went on from the ring" } else { "copied anew" };
    format!("{done} done meanwhile, the destination was {state}; {how}")
}

/// The same process of the program runs, and the destination has caught up with it.
fn assert_went_on(rig: &Rig, program: u32) {
    rig.alpha.await_streaming();
    assert_eq!(super::node::program(&rig.alpha.group()), Some(program), "the program noticed something");
}
