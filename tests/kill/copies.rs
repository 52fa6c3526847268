//! The source's agent dies while a copy of the regions is owed: the next agent makes it, and none after that makes it again.

use std::fs;
use std::path::Path;
use std::process::Child;

use pmemha_testkit::chance::Chance;
use pmemha_testkit::claim::Claim;
use pmemha_testkit::image::Copy;

use super::rig::Rig;

/// Twice the ring: the copy waits on its way until the destination takes it.
const OLD_BYTES: usize = 16 << 20;

/// Gaps that are closed; whether the destination has heard of the copy by the kill is up to the machine.
const GAPS: u64 = 3;

/// In the middle of the first sync of a file that was there before it was protected. The destination knows nothing of it yet.
pub fn under_way(chance: &mut Chance) {
    // A program that waits for the destination does not outrun the log meanwhile.
    let mut rig = Rig::patient("raw", "received");
    rig.pair.beta.kill();
    let (old, content) = (rig.pair.alpha.files().join("old"), vec![7; OLD_BYTES]);
    fs::write(&old, &content).expect("own directory");
    let mut opener = open_for_writing(&rig, &old);
    rig.pair.alpha.await_group("a copy to be under way", |group| {
        group["destinations"][0]["sync"]["done_bytes"].as_u64().filter(|done| *done > 0)
    });
    rig.pair.alpha.kill();
    rig.pair.alpha.start();
    rig.pair.beta.start();
    let claim = await_copy(&mut rig, chance);
    let opened = opener.wait().expect("our own child");
    assert!(opened.success(), "{} could not be opened: {opened}", old.display());
    rig.pair.beta.stand_still();
    let mut image = Copy::of(&rig.pair.beta, &[&rig.pair.alpha.files()]);
    let files = image.promote().expect("the image counts");
    let copied = fs::read(files.pool.with_file_name("old")).expect("the file is in the image");
    assert!(copied == content, "the file's content is not in the image");
    rig.prove(&claim);
    rig.pair.beta.go_on();
    assert_not_made_again(&mut rig, chance);
}

/// When the application was back on the log and the copy had just begun. The destination dies too, and so has heard of it or not.
pub fn after_a_gap(chance: &mut Chance) {
    let mut rig = Rig::start("raw", "received");
    for _ in 0..GAPS {
        let claim = rig.moment(chance);
        rig.pair.beta.kill();
        await_ahead(&rig, true);
        rig.pair.beta.start();
        await_ahead(&rig, false);
        rig.pair.alpha.kill();
        rig.pair.beta.kill();
        rig.prove(&claim);
        rig.pair.alpha.start();
        rig.pair.beta.start();
        await_copy(&mut rig, chance);
    }
    assert_not_made_again(&mut rig, chance);
}

fn await_ahead(rig: &Rig, ahead: bool) {
    rig.pair.alpha.await_group(&format!("the log's `ahead` to be {ahead}"), |group| {
        (group["log"]["ahead"] == ahead).then_some(())
    });
}

/// Waits until an image counts and no copy is under way.
fn await_copy(rig: &mut Rig, chance: &mut Chance) -> Claim {
    rig.pair.alpha.await_group("the copy to be complete", |group| {
        let row = &group["destinations"][0];
        (row["state"] == "streaming" && row["sync"].is_null()).then_some(())
    });
    rig.moment(chance)
}

fn assert_not_made_again(rig: &mut Rig, chance: &mut Chance) {
    let claim = await_copy(rig, chance);
    rig.load.pause();
    let images = rig.images();
    rig.pair.alpha.kill();
    rig.pair.alpha.start();
    assert!(rig.assert_resumed(&claim, &images), "the program stood still, and yet it outran the log");
}

/// A program other than the load protects `file`. It ends once the destination acknowledges.
fn open_for_writing(rig: &Rig, file: &Path) -> Child {
    let mut sh = rig.pair.alpha.preloaded(Path::new("/bin/sh"));
    sh.args(["-c", ": <>\"$0\""]).arg(file).spawn().expect("sh is there")
}
