//! A placement on a trace: requests one by one, epochs, looks of the guard, and what came of it.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::chance::Chance;
use super::latency::Latencies;
use super::machine::{Counters, Machine, Place, Request, Started};
use super::parameters as p;
use super::peers::Placement;
use super::traces::Trace;
use crate::node::placement::policy::model::{GroupView, Limits, Move, PackageId, PackageView, View};

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Mean watts of all packages and their memory.
    pub watts: f64,
    /// Seconds that 99 % of all requests took at most.
    pub p99: f64,
    /// The same of each service.
    pub service_p99: Vec<f64>,
    /// Share of requests beyond their service's target.
    pub late: f64,
    /// Groups that were moved.
    pub moves: usize,
    /// Mean R over the packages.
    pub residency: f64,
    /// Load of each slot, to be played again.
    pub loads: Vec<f64>,
    /// When something was moved: second, group, how many packages it has then.
    pub story: Vec<(f64, Move)>,
}

/// Plays `trace` for `seconds` on a machine of `packages`.
pub fn run(
    trace: &Trace,
    placement: &mut dyn Placement,
    packages: usize,
    seconds: f64,
    seed: u64,
) -> Outcome {
    let mut run = Run::new(packages, seed);
    let mut playing = trace.begin(seed ^ 0x7ace);
    let slots = (seconds / p::GUARD).round() as usize;
    let per_epoch = (p::EPOCH / p::GUARD).round() as usize;
    let mut loads = Vec::with_capacity(slots);
    for slot in 0..slots {
        let now = slot as f64 * p::GUARD;
        if slot > 0 {
            let moves = if slot % per_epoch == 0 {
                run.wander();
                let view = run.view(now, true);
                placement.epoch(&view)
            } else {
                let view = run.view(now, false);
                placement.guard(&view)
            };
            run.apply(now, moves);
        }
        let load = playing.load(slot, now, run.has_emptied());
        loads.push(load);
        run.slot(now, load);
    }
    run.finish(slots as f64 * p::GUARD, loads)
}

/// What happens, and when.
#[derive(Clone, Copy, Debug)]
struct Event {
    at: f64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Comes(Request),
    Done(Place),
    Wakes(usize),
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The earliest is the greatest.
impl Ord for Event {
    fn cmp(&self, other: &Event) -> Ordering {
        other.at.total_cmp(&self.at)
    }
}

/// A service's requests to come.
struct Source {
    chance: Chance,
    /// What is left until the next request, in mean times between two.
    left: f64,
    /// How far its load is from what it should be, as a share of that.
    wandered: f64,
}

/// What was counted when the placement last looked.
#[derive(Clone, Default)]
struct Mark {
    at: f64,
    packages: Vec<Counters>,
    work: Vec<f64>,
    waited: Vec<f64>,
}

/// A machine and what is to happen on it.
pub(super) struct Run {
    machine: Machine,
    packages: usize,
    sources: Vec<Source>,
    housekeeping: Chance,
    events: BinaryHeap<Event>,
    marks: [Mark; 2],
    story: Vec<(f64, Move)>,
}

impl Run {
    pub fn new(packages: usize, seed: u64) -> Run {
        let mut seeds = Chance::new(seed);
        let source = |_| {
            let mut chance = Chance::new(seeds.bits());
            Source { left: chance.exponential(1.0), wandered: 0.0, chance }
        };
        let services = p::SERVICES.len();
        let sources = (0..services).map(source).collect();
        let mark = Mark {
            at: 0.0,
            packages: vec![Counters::default(); packages],
            work: vec![0.0; services],
            waited: vec![0.0; services],
        };
        Run {
            machine: Machine::new(packages, services, seeds.bits()),
            packages,
            sources,
            housekeeping: Chance::new(seeds.bits()),
            events: BinaryHeap::new(),
            marks: [mark.clone(), mark],
            story: Vec::new(),
        }
    }

    /// Everything that happens in a slot with this load.
    pub fn slot(&mut self, now: f64, load: f64) {
        for (index, service) in p::SERVICES.iter().enumerate() {
            let source = &mut self.sources[index];
            let cores =
                load * (self.packages * p::CORES) as f64 * service.weight * (1.0 + source.wandered).max(0.1);
            let rate = cores / service.mean;
            let mut at = 0.0;
            while rate > 0.0 && at + source.left / rate < p::GUARD {
                at += source.left / rate;
                let work = source.chance.exponential(service.mean);
                source.left = source.chance.exponential(1.0);
                let request = Request { service: index, came: now + at, work };
                self.events.push(Event { at: now + at, what: What::Comes(request) });
            }
            source.left -= (p::GUARD - at) * rate;
        }
        for package in 0..self.packages {
            let mut at = self.housekeeping.exponential(1.0 / p::HOUSEKEEPING.0);
            while at < p::GUARD {
                self.events.push(Event { at: now + at, what: What::Wakes(package) });
                at += self.housekeeping.exponential(1.0 / p::HOUSEKEEPING.0);
            }
        }
        let end = now + p::GUARD;
        while self.events.peek().is_some_and(|event| event.at < end) {
            let Some(Event { at, what }) = self.events.pop() else { break };
            let started = match what {
                What::Comes(request) => self.machine.admit(at, request),
                What::Done(place) => self.machine.done(at, place),
                What::Wakes(package) => self.machine.wake(at, package, p::HOUSEKEEPING.1),
            };
            self.started(started);
        }
    }

