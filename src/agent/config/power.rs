//! The keys `[power]` and `[budget]`: where power events come from, and what the battery is reckoned with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::check::Faults;
use super::units;
use crate::power::combine::Rule;

/// Most sources: each is a thread.
const MAX_SOURCES: usize = 16;

/// Longest that a command may take, and be repeated after.
const MAX_PERIOD: Duration = Duration::from_secs(3600);

/// `[power]`: where power events come from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Power {
    /// Kind of the source, where there is one and it is a watched file.
    pub source: Option<PowerKind>,
    /// That file.
    pub path: Option<PathBuf>,
    /// Sources, where there are several or another kind: `[[power.sources]]`.
    #[serde(default)]
    pub sources: Vec<PowerSourceKeys>,
    /// How many must say that power is lost.
    #[serde(default)]
    pub lost_when: LostWhen,
    /// So many of them, with `lost_when = "quorum"`; more than half if absent.
    pub quorum: Option<usize>,
    /// What a source of which nothing is known counts as.
    #[serde(default)]
    pub when_unknown: WhenUnknown,
    /// How long power must be lost before it counts; none: the first word of it does.
    #[serde(default, deserialize_with = "units::duration")]
    pub confirm: Duration,
    /// How long power must be back before it counts.
    #[serde(default = "settle", deserialize_with = "units::duration")]
    pub settle: Duration,
}

impl Power {
    /// All sources, the short form written out.
    pub fn all_sources(&self) -> Vec<PowerSourceKeys> {
        let short =
            self.source.map(|kind| PowerSourceKeys { path: self.path.clone(), ..PowerSourceKeys::of(kind) });
        short.into_iter().chain(self.sources.iter().cloned()).collect()
    }

    /// How their views become one.
    pub fn rule(&self) -> Rule {
        let all = self.sources.len() + usize::from(self.source.is_some());
        let lost_at = match self.lost_when {
            LostWhen::Any => 1,
            LostWhen::All => all,
            LostWhen::Quorum => self.quorum.unwrap_or(all / 2 + 1),
        };
        Rule { lost_at, unknown_is_lost: self.when_unknown == WhenUnknown::Lost }
    }
}

/// How many sources must say that power is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostWhen {
    /// One.
    #[default]
    Any,
    /// All.
    All,
    /// As many as `quorum` says.
    Quorum,
}

/// What a source of which nothing is known counts as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenUnknown {
    /// Neither: nothing is done on the strength of it.
    #[default]
    Hold,
    /// One that says that power is lost.
    Lost,
}

/// Kinds of power sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerKind {
    /// A watched file.
    File,
    /// A UPS by upsd of Network UPS Tools.
    Nut,
    /// The kernel's power supplies.
    Kernel,
    /// A command.
    Command,
}

/// `[[power.sources]]`: one source. Which keys it may have depends on its kind.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerSourceKeys {
    /// Its kind.
    pub kind: PowerKind,
    /// What status calls it; made of the other keys if absent.
    pub name: Option<String>,
    /// `file`: the watched file.
    pub path: Option<PathBuf>,
    /// `nut`: `host:port` of upsd; `127.0.0.1:3493` if absent.
    pub server: Option<String>,
    /// `nut`: name of the UPS.
    pub ups: Option<String>,
    /// `nut`: a user of upsd.users.
    pub user: Option<String>,
    /// `nut`: file whose first line is that user's password.
    pub password_file: Option<PathBuf>,
    /// `nut`: whether upsd is told that this machine lives on the UPS.
    pub login: Option<bool>,
    /// `kernel`: the class directory, if not sysfs's own.
    pub dir: Option<PathBuf>,
    /// `kernel`: names of the supplies that count; all of the system if absent.
    pub supplies: Option<Vec<String>>,
    /// `command`: program and arguments.
    pub command: Option<Vec<String>>,
    /// `command`: pause between two runs; 1 s if absent.
    #[serde(default, deserialize_with = "units::some_duration")]
    pub every: Option<Duration>,
    /// `command`: how long a run may take before it is killed; 1 s if absent.
    #[serde(default, deserialize_with = "units::some_duration")]
    pub deadline: Option<Duration>,
}

impl PowerSourceKeys {
    /// One of which only the kind is given.
    pub fn of(kind: PowerKind) -> PowerSourceKeys {
        PowerSourceKeys {
            kind,
            name: None,
            path: None,
            server: None,
            ups: None,
            user: None,
            password_file: None,
            login: None,
            dir: None,
            supplies: None,
            command: None,
            every: None,
            deadline: None,
        }
    }

