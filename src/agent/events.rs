//! The agent's event stream: numbered JSON objects, remembered in bounded memory, followed by any number of
//! subscribers.
//!
//! Emitting never blocks on a subscriber: a slow one finds that it missed events and is told how many. Called by
//! every part of the agent; read by sessions that asked for events.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::clock::WallTime;
use crate::locks::lock;

/// Events remembered: enough for the story of a failover with room to spare, a few hundred KiB.
pub const REMEMBERED: usize = 2048;

/// Longest serialised detail of an event in bytes, so that [`REMEMBERED`] bounds memory; a longer one is replaced by
/// a note of its size.
pub const MAX_DETAIL: usize = 4096;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Number in this agent's life, from 1, without holes.
    pub seq: u64,
    /// When.
    pub time: WallTime,
    /// The group that it happened to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What.
    pub kind: Kind,
    /// More, as fields of an object; may be null.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// What happened, in a word or two. `docs/guide.md` explains each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The agent serves.
    AgentStarted,
    /// External power was lost, as far as the power sources and their rule say.
    PowerLost,
    /// It is back and has stayed.
    PowerBack,
    /// Whether there is external power has not been known for a while.
    PowerUnknown,
    /// The battery is hardly, or not, enough for what a group exposes, or that is not known.
    BudgetLow,
    /// It is enough again.
    BudgetOk,
    /// A person is wanted.
    Alarm,
    /// A step of a handover.
    Milestone,
    /// A file is protected from now on.
    RegionProtected,
    /// A process asked for a file to be protected, or one matches `protect`, and it is not.
    NotProtected,
    /// Pages changed that no record tells of.
    UnprotectedWrites,
    /// A process of the application attached.
    ProcessAttached,
    /// One ended while others go on.
    ProcessEnded,
    /// The last one ended.
    ApplicationEnded,
    /// The command of a group without destinations ended.
    CommandEnded,
    /// The group went on with the log that outlived the agent.
    LogResumed,
    /// The group could not be opened.
    OpenFailed,
    /// The archive is written from there on.
    ArchiveBegun,
    /// It could not be written; tried again.
    ArchiveFailed,
    /// It ended for good.
    ArchiveEnded,
    /// An operator has paused a destination: nothing is shipped there any more.
    DestinationPaused,
    /// An operator has it go on.
    DestinationResumed,
    /// A comparison with a destination's image is over.
    Verified,
    /// At a destination: the image is complete and counts.
    Synced,
    /// At the source: the last gasp has brought everything to the heir.
    TailDurable,
    /// At the source: the heir is told so.
    Saved,
    /// At the heir: the source's last gasp has begun.
    SourceIsSaving,
    /// At the heir: the source can write nothing here any more.
    Revoked,
    /// At the heir: the source may still write here.
    RevokeFailed,
    /// At the heir: the image is not what the source saved.
    ImageFailed,
    /// At the heir: the files are where the application opens them.
    FilesPlaced,
    /// At the heir: they could not be put there.
    PlacingFailed,
    /// A group of threads was moved between packages, or could not be.
    GroupPlaced,
    /// Something that placement had changed could not be set back.
    PlacementLeft,
    /// To one subscriber: what it asked for is no longer remembered.
    Missed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What a subscriber gets.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    /// Events between the one asked for and the first of `events` that are no longer remembered.
    pub missed: u64,
    /// In order of `seq`.
    pub events: Vec<Event>,
}

/// The stream. All methods may be called from any thread.
#[derive(Debug, Default)]
pub struct Events {
    remembered: Mutex<VecDeque<Event>>,
    emitted: Condvar,
}

impl Events {
    /// A stream without events.
    pub fn new() -> Events {
        Events::default()
    }

    /// Tells every subscriber, and the diagnostic log.
    pub fn emit(&self, group: Option<&str>, kind: Kind, detail: Value) {
        let detail = bounded(detail);
        tracing::info!(group, %kind, detail = %detail, "event");
        let mut remembered = self.lock();
        let seq = remembered.back().map_or(1, |last| last.seq + 1);
        if remembered.len() == REMEMBERED {
            remembered.pop_front();
        }
        let group = group.map(str::to_owned);
        remembered.push_back(Event { seq, time: WallTime::now(), group, kind, detail });
        drop(remembered);
        self.emitted.notify_all();
    }

    /// Number of the newest event; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.lock().back().map_or(0, |e| e.seq)
    }

    /// The events after number `since`; waits until `deadline` for one if there is none yet.
    pub fn after(&self, since: u64, deadline: Instant) -> Batch {
        let mut remembered = self.lock();
        loop {
            if remembered.back().is_some_and(|last| last.seq > since) {
                let first = remembered[0].seq;
                let events: Vec<_> = remembered.iter().filter(|e| e.seq > since).cloned().collect();
                return Batch { missed: first.saturating_sub(since + 1), events };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Batch::default();
            }
            let waited = self.emitted.wait_timeout(remembered, left);
            remembered = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        lock(&self.remembered)
    }
}

fn bounded(detail: Value) -> Value {
    let len = detail.to_string().len();
    if len <= MAX_DETAIL { detail } else { serde_json::json!({ "omitted_bytes": len }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn numbers(batch: &Batch) -> Vec<u64> {
        batch.events.iter().map(|e| e.seq).collect()
    }

    #[test]
    fn a_subscriber_gets_every_event_once_and_in_order() {
        let events = Events::new();
        events.emit(None, Kind::AgentStarted, Value::Null);
        events.emit(Some("db"), Kind::Saved, json!({"lsn": 7}));
        let now = Instant::now();
        assert_eq!(numbers(&events.after(0, now)), [1, 2]);
        assert_eq!(numbers(&events.after(1, now)), [2]);
        assert_eq!(events.after(2, now), Batch::default());
        let line = serde_json::to_value(&events.after(1, now).events[0]).unwrap();
        assert_eq!(
            (&line["seq"], &line["group"], &line["detail"]["lsn"]),
            (&json!(2), &json!("db"), &json!(7))
        );
    }

    #[test]
    fn a_slow_subscriber_is_told_how_many_it_missed_and_costs_no_memory() {
        let events = Events::new();
        for _ in 0..REMEMBERED + 10 {
            events.emit(None, Kind::Milestone, Value::Null);
        }
        let batch = events.after(4, Instant::now());
        assert_eq!((batch.missed, batch.events.len()), (6, REMEMBERED));
        assert_eq!(batch.events[0].seq, 11);
    }

    #[test]
    fn one_that_waits_is_woken_by_the_next_event() {
        let events = Events::new();
        std::thread::scope(|s| {
            let waiter = s.spawn(|| events.after(0, Instant::now() + Duration::from_secs(60)));
            events.emit(None, Kind::Milestone, Value::Null);
            assert_eq!(numbers(&waiter.join().unwrap()), [1]);
        });
    }

    #[test]
    fn an_oversized_detail_is_replaced_by_its_size() {
        let events = Events::new();
        events.emit(None, Kind::Milestone, json!("x".repeat(MAX_DETAIL)));
        let detail = &events.after(0, Instant::now()).events[0].detail;
        assert_eq!(detail, &json!({ "omitted_bytes": MAX_DETAIL + 2 }));
    }
}
