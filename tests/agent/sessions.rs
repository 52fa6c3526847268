//! What applications, operators and hostile clients get.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pmemha::log::format::Kind;
use pmemha::session::socket::{Connection, SocketError};
use pmemha::session::wire::{Reply, Request, VERSION};
use pmemha::session::{Options, Session, SessionError};
use serde_json::json;

use crate::bench::{Bench, Client, LONG};

fn error(reply: Reply) -> String {
    match reply {
        Reply::Error { message } => message,
        other => panic!("not refused: {other:?}"),
    }
}

/// A process that attaches to the group and then ends as `ending`, a piece of Python, says. Returns its pid.
fn application(bench: &Bench, program: &str, ending: &str) -> u32 {
    let script = format!(
        "import json, os, signal, socket, sys\n\
         s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n\
         def ask(m):\n    s.send(json.dumps(m).encode()); return json.loads(s.recv(65536))\n\
         assert ask({{'type': 'hello', 'version': {VERSION}, 'group': None, 'program': '{program}'}})['type'] == 'welcome'\n\
         {ending}\n"
    );
    let mut child = Command::new("python3")
        .args(["-c", &script])
        .arg(bench.socket())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    child.wait().unwrap();
    pid
}

#[test]
fn a_killed_application_is_told_from_one_that_said_goodbye() {
    let bench = Bench::new();
    let _agent = bench.start();
    application(&bench, "db", "os.kill(os.getpid(), signal.SIGKILL)");
    let end = bench.connect().event("application_ended");
    assert!(end["detail"]["how"].as_str().unwrap().contains("vanished"), "{end}");

    let bench = Bench::new();
    let _agent = bench.start();
    application(&bench, "db", "ask({'type': 'goodbye', 'status': 3})");
    assert_eq!(bench.connect().event("application_ended")["detail"]["how"], "exited");
}

#[test]
fn what_a_program_becomes_by_exec_does_not_die_in_its_place() {
    for (ending, how) in [
        ("ask({'type': 'exec'}); os.execv('/bin/sh', ['sh', '-c', 'sleep 1; exit 3'])", "exited"),
        ("ask({'type': 'exec'}); os.kill(os.getpid(), signal.SIGKILL)", "vanished"),
        (
            "ask({'type': 'exec'}); ask({'type': 'status'}); os.execv('/bin/sh', ['sh', '-c', 'sleep 1'])",
            "vanished",
        ),
    ] {
        let bench = Bench::new();
        let _agent = bench.start();
        application(&bench, "db", ending);
        let end = bench.connect().event("application_ended");
        assert!(end["detail"]["how"].as_str().unwrap().contains(how), "{ending}: {end}");
    }
}

#[test]
fn the_launchers_word_decides_for_a_program_that_vanishes() {
    for (ending, how) in [(json!({"code": 0}), "exited"), (json!({"signal": 11}), "signal 11")] {
        let bench = Bench::new();
        let _agent = bench.start();
        let launcher = bench.connect();
        assert!(matches!(launcher.hello("pmemha run"), Reply::Welcome { .. }));
        let pid = application(&bench, "db", "os._exit(0)");
        let mut request = json!({"type": "ended", "pid": pid, "code": null, "signal": null});
        request.as_object_mut().unwrap().extend(ending.as_object().unwrap().clone());
        assert_eq!(launcher.ask(&serde_json::from_value(request).unwrap()), Reply::Ok {});
        assert_eq!(bench.connect().event("application_ended")["detail"]["how"], how);
    }
}

#[test]
fn a_process_that_reconnects_has_not_ended() {
    let bench = Bench::new();
    let _agent = bench.start();
    let first = bench.connect();
    first.hello("db");
    drop(first);
    let second = bench.connect();
    second.hello("db");
    // Ours is the one process; the first session is forgotten once its thread has seen the second.
    let deadline = Instant::now() + LONG;
    while bench.connect().status()["groups"][0]["sessions"].as_array().unwrap().len() != 1 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(second.ask(&Request::Goodbye { status: Some(0) }), Reply::Ok {});
    drop(second);
    assert_eq!(bench.connect().event("application_ended")["detail"]["how"], "exited");
}

