//! A group's command on the node itself: started with the agent, started again when it dies, left alone when it exits.

use std::time::Instant;

use pmemha::session::wire::{Reply, Request};
use serde_json::Value;

use crate::bench::{Bench, LONG};

/// An agent whose command notes each of its lives in the file `lives` and then does `what`, and the ends of it that the
/// agent tells of until one is no cause for another start.
fn ends(on_death: &str, what: &str) -> (usize, Vec<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let lives = dir.path().join("lives");
    let script = format!("echo x >>$0; {what}");
    let command = format!("command = [\"/bin/sh\", \"-c\", {script:?}, {lives:?}]\non_death = {on_death:?}");
    let bench = Bench::with(&command);
    let _agent = bench.start();
    let client = bench.connect();
    client.0.send(&Request::Events { since: Some(0) }, None, Some(Instant::now() + LONG)).unwrap();
    let mut told = Vec::new();
    loop {
        let (reply, _) = client.0.recv::<Reply>(Some(Instant::now() + LONG)).unwrap();
        let Reply::Event { event } = reply else { panic!("{reply:?}") };
        if event["kind"] == "command_ended" {
            told.push(event["detail"].clone());
            if event["detail"]["restarts"] == false {
                return (std::fs::read_to_string(lives).unwrap().lines().count(), told);
            }
        }
    }
}

#[test]
fn a_command_that_dies_is_started_again_until_it_exits_of_its_own_will() {
    let (lives, told) = ends("restart", "[ $(wc -l <$0) -lt 3 ] && kill -9 $$; exit 0");
    let how: Vec<_> = told.iter().map(|t| t["how"].as_str().unwrap()).collect();
    assert_eq!((lives, how), (3, vec!["died", "died", "exited"]));
}

#[test]
fn a_command_that_dies_is_left_dead_unless_it_is_to_be_restarted() {
    let (lives, told) = ends("none", "exit 3");
    assert_eq!((lives, told[0]["how"].as_str()), (1, Some("died")));
}

#[test]
fn a_command_that_cannot_be_executed_is_given_up_at_once_and_shown() {
    let bench = Bench::with("command = [\"/nonexistent/program\"]\non_death = \"restart\"");
    let _agent = bench.start();
    let ended = bench.connect().event("command_ended")["detail"].clone();
    assert_eq!((&ended["how"], &ended["restarts"]), (&"failed to start".into(), &false.into()));
    let alarm = bench.connect().event("alarm")["detail"].clone();
    assert_eq!(alarm["what"], "start_failed", "{alarm}");
    let document = bench.connect().status();
    let error = document["groups"][0]["error"].as_str().expect("a reason");
    assert!(error.contains("/nonexistent/program"), "{error}");
    let status = serde_json::from_value(document).expect("the agent is of this version");
    let told = pmemha::agent::status::text::render(&status);
    assert!(
        told.lines().any(|l| l.trim_start().starts_with("! ") && l.contains("/nonexistent/program")),
        "{told}"
    );
}
