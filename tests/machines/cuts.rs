//! The kinds of cuts. Each ends with everything as it was before: `alpha` owns the group, `beta` follows.

use std::fmt;
use std::time::Duration;

use pmemha::replica::ImageHealth;
use pmemha_rig::FSDAX;
use pmemha_testkit::chance::Chance;
use serde_json::Value;

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

/// Once records land that a standing agent has not seen, for at most so long.
const LANDING: Duration = Duration::from_millis(1500);

/// An agent that applies is let go on for at most so long at a time.
const SLICE: Duration = Duration::from_millis(40);

/// How often it is let go on until it stands in the middle of applying.
const SLICES: u32 = 200;

/// From its beginning on, the first sync takes longer than that.
const COPYING: Duration = Duration::from_millis(400);

/// How often a moment is tried for that passes by itself: what else is met is proved like it, and the moment tried for anew.
const TRIES: u32 = 6;

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
            Kind::DestinationLanding => until_met(rig, chance, landing),
            Kind::DestinationApplying => until_met(rig, chance, applying),
            Kind::DestinationInFirstSync => until_met(rig, chance, first_sync),
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

/// What was found of a cut whose moment passes by itself.
enum Moment {
    /// Recovery found the machine to have been cut in the middle of it.
    Met(String),
    /// It had passed.
    Missed(String),
}

/// Cuts by `cut` until the moment is met. Whatever was found at others, is proved all the same.
fn until_met(rig: &mut Rig, chance: &mut Chance, cut: impl Fn(&mut Rig, &mut Chance) -> Moment) -> String {
    let mut missed = Vec::new();
    for _ in 0..TRIES {
        match cut(rig, chance) {
            Moment::Met(what) if missed.is_empty() => return what,
            Moment::Met(what) => return format!("{what}; at other moments: {}", missed.join("; ")),
            Moment::Missed(what) => missed.push(what),
        }
    }
    panic!("the moment was not met in {TRIES} cuts: {missed:?}");
}

/// The agent stands still, and the source's adapter writes on all the same: records land that nobody has seen. The program goes
/// on; what is found on the destination's machine is a prefix that has everything acknowledged; it catches up.
fn landing(rig: &mut Rig, chance: &mut Chance) -> Moment {
    let (claim, program) = rig.moment(chance);
    rig.beta.stand_still();
    // The program waits for the agent until `commit_timeout` is over, once, and then goes on.
    let first = rig.alpha.await_group("records to land unseen", |group| {
        let row = &group["destinations"][0];
        (lsn(row, "received") > lsn(row, "durable")).then(|| row.clone())
    });
    chance.pass(LANDING);
    // Without a word of the agent's the source gives the connection up after 5 s, and nothing lands any more.
    let last = rig.alpha.await_group("more to land, or the link to end", |group| {
        let row = &group["destinations"][0];
        let more = lsn(row, "received") > lsn(&first, "received");
        (more || row["state"] != "streaming").then(|| row.clone())
    });
    let off = rig.beta.cut_power();
    rig.alpha.await_progress(20);
    rig.beta.boot(off);
    let proof = rig.prove(&claim);
    rig.beta.start();
    assert_went_on(rig, program);
    if last["state"] != "streaming" {
        return Moment::Missed(format!("the link had ended; {proof}"));
    }
    assert_eq!(lsn(&last, "durable"), lsn(&first, "durable"), "the agent stood still: {last:#}");
    let unseen = lsn(&last, "received") - lsn(&last, "durable");
    Moment::Met(format!("{unseen} bytes had landed unseen, and more were landing; {proof}"))
}

/// The agent is let go on for moments until its position says that it has begun to apply what it has not finished. What is found
/// there is made good from the landing ring.
fn applying(rig: &mut Rig, chance: &mut Chance) -> Moment {
    let (claim, program) = rig.moment(chance);
    let agent = rig.beta.stand_still();
    let mut slices = 1;
    while !rig.beta.position().is_some_and(|p| p.redo_end > p.at.lsn) {
        assert!(slices < SLICES, "the agent was never found to apply: {:#}", rig.alpha.group());
        slices += 1;
        rig.beta.go_on_for(agent, Duration::from_micros(chance.below(SLICE.as_micros() as u64)));
    }
    let off = rig.beta.cut_power();
    rig.alpha.await_progress(20);
    rig.beta.boot(off);
    let stored = rig.beta.position().unwrap_or_else(|| panic!("{}: no position", rig.beta.name));
    let proof = rig.prove(&claim);
    rig.beta.start();
    assert_went_on(rig, program);
    let begun = stored.redo_end.since(stored.at.lsn);
    if begun > 0 {
        Moment::Met(format!("{begun} bytes were being applied; {proof}"))
    } else {
        Moment::Missed(proof)
    }
}