#[test]
fn a_goodbye_in_a_new_session_is_the_word_of_the_lost_one() {
    let bench = Bench::new();
    let _agent = bench.start();
    let lost = bench.connect();
    let Reply::Welcome { session, .. } = lost.hello("db") else { panic!("no welcome") };
    let again = bench.connect();
    let hello = Request::Hello { version: VERSION, group: None, program: "db".into(), after: Some(session) };
    assert!(matches!(again.ask(&hello), Reply::Welcome { .. }));
    assert_eq!(again.ask(&Request::Goodbye { status: Some(0) }), Reply::Ok {});
    drop(again);
    // The agent has not even heard that the first connection is of no use.
    assert_eq!(bench.connect().event("application_ended")["detail"]["how"], "exited");
    drop(lost);
}

#[test]
fn garbage_and_half_messages_end_their_session_and_no_other() {
    let bench = Bench::new();
    let _agent = bench.start();
    let good = bench.connect();
    good.hello("db");
    let soon = Some(Instant::now() + LONG);
    for garbage in [
        json!("x".repeat(60_000)),
        json!({"type": "hello"}),
        json!({"type": "protect", "len": -1, "explicit": false}),
        json!({"type": "status", "extra": 1}),
        json!(null),
    ] {
        let bad = bench.connect();
        bad.0.send(&garbage, None, soon).unwrap();
        error(bad.0.recv(soon).unwrap().0);
        assert!(matches!(bad.0.recv::<Reply>(soon), Err(SocketError::Closed)));
    }
    drop(bench.connect());
    assert_eq!(good.ask(&Request::Goodbye { status: None }), Reply::Ok {});
}

#[test]
fn a_flood_without_reading_answers_costs_one_session() {
    let bench = Bench::new();
    let _agent = bench.start();
    let flood = bench.connect();
    // Answers fill the client's receive queue, then the agent gives it up; sends fail at the latest then.
    let until = Instant::now() + LONG;
    let status = Request::Status {};
    while flood.0.send(&status, None, Some(Instant::now() + Duration::from_secs(20))).is_ok() {
        assert!(Instant::now() < until, "the agent still takes requests of a client that reads no answers");
    }
    bench.connect().status();
}

#[test]
fn more_sessions_than_allowed_do_not_keep_operators_out() {
    let bench = Bench::with("users = [65534]");
    let _agent = bench.start();
    let script = "import json, os, socket, sys\n\
        os.setgid(65534); os.setuid(65534)\n\
        keep, refused = [], None\n\
        for i in range(300):\n    \
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); keep.append(s)\n    \
            try:\n        \
                s.send(json.dumps({'type': 'hello', 'version': 1, 'group': 'db', 'program': 'p'}).encode())\n    \
            except OSError: pass\n    \
            try: m = json.loads(s.recv(65536))\n    \
            except OSError: m = {'type': 'error', 'message': 'closed'}\n    \
            if m['type'] == 'error': refused = i; break\n\
        print(refused, flush=True)\n\
        sys.stdin.read()\n";
    let mut crowd = Command::new("python3")
        .args(["-c", script])
        .arg(bench.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut refused = String::new();
    let mut out = std::io::BufReader::new(crowd.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut refused).unwrap();
    assert_eq!(refused.trim(), "256");
    assert_eq!(bench.connect().status()["groups"][0]["sessions"].as_array().unwrap().len(), 256);
    drop(crowd.stdin.take());
    crowd.wait().unwrap();
}

#[test]
fn strangers_may_neither_attach_nor_operate() {
    let bench = Bench::new();
    let _agent = bench.start();
    let script = "import json, os, socket, sys\n\
        os.setgid(65534); os.setuid(65534)\n\
        for m in sys.argv[2:]:\n    \
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n    \
            s.send(m.encode()); r = json.loads(s.recv(65536)); print(r['type'], r.get('message'))\n";
    let requests = [
        json!({"type": "hello", "version": VERSION, "group": "db", "program": "p"}),
        json!({"type": "hello", "version": VERSION, "group": null, "program": "p"}),
        json!({"type": "status"}),
        json!({"type": "events", "since": 0}),
        json!({"type": "promote", "group": "db", "force": true}),
        json!({"type": "last_gasp", "group": "db"}),
        json!({"type": "shutdown"}),
    ];
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(bench.socket())
        .args(requests.iter().map(|r| r.to_string()))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), requests.len(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().all(|l| l.starts_with("error ")), "{said}");
    assert!(said.lines().next().unwrap().contains("`users`"), "{said}");
    bench.connect().status();
}

