//! The machine: packages of cores that serve requests, sleep between them, and draw power.
//!
//! Requests find a core as threads under Linux do: an idle one of the packages that their group may use, on another of
//! these packages if the first has none, else they wait; a core without work takes what waits elsewhere. Idle states are
//! those of a governor that knows how long the core will idle and errs never. Time up to a state's target residency costs what the
//! shallower state costs: that is what "worth entering" means.

use std::collections::VecDeque;

use super::chance::Chance;
use super::latency::Latencies;
use super::parameters as p;

/// A request that waits or is served.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Index of its service.
    pub service: usize,
    /// When it came, in seconds.
    pub came: f64,
    /// Seconds of work.
    pub work: f64,
}

/// A place in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Package.
    pub package: usize,
    /// Core in it.
    pub core: usize,
}

#[derive(Clone, Debug)]
struct Package {
    /// Since when each core has idled; none while it is busy.
    idle: Vec<Option<f64>>,
    busy: usize,
    queue: VecDeque<Request>,
    /// Since when all cores idle.
    quiet_since: Option<f64>,
    /// Something other than its cores keeps it awake until then.
    held_until: f64,
    /// Seconds asleep, up to the last wake-up.
    asleep: f64,
    /// Core-seconds of work, up to `counted`.
    work: f64,
    counted: f64,
    /// Joules of cores that idle, up to their last wake-up.
    idle_energy: f64,
}

impl Package {
    /// Seconds asleep up to `now`.
    fn asleep(&self, now: f64) -> f64 {
        let begins = self.quiet_since.map(|since| (since + p::PACKAGE_RESIDENCY).max(self.held_until));
        self.asleep + begins.map_or(0.0, |begins| (now - begins).max(0.0))
    }

    fn work(&self, now: f64) -> f64 {
        self.work + self.busy as f64 * (now - self.counted)
    }

    fn change_busy(&mut self, now: f64, busy: usize) {
        self.work = self.work(now);
        self.counted = now;
        if busy == 0 {
            self.quiet_since = Some(now);
        } else if self.busy == 0 {
            self.asleep = self.asleep(now);
            self.quiet_since = None;
        }
        self.busy = busy;
    }

    /// Joules up to `now`, everything of the package's.
    fn energy(&self, now: f64) -> f64 {
        let (asleep, work) = (self.asleep(now), self.work(now));
        let (awake, share) = (now - asleep, work / p::CORES as f64);
        let idling = self.idle.iter().flatten().map(|since| idle_energy(now - since)).sum::<f64>();
        awake * (p::UNCORE_AWAKE + p::DRAM_IDLE)
            + share * (p::DRAM_BUSY - p::DRAM_IDLE)
            + asleep * (p::UNCORE_ASLEEP + p::DRAM_ASLEEP)
            + work * p::CORE_BUSY
            + self.idle_energy
            + idling
    }
}

/// Joules of a core that idles for so many seconds.
fn idle_energy(seconds: f64) -> f64 {
    let ends = p::CORE_STATES.iter().skip(1).map(|state| state.residency).chain([f64::INFINITY]);
    let spans = p::CORE_STATES.iter().zip(ends).scan(0.0, |from, (state, end)| {
        let span = (seconds.min(end) - *from).max(0.0);
        *from = end;
        Some(span * state.power)
    });
    spans.sum()
}

/// Seconds until a core that idled for so many executes again.
fn exit(seconds: f64) -> f64 {
    p::CORE_STATES.iter().rev().find(|state| state.residency <= seconds).map_or(0.0, |state| state.exit)
}

/// What a package did up to an instant.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Seconds in its sleep state.
    pub asleep: f64,
    /// Core-seconds in use.
    pub work: f64,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    packages: Vec<Package>,
    /// Which packages each service may use.
    on: Vec<Vec<usize>>,
    /// A service's requests take longer until then.
    cold_until: Vec<f64>,
    /// Core-seconds of each service that have ended.
    work: Vec<f64>,
    /// Seconds that each service's requests waited for a core.
    waited: Vec<f64>,
    latencies: Vec<Latencies>,
    late: Vec<u64>,
    waiting: usize,
    chance: Chance,
}

