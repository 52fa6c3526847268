//! A session goes on: over a restart of the agent, without an agent, in a forked child, and in programs that do as they
//! please with their descriptors. What it cannot go on with, it reports.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmemha::log::WaitError;
use pmemha::session::wire::Request;
use pmemha::session::{Options, Session, SessionError};
use pmemha::types::Level;
use pmemha_testkit::test_agent::{FIRST_GENERATION, Setup, TestAgent};

fn connect(agent: &TestAgent) -> Arc<Session> {
    Session::connect(options(&agent.socket())).expect("a session")
}

fn options(socket: &Path) -> Options {
    Options { socket: Some(socket.to_owned()), group: None, program: "session-test".into() }
}

fn file(dir: &Path, name: &str, len: u64) -> File {
    let file =
        File::options().read(true).write(true).create(true).truncate(true).open(dir.join(name)).unwrap();
    file.set_len(len).unwrap();
    file
}

/// Appends 64 bytes of `byte` as the first line of the region and drains.
fn record(session: &Session, region: pmemha::types::RegionId, byte: u8) -> pmemha::types::Lsn {
    session
        .appender()
        .append(pmemha::log::format::Kind::Data, region, 0, &[byte; 64])
        .expect("room in the log");
    session.appender().drain()
}

#[test]
fn what_is_recorded_reaches_the_agent() {
    let agent = TestAgent::start();
    let dir = tempfile::tempdir().unwrap();
    let session = connect(&agent);
    let pool = file(dir.path(), "pool", 8192);
    let protection = session.protect(pool.as_fd(), 0, true).unwrap();
    assert_eq!(protection.len, 8192);
    let lsn = record(&session, protection.region, 7);
    session.appender().wait(lsn, Level::Applied, Some(Duration::from_secs(30))).unwrap();
    let image = agent.image(&dir.path().join("pool"));
    assert_eq!((image.len(), &image[..65]), (8192, [&[7u8; 64][..], &[0]].concat().as_slice()));
    assert_eq!(session.generation(), FIRST_GENERATION);
}

#[test]
fn only_what_the_configuration_names_is_protected_unless_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let pattern = format!("{}/*.pool", dir.path().display());
    let agent = TestAgent::with(Setup { protect: vec![pattern], ..Setup::default() });
    let session = connect(&agent);
    assert!(session.protects(&dir.path().join("not-there-yet.pool")));
    assert!(!session.protects(&dir.path().join("other")));
    session.protect(file(dir.path(), "a.pool", 4096).as_fd(), 0, false).unwrap();
    let other = file(dir.path(), "other", 4096);
    assert!(matches!(session.protect(other.as_fd(), 0, false), Err(SessionError::NotProtected { .. })));
    session.protect(other.as_fd(), 0, true).unwrap();
}

#[test]
fn without_an_agent_connecting_fails_and_says_where_it_looked() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody.sock");
    let said = Session::connect(options(&socket)).err().expect("no agent").to_string();
    assert!(said.contains("nobody.sock") && said.contains("start pmemhad"), "{said}");
}

#[test]
fn a_dead_agent_stops_neither_records_nor_the_program() {
    let agent = TestAgent::start();
    let dir = tempfile::tempdir().unwrap();
    let session = connect(&agent);
    let pool = file(dir.path(), "pool", 4096);
    let region = session.protect(pool.as_fd(), 0, true).unwrap().region;
    let stopped = agent.stop();
    let lsn = record(&session, region, 9);
    assert_eq!(session.appender().wait(lsn, Level::Local, None), Ok(()));
    let waited = session.appender().wait(lsn, Level::Durable, Some(Duration::from_secs(60)));
    assert_eq!(waited, Err(WaitError::AgentDead));
    assert!(matches!(session.protect(pool.as_fd(), 0, true), Err(SessionError::NoAgent { .. })));
    let begin = Instant::now();
    for _ in 0..100 {
        assert!(session.status().is_err());
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "requests to a dead agent wait");

    // And when it is back, it finds what was recorded in between.
    let agent = stopped.restart();
    session.appender().wait(lsn, Level::Applied, Some(Duration::from_secs(30))).unwrap();
    assert_eq!(agent.image(&dir.path().join("pool"))[0], 9);
}

