//! A row of a report: one figure of ours, beside one peer's.

use serde_json::{Value, json};

use crate::figures::{NAMED, Spread, Times};

/// What the ratio of ours to the peer's, or ours alone, is meant to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// At most so much: of times.
    AtMost(f64),
    /// Below: of times.
    Below(f64),
    /// At least so much: of rates.
    AtLeast(f64),
    /// Ours below so much, whatever the peer's, in the row's unit: of times.
    OursBelow(f64),
}

impl Aim {
    /// Whether the figures are what was aimed at.
    fn met(self, ours: f64, ratio: Option<f64>) -> Option<bool> {
        Some(match self {
            Aim::AtMost(limit) => ratio? <= limit,
            Aim::Below(limit) => ratio? < limit,
            Aim::AtLeast(limit) => ratio? >= limit,
            Aim::OursBelow(limit) => ours < limit,
        })
    }

    /// As a person writes it.
    pub fn text(self) -> String {
        match self {
            Aim::AtMost(limit) => format!("<= {limit}"),
            Aim::Below(limit) => format!("< {limit}"),
            Aim::AtLeast(limit) => format!(">= {limit}"),
            Aim::OursBelow(limit) => format!("ours < {limit}"),
        }
    }
}

/// Figures over the rounds, in their order: one of each round.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Each round's value.
    pub rounds: Vec<f64>,
    /// Where the figure is a median of times: all of them.
    pub times: Option<Times>,
}

impl Series {
    /// Of the medians of times, in microseconds.
    pub fn of_times(times: &Times) -> Series {
        Series { rounds: times.medians().to_vec(), times: Some(times.clone()) }
    }

    /// Over the rounds.
    pub fn spread(&self) -> Spread {
        self.rounds.iter().copied().collect()
    }

    fn percentiles(&self) -> Value {
        let Some(times) = &self.times else { return Value::Null };
        let beyond = |quantile: f64| (times.count() as f64) * (1.0 - quantile) < 1.0;
        // A percentile that fewer operations than it needs were measured for is not told.
        NAMED
            .iter()
            .map(|(name, q)| (name.to_string(), if beyond(*q) { Value::Null } else { json!(times.at(*q)) }))
            .collect()
    }
}

impl From<Vec<f64>> for Series {
    fn from(rounds: Vec<f64>) -> Series {
        Series { rounds, times: None }
    }
}

/// A row.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Bytes of an operation, or of what the figure grows with; none where there is no size.
    pub size: Option<u64>,
    /// Unit of both figures.
    pub unit: &'static str,
    /// Ours.
    pub ours: Series,
    /// The peer's name and figures.
    pub peer: Option<(&'static str, Series)>,
    /// Of ours to the peer's, or of ours.
    pub aim: Option<Aim>,
    /// What a reader must know to take it for no more than it is.
    pub label: Option<&'static str>,
}

impl Row {
    /// A row without a peer.
    pub fn new(what: impl Into<String>, size: Option<u64>, unit: &'static str, ours: Series) -> Row {
        Row { what: what.into(), size, unit, ours, peer: None, aim: None, label: None }
    }

    /// With a peer that was measured in the same rounds.
    pub fn beside(mut self, name: &'static str, peer: Series) -> Row {
        self.peer = Some((name, peer));
        self
    }

    /// With an aim.
    pub fn aiming(mut self, aim: Option<Aim>) -> Row {
        self.aim = aim;
        self
    }

    /// With a label.
    pub fn labelled(mut self, label: Option<&'static str>) -> Row {
        self.label = label;
        self
    }

    /// Of ours to the peer's, a value a round: whatever else the machine did in a round hit both. Nothing is a part of nothing: rounds in
    /// which the peer has none say nothing.
    pub fn ratio(&self) -> Option<Spread> {
        let (_, peer) = self.peer.as_ref()?;
        let rounds = self.ours.rounds.iter().zip(&peer.rounds).filter(|(_, peer)| **peer != 0.0);
        let ratio: Spread = rounds.map(|(ours, peer)| ours / peer).collect();
        (ratio.rounds() > 0).then_some(ratio)
    }

    /// Whether the medians are what was aimed at.
    pub fn met(&self) -> Option<bool> {
        self.aim?.met(self.ours.spread().median(), self.ratio().map(|r| r.median()))
    }

    /// The row of `--json`.
    pub fn json(&self) -> Value {
        let (ours, ratio) = (self.ours.spread(), self.ratio());
        let peer = self.peer.as_ref().map(|(_, peer)| peer.spread());
        let bounds = |s: &Spread| json!([s.low(), s.high()]);
        json!({
            "what": self.what,
            "size": self.size,
            "unit": self.unit,
            "ours": ours.median(),
            "peer": peer.as_ref().map(Spread::median),
            "peer_name": self.peer.as_ref().map(|(name, _)| *name),
            "ratio": ratio.as_ref().map(Spread::median),
            "spread": {
                "ours": bounds(&ours), "peer": peer.as_ref().map(bounds), "ratio": ratio.as_ref().map(bounds),
            },
            "rounds": ours.rounds(),
            "aim": self.aim.map(Aim::text),
            "met": self.met(),
            "label": self.label,
            "percentiles": self.ours.percentiles(),
            "peer_percentiles": self.peer.as_ref().map_or(Value::Null, |(_, peer)| peer.percentiles()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_round_by_round_and_compared_with_the_aim() {
        let row = Row::new("x", Some(64), "us", vec![2.0, 30.0, 3.0].into())
            .beside("peer", vec![1.0, 20.0, 1.0].into())
            .aiming(Some(Aim::AtMost(2.0)));
        assert_eq!(row.ratio().map(|r| (r.low(), r.median(), r.high())), Some((1.5, 2.0, 3.0)));
        assert_eq!(row.met(), Some(true));
        let json = row.json();
        assert_eq!((&json["ours"], &json["peer"], &json["aim"]), (&json!(3.0), &json!(1.0), &json!("<= 2")));
    }

    #[test]
    fn without_a_peer_nothing_is_met_or_missed() {
        let row = Row::new("x", None, "us", vec![1.0].into()).aiming(Some(Aim::AtLeast(0.95)));
        assert_eq!((row.met(), row.json()["ratio"].clone()), (None, Value::Null));
        let own = |limit| row.clone().aiming(Some(Aim::OursBelow(limit)));
        assert_eq!(
            (own(1.5).met(), own(1.0).met()),
            (Some(true), Some(false)),
            "but for what is aimed at alone"
        );
    }

    #[test]
    fn a_peer_of_nothing_has_no_ratio() {
        let row = Row::new("x", None, "", vec![8.0].into())
            .beside("peer", vec![0.0].into())
            .aiming(Some(Aim::AtLeast(0.9)));
        assert_eq!((row.met(), row.json()["ratio"].clone()), (None, Value::Null));
    }

    #[test]
    fn percentiles_that_were_not_measured_are_not_told() {
        let (mut times, mut round) = (Times::default(), crate::figures::round_of_times());
        (0..200).for_each(|_| round.record(1000).expect("in bounds"));
        times.push(&round);
        let json = Row::new("x", None, "us", Series::of_times(&times)).json();
        assert!(json["percentiles"]["p99"].is_f64() && json["percentiles"]["p99.9"].is_null(), "{json}");
    }
}
