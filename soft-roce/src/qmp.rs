//! QEMU's monitor: a line of JSON a command, answer or event.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A connection. Events that come between answers are kept until they are waited for.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: VecDeque<String>,
}

impl Qmp {
    /// Takes the greeting and makes the monitor ready for commands.
    pub fn greet(stream: UnixStream) -> io::Result<Qmp> {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut qmp = Qmp { stream: BufReader::new(stream), events: VecDeque::new() };
        let greeting = qmp.message()?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::other(format!("no greeting but {greeting}")));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Has a command done, and gives its answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{line}")?;
        loop {
            let mut message = self.message()?;
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                return Err(io::Error::other(error.to_string()));
            }
            self.keep(&message);
        }
    }

    /// Waits until an event has come.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.events.iter().position(|event| event == name) {
                self.events.remove(at);
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no {name} within {limit:?}")));
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let message = self.message();
            self.stream.get_ref().set_read_timeout(Some(ANSWER_LIMIT))?;
            match message {
                Ok(message) => self.keep(&message),
                // The time is looked at above.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn keep(&mut self, message: &Value) {
        if let Some(event) = message["event"].as_str() {
            if self.events.len() == KEPT_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(event.to_owned());
        }
    }

    fn message(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// For an answer. The monitor answers at once, but its thread waits for the machine's lock.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Events that nobody waits for must not pile up.
const KEPT_EVENTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor that says `lines`, whatever it is asked.
    fn monitor(lines: &str) -> (Qmp, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        write!(theirs, "{{\"QMP\": {{}}}}\n{{\"return\": {{}}}}\n{lines}").unwrap();
        (Qmp::greet(ours).unwrap(), theirs)
    }

    #[test]
    fn an_event_that_comes_before_an_answer_is_found_later() {
        let (mut qmp, _peer) = monitor("{\"event\": \"A\"}\n{\"event\": \"B\"}\n{\"return\": 7}\n");
        assert_eq!(qmp.execute("x", json!({})).unwrap(), 7);
        qmp.wait_event("B", Duration::from_secs(9)).unwrap();
        qmp.wait_event("A", Duration::from_secs(9)).unwrap();
        let none = qmp.wait_event("A", Duration::from_millis(1)).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_refusal_and_an_end_are_errors() {
        let (mut qmp, peer) = monitor("{\"error\": {\"desc\": \"no such thing\"}}\n");
        assert!(qmp.execute("x", json!({})).unwrap_err().to_string().contains("no such thing"));
        drop(peer);
        assert!(qmp.wait_event("A", Duration::from_secs(9)).is_err());
    }
}
