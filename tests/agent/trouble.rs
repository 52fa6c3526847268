//! What the tests of full disks and of wrong permissions have in common.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pmemha_testkit::image::Copy;
use pmemha_testkit::load::Load;
use pmemha_testkit::node::{Node, Pair};
use pmemha_testkit::wait;
use serde_json::Value;

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(60);

/// Whether `text` names `path` or something in it, and ends with the system's words and the remedy.
pub fn tells(text: &Value, path: &Path, words: &str) -> bool {
    text.as_str().is_some_and(|text| text.contains(path.to_str().expect("text")) && text.ends_with(words))
}

/// Waits until source and destination name `path` and what is wrong with it in their rows of the status.
pub fn await_told(pair: &Pair, path: &Path, words: &str) {
    for node in [&pair.alpha, &pair.beta] {
        node.await_group(&format!("`last_error` to say of {} that {words}", path.display()), |group| {
            tells(&group["destinations"][0]["last_error"], path, words).then_some(())
        });
    }
}

/// Waits until the agent has told that a file which a program asked for is not protected because of `path`.
pub fn await_not_protected(node: &Node, path: &Path, words: &str) {
    let asked_for = |event: &Value| event["kind"] == "not_protected" && event["detail"]["pid"].is_number();
    let told = node.await_event_that("of a file that a program asked for", asked_for);
    assert!(tells(&told["detail"]["reason"], path, words), "{told}");
}

/// Waits until a promotion would yield all that the program, which stands still from now on, has done, and the file `other` as it is
/// at the source. What was done while the log was full comes with the copy that follows.
pub fn await_promotable(pair: &Pair, load: &Load, other: &str) {
    let want = fs::read(pair.alpha.files().join(other)).expect("the file is there");
    load.pause();
    wait::eventually(&format!("everything in the image, `{other}` too"), SOON, || {
        pair.alpha.await_streaming();
        pair.beta.stand_still();
        let mut copy = Copy::of(&pair.beta, &[&pair.alpha.files()]);
        pair.beta.go_on();
        let files = copy.promote().expect("the image counts");
        let found = files.check("raw").unwrap_or_else(|why| panic!("{why}"));
        let same = fs::read(files.pool.with_file_name(other)).is_ok_and(|found| found == want);
        same && found >= load.files.done()
    });
}

/// A program of the group at `node` writes a new file of random bytes, and ends.
pub fn pour(node: &Node, name: &str, bytes: u64) {
    let of = format!("of={}", node.files().join(name).display());
    let mut dd = node.preloaded(Path::new("/bin/dd"));
    dd.args(["if=/dev/urandom", "bs=64K", "status=none", &format!("count={}", bytes >> 16), &of]);
    let done = dd.status().expect("dd is there");
    assert!(done.success(), "{dd:?}: {done}");
}