    /// Keys that are there, and the kind that each is for.
    fn present(&self) -> impl Iterator<Item = (&'static str, PowerKind)> {
        let keys = [
            ("path", PowerKind::File, self.path.is_some()),
            ("server", PowerKind::Nut, self.server.is_some()),
            ("ups", PowerKind::Nut, self.ups.is_some()),
            ("user", PowerKind::Nut, self.user.is_some()),
            ("password_file", PowerKind::Nut, self.password_file.is_some()),
            ("login", PowerKind::Nut, self.login.is_some()),
            ("dir", PowerKind::Kernel, self.dir.is_some()),
            ("supplies", PowerKind::Kernel, self.supplies.is_some()),
            ("command", PowerKind::Command, self.command.is_some()),
            ("every", PowerKind::Command, self.every.is_some()),
            ("deadline", PowerKind::Command, self.deadline.is_some()),
        ];
        keys.into_iter().filter(|(.., is)| *is).map(|(key, kind, _)| (key, kind))
    }
}

/// `[budget]`: what the battery is reckoned with, beside what the power sources say.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetKeys {
    /// By how much longer shipping is reckoned than it was measured; at least 1.
    #[serde(default = "safety")]
    pub safety: f64,
    /// How long it takes until the power sources say that power is lost.
    #[serde(default = "detect", deserialize_with = "units::duration")]
    pub detect: Duration,
    /// The least that the battery holds, whatever the sources say or do not say.
    #[serde(default, deserialize_with = "units::some_duration")]
    pub hold_up: Option<Duration>,
    /// What the full battery gives, watt-hours.
    pub energy_wh: Option<f64>,
    /// What the machine draws on battery, watts.
    pub power_w: Option<f64>,
}

impl Default for BudgetKeys {
    fn default() -> BudgetKeys {
        BudgetKeys { safety: safety(), detect: detect(), hold_up: None, energy_wh: None, power_w: None }
    }
}

/// `budget` of a group: what happens when more is exposed than the battery can carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BudgetMode {
    /// It is said.
    #[default]
    Alarm,
    /// The application is slowed down so that it does not come to that.
    Enforce,
}

fn settle() -> Duration {
    Duration::from_secs(2)
}

fn safety() -> f64 {
    1.5
}

fn detect() -> Duration {
    Duration::from_secs(2)
}

/// What is wrong with `[power]` and `[budget]`.
pub(super) fn check(power: Option<&Power>, budget: &BudgetKeys, found: &mut Faults) {
    if let Some(power) = power {
        check_power(power, found);
    }
    check_budget(budget, found);
}

fn check_power(power: &Power, found: &mut Faults) {
    match (power.source, &power.path) {
        (Some(PowerKind::File), None) => found.add_absent(
            &["power", "path"],
            &["power", "path"],
            "missing",
            "add path = ..., the file that says whether there is power",
        ),
        (Some(PowerKind::File), Some(path)) => found.absolute(&["power", "path"], path),
        (Some(_), _) => found.add(
            &["power", "source"],
            "only a watched file can be written this way",
            "write a [[power.sources]] with kind = and the keys of that kind",
        ),
        (None, Some(_)) => found.add_absent(
            &["power", "source"],
            &["power", "path"],
            "says nothing without a source",
            "add source = \"file\", or write it into a [[power.sources]] with kind = \"file\"",
        ),
        (None, None) if power.sources.is_empty() => found.add_absent(
            &["power", "sources"],
            &["power"],
            "names no source",
            "add a [[power.sources]] with kind = \"nut\", \"kernel\", \"command\" or \"file\"",
        ),
        (None, None) => {}
    }
    let all = power.all_sources().len();
    if all > MAX_SOURCES {
        found.add(&["power", "sources"], format!("more than {MAX_SOURCES} sources"), "remove some");
    }
    match power.quorum {
        Some(_) if power.lost_when != LostWhen::Quorum => found.add(
            &["power", "quorum"],
            "counts only with lost_when = \"quorum\"",
            "set that, or remove this",
        ),
        Some(n) if n == 0 || n > all => found.add(
            &["power", "quorum"],
            format!("{n} of {all} sources cannot be"),
            format!("choose from 1 to {all}"),
        ),
        _ => {}
    }
    found.wait(&["power", "confirm"], power.confirm);
    found.wait(&["power", "settle"], power.settle);
    for (i, source) in power.sources.iter().enumerate() {
        check_source(&i.to_string(), source, found);
    }
}