/// A request was given to a core: it is done then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Started {
    /// Which core.
    pub place: Place,
    /// When it is done, in seconds.
    pub done: f64,
}

/// For work that belongs to no service.
pub const HOUSEKEEPING: usize = usize::MAX;

impl Machine {
    /// All idle since 0, each of `services` on all packages.
    pub fn new(packages: usize, services: usize, seed: u64) -> Machine {
        let package = Package {
            idle: vec![Some(0.0); p::CORES],
            busy: 0,
            queue: VecDeque::new(),
            quiet_since: Some(0.0),
            held_until: 0.0,
            asleep: 0.0,
            work: 0.0,
            counted: 0.0,
            idle_energy: 0.0,
        };
        Machine {
            packages: vec![package; packages],
            on: vec![(0..packages).collect(); services],
            cold_until: vec![0.0; services],
            work: vec![0.0; services],
            waited: vec![0.0; services],
            latencies: vec![Latencies::default(); services],
            late: vec![0; services],
            waiting: 0,
            chance: Chance::new(seed),
        }
    }

    /// Which packages a service may use.
    pub fn on(&self, service: usize) -> &[usize] {
        &self.on[service]
    }

    /// Moves a service; what waits and may now run elsewhere starts there.
    pub fn place(&mut self, now: f64, service: usize, on: Vec<usize>) -> Vec<Started> {
        for &left in self.on[service].iter().filter(|package| !on.contains(package)) {
            let held = now + p::MEMORY_FOLLOWS;
            // What it slept until now it has slept.
            let package = &mut self.packages[left];
            package.asleep = package.asleep(now);
            package.held_until = package.held_until.max(held);
            package.quiet_since = package.quiet_since.map(|_| now);
        }
        self.on[service] = on;
        self.cold_until[service] = now + p::COLD.0;
        let queued: Vec<Request> =
            self.packages.iter_mut().flat_map(|package| package.queue.drain(..)).collect();
        self.waiting = 0;
        queued.into_iter().filter_map(|request| self.admit(now, request)).collect()
    }

    /// The service has been on these packages for long.
    pub fn settle(&mut self, service: usize, on: Vec<usize>) {
        self.on[service] = on;
    }

    /// A request comes: it starts on a core, or waits.
    pub fn admit(&mut self, now: f64, request: Request) -> Option<Started> {
        let on = &self.on[request.service];
        let first = self.chance.below(on.len());
        let order = (0..on.len()).map(|i| on[(first + i) % on.len()]);
        let free = order.clone().find(|package| self.packages[*package].busy < p::CORES);
        match free {
            Some(package) => Some(self.start(now, package, request)),
            None => {
                let shortest = order.min_by_key(|package| self.packages[*package].queue.len())?;
                self.packages[shortest].queue.push_back(request);
                self.waiting += 1;
                None
            }
        }
    }

    /// The system's own business wakes a package; nothing if it is busy throughout.
    pub fn wake(&mut self, now: f64, package: usize, work: f64) -> Option<Started> {
        let free = self.packages[package].busy < p::CORES;
        free.then(|| self.start(now, package, Request { service: HOUSEKEEPING, came: now, work }))
    }

    fn start(&mut self, now: f64, package: usize, request: Request) -> Started {
        let nth = self.chance.below(p::CORES - self.packages[package].busy);
        let state = &mut self.packages[package];
        let idle = state.idle.iter().enumerate().filter_map(|(core, since)| Some((core, (*since)?)));
        let (core, since) = idle.clone().nth(nth).expect("fewer are busy than there are");
        let slept = state.asleep(now) > state.asleep;
        let exit = exit(now - since) + if slept { p::PACKAGE_EXIT } else { 0.0 };
        state.idle_energy += idle_energy(now - since);
        state.idle[core] = None;
        state.change_busy(now, state.busy + 1);
        self.serve(now + exit, Place { package, core }, request)
    }

    /// `begins`: when the core executes.
    fn serve(&mut self, begins: f64, place: Place, request: Request) -> Started {
        let Request { service, came, work } = request;
        if service == HOUSEKEEPING {
            return Started { place, done: begins + work };
        }
        let work = if begins < self.cold_until[service] { work * p::COLD.1 } else { work };
        let done = begins + work;
        self.work[service] += work;
        self.latencies[service].record(done - came);
        self.late[service] +=
            u64::from(done - came > p::SERVICES.get(service).map_or(f64::INFINITY, |s| s.target));
        Started { place, done }
    }

