//! What each mechanism must show, as statements that a test decides: one module a mechanism, one test a claim.

mod s1;
mod s2;
mod s3;
mod s4;
mod s5;
mod s6;

use pmemha_testkit::load::{Files, Load};
use pmemha_testkit::node::{Binaries, Pair};

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// Waits until the second node owns the group, with the files in their place.
fn await_heir(pair: &Pair) {
    pair.beta.await_group("the heir to take over", |g| {
        let placed = ["starting", "running", "stopped"].iter().any(|s| g["state"] == **s);
        (g["role"] == "source" && placed).then_some(())
    });
}

/// Ends the program, and finds at the heir all that it had done.
fn assert_nothing_lost(pair: &Pair, mut load: Load) {
    let done = load.files.done();
    load.kill();
    let found = Files::of(&pair.beta.files()).check("raw").expect("the program's invariants");
    assert!(found >= done, "{done} done, {found} at the heir");
}