/// A destination that has lost all that it had gets a first copy, is cut in it, and gets another one.
fn first_sync(rig: &mut Rig, chance: &mut Chance) -> Moment {
    let (_, program) = rig.moment(chance);
    let ballast = format!("{FSDAX}/files/ballast");
    rig.alpha.sh(&format!(
        "[ -e {ballast} ] || {{ yes ballast | head -c {BALLAST_MIB}M >{ballast}.new && mv {ballast}.new {ballast} && \
         pmemha run --group app -- sh -c ': <>{ballast}'; }}"
    ));
    rig.beta.kill();
    rig.beta.sh(&format!("rm -rf {FSDAX}/state {FSDAX}/replica"));
    rig.beta.start();
    // Told by the machine itself: on the way to here the copy would go on.
    rig.beta.sh(
        r#"timeout 60 sh -c 'until pmemha status --json | grep -q "\"total_bytes\":[1-9]"; do sleep 0.01; done'"#,
    );
    chance.pass(COPYING);
    rig.beta.stand_still();
    let group = rig.alpha.group();
    let done = rig.alpha.done();
    let counted = group["destinations"][0]["state"] == "streaming";
    let off = rig.beta.cut_power();
    rig.alpha.await_progress(20);
    rig.beta.boot(off);
    let mut copy = rig.copy_of_beta();
    let (image, sync) = (copy.status().image, copy.status().sync_progress);
    let found = match copy.promote() {
        Ok(files) => {
            let found = files.check(rig.mode()).unwrap_or_else(|why| panic!("{}: {why}", rig.mode()));
            assert_eq!(image, ImageHealth::Consistent, "promoted in the middle of a first sync");
            Moment::Missed(format!("the copy was complete, with {found} of {done}"))
        }
        Err(why) => {
            assert!(!counted, "the source counted on a copy that cannot be promoted: {why}; {group:#}");
            assert!(why.contains("no consistent copy"), "{why}");
            match (image, sync) {
                (ImageHealth::Syncing, Some((brought, total))) => Moment::Met(format!(
                    "{brought} of {total} bytes had been brought, nothing that could be promoted"
                )),
                _ => Moment::Missed("the sync had not begun".to_owned()),
            }
        }
    };
    rig.beta.start();
    assert_went_on(rig, program);
    found
}

/// The program goes on all the while, and what was missed is caught up on: the destination has a prefix with everything that was
/// acknowledged, before and after.
fn cable(rig: &mut Rig, chance: &mut Chance) -> String {
    let (_, program) = rig.moment(chance);
    rig.cable.cut();
    let before = rig.alpha.done();
    rig.alpha.await_progress(20);
    chance.pass(SILENCE);
    let row = rig.alpha.await_group("something that cannot arrive", |group| {
        let row = &group["destinations"][0];
        (lsn(row, "published") > lsn(row, "received")).then(|| row.clone())
    });
    let missing = lsn(&row, "published") - lsn(&row, "received");
    let done = rig.alpha.done() - before;
    rig.cable.heal();
    assert_went_on(rig, program);
    let again = rig.alpha.await_streaming();
    let how = if again["resumed"] == true { "went on from the ring" } else { "copied anew" };
    let (claim, _) = rig.moment(chance);
    let agent = rig.beta.stand_still();
    let proof = rig.prove(&claim);
    rig.beta.go_on(agent);
    assert_went_on(rig, program);
    format!(
        "{done} done meanwhile, {missing} bytes had not arrived, the destination was {}; {how}; {proof}",
        row["state"]
    )
}

/// A position in the row of a destination.
fn lsn(row: &Value, level: &str) -> u64 {
    row[format!("lsn_{level}")].as_u64().unwrap_or_else(|| panic!("no such position: {level} in {row:#}"))
}

/// The same process of the program runs, and the destination has caught up with it.
fn assert_went_on(rig: &Rig, program: u32) {
    rig.alpha.await_streaming();
    assert_eq!(super::node::program(&rig.alpha.group()), Some(program), "the program noticed something");
}
