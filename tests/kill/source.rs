//! The source's agent dies: the program goes on, nobody takes over, and the next agent goes on from the ring and knows the
//! program.

use pmemha_testkit::wait;

use super::rig::{DETECTION, Rig, Victim};

pub const AGENT: Victim = Victim {
    kill: |rig, claim| {
        rig.pair.alpha.kill();
        rig.pair.beta.stand_still();
        rig.prove(claim);
        rig.pair.beta.go_on();
    },
    await_missed: |rig| {
        wait::until("the status to say that the source is gone", DETECTION, || {
            let group = &rig.pair.beta.status()?["groups"][0];
            assert_eq!(group["role"], "destination", "nobody gave the group up: {group:#}");
            (group["destinations"][0]["state"] == "waiting").then_some(())
        });
    },
    start: |rig| rig.pair.alpha.start(),
};

/// The program has never spoken to the last of the agents. Its death is seen all the same.
pub fn assert_knows_the_program(mut rig: Rig) {
    rig.load.kill();
    rig.pair
        .alpha
        .await_group("the death of the program to be seen", |g| (g["state"] == "stopped").then_some(()));
}
