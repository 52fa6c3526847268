//! The demo's timeline: both agents' events since the power was switched, in a person's words.

use std::time::{SystemTime, UNIX_EPOCH};

use pmemha::agent::clock::WallTime;
use pmemha::failover::NodeName;
use pmemha::failover::timeline::Timeline;
use serde_json::Value;

/// What the agents told of the handover. Times in microseconds since the power was switched.
#[derive(Debug, Default)]
pub struct Story {
    /// To be shown.
    pub timeline: Timeline,
    /// Bytes that were not at the heir when the application was frozen.
    pub exposure_bytes: Option<u64>,
    /// When the first byte of the rest left for the heir or, if nothing was left, when the heir heard of the last gasp; none if
    /// it did not.
    pub first_byte_us: Option<i64>,
    /// When the heir was told that everything is there.
    pub saved_us: Option<i64>,
}

impl Story {
    /// Of events told by both agents, one clock for both.
    pub fn new(cut: SystemTime, alpha: &[Value], beta: &[Value]) -> Story {
        let mut story = Story::default();
        story.tell("alpha", 0, "line power is lost");
        for event in alpha {
            story.hear("alpha", cut, event);
        }
        for event in beta {
            story.hear("beta", cut, event);
        }
        story
    }

    /// Adds what the demo saw itself.
    pub fn tell(&mut self, node: &str, t_us: i64, what: impl Into<String>) {
        self.timeline.push(t_us, NodeName(node.into()), what);
    }

    fn hear(&mut self, node: &str, cut: SystemTime, event: &Value) {
        let Some(WallTime(time)) = event["time"].as_str().and_then(WallTime::parse) else { return };
        let t = micros_between(cut, time);
        if t < 0 {
            return;
        }
        let detail = &event["detail"];
        let text = match (event["kind"].as_str().unwrap_or(""), detail["what"].as_str().unwrap_or("")) {
            ("tail_durable", _) => {
                let us = |name: &str| detail[name].as_u64();
                let began = t - us("took_us").unwrap_or(0) as i64;
                self.exposure_bytes = us("exposure_bytes");
                self.tell(node, began, "the application is frozen");
                if let Some(first) = us("first_byte_us") {
                    let at = began + first as i64;
                    self.first_byte_us = Some(at);
                    self.tell(node, at, "the first byte of the rest leaves");
                }
                "the rest is durable at beta"
            }
            ("saved", _) => {
                self.saved_us.get_or_insert(t);
                "beta is told: saved, take over"
            }
            ("source_is_saving", _) => {
                // The rest's own first byte is told of before: by the source.
                self.first_byte_us.get_or_insert(t);
                return;
            }
            ("milestone", "handed_over") => "beta has accepted; alpha is no owner",
            ("milestone", "promoted") => "the image is verified, beta owns it",
            ("revoked", _) => "alpha can write nothing here any more",
            ("files_placed", _) => "the files are in place",
            ("process_attached", _) => STARTED,
            _ if detail["what"].get("gasp_began").is_some() => "notices, and freezes the application",
            _ => return,
        };
        if text == STARTED {
            // What starts the program has the preload library in it, too, until it becomes the program.
            self.timeline.entries.retain(|e| e.event != STARTED);
        }
        self.tell(node, t, text);
    }
}

const STARTED: &str = "kv has started, protected here too";

/// From `from` to `to`; negative if `to` was earlier.
pub fn micros_between(from: SystemTime, to: SystemTime) -> i64 {
    let us = |t: SystemTime| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64);
    us(to) - us(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn events_since_the_cut_are_told_in_its_time_and_earlier_ones_are_not() {
        let cut = UNIX_EPOCH + Duration::from_secs(1);
        let at = |us: u64, kind: &str, detail: Value| {
            let time = WallTime(UNIX_EPOCH + Duration::from_micros(us)).to_string();
            json!({ "time": time, "kind": kind, "detail": detail })
        };
        let tail = json!({ "took_us": 400, "first_byte_us": 100, "exposure_bytes": 77 });
        let alpha = [
            at(999_000, "saved", Value::Null),
            at(1_001_000, "tail_durable", tail),
            at(1_002_000, "saved", Value::Null),
        ];
        let beta =
            [at(1_000_500, "source_is_saving", Value::Null), at(1_003_000, "files_placed", Value::Null)];
        let story = Story::new(cut, &alpha, &beta);
        let times: Vec<_> = story.timeline.entries.iter().map(|e| e.t_us).collect();
        assert_eq!(times, [0, 600, 700, 1000, 2000, 3000]);
        assert_eq!(
            (story.exposure_bytes, story.first_byte_us, story.saved_us),
            (Some(77), Some(700), Some(2000))
        );
        // Nothing was left to ship: the first that left was the word that it begins.
        let tail = json!({ "took_us": 400, "first_byte_us": null, "exposure_bytes": 0 });
        let alpha = [at(1_001_000, "tail_durable", tail), at(1_002_000, "saved", Value::Null)];
        assert_eq!(Story::new(cut, &alpha, &beta).first_byte_us, Some(500));
        assert_eq!(Story::new(cut, &alpha, &[]).first_byte_us, None);
    }
}
