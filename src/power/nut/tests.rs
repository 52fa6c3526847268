//! The client against servers that are not what they should be. None of them is ever taken for one that says that there is power.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use super::*;

/// Short enough that a test waits for it gladly, where nothing comes.
const BRIEF: Duration = Duration::from_millis(100);

/// Long enough for a server on a busy machine.
const PATIENT: Duration = Duration::from_secs(20);

/// Serves one connection after the other with `serve`, until that says that it was the last.
fn server(mut serve: impl FnMut(TcpStream) -> bool + Send + 'static) -> (NutSource, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = NutSetup {
        server: listener.local_addr().unwrap().to_string(),
        ups: "lab".into(),
        credentials: None,
        login: false,
    };
    let thread = std::thread::spawn(move || while serve(listener.accept().unwrap().0) {});
    (NutSource { within: PATIENT, ..NutSource::new(setup) }, thread)
}

/// Answers each line with what `say` makes of it, for as long as that makes something.
fn answering(stream: TcpStream, say: impl Fn(&str) -> Option<Vec<u8>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        let Some(answer) = say(&line) else { return };
        if (&stream).write_all(&answer).is_err() {
            return;
        }
    }
}

/// As upsd would of a UPS with this status and nothing else.
fn upsd(line: &str, status: &str) -> Vec<u8> {
    match line.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "VAR", "lab", "ups.status"] => format!("VAR lab ups.status \"{status}\"\n").into(),
        ["GET", "VAR", "lab", _] => b"ERR VAR-NOT-SUPPORTED\n".into(),
        ["GET", "VAR", ..] => b"ERR UNKNOWN-UPS\n".into(),
        ["USERNAME" | "PASSWORD" | "LOGIN", ..] => b"OK\n".into(),
        _ => b"ERR UNKNOWN-COMMAND\n".into(),
    }
}

/// What is known once `say` answers, and why not more.
fn heard(say: impl Fn(&str) -> Option<Vec<u8>> + Send + Clone + 'static) -> (Option<bool>, String) {
    heard_within(PATIENT, say)
}

fn heard_within(
    within: Duration,
    say: impl Fn(&str) -> Option<Vec<u8>> + Send + Clone + 'static,
) -> (Option<bool>, String) {
    let (mut source, thread) = server(move |stream| {
        answering(stream, &say);
        false
    });
    source.within = within;
    let state = source.poll();
    drop(source);
    thread.join().unwrap();
    (state.online, state.fault.unwrap_or_default())
}

#[test]
fn a_server_as_it_should_be_is_believed() {
    assert_eq!(heard(|line| Some(upsd(line, "OL CHRG"))), (Some(true), String::new()));
    assert_eq!(heard(|line| Some(upsd(line, "OB"))), (Some(false), String::new()));
}

#[test]
fn one_that_is_not_is_unknown_and_it_is_said_why() {
    type Say = fn(&str) -> Option<Vec<u8>>;
    let cases: [(&str, Say); 11] = [
        ("no answer of upsd's", |_| Some(b"HTTP/1.1 400 Bad Request\n".into())),
        ("no text", |_| Some(vec![0xff, 0xfe, b'\n'])),
        ("control characters", |_| Some(b"VAR lab ups.status \"OL\x07\"\n".into())),
        ("without an end", |_| Some(b"VAR lab ups.status \"OL\n".into())),
        ("without a newline", |_| Some(vec![b'x'; 100_000])),
        ("did not answer", |_| Some(b"VAR lab ups.stat".into())),
        ("closed the connection", |_| None),
        // Another UPS's, another variable's, and an answer that is one too many.
        ("with Variable", |_| Some(b"VAR other battery.runtime \"9\"\n".into())),
        ("with Variable", |_| Some(b"VAR lab ups.status \"OL\"\n".into())),
        ("more than one line", |line| {
            Some([upsd(line, "OL"), b"VAR lab ups.status \"OL\"\n".into()].concat())
        }),
        ("with Done", |_| Some(b"OK\n".into())),
    ];
    for (why, say) in cases {
        // Of one that never ends its answer.
        let within = if why == "did not answer" { BRIEF } else { PATIENT };
        let (online, fault) = heard_within(within, say);
        assert!(online.is_none() && fault.contains(why), "{why}: {online:?}, {fault}");
    }
}

#[test]
fn one_that_trickles_is_as_late_as_one_that_is_silent() {
    let (mut source, thread) = server(|mut stream| {
        while stream.write_all(b"V").is_ok() {
            std::thread::sleep(BRIEF / 10);
        }
        false
    });
    source.within = BRIEF;
    let fault = source.poll().fault.unwrap();
    assert!(fault.contains("did not answer"), "{fault}");
    drop(source);
    thread.join().unwrap();
}

#[test]
fn what_upsd_refuses_is_unknown_with_its_word_and_the_connection_stays() {
    for word in ["DATA-STALE", "DRIVER-NOT-CONNECTED", "ACCESS-DENIED", "UNKNOWN-UPS"] {
        let (mut source, thread) = server(move |stream| {
            answering(stream, |_| Some(format!("ERR {word}\n").into()));
            false
        });
        for _ in 0..3 {
            let state = source.poll();
            assert!(state.online.is_none() && state.fault.unwrap().contains(word));
        }
        assert!(source.connection.is_some());
        drop(source);
        thread.join().unwrap();
    }
}

#[test]
fn only_the_status_has_to_be_there_and_a_stale_battery_makes_all_of_it_stale() {
    let stale = |line: &str| match line.ends_with("battery.charge") {
        true => Some(b"ERR DATA-STALE\n".to_vec()),
        false => Some(upsd(line, "OL")),
    };
    let (online, fault) = heard(stale);
    assert!(online.is_none() && fault.contains("DATA-STALE"), "{fault}");
}

#[test]
fn a_connection_that_breaks_is_made_again_after_a_pause_that_grows() {
    let mut served = 0;
    let (mut source, thread) = server(move |stream| {
        served += 1;
        // The first two end in the middle of an answer.
        if served <= 2 {
            answering(stream, |_| None);
            return true;
        }
        answering(stream, |line| Some(upsd(line, "OL")));
        false
    });
    let mut pauses = Vec::new();
    loop {
        let failures = source.failures;
        let state = source.poll();
        if state.online == Some(true) {
            break;
        }
        if source.failures > failures {
            pauses.push(source.due.saturating_duration_since(Instant::now()));
        }
        std::thread::sleep(source.due.saturating_duration_since(Instant::now()));
    }
    assert!(pauses.len() == 2 && pauses[1] > pauses[0], "{pauses:?}");
    assert_eq!(source.failures, 0);
    drop(source);
    thread.join().unwrap();
}

#[test]
fn who_we_are_is_said_first_and_never_shown() {
    let (source, thread) = server(|stream| {
        let mut said = Vec::new();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            let answer = upsd(&line, "OL");
            said.push(line);
            (&stream).write_all(&answer).unwrap();
        }
        assert_eq!(said[..3], ["USERNAME ha", "PASSWORD \"top secret\\\"\"", "LOGIN lab"]);
        false
    });
    let who = Credentials { user: "ha".into(), password: "top secret\"".into() };
    let setup = NutSetup { credentials: Some(who), login: true, ..source.setup.clone() };
    let mut source = NutSource::new(setup);
    assert_eq!(source.poll().online, Some(true));
    assert!(!format!("{source:?}").contains("secret"));
    drop(source);
    thread.join().unwrap();
}