#[test]
fn a_restarted_agent_is_found_again_on_the_same_log() {
    let agent = TestAgent::start();
    let dir = tempfile::tempdir().unwrap();
    let session = connect(&agent);
    let pool = file(dir.path(), "pool", 4096);
    let before = session.protect(pool.as_fd(), 0, true).unwrap().region;
    let agent = agent.stop().restart();
    assert_eq!(session.protect(pool.as_fd(), 0, true).unwrap().region, before);
    assert_eq!(agent.requests().len(), 2, "a Hello, then the request");
}

#[test]
fn tending_reconnects_so_that_the_agent_knows_whom_to_watch() {
    let agent = TestAgent::start();
    let session = connect(&agent);
    let agent = agent.stop().restart();
    session.tend();
    session.tend();
    assert!(matches!(agent.requests()[..], [Request::Hello { .. }]), "{:?}", agent.requests());
}

#[test]
fn a_new_log_of_the_group_is_reported_and_not_written_to() {
    let agent = TestAgent::start();
    let dir = tempfile::tempdir().unwrap();
    let session = connect(&agent);
    let pool = file(dir.path(), "pool", 4096);
    let _agent = agent.stop().restart_anew();
    let Err(e) = session.protect(pool.as_fd(), 0, true) else {
        panic!("protected in a log of another generation")
    };
    assert!(matches!(e, SessionError::Replaced { .. }), "{e}");
    assert!(e.to_string().contains("generation 2, this program writes 1"), "{e}");
}

#[test]
fn a_goodbye_is_said_once_and_ends_the_session() {
    let agent = TestAgent::start();
    let session = connect(&agent);
    session.goodbye(Some(3)).unwrap();
    assert_eq!(agent.requests().last(), Some(&Request::Goodbye { status: Some(3) }));
    assert!(matches!(session.status(), Err(SessionError::Over)));
    session.tend();
    assert_eq!(agent.requests().len(), 2);
}

#[test]
fn a_goodbye_is_said_although_the_connection_was_lost() {
    let agent = TestAgent::start();
    let session = connect(&agent);
    let stopped = agent.stop();
    assert!(matches!(session.status(), Err(SessionError::NoAgent { .. })));
    let agent = stopped.restart();
    session.goodbye(Some(0)).unwrap();
    let requests = agent.requests();
    let [Request::Hello { after: Some(_), .. }, Request::Goodbye { status: Some(0) }] = requests[..] else {
        panic!("{requests:?}")
    };
}

#[test]
fn an_agent_that_is_slow_to_take_note_loses_no_session() {
    let agent = TestAgent::start();
    let dir = tempfile::tempdir().unwrap();
    let session = connect(&agent);
    let region = session.protect(file(dir.path(), "pool", 4096).as_fd(), 0, true).unwrap().region;
    agent.hold(true);
    session.maps(region, pmemha::region::dirty::Kind::Digest);
    for _ in 0..200 {
        session.release(region);
    }
    agent.hold(false);
    session.status().unwrap();
    session.goodbye(None).unwrap();
    let requests = agent.requests();
    let count = |wanted: fn(&Request) -> bool| requests.iter().filter(|r| wanted(r)).count();
    assert_eq!(count(|r| matches!(r, Request::Hello { .. })), 1, "{requests:?}");
    assert_eq!(count(|r| matches!(r, Request::Maps { .. })), 1);
    let released = count(|r| matches!(r, Request::Release { .. }));
    assert!((1..200).contains(&released), "{released}: more than the agent takes in are not said");
    assert_eq!(requests.last(), Some(&Request::Goodbye { status: None }));
}

#[test]
fn a_program_for_which_there_is_no_place_says_goodbye() {
    let mut setup = Setup::default();
    setup.spec.appenders = 1;
    let agent = TestAgent::with(setup);
    let refused = Session::connect(options(&agent.socket())).err().expect("the agent has the one place");
    assert!(matches!(refused, SessionError::Log { .. }), "{refused}");
    assert_eq!(agent.requests().last(), Some(&Request::Goodbye { status: None }));
}

#[test]
fn requests_carry_what_was_asked_and_refusals_the_agents_words() {
    let agent = TestAgent::start();
    let session = connect(&agent);
    session.last_gasp().unwrap();
    assert_eq!(session.status().unwrap()["role"], "source");
    assert_eq!(agent.requests()[1..2], [Request::LastGasp { group: None }]);
    agent.refuse("only root may");
    let said = session.last_gasp().unwrap_err().to_string();
    assert!(said.contains("only root may"), "{said}");
}
