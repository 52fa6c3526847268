//! The destination's agent dies: the program goes on, the image is a prefix, and the stream goes on where it was.

use std::time::Duration;

use pmemha_testkit::chance::Chance;
use pmemha_testkit::wait;

use super::rig::{Rig, Tally};

/// A dead destination is noticed at the latest by a ping (sent every second) that is not answered (for 5 s).
const DETECTION: Duration = Duration::from_secs(7);

pub fn campaign(mode: &'static str, commit: &str, kills: u64, chance: &mut Chance, tally: &mut Tally) {
    let mut rig = Rig::start(mode, commit);
    for _ in 0..kills {
        let claim = rig.moment(chance);
        let images = rig.images();
        rig.pair.beta.kill();
        rig.prove(&claim);

        wait::until("the status to say that the destination is gone", DETECTION, || {
            (state(&rig) != "streaming").then_some(())
        });
        rig.load.files.await_progress("without a destination", 20);
        // In half of the rounds the program pauses, so that the ring holds what is missing.
        let pauses = chance.below(2) == 0;
        if pauses {
            rig.load.pause();
        }
        assert_ne!(state(&rig), "streaming", "while the destination is dead");
        rig.pair.beta.start();
        let resumed = rig.assert_resumed(&claim, &images);
        rig.load.assert_alive();
        tally.add(&claim, resumed);
    }
}

fn state(rig: &Rig) -> String {
    let status = rig.pair.alpha.status().expect("the source's agent answers");
    status["groups"][0]["destinations"][0]["state"].as_str().expect("a word").to_owned()
}