    fn started(&mut self, started: impl IntoIterator<Item = Started>) {
        let done =
            started.into_iter().map(|Started { place, done }| Event { at: done, what: What::Done(place) });
        self.events.extend(done);
    }

    fn wander(&mut self) {
        for source in &mut self.sources {
            source.wandered = p::WANDER.1 * source.wandered + p::WANDER.0 * source.chance.normal();
        }
    }

    /// Since the last look of the same kind.
    fn view(&mut self, now: f64, epoch: bool) -> View {
        let mark = Mark {
            at: now,
            packages: (0..self.packages).map(|package| self.machine.counters(now, package)).collect(),
            work: (0..p::SERVICES.len()).map(|service| self.machine.service_work(service)).collect(),
            waited: (0..p::SERVICES.len()).map(|service| self.machine.service_waited(service)).collect(),
        };
        let last = std::mem::replace(&mut self.marks[usize::from(epoch)], mark.clone());
        let window = now - last.at;
        let package = |index: usize| PackageView {
            id: PackageId(index as u32),
            cpus: p::CORES as u32,
            load: (mark.packages[index].work - last.packages[index].work) / window / p::CORES as f64,
            residency: Some((mark.packages[index].asleep - last.packages[index].asleep) / window),
        };
        let group = |index: usize| GroupView {
            id: p::SERVICES[index].name.into(),
            load: (mark.work[index] - last.work[index]) / window,
            on: self.machine.on(index).iter().map(|package| PackageId(*package as u32)).collect(),
            limits: Limits::default(),
            pressure: Some(((mark.waited[index] - last.waited[index]) / window).min(1.0)),
            p99: None,
        };
        View {
            packages: (0..self.packages).map(package).collect(),
            groups: (0..p::SERVICES.len()).map(group).collect(),
            keep: None,
        }
    }

    /// A core of the package is busy for `seconds`.
    pub fn occupy(&mut self, now: f64, package: usize, seconds: f64) {
        let started = self.machine.wake(now, package, seconds);
        self.started(started);
    }

    /// As if moves had been carried out long ago.
    pub fn settle(&mut self, moves: &[Move]) {
        for moved in moves {
            let service = p::SERVICES.iter().position(|service| service.name == moved.group);
            let on = moved.to.iter().map(|package| package.0 as usize).collect();
            service.into_iter().for_each(|service| self.machine.settle(service, Vec::clone(&on)));
        }
    }

    /// Something uses the package's memory until then.
    pub fn hold(&mut self, now: f64, package: usize, until: f64) {
        self.machine.hold(now, package, until);
    }

    /// Joules up to `now`.
    pub fn energy(&self, now: f64) -> f64 {
        self.machine.energy(now)
    }

    /// Carries moves out.
    pub fn apply(&mut self, now: f64, moves: Vec<Move>) {
        for moved in moves {
            let Some(service) = p::SERVICES.iter().position(|service| service.name == moved.group) else {
                continue;
            };
            let on = moved.to.iter().map(|package| package.0 as usize).collect();
            let started = self.machine.place(now, service, on);
            self.started(started);
            self.story.push((now, moved));
        }
    }

    /// Whether some package has no service.
    fn has_emptied(&self) -> bool {
        let used = |package: usize| {
            (0..p::SERVICES.len()).any(|service| self.machine.on(service).contains(&package))
        };
        !(0..self.packages).all(used)
    }

    fn finish(self, now: f64, loads: Vec<f64>) -> Outcome {
        let mut all = Latencies::default();
        (0..p::SERVICES.len()).for_each(|service| all.add(self.machine.latencies(service)));
        let late: u64 = (0..p::SERVICES.len()).map(|service| self.machine.late(service)).sum();
        let asleep: f64 = (0..self.packages).map(|package| self.machine.counters(now, package).asleep).sum();
        Outcome {
            watts: self.machine.energy(now) / now,
            p99: all.at(0.99),
            service_p99: (0..p::SERVICES.len())
                .map(|service| self.machine.latencies(service).at(0.99))
                .collect(),
            late: late as f64 / all.count().max(1) as f64,
            moves: self.story.len(),
            residency: asleep / now / self.packages as f64,
            loads,
            story: self.story,
        }
    }
}
