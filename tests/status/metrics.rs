//! What Prometheus reads is what `pmemha status --json` says, in a format that its own parser accepts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use pmemha_testkit::net::free_port;
use pmemha_testkit::node::{Pair, PairOptions};
use serde_json::Value;

use super::{BINARIES, Program, await_quiet};

/// Fetches a page and tells its samples as JSON: name, labels, value.
const READER: &str = "
import json, sys, urllib.request
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
with urllib.request.urlopen(sys.argv[1], timeout=20) as page:
    assert page.headers['Content-Type'].startswith('application/openmetrics-text'), page.headers
    families = parse(page.read().decode())
print(json.dumps([[s.name, s.labels, s.value] for f in families for s in f.samples]))
";

fn scrape(port: u16) -> Vec<Value> {
    let url = format!("http://127.0.0.1:{port}/metrics");
    let out =
        Command::new("/usr/bin/python3").args(["-c", READER, &url]).output().expect("python3 is installed");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// The one value of `name`.
fn value(samples: &[Value], name: &str) -> f64 {
    let mut found = samples.iter().filter(|s| s[0] == name);
    let sample = found.next().unwrap_or_else(|| panic!("no {name} in {samples:?}"));
    assert!(found.next().is_none(), "{name} twice");
    sample[2].as_f64().expect("a number")
}

/// The status line of the answer to `request`.
fn answer(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn prometheus_reads_what_the_status_says() {
    let mut pair = Pair::prepare(BINARIES, &PairOptions::default());
    let port = free_port();
    pair.alpha.configure_more(&format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n"));
    pair.beta.start();
    pair.alpha.start();
    // Someone who connects and asks nothing is in nobody's way.
    let _silent: Vec<_> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let mut program = Program::start(&pair.alpha);
    let file = pair.alpha.files().join("data");
    program.does(&format!("f = open({file:?}, 'w+b'); f.write(b'x' * 70000); f.flush(); os.fsync(f)"));
    let (_, status) = await_quiet(&pair);
    let (group, samples) = (&status["groups"][0], scrape(port));
    let row = &group["destinations"][0];
    for (metric, told) in [
        ("pmemha_destination_lsn_published_bytes", &row["lsn_published"]),
        ("pmemha_destination_lsn_applied_bytes", &row["lsn_applied"]),
        ("pmemha_destination_exposure_bytes", &row["exposure_bytes"]),
        ("pmemha_log_ring_bytes", &group["log"]["ring_bytes"]),
        ("pmemha_log_times_ahead_total", &group["log"]["times_ahead"]),
        ("pmemha_group_generation", &group["generation"]),
        ("pmemha_region_bytes", &group["regions"][0]["len"]),
    ] {
        assert_eq!(Some(value(&samples, metric)), told.as_f64(), "{metric}");
    }
    assert_eq!(value(&samples, "pmemha_power_online"), 1.0);
    let state = samples.iter().find(|s| s[0] == "pmemha_destination_state").expect("a state");
    assert_eq!((&state[1]["state"], &state[1]["destination"]), (&"streaming".into(), &"beta".into()));

    assert!(answer(port, "GET /").contains("404"));
    assert!(answer(port, "POST /metrics").contains("405"));
    assert!(answer(port, "HEAD /metrics").contains("200"));
}