    /// A core is done: it takes what waits, or idles.
    pub fn done(&mut self, now: f64, place: Place) -> Option<Started> {
        if let Some(request) = self.next_for(place.package) {
            self.waited[request.service] += now - request.came;
            return Some(self.serve(now, place, request));
        }
        let package = &mut self.packages[place.package];
        package.idle[place.core] = Some(now);
        package.change_busy(now, package.busy - 1);
        None
    }

    fn next_for(&mut self, package: usize) -> Option<Request> {
        if self.waiting == 0 {
            return None;
        }
        let may = |request: &Request, on: &[Vec<usize>]| on[request.service].contains(&package);
        let own = std::iter::once(package);
        let others = (0..self.packages.len()).filter(|other| *other != package);
        for from in own.chain(others) {
            let at = self.packages[from].queue.iter().position(|request| may(request, &self.on));
            if let Some(request) = at.and_then(|at| self.packages[from].queue.remove(at)) {
                self.waiting -= 1;
                return Some(request);
            }
        }
        None
    }

    /// What a package did.
    pub fn counters(&self, now: f64, package: usize) -> Counters {
        let package = &self.packages[package];
        Counters { asleep: package.asleep(now), work: package.work(now) }
    }

    /// Core-seconds of a service's requests that were started.
    pub fn service_work(&self, service: usize) -> f64 {
        self.work[service]
    }

    /// Seconds that a service's requests waited for a core.
    pub fn service_waited(&self, service: usize) -> f64 {
        self.waited[service]
    }

    /// Joules of all packages and their memory.
    pub fn energy(&self, now: f64) -> f64 {
        self.packages.iter().map(|package| package.energy(now)).sum()
    }

    /// Latencies of a service.
    pub fn latencies(&self, service: usize) -> &Latencies {
        &self.latencies[service]
    }

    /// Requests of a service beyond its target.
    pub fn late(&self, service: usize) -> u64 {
        self.late[service]
    }

    /// Something other than its cores uses the package's memory until `until`.
    pub fn hold(&mut self, now: f64, package: usize, until: f64) {
        let package = &mut self.packages[package];
        package.asleep = package.asleep(now);
        package.held_until = package.held_until.max(until);
        package.quiet_since = package.quiet_since.map(|_| now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_machine_draws_what_the_source_says_of_packages_asleep() {
        let machine = Machine::new(1, 0, 1);
        let watts = (machine.energy(1001.0) - machine.energy(1.0)) / 1000.0;
        assert!((watts - 12.5).abs() < 1e-6, "{watts}");
    }

    #[test]
    fn a_wake_up_from_a_deep_state_costs_its_exits_and_one_soon_after_does_not() {
        let mut machine = Machine::new(1, 1, 1);
        let request = |came| Request { service: 0, came, work: 1e-3 };
        let first = machine.admit(1.0, request(1.0)).unwrap();
        assert!((first.done - 1.0 - 1e-3 - 133e-6 - 50e-6).abs() < 1e-9, "{first:?}");
        assert_eq!(machine.done(first.done, first.place), None);
        // 100 us later the package is awake, the cores that idled since 0 are not.
        let second = machine.admit(first.done + 1e-4, request(first.done + 1e-4)).unwrap();
        let took = second.done - first.done - 1e-4 - 1e-3;
        assert!(took < 134e-6, "{took}");
    }

    #[test]
    fn what_finds_no_core_waits_and_a_place_elsewhere_takes_it() {
        let mut machine = Machine::new(2, 1, 1);
        machine.place(0.0, 0, vec![0]);
        let request = Request { service: 0, came: 0.0, work: 1.0 };
        let started = (0..p::CORES).filter_map(|_| machine.admit(0.0, request)).count();
        assert_eq!((started, machine.admit(0.0, request)), (p::CORES, None));
        let moved = machine.place(0.0, 0, vec![0, 1]);
        assert!(moved.len() == 1 && moved[0].place.package == 1, "{moved:?}");
    }
}
