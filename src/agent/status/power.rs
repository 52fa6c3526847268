//! Power and the battery budget in the status document, and how a person reads them.

use serde::{Deserialize, Serialize};

use super::text::{duration, push};
use crate::agent::config::format_bytes;

/// External power.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PowerStatus {
    /// What says so: the names of the sources.
    pub source: String,
    /// Whether there is external power; none if the sources do not say.
    pub online: Option<bool>,
    /// How long the battery will last at the present load, if a source says: the least of several.
    pub runtime_s: Option<u64>,
    /// Charge of the battery, 0 to 1, if a source says: the least of several.
    pub charge: Option<f32>,
    /// Whether a source says that its battery is about to end.
    #[serde(default)]
    pub low: bool,
    /// Why nothing is known, or what the sources say is wrong.
    pub error: Option<String>,
    /// When this was true, RFC 3339: of the source that was heard of the longest time ago.
    pub as_of: String,
    /// What each source says.
    #[serde(default)]
    pub sources: Vec<PowerSourceStatus>,
}

/// One power source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PowerSourceStatus {
    /// Its name.
    pub name: String,
    /// Whether it says that there is external power; none if it does not say.
    pub online: Option<bool>,
    /// How long its battery will last at the present load.
    pub runtime_s: Option<u64>,
    /// Charge of its battery, 0 to 1.
    pub charge: Option<f32>,
    /// Whether it says that its battery is about to end.
    pub low: bool,
    /// Why nothing is known of it, or what it says is wrong.
    pub error: Option<String>,
    /// When this was true, RFC 3339.
    pub as_of: String,
}

/// Whether the battery is enough for what a group exposes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetStatus {
    /// `alarm` or `enforce`.
    pub mode: String,
    /// Seconds that a last gasp takes from the loss of power, with safety; none where that is not known: no destination counts, or
    /// nothing was seen to drain yet.
    pub required_s: Option<f64>,
    /// Seconds that the battery lasts, if power is or were lost now; none where no source and no configuration says.
    pub available_s: Option<f64>,
    /// `required_s` by `available_s`: above 1 the battery is not enough.
    pub ratio: Option<f64>,
    /// The destination that this is about: the one that everything can be brought to soonest.
    pub destination: Option<String>,
    /// What is exposed there.
    pub exposed_bytes: u64,
    /// Above this, appends are delayed with `enforce`.
    pub t1_bytes: u64,
    /// Above this, the battery does not carry it.
    pub t2_bytes: u64,
    /// Bytes a second that this reckons with: the least of the last minute; none: not known.
    pub drain_bytes_per_s: Option<u64>,
    /// `none`, `copy_faster`, `delay` or `alarm`.
    pub action: String,
    /// When this was true, RFC 3339.
    pub as_of: String,
}

/// How power is, in a few words.
pub(super) fn words(power: Option<&PowerStatus>) -> String {
    let Some(p) = power else { return "power not watched".into() };
    said(p.online, p.runtime_s, p.error.as_deref())
}

fn said(online: Option<bool>, runtime_s: Option<u64>, error: Option<&str>) -> String {
    match (online, runtime_s, error) {
        (Some(true), ..) => "on line power".into(),
        (Some(false), Some(left), _) => format!("ON BATTERY, {} left", duration(left)),
        (Some(false), None, _) => "ON BATTERY".into(),
        (None, _, error) => format!("power UNKNOWN ({})", error.unwrap_or("no word yet")),
    }
}

/// A line a source where there are several, and what is wrong with one that says whether there is power.
pub(super) fn render_sources(out: &mut String, power: Option<&PowerStatus>) {
    let Some(power) = power else { return };
    let several = power.sources.len() > 1;
    for source in &power.sources {
        let words = said(source.online, source.runtime_s, source.error.as_deref());
        let mark = if source.online == Some(true) && !source.low { "" } else { "! " };
        if several {
            push(out, format_args!("{mark}{}  {words}", source.name));
        }
        if let (Some(_), Some(error)) = (source.online, &source.error) {
            push(out, format_args!("! {}: {error}", source.name));
        }
        if source.low {
            push(out, format_args!("! {}: the battery is low", source.name));
        }
    }
}

/// A line, marked where the battery is not enough, or nobody knows.
pub(super) fn render_budget(out: &mut String, budget: &BudgetStatus) {
    if budget.available_s.is_none() {
        let line = "  ! battery  nobody says how long it lasts: see `hold_up` of [budget] in pmemhad.conf(5)";
        return push(out, format_args!("{line}"));
    }
    let seconds = |s: Option<f64>| s.map_or("?".into(), |s| format!("{s:.1} s"));
    let (required, available) = (seconds(budget.required_s), seconds(budget.available_s));
    let mark = if budget.action == "alarm" { "! " } else { "" };
    let ratio = budget.ratio.map_or("?".into(), |ratio| format!("{ratio:.2}"));
    let enforced = match (budget.mode.as_str(), budget.action.as_str()) {
        ("enforce", "delay") => ", appends are delayed",
        ("enforce", _) => ", enforced",
        _ => "",
    };
    push(
        out,
        format_args!(
            "  {mark}battery  needs {required} of {available} ({ratio})  carries {}{enforced}",
            format_bytes(budget.t2_bytes)
        ),
    );
}
