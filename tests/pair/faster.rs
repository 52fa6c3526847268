//! A program that is faster than its link.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pmemha::agent::group::Reader;
use pmemha::agent::status::{DestinationState, GroupStatus};
use pmemha::types::Level;
use pmemha_testkit::node::fabric;

use super::rig::{App, FILE_BYTES, Node, Pair, SOON, check_prefix, image_file};

/// Within it the program's drains wait for the destination, and after it they do not. Less than a copy takes, and more than a
/// destination's thread waits for a processor: where an adapter is emulated, so are processors.
fn patience() -> Duration {
    Duration::from_millis(if fabric() == "tcp" { 20 } else { 500 })
}

/// Whether the destination has all that the program recorded a moment ago, and drains wait for what comes next.
fn is_protected(status: &GroupStatus) -> bool {
    let streams = status.destinations[0].state == DestinationState::Streaming;
    streams && status.log.as_ref().is_some_and(|log| !log.ahead && log.commits_wait)
}

/// Protects a file that nobody writes to, so that a copy takes longer than drains wait.
fn protect_more(node: &Node) {
    let path = node.files().join("more");
    fs::write(&path, vec![7; 4 * FILE_BYTES as usize]).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    node.attach().unwrap().protect_for(&Reader::root(), file.as_fd(), 0, false).unwrap();
}

#[test]
fn a_program_that_let_its_destination_go_is_protected_again_while_it_runs_at_full_speed() {
    let commit = format!("commit = \"received\"\ncommit_timeout = \"{}ms\"", patience().as_millis());
    let mut pair = Pair::start("64KiB", &commit, "");
    let mut app = App::start(&pair.alpha, 0);
    protect_more(&pair.alpha);
    pair.await_streaming();
    pair.beta.stop();
    while !app.appender().log().is_ahead() {
        app.write_much();
    }
    pair.beta.start();
    let (began, gaps) = (Instant::now(), app.appender().log().counters().ahead);
    while !is_protected(&pair.alpha.status()) {
        // Many between two looks: a look takes longer than a write.
        for _ in 0..1000 {
            app.write_much();
        }
        let now = app.appender().log().counters().ahead;
        assert!(began.elapsed() < SOON, "{} gaps: {:#?}", now - gaps, pair.alpha.status());
    }
    let lsn = app.write();
    app.wait(lsn, Level::Applied);
    pair.beta.stop();
    assert_eq!(check_prefix(&image_file(&pair.beta)), app.next);
}
