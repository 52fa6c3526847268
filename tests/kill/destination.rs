//! The destination's agent dies: the program goes on, the image is a prefix, and the stream goes on where it was.

use pmemha_testkit::wait;

use super::rig::{DETECTION, Victim};

pub const AGENT: Victim = Victim {
    kill: |rig, claim| {
        rig.pair.beta.kill();
        rig.prove(claim);
    },
    await_missed: |rig| {
        wait::until("the status to say that the destination is gone", DETECTION, || {
            let status = rig.pair.alpha.status()?;
            (status["groups"][0]["destinations"][0]["state"] != "streaming").then_some(())
        });
    },
    start: |rig| rig.pair.beta.start(),
};