#[test]
fn a_client_of_another_version_is_told_which_one_is_spoken() {
    let bench = Bench::new();
    let _agent = bench.start();
    let hello = Request::Hello { version: VERSION + 1, group: None, program: "p".into(), after: None };
    assert!(error(bench.connect().ask(&hello)).contains("install the same version"));
}

#[test]
fn protection_needs_a_hello_a_descriptor_and_the_right_to_write() {
    let bench = Bench::new();
    let _agent = bench.start();
    let protect = Request::Protect { len: 0, explicit: true };
    let pool = bench.pool("a.pool", 4096);
    let client = bench.connect();
    assert!(error(client.ask_with(&protect, Some(&pool))).contains("after Hello"));
    client.hello("db");
    assert!(error(client.ask(&protect)).contains("descriptor"));
    let read_only = std::fs::File::open(bench.path("pm/a.pool")).unwrap();
    let Reply::NotProtected { reason } = client.ask_with(&protect, Some(&read_only)) else { panic!() };
    assert!(reason.contains("not open for writing"), "{reason}");
    assert!(matches!(client.ask_with(&protect, Some(&pool)), Reply::Protected { len: 4096, .. }));
    assert!(error(client.hello("again")).contains("once"));
}

#[test]
fn a_silent_client_is_let_go() {
    let bench = Bench::new();
    let _agent = bench.start();
    let silent: Client = bench.connect();
    let deadline = Some(Instant::now() + LONG);
    assert!(matches!(silent.0.recv::<Reply>(deadline), Err(SocketError::Closed)));
}

#[test]
fn an_agent_that_is_stopped_costs_a_program_a_moment_and_nothing_where_it_only_drains() {
    let bench = Bench::new();
    let agent = bench.start();
    let options = || Options { socket: Some(bench.socket()), group: None, program: "db".into() };
    let session = Session::connect(options()).unwrap();
    let region = session.protect(bench.pool("a.pool", 4096).as_fd(), 0, true).unwrap().region;
    agent.stand_still();

    let begun = Instant::now();
    for _ in 0..1000 {
        session.appender().append(Kind::Data, region, 0, &[1; 64]).unwrap();
        session.appender().commit(session.appender().drain());
    }
    let drained = begun.elapsed();
    assert!(drained < MOMENT, "a thousand drains took {drained:?}");
    let protect = || session.protect(bench.pool("b.pool", 4096).as_fd(), 0, true).map(drop);
    let connect = || Session::connect(options()).map(drop);
    for ask in [&protect as &dyn Fn() -> Result<(), SessionError>, &connect, &|| session.goodbye(None)] {
        let begun = Instant::now();
        let refused = ask().unwrap_err().to_string();
        assert!(begun.elapsed() < MOMENT, "{:?}: {refused}", begun.elapsed());
        // Once it has waited in vain a session does not even ask for a while.
        assert!(refused.contains("kill -CONT") || refused.contains("is gone"), "{refused}");
    }

    agent.go_on();
    let back = Session::connect(options()).unwrap();
    back.protect(bench.pool("b.pool", 4096).as_fd(), 0, true).unwrap();
}

/// Well under what a program waits for an agent that is slow.
const MOMENT: Duration = Duration::from_millis(900);

#[test]
fn sessions_end_when_the_agent_does_and_their_clients_can_come_back() {
    let bench = Bench::new();
    let agent = bench.start();
    let client = bench.connect();
    client.hello("db");
    agent.terminate();
    assert!(matches!(client.0.recv::<Reply>(Some(Instant::now() + LONG)), Err(SocketError::Closed)));
    assert!(Connection::connect(&bench.socket(), Instant::now() + LONG).is_err());
    let _agent = bench.start();
    assert!(matches!(bench.connect().hello("db"), Reply::Welcome { .. }));
}
