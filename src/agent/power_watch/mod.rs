//! Tells the groups' controllers when external power goes and comes back, and the status how it is.
//!
//! A thread a source asks it, so that none that is slow keeps another waiting; one more makes one view of theirs, debounces it and tells
//! the controllers. `sources` makes the sources that the configuration names.

mod sources;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::clock::WallTime;
use super::config::Power;
use super::context::Context;
use super::events::Kind;
use super::group::Controller;
use super::placement::Placement;
use super::status::{PowerSourceStatus, PowerStatus};
use crate::locks::lock;
use crate::power::combine::{Rule, View, combine};
use crate::power::{Debounce, PowerEvent, PowerSource, PowerState};
pub use sources::SourceError;

/// A source is asked this often although nothing moved.
const ASK: Duration = Duration::from_millis(100);

/// The agent waits for its sources so long at its end.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// How long nothing may be known before it is told: longer than what a daemon takes to be restarted.
const DOUBT: Duration = Duration::from_secs(2);

/// Why power cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A source cannot be made.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A thread cannot be started.
    #[error("cannot watch power: {0}")]
    Thread(#[from] io::Error),
}

/// The threads; stopped on drop.
pub struct PowerWatch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    rule: Rule,
    views: Mutex<Views>,
    spoke: Condvar,
    stop: Arc<AtomicBool>,
}

struct Views {
    of: Vec<View>,
    /// Which of them have said something.
    spoken: Vec<bool>,
    /// Moves whenever a source has said something new.
    news: u64,
}

impl PowerWatch {
    /// Watches what `power` names. `placement` is told after the groups, which have the more pressing business.
    pub fn start(
        power: &Power,
        context: &Arc<Context>,
        controllers: Vec<Arc<dyn Controller>>,
        placement: Option<Arc<Placement>>,
    ) -> Result<PowerWatch, WatchError> {
        let stop = Arc::new(AtomicBool::new(false));
        let made = sources::make(power, &stop)?;
        let view = |(source, good_for): &(Box<dyn PowerSource>, Duration)| View {
            name: source.name().to_owned(),
            state: PowerState::unknown("no word yet", Instant::now()),
            good_for: *good_for,
        };
        let (of, spoken) = (made.iter().map(view).collect(), vec![false; made.len()]);
        let views = Mutex::new(Views { of, spoken, news: 0 });
        let shared = Arc::new(Shared { rule: power.rule(), views, spoke: Condvar::new(), stop });
        let mut watch = PowerWatch { shared: shared.clone(), threads: Vec::new() };
        for (at, (source, _)) in made.into_iter().enumerate() {
            let shared = shared.clone();
            let thread = thread::Builder::new().name(format!("power-{at}"));
            watch.threads.push(thread.spawn(move || shared.listen(at, source))?);
        }
        let (debounce, context) = (Debounce::new(power.confirm, power.settle), context.clone());
        let (doubt, spoken) = (Doubt::default(), false);
        let judge = move || Judge { shared, context, controllers, placement, debounce, doubt, spoken }.run();
        watch.threads.push(thread::Builder::new().name("power".into()).spawn(judge)?);
        Ok(watch)
    }

    /// What all sources together say.
    pub fn state(&self) -> PowerState {
        combine(self.shared.rule, &lock(&self.shared.views).of, Instant::now())
    }

    /// How power is, for the status document.
    pub fn status(&self) -> PowerStatus {
        let now = Instant::now();
        let views = lock(&self.shared.views).of.clone();
        let all = combine(self.shared.rule, &views, now);
        let as_of = |state: &PowerState| WallTime(SystemTime::now() - state.as_of.elapsed()).to_string();
        let source = |view: &View| {
            let state = view.at(now);
            PowerSourceStatus {
                name: view.name.clone(),
                online: state.online,
                runtime_s: state.runtime.map(|r| r.as_secs()),
                charge: state.charge,
                low: state.low,
                as_of: as_of(&state),
                error: state.fault,
            }
        };
        PowerStatus {
            source: views.iter().map(|view| view.name.as_str()).collect::<Vec<_>>().join(", "),
            online: all.online,
            runtime_s: all.runtime.map(|r| r.as_secs()),
            charge: all.charge,
            low: all.low,
            as_of: as_of(&all),
            error: all.fault,
            sources: views.iter().map(source).collect(),
        }
    }
}

