//! The timeline of a failover: what happened when, on which node, as data and as a picture for a terminal.
//!
//! Plain data: whoever gathers the events supplies the times, already on one clock. `pmemha demo` shows it.

use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::NodeName;

/// Columns of the bar of the whole timeline.
const BAR: usize = 40;

/// Longest text of an event that is shown; more is cut, so that lines fit a terminal.
const TEXT: usize = 44;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Microseconds since the failure; negative: before it was noticed.
    pub t_us: i64,
    /// Where.
    pub node: NodeName,
    /// What, in a few words.
    pub event: String,
}

/// What happened between a failure and the application running again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// In the order in which they were told.
    pub entries: Vec<Entry>,
}

impl Timeline {
    /// Adds an event.
    pub fn push(&mut self, t_us: i64, node: NodeName, event: impl Into<String>) {
        self.entries.push(Entry { t_us, node, event: event.into() });
    }

    /// From the first event to the last.
    pub fn span(&self) -> Duration {
        let times = || self.entries.iter().map(|e| e.t_us);
        Duration::from_micros(times().max().unwrap_or(0).abs_diff(times().min().unwrap_or(0)))
    }

    /// A picture: a line an event in order of time; the bar shows how long the step before it took, at its place
    /// in the whole; one kind of bar a node.
    pub fn render(&self) -> String {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by_key(|e| e.t_us);
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return String::new() };
        let nodes = self.nodes();
        let name_width = nodes.iter().map(|n| n.0.chars().count()).max().unwrap_or(0);
        let text_width = entries.iter().map(|e| e.event.chars().count().min(TEXT)).max().unwrap_or(0);
        let span = last.t_us.abs_diff(first.t_us).max(1);
        let column = |t: i64| (u128::from(t.abs_diff(first.t_us)) * BAR as u128 / u128::from(span)) as usize;
        let mut out = String::new();
        let mut before = first.t_us;
        for entry in entries {
            let fill = ['█', '▒', '░', '▚'][nodes.iter().position(|n| **n == entry.node).unwrap_or(0) % 4];
            let (from, to) = (column(before), column(entry.t_us));
            let bar: String = (0..=BAR)
                .map(|c| match c {
                    c if c == to => '●',
                    c if c >= from && c < to => fill,
                    _ => '·',
                })
                .collect();
            let text: String = entry.event.chars().take(TEXT).collect();
            let line = format!(
                "{:>10}  {:<name_width$}  {text:<text_width$}  {bar}",
                human(entry.t_us),
                entry.node.0
            );
            _ = writeln!(out, "{}", line.trim_end());
            before = entry.t_us;
        }
        out
    }

    fn nodes(&self) -> Vec<&NodeName> {
        let mut nodes: Vec<&NodeName> = Vec::new();
        for entry in &self.entries {
            if !nodes.contains(&&entry.node) {
                nodes.push(&entry.node);
            }
        }
        nodes
    }
}

/// A time in the unit that suits it, with three or four digits.
pub fn human(us: i64) -> String {
    let size = us.unsigned_abs();
    let sign = if us < 0 { '-' } else { '+' };
    match size {
        0 => "0".into(),
        1..1_000 => format!("{sign}{size} µs"),
        1_000..10_000 => format!("{sign}{:.2} ms", size as f64 / 1e3),
        10_000..1_000_000 => format!("{sign}{:.1} ms", size as f64 / 1e3),
        _ => format!("{sign}{:.2} s", size as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Timeline {
        let mut timeline = Timeline::default();
        let (a, b) = (NodeName("alpha".into()), NodeName("beta".into()));
        timeline.push(0, a.clone(), "power lost");
        timeline.push(10_000, b.clone(), "promoted");
        timeline.push(2_500, a, "saved");
        timeline.push(40_000, b, "application runs");
        timeline
    }

    #[test]
    fn the_picture_is_in_order_of_time_and_aligned() {
        let expected = "         0  alpha  power lost        ●········································
  +2.50 ms  alpha  saved             ██●······································
  +10.0 ms  beta   promoted          ··▒▒▒▒▒▒▒▒●······························
  +40.0 ms  beta   application runs  ··········▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒●
";
        assert_eq!(sample().render(), expected);
        assert_eq!(sample().span(), Duration::from_millis(40));
        assert_eq!(Timeline::default().render(), "");
    }

    #[test]
    fn extreme_times_and_long_texts_stay_in_their_columns() {
        let mut timeline = sample();
        timeline.push(i64::MIN, NodeName("γ".into()), "x".repeat(500));
        timeline.push(i64::MAX, NodeName("γ".into()), "");
        assert!(timeline.render().lines().all(|l| l.chars().count() < 160));
    }

    #[test]
    fn json_comes_back_as_it_was() {
        let json = serde_json::to_string(&sample()).unwrap();
        assert_eq!(serde_json::from_str::<Timeline>(&json).unwrap(), sample());
    }
}
