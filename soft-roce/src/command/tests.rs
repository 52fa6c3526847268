//! Commands, with the machine's real program behind a port in this process.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::*;
use crate::guest;
use crate::ports::COMMANDS;

/// As many ports with the machine's real program behind them, in this process.
fn ports(number: usize) -> Arc<Ports> {
    let streams = (0..number).map(|_| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || guest::serve(&File::from(OwnedFd::from(theirs))));
        ours
    });
    let end = Instant::now() + Duration::from_secs(60);
    Arc::new(Ports::greeted("here", streams.collect(), end).unwrap())
}

fn shell<'a>(ports: &'a Arc<Ports>, script: &str) -> Command<'a> {
    Command::new(ports, "sh").args(["-c", script])
}

#[test]
fn a_command_yields_its_status_and_both_outputs_apart() {
    let ports = ports(1);
    let output = shell(&ports, "echo out; echo err >&2; exit 7").output().unwrap();
    let expected = Output { status: Status::Exited(7), stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec() };
    assert_eq!(output, expected);
    assert_eq!(shell(&ports, "kill -TERM $$").output().unwrap().status, Status::Killed(15));
}

#[test]
fn a_command_has_the_environment_and_the_folder_that_it_was_given_and_no_more() {
    let ports = ports(1);
    let text = Command::new(&ports, "env").env("A", "b c").env("HOME", "/x").dir("/usr").text().unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort();
    assert_eq!(lines, ["A=b c", "HOME=/x", &format!("PATH={PATH}")]);
    assert_eq!(Command::new(&ports, "pwd").dir("/usr").text().unwrap(), "/usr\n");
}

#[test]
fn what_cannot_be_started_is_said_and_costs_no_port() {
    let ports = ports(1);
    let e = Command::new(&ports, "/no/such/program").output().unwrap_err().to_string();
    assert!(e.contains("/no/such/program") && e.contains("No such file"), "{e}");
    let long = "x".repeat(crate::frame::MAX_PAYLOAD);
    assert!(matches!(Command::new(&ports, "true").arg(long).output(), Err(RigError::NotStarted { .. })));
    assert_eq!(Command::new(&ports, "true").text().unwrap(), "");
}

#[test]
fn a_failure_where_none_may_be_shows_what_the_command_wrote() {
    let e = shell(&ports(1), "echo why >&2; exit 3").text().unwrap_err().to_string();
    assert!(e.contains("exited with status 3") && e.contains("why") && e.contains("here"), "{e}");
}

#[test]
fn a_command_whose_time_is_over_is_killed_with_its_group_and_shows_what_it_wrote() {
    let ports = ports(1);
    let running = shell(&ports, "sleep 1000 & echo $!; sleep 1000").limit(Duration::from_millis(500));
    let running = running.spawn().unwrap();
    running.until("\n").unwrap();
    let pid = String::from_utf8(running.shared.lock().stdout.clone()).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let other = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let e = running.wait().unwrap_err();
    let RigError::TimedOut { output, .. } = &e else { panic!("{e}") };
    assert_eq!(output.stdout, format!("{pid}\n").into_bytes());
    let ends = &mut [PollFd::new(&other, PollFlags::IN)];
    assert_eq!(poll(ends, Some(&Timespec { tv_sec: 20, tv_nsec: 0 })).unwrap(), 1, "the group lives on");
    assert_eq!(shell(&ports, "echo next").text().unwrap(), "next\n");
}

#[test]
fn a_killed_command_ends_even_if_somebody_else_holds_its_output() {
    let ports = ports(1);
    let running = shell(&ports, "setsid sleep 20 & echo $!; exec sleep 1000").spawn().unwrap();
    running.until("\n").unwrap();
    let begin = Instant::now();
    running.kill();
    assert_eq!(running.wait().unwrap().status, Status::Killed(9));
    assert!(begin.elapsed() < Duration::from_secs(15));
}

#[test]
fn what_a_killed_command_left_behind_does_not_write_to_the_next_ones_output() {
    let (ports, dir) = (ports(1), tempfile::tempdir().unwrap());
    let shell = |script| shell(&ports, script).dir(dir.path().to_str().unwrap());
    shell("mkfifo go gone").text().unwrap();
    let left = shell("setsid sh -c 'echo begun; read -r _ <go; echo late; echo >gone' & exec sleep 1000");
    let left = left.spawn().unwrap();
    left.until("begun").unwrap();
    drop(left);
    assert_eq!(shell("echo >go; cat gone; seq 9").text().unwrap(), "\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
}

#[test]
fn a_command_is_seen_while_it_runs_and_killed_when_nobody_wants_it() {
    let ports = ports(1);
    let running = shell(&ports, "echo ready; sleep 1000").spawn().unwrap();
    running.until("ready").unwrap();
    drop(running);
    let ends = shell(&ports, "echo other").spawn().unwrap();
    assert!(matches!(ends.until("ready"), Err(RigError::NotSaid { .. })));
}

#[test]
fn as_many_commands_run_at_once_as_there_are_ports_and_no_more() {
    let ports = ports(COMMANDS);
    let all: Vec<_> =
        (0..COMMANDS).map(|i| shell(&ports, &format!("echo {i}; sleep 1000")).spawn().unwrap()).collect();
    all.iter().enumerate().for_each(|(i, running)| running.until(&format!("{i}\n")).unwrap());
    assert!(matches!(shell(&ports, "true").output(), Err(RigError::Busy { .. })));
    drop(all);
    assert_eq!(shell(&ports, "echo free").text().unwrap(), "free\n");
}

#[test]
fn long_output_arrives_whole_and_too_long_output_ends_the_command() {
    let ports = ports(1);
    let text = shell(&ports, "seq 200000").text().unwrap();
    assert!(text.starts_with("1\n") && text.ends_with("\n200000\n"));
    let e = shell(&ports, "cat /dev/zero").output().unwrap_err();
    assert!(matches!(e, RigError::TooMuchOutput { .. }), "{e}");
    assert_eq!(shell(&ports, "echo next").text().unwrap(), "next\n");
}

#[test]
fn a_machine_that_goes_away_ends_its_commands() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    Frame::new(Kind::Hello, 0, []).write(&mut theirs).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let ports = Arc::new(Ports::greeted("here", vec![ours], end).unwrap());
    let running = shell(&ports, "true").spawn().unwrap();
    drop(theirs);
    assert!(matches!(running.wait(), Err(RigError::Gone { .. })));
}
