//! Watches the battery budget: what groups expose, against what the battery can carry.
//!
//! A few times a second it gathers what each group of this node exposes, how fast that drains and how long the battery lasts, has
//! `power::budget` assess it, keeps the outcome for the status, tells of budgets that are low and in order again, and gives the groups that
//! are held to theirs how much they may expose.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use super::clock::WallTime;
use super::config::{BudgetMode, Config, Group};
use super::context::Context;
use super::events::Kind;
use super::group::Controller;
use super::power_watch::PowerWatch;
use super::status::{BudgetStatus, DestinationState, DestinationStatus};
use crate::locks::lock;
use crate::power::PowerState;
use crate::power::budget::drain::{Drain, Look};
use crate::power::budget::hold_up::{Battery, HoldUp};
use crate::power::budget::{Action, Assessment, DestinationLoad, GroupLoad, Means, Told, Verdict, assess};

/// How often it looks: several times in what a loss takes to be seen.
const LOOK: Duration = Duration::from_millis(250);

/// The thread; stopped on drop.
pub struct BudgetWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: Mutex<bool>,
    stopped: Condvar,
    /// The last outcome, by the group's name.
    outcome: Mutex<HashMap<String, BudgetStatus>>,
}

impl BudgetWatch {
    /// Watches the groups of `controllers`; nothing where there is neither a power source nor a battery in the configuration, and no
    /// group is to be held to a budget.
    pub fn start(
        context: &Arc<Context>,
        controllers: &[Arc<dyn Controller>],
        power: Option<&Arc<PowerWatch>>,
    ) -> io::Result<Option<BudgetWatch>> {
        let keys = &context.config.budget;
        let battery = Battery { at_least: keys.hold_up, energy: keys.energy_wh.zip(keys.power_w) };
        let enforced = context.config.groups.iter().any(|g| g.budget == BudgetMode::Enforce);
        if power.is_none() && battery.at_least.is_none() && !enforced {
            return Ok(None);
        }
        let shared = Arc::new(Shared::default());
        let mut watcher = Watcher {
            shared: shared.clone(),
            context: context.clone(),
            controllers: controllers.to_vec(),
            power: power.cloned(),
            hold_up: HoldUp::new(battery),
            streams: HashMap::new(),
            verdicts: HashMap::new(),
        };
        let thread = thread::Builder::new().name("budget".into()).spawn(move || watcher.run())?;
        Ok(Some(BudgetWatch { shared, thread: Some(thread) }))
    }

    /// How it is with the group of this name, if it is shipped from here.
    pub fn status(&self, group: &str) -> Option<BudgetStatus> {
        lock(&self.shared.outcome).get(group).cloned()
    }
}