fn check_source(i: &str, source: &PowerSourceKeys, found: &mut Faults) {
    let at = |key: &'static str| ["power", "sources", i, key];
    for (key, kind) in source.present().filter(|(_, kind)| *kind != source.kind) {
        let kind = format!("{kind:?}").to_lowercase();
        found.add(
            &at(key),
            format!("is a key of sources of kind \"{kind}\""),
            format!("remove it, or set kind = \"{kind}\""),
        );
    }
    let mut wanted = |key: &'static str, there: bool, what: &str| {
        if !there {
            found.add_absent(&at(key), &at(key), "missing", format!("add {key} = ..., {what}"));
        }
    };
    match source.kind {
        PowerKind::File => wanted("path", source.path.is_some(), "the file that says whether there is power"),
        PowerKind::Nut => wanted("ups", source.ups.is_some(), "the UPS's name at upsd; `upsc -l` lists them"),
        PowerKind::Kernel => {}
        PowerKind::Command => wanted("command", source.command.is_some(), "program and arguments"),
    }
    for (key, path) in
        [("path", &source.path), ("password_file", &source.password_file), ("dir", &source.dir)]
    {
        path.iter().for_each(|path| found.absolute(&at(key), path));
    }
    if source.user.is_some() != source.password_file.is_some() {
        let (there, missing) = match source.user {
            Some(_) => ("user", "password_file"),
            None => ("password_file", "user"),
        };
        found.add_absent(&at(missing), &at(there), format!("is of no use without {missing}"), "give both");
    }
    if source.login == Some(true) && source.user.is_none() {
        found.add_absent(&at("user"), &at("login"), "needs a user", "add user and password_file");
    }
    if let Some(ups) = source.ups.as_ref().filter(|ups| ups.is_empty() || ups.chars().any(char::is_control)) {
        found.add(&at("ups"), format!("`{}` names no UPS", ups.escape_debug()), "`upsc -l` lists them");
    }
    if let Some(command) = &source.command {
        match command.first() {
            None => found.add(&at("command"), "names no program", "name one by its full path"),
            Some(program) if !Path::new(program).is_absolute() => found.add(
                &at("command"),
                format!("`{program}` is no absolute path"),
                "name the program by its full path, so that PATH cannot change what is started",
            ),
            Some(_) => {}
        }
    }
    if source.supplies.as_ref().is_some_and(|names| names.is_empty() || names.iter().any(String::is_empty)) {
        found.add(&at("supplies"), "names no supply", "leave it out, or see /sys/class/power_supply");
    }
    if let Some(name) =
        source.name.as_ref().filter(|name| name.is_empty() || name.chars().any(char::is_control))
    {
        found.add(&at("name"), format!("`{}` is no name", name.escape_debug()), "such as \"ups-a\"");
    }
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_server = |server: &String| {
        server.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && is_port(port))
    };
    if let Some(server) = source.server.as_ref().filter(|server| !is_server(server)) {
        found.add(
            &at("server"),
            format!("`{}` is no host:port", server.escape_debug()),
            "such as \"127.0.0.1:3493\"",
        );
    }
    for (key, value) in [("every", source.every), ("deadline", source.deadline)] {
        if value.is_some_and(|v| v > MAX_PERIOD || v.is_zero()) {
            found.add(&at(key), "is no time between nothing and an hour", "such as \"1s\"");
        }
    }
}

fn check_budget(budget: &BudgetKeys, found: &mut Faults) {
    if !(1.0..=100.0).contains(&budget.safety) {
        found.add(&["budget", "safety"], format!("{} is not from 1 to 100", budget.safety), "such as 1.5");
    }
    found.wait(&["budget", "detect"], budget.detect);
    for (key, value, other) in
        [("energy_wh", budget.energy_wh, budget.power_w), ("power_w", budget.power_w, budget.energy_wh)]
    {
        if value.is_some_and(|v| !v.is_finite() || v <= 0.0) {
            found.add(&["budget", key], "is not above 0", "leave it out if it is not known");
        }
        if value.is_some() && other.is_none() {
            let missing = if key == "power_w" { "energy_wh" } else { "power_w" };
            found.add_absent(
                &["budget", missing],
                &["budget", key],
                format!("is of no use without {missing}"),
                "give both",
            );
        }
    }
}
