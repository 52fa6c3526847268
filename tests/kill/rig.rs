//! A pair under load, what its source claims at an instant, and the proof of it on a copy of the destination.

use std::fs;
use std::time::Duration;

use pmemha_testkit::chance::Chance;
use pmemha_testkit::claim::{Claim, KEPT_BY_A_MACHINE};
use pmemha_testkit::image::Copy;
use pmemha_testkit::load::{Files, Load};
use pmemha_testkit::node::{Node, Pair, PairOptions};
use pmemha_testkit::wait;
use serde_json::Value;

use super::BINARIES;

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(30);

/// A kill comes at most so long after everything is well again.
const CALM: Duration = Duration::from_millis(60);

/// Ring.
const LOG_SIZE: &str = "log_size = \"8MiB\"";

/// A program waits so long, once, when its destination dies.
const SHORT: &str = "200ms";

/// For noticing that an agent is gone. The end of a connection is seen at once; a dead destination at the latest by a ping (sent
/// every second) that is not answered (for 5 s).
pub const DETECTION: Duration = Duration::from_secs(7);

/// An agent that is killed again and again.
pub struct Victim {
    /// Kills it, and proves the claim on the destination as it is then.
    pub kill: fn(&mut Rig, &Claim),
    /// Waits until the other agent's status says that it is gone.
    pub await_missed: fn(&Rig),
    /// Starts it again.
    pub start: fn(&mut Rig),
}

impl Victim {
    /// Kills it `kills` times under a load of `mode`. In half of the rounds the program pauses while the agent is dead, so that
    /// the ring holds what is missing.
    pub fn campaign(
        &self,
        mode: &'static str,
        commit: &str,
        kills: u64,
        chance: &mut Chance,
        tally: &mut Tally,
    ) -> Rig {
        let mut rig = Rig::start(mode, commit);
        for _ in 0..kills {
            let claim = rig.moment(chance);
            let images = rig.images();
            (self.kill)(&mut rig, &claim);
            rig.load.files.await_progress("without one of the agents", 20);
            if chance.below(2) == 0 {
                rig.load.pause();
            }
            (self.await_missed)(&rig);
            (self.start)(&mut rig);
            let resumed = rig.assert_resumed(&claim, &images);
            rig.load.assert_alive();
            tally.add(&claim, resumed);
        }
        rig
    }
}

/// A pair with a load of one mode.
pub struct Rig {
    pub pair: Pair,
    pub load: Load,
    pub mode: &'static str,
}

impl Rig {
    /// Starts everything; the destination counts.
    pub fn start(mode: &'static str, commit: &str) -> Rig {
        Rig::waiting(mode, commit, SHORT)
    }

    /// As [`Rig::start`]; the program goes on only when the destination acknowledges.
    pub fn patient(mode: &'static str, commit: &str) -> Rig {
        Rig::waiting(mode, commit, "forever")
    }

    fn waiting(mode: &'static str, commit: &str, timeout: &str) -> Rig {
        let group = format!("{LOG_SIZE}\ncommit = \"{commit}\"\ncommit_timeout = \"{timeout}\"");
        let pair = Pair::start(BINARIES, &PairOptions { group, ..PairOptions::default() });
        let load = Load::start(&pair.alpha, mode);
        pair.alpha.await_streaming();
        Rig { pair, load, mode }
    }

    /// Waits until all is well, then for a random moment; what the source claims then.
    pub fn moment(&mut self, chance: &mut Chance) -> Claim {
        self.load.assert_alive();
        let ours = self.load.pid();
        self.pair
            .alpha
            .await_group("the program to come back", |g| (g["sessions"][0]["pid"] == ours).then_some(()));
        let claim = moment(&self.pair.alpha, &self.load.files, chance);
        assert_eq!(claim.group["sessions"][0]["pid"], self.load.pid(), "{:#}", claim.group);
        claim
    }

    /// Proves `claim` on a copy of the destination, whose agent is dead or stands still.
    pub fn prove(&self, claim: &Claim) {
        prove(claim, self.mode, &self.pair.beta, &self.pair);
    }

    /// Names of the destination's images: another one means another copy of everything.
    pub fn images(&self) -> Vec<String> {
        let entries = fs::read_dir(self.pair.beta.replica()).expect("the replica's directory");
        let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("image-")).collect()
    }

    /// Both agents run again. Where the program, which may stand still, has not outrun the ring since `claim`, the stream goes on
    /// from the ring, into the same image, and the status says so. Whether it did. The program runs when this returns.
    pub fn assert_resumed(&self, claim: &Claim, images: &[String]) -> bool {
        let group = self.pair.alpha.await_group("the log", |g| g["log"].is_object().then(|| g.clone()));
        let then = &claim.group["destinations"][0];
        let copying = then["state"] != "streaming" || then["sync"].is_object();
        let outran = copying || group["log"]["times_ahead"] != claim.group["log"]["times_ahead"];
        if outran {
            // No copy is completed while a process stands still in the middle of noting what it stores.
            self.load.go_on();
        }
        let row = self.pair.alpha.await_streaming();
        let log = &self.pair.alpha.status().expect("the agent answers")["groups"][0]["log"];
        self.load.go_on();
        if outran || log["times_ahead"] != claim.group["log"]["times_ahead"] {
            return false;
        }
        assert_eq!(row["resumed"], true, "the ring had everything: {row:#}");
        assert_eq!(self.images(), images, "the ring had everything: {row:#}");
        true
    }
}

/// Waits until `source` has a destination that counts, then for a random moment; what it claims then of the program in `files`.
pub fn moment(source: &Node, files: &Files, chance: &mut Chance) -> Claim {
    source.await_streaming();
    let group = |node: &Node| node.status().expect("the agent answers")["groups"][0].take();
    let given_up = |group: &Value| group["log"]["commits_given_up"].as_u64();
    // From where on commits wait again: programs learn of the destination with the agent's next pulse.
    let before = wait::until("commits to wait for the destination", SOON, || {
        let before = group(source);
        files.await_progress("with a destination that counts", 2);
        (given_up(&group(source)) == given_up(&before)).then_some(before)
    });
    chance.pass(CALM);
    let done = files.done();
    let group = group(source);
    Claim { done, waited: given_up(&group) == given_up(&before), group }
}

/// See [`Rig::prove`]; `node` is the destination.
pub fn prove(claim: &Claim, mode: &str, node: &Node, pair: &Pair) {
    let mut copy = Copy::of(node, &[&pair.alpha.files(), &pair.beta.files()]);
    claim.prove(mode, &KEPT_BY_A_MACHINE, &mut copy);
}

/// Counts what a campaign saw, so that it says when it has stopped to see what it is for.
#[derive(Default)]
pub struct Tally {
    pub kills: u64,
    pub proved_acknowledgements: u64,
    pub resumed: u64,
}

impl Tally {
    pub fn add(&mut self, claim: &Claim, resumed: bool) {
        self.kills += 1;
        self.proved_acknowledgements += u64::from(claim.waited);
        self.resumed += u64::from(resumed);
    }

    /// Says the counts; a campaign of some length must have met each case.
    pub fn close(&self, what: &str) {
        let Tally { kills, proved_acknowledgements, resumed } = self;
        println!(
            "{what}: {kills} kills, acknowledgements proved after {proved_acknowledgements}, resumed from the ring after {resumed}"
        );
        if *kills >= 8 {
            assert!(proved_acknowledgements * 2 > *kills, "{what}: commits were given up most of the time");
            assert!(*resumed > 0, "{what}: the ring never held what was missing");
        }
    }
}
