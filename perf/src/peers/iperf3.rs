//! iperf3: one tcp stream over loopback.

use std::time::Duration;

use pmemha_testkit::net::free_port;

use super::{Found, Server, bounded, find_program, missing, text_of};

/// Its name in rows.
pub const NAME: &str = "iperf3";

/// Bytes a second of one stream.
pub fn bandwidth(time: Duration) -> Found<f64> {
    if find_program(NAME).is_none() {
        return Ok(Err(missing(NAME, NAME)));
    }
    let port = free_port();
    let mut server = bounded(NAME);
    server.args(["-s", "-1", "-p", &port.to_string()]);
    let _server = Server::start(server, port)?;
    let mut client = bounded(NAME);
    // It takes whole seconds.
    let seconds = time.as_secs().max(1).to_string();
    client.args(["-c", "127.0.0.1", "-p", &port.to_string(), "-J", "-t", &seconds]);
    let report: serde_json::Value = serde_json::from_str(&text_of(client)?)?;
    match report["end"]["sum_received"]["bits_per_second"].as_f64() {
        Some(bits) => Ok(Ok(bits / 8.0)),
        None => Err("iperf3 gave no figure".into()),
    }
}
