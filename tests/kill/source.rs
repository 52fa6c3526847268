//! The source's agent dies: the program goes on, nobody takes over, and the next agent goes on from the ring and knows the
//! program.

use std::time::Duration;

use pmemha_testkit::chance::Chance;
use pmemha_testkit::wait;

use super::rig::{Rig, Tally};

/// The end of the source's connections is seen at once; for a machine that is busy with other tests.
const DETECTION: Duration = Duration::from_secs(7);

pub fn campaign(mode: &'static str, commit: &str, kills: u64, chance: &mut Chance, tally: &mut Tally) {
    let mut rig = Rig::start(mode, commit);
    for _ in 0..kills {
        let claim = rig.moment(chance);
        let images = rig.images();
        rig.pair.alpha.kill();
        rig.pair.beta.stand_still();
        rig.prove(&claim);
        rig.pair.beta.go_on();

        rig.load.files.await_progress("without an agent", 20);
        let pauses = chance.below(2) == 0;
        if pauses {
            rig.load.pause();
        }
        wait::until("the status to say that the source is gone", DETECTION, || {
            let group = &rig.pair.beta.status()?["groups"][0];
            assert_eq!(group["role"], "destination", "nobody gave the group up: {group:#}");
            (group["destinations"][0]["state"] == "waiting").then_some(())
        });
        rig.pair.alpha.start();
        let resumed = rig.assert_resumed(&claim, &images);
        rig.load.assert_alive();
        tally.add(&claim, resumed);
    }
    // The program has never spoken to the last of these agents. Its death is seen all the same.
    rig.load.kill();
    rig.pair
        .alpha
        .await_group("the death of the program to be seen", |g| (g["state"] == "stopped").then_some(()));
}