impl Drop for BudgetWatch {
    fn drop(&mut self) {
        *lock(&self.shared.stop) = true;
        self.shared.stopped.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watcher {
    shared: Arc<Shared>,
    context: Arc<Context>,
    controllers: Vec<Arc<dyn Controller>>,
    power: Option<Arc<PowerWatch>>,
    hold_up: HoldUp,
    /// What each stream was seen to drain, by group and destination.
    streams: HashMap<(String, String), Drain>,
    verdicts: HashMap<String, Verdict>,
}

impl Watcher {
    fn run(&mut self) {
        let shared = self.shared.clone();
        loop {
            self.look();
            let stop = lock(&shared.stop);
            let waited = shared.stopped.wait_timeout_while(stop, LOOK, |stop| !*stop);
            if *waited.unwrap_or_else(std::sync::PoisonError::into_inner).0 {
                return;
            }
        }
    }

    fn look(&mut self) {
        let now = Instant::now();
        // Without a source nothing ever says that power is lost.
        let there = || PowerState { online: Some(true), ..PowerState::silent(now) };
        let state = self.power.as_ref().map_or_else(there, |power| power.state());
        let keys = &self.context.config.budget;
        let means = Means { hold_up: self.hold_up.at(&state, now), detect: keys.detect, safety: keys.safety };
        let shipped: Vec<(usize, Vec<DestinationStatus>)> =
            self.controllers.iter().enumerate().filter_map(|(at, c)| Some((at, c.streams()?))).collect();
        let loads: Vec<GroupLoad> = shipped
            .iter()
            .map(|(at, rows)| self.load(self.controllers[*at].name().to_owned(), rows, now))
            .collect();
        let assessments = assess(&means, &loads);
        let mut outcome = HashMap::new();
        for (((at, _), load), assessment) in shipped.iter().zip(&loads).zip(&assessments) {
            // A group without a destination that counts has no budget that could be kept: it is unprotected, and says so.
            let kept = load.enforced && assessment.destination.is_some();
            self.controllers[*at].set_budget(kept.then_some(assessment.thresholds));
            let told = self.verdicts.entry(load.name.clone()).or_default().tell(assessment.ratio());
            told.into_iter().for_each(|told| self.tell(told, load, assessment));
            outcome.insert(load.name.clone(), status(load, assessment));
        }
        *lock(&self.shared.outcome) = outcome;
    }

    fn load(&mut self, name: String, rows: &[DestinationStatus], now: Instant) -> GroupLoad {
        let config = group(&self.context.config, &name);
        let destinations = rows.iter().map(|row| {
            let drain = self.streams.entry((name.clone(), row.node.clone())).or_default();
            let counts = row.state == DestinationState::Streaming;
            let look = Look {
                published: row.lsn_published,
                // A copy moves what is durable by what nobody measured.
                durable: if counts { row.lsn_durable } else { row.lsn_published },
                measured: row.drain_bytes_per_s.unwrap_or(0),
            };
            DestinationLoad {
                node: row.node.clone(),
                counts,
                exposed: vec![(None, row.exposure_bytes)],
                drain: drain.take(&look, now),
            }
        });
        let destinations = destinations.collect();
        GroupLoad {
            enforced: config.is_some_and(|g| g.budget == BudgetMode::Enforce),
            freeze: config.map_or(DEFAULT_FREEZE, |g| g.freeze_deadline),
            name,
            destinations,
        }
    }

    fn tell(&self, told: Told, load: &GroupLoad, assessment: &Assessment) {
        let seconds = |d: Option<Duration>| d.map(|d| d.as_secs_f64());
        let detail = json!({
            "required_s": seconds(assessment.required),
            "available_s": seconds(assessment.available),
            "ratio": finite(assessment.ratio()),
            "exposed_bytes": assessment.exposed,
            "destination": assessment.destination,
        });
        let kind = match told {
            Told::Low => Kind::BudgetLow,
            Told::Ok => Kind::BudgetOk,
        };
        if told == Told::Low {
            tracing::warn!(group = load.name, detail = %detail, "the battery is hardly enough, or that is not known");
        }
        self.context.events.emit(Some(&load.name), kind, detail);
    }
}

/// Where a group that was taken over is not configured as one that begins here.
const DEFAULT_FREEZE: Duration = Duration::from_millis(500);

fn group<'c>(config: &'c Config, name: &str) -> Option<&'c Group> {
    config.groups.iter().find(|g| g.name == name)
}

/// JSON knows no infinity: what it takes to carry something with nothing is not known.
fn finite(ratio: Option<f64>) -> Option<f64> {
    ratio.filter(|ratio| ratio.is_finite())
}

fn status(load: &GroupLoad, assessment: &Assessment) -> BudgetStatus {
    let seconds = |d: Option<Duration>| d.map(|d| d.as_secs_f64());
    let drain = assessment.thresholds.drain;
    BudgetStatus {
        mode: if load.enforced { "enforce" } else { "alarm" }.into(),
        required_s: seconds(assessment.required),
        available_s: seconds(assessment.available),
        ratio: finite(assessment.ratio()),
        destination: assessment.destination.clone(),
        exposed_bytes: assessment.exposed,
        t1_bytes: assessment.thresholds.t1,
        t2_bytes: assessment.thresholds.t2,
        drain_bytes_per_s: Some(drain).filter(|d| *d > 0),
        action: match assessment.action {
            Action::None => "none",
            Action::CopyFaster => "copy_faster",
            Action::Delay => "delay",
            Action::Alarm => "alarm",
        }
        .into(),
        as_of: WallTime::now().to_string(),
    }
}
