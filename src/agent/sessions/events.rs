//! A session that follows the event stream.

use std::time::{Duration, Instant};

use serde_json::json;

use super::ANSWER_WITHIN;
use crate::agent::clock::WallTime;
use crate::agent::events::{Events, Kind};
use crate::session::socket::{Connection, SocketError};
use crate::session::wire::{Reply, Request};

/// How long at most a follower that went away keeps its thread.
const LOOK_AFTER: Duration = Duration::from_millis(250);

/// Sends events until the client goes away, says anything, or `stopping`.
pub(super) fn follow(
    connection: &Connection,
    events: &Events,
    since: Option<u64>,
    stopping: &dyn Fn() -> bool,
) {
    let mut seen = since.unwrap_or_else(|| events.last());
    while !stopping() {
        let batch = events.after(seen, Instant::now() + LOOK_AFTER);
        if batch.missed > 0 {
            let missed = json!({
                "seq": seen + batch.missed,
                "time": WallTime::now(),
                "kind": Kind::Missed,
                "detail": { "events": batch.missed },
            });
            if !send(connection, missed) {
                return;
            }
        }
        for event in &batch.events {
            let Ok(value) = serde_json::to_value(event) else { continue };
            if !send(connection, value) {
                return;
            }
            seen = event.seq;
        }
        // Nothing is to be said on this session any more: a word, like its end, ends it.
        if !matches!(connection.recv::<Request>(Some(Instant::now())), Err(SocketError::TimedOut)) {
            return;
        }
    }
}

fn send(connection: &Connection, event: serde_json::Value) -> bool {
    connection.send(&Reply::Event { event }, None, Some(Instant::now() + ANSWER_WITHIN)).is_ok()
}