impl Drop for PowerWatch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.spoke.notify_all();
        // A name that is resolved slowly, or a file on a server that is gone, must not keep the agent from ending.
        let deadline = Instant::now() + ENDS_WITHIN;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(ASK / 10);
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn stops(&self) -> bool {
        // Pairs with the store in `drop`.
        self.stop.load(Ordering::Acquire)
    }

    /// Has the judge look at once, and not only when it does anyway.
    fn tell(&self) {
        lock(&self.views).news += 1;
        self.spoke.notify_all();
    }

    /// Asks one source until told to stop.
    fn listen(&self, at: usize, mut source: Box<dyn PowerSource>) {
        let mut state = source.poll();
        while !self.stops() {
            let mut views = lock(&self.views);
            let before = &views.of[at].state;
            let is_new = PowerState { as_of: state.as_of, ..before.clone() } != state;
            views.of[at].state = state;
            let is_new = !std::mem::replace(&mut views.spoken[at], true) || is_new;
            drop(views);
            if is_new {
                self.tell();
            }
            state = source.wait(ASK);
        }
    }
}

/// Who tells the controllers.
struct Judge {
    shared: Arc<Shared>,
    context: Arc<Context>,
    controllers: Vec<Arc<dyn Controller>>,
    placement: Option<Arc<Placement>>,
    debounce: Debounce,
    doubt: Doubt,
    /// Something was told: power that is there from the beginning is not back.
    spoken: bool,
}

impl Judge {
    fn run(mut self) {
        let mut heard = 0;
        while !self.shared.stops() {
            let views = lock(&self.shared.views);
            let unheard = |views: &mut Views| views.news == heard && !self.shared.stops();
            let waited = self.shared.spoke.wait_timeout_while(views, ASK, unheard);
            let (views, _) = waited.unwrap_or_else(PoisonError::into_inner);
            heard = views.news;
            // One that has not spoken yet may be slow: that is no reason to take power for lost.
            let all_spoke = views.spoken.iter().all(|spoke| *spoke);
            let rule = self.shared.rule;
            let rule = Rule { unknown_is_lost: rule.unknown_is_lost && all_spoke, ..rule };
            let state = combine(rule, &views.of, Instant::now());
            drop(views);
            self.judge(&state);
        }
    }

    fn judge(&mut self, state: &PowerState) {
        let now = Instant::now();
        if let Some(event) = self.debounce.event(state, now) {
            self.controllers.iter().for_each(|c| c.power(event == PowerEvent::Back));
            self.placement.iter().for_each(|p| p.power(event == PowerEvent::Back));
            let kind = match event {
                PowerEvent::Lost => Some(Kind::PowerLost),
                PowerEvent::Back => self.spoken.then_some(Kind::PowerBack),
            };
            self.spoken = true;
            let runtime = state.runtime.map(|r| r.as_secs());
            let detail = json!({ "runtime_s": runtime, "charge": state.charge, "low": state.low });
            kind.into_iter().for_each(|kind| self.context.events.emit(None, kind, detail.clone()));
        }
        if self.doubt.is_due(state.online.is_none(), now) {
            let why = state.fault.as_deref().unwrap_or_default();
            tracing::warn!(why, "whether there is external power is not known");
            self.context.events.emit(None, Kind::PowerUnknown, json!({ "why": why }));
        }
    }
}

/// Whether it has been unknown for long, told once.
#[derive(Default)]
struct Doubt {
    since: Option<Instant>,
    told: bool,
}

impl Doubt {
    fn is_due(&mut self, unknown: bool, now: Instant) -> bool {
        if !unknown {
            *self = Doubt::default();
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let due = !self.told && now.saturating_duration_since(since) >= DOUBT;
        self.told |= due;
        due
    }
}
