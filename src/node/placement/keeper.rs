//! Watches, decides, moves: the policy with the system under it. The agent's thread drives it; `pmemha placement --dry-run` has one that
//! moves nothing.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::actuate::{Actuator, MoveError, irq};
use super::gasp::{self, Scene};
use super::independent::{Dependence, Window, dependence};
use super::monitor::group::{Group, Usage};
use super::monitor::residency::{self, Residency, Shares};
use super::monitor::topology::{Topology, TopologyError};
use super::monitor::{Roots, energy, group, load};
use super::policy::Policy;
use super::policy::model::{GroupView, Limits, Move, PackageId, PackageSet, PackageView, Reason, View};
use super::policy::settings::Settings;
use super::status::{GroupStatus, Moved, PackageStatus, PlacementStatus};

/// What is placed, and by which hands.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Where the system's files are.
    pub roots: Roots,
    /// The network adapter whose package is kept, and where all gathers on battery.
    pub nic: Option<String>,
    /// The journal of changes; none to change nothing.
    pub journal: Option<PathBuf>,
}

/// Why placement cannot begin, or go on for an epoch.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The packages are not known.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Changes cannot be undone, so none are made.
    #[error(transparent)]
    Journal(#[from] super::actuate::journal::JournalError),
    /// The processors' load is not known.
    #[error("the processors' load cannot be read: {0}")]
    Load(std::io::Error),
}

/// Moves that the status shows.
const REMEMBERED: usize = 32;

/// Windows that tell which states are independent.
const WINDOWS: usize = 64;

/// What was read at an instant.
struct Sample {
    at: Instant,
    load: load::Sample,
    groups: BTreeMap<String, Usage>,
    energy: BTreeMap<PackageId, energy::Counter>,
}

/// Watches, decides, moves.
pub struct Keeper {
    wishes: Wishes,
    groups: Vec<Group>,
    policy: Policy,
    actuator: Option<Actuator>,
    residency: Option<Box<dyn Residency>>,
    /// Why there is no source of R.
    without: Vec<String>,
    topology: Topology,
    last: Option<Sample>,
    last_load: Option<load::Sample>,
    windows: VecDeque<Window>,
    view: View,
    watts: Option<f64>,
    moved: VecDeque<Moved>,
    moves: u64,
    /// Where each group was when it was first seen, if that is not everywhere.
    homes: BTreeMap<String, Option<PackageSet>>,
    /// Packages that each group's memory is bound to, and when that was read.
    bound: BTreeMap<String, (Instant, Option<PackageSet>)>,
    gathered: bool,
}

impl Keeper {
    /// Reads the machine, and undoes what an earlier agent has left. Says what could not be undone.
    pub fn start(wishes: Wishes) -> Result<(Keeper, Vec<String>), KeeperError> {
        let (actuator, left) = match &wishes.journal {
            Some(path) => {
                let (actuator, left) = Actuator::open(wishes.roots.clone(), path)?;
                (Some(actuator), left)
            }
            None => (None, Vec::new()),
        };
        let topology = Topology::read(&wishes.roots)?;
        let keeper = Keeper {
            wishes,
            groups: Vec::new(),
            policy: Policy::new(Settings::default()),
            actuator,
            residency: None,
            without: Vec::new(),
            topology,
            last: None,
            last_load: None,
            windows: VecDeque::new(),
            view: View::default(),
            watts: None,
            moved: VecDeque::new(),
            moves: 0,
            homes: BTreeMap::new(),
            bound: BTreeMap::new(),
            gathered: false,
        };
        Ok((keeper, left))
    }

    /// Whether there is anything to place on: two packages at least.
    pub fn has_choice(&self) -> bool {
        self.topology.packages.len() > 1
    }

    /// Begins to measure R; until then nothing is drained.
    pub fn watch_residency(&mut self) {
        match residency::find(&self.wishes.roots, &self.topology) {
            Ok(source) => self.residency = Some(source),
            Err(wrong) => self.without = wrong,
        }
    }

    /// Measures R by this.
    pub fn set_residency(&mut self, source: Box<dyn Residency>) {
        self.residency = Some(source);
    }

    /// The groups, from now on.
    pub fn set_groups(&mut self, groups: Vec<Group>) {
        self.groups = groups;
    }

    /// An epoch is over: looks, decides, moves. Nothing is moved in the first, nor while all is gathered.
    pub fn epoch(&mut self) -> Result<Vec<Moved>, KeeperError> {
        self.topology = Topology::read(&self.wishes.roots)?;
        if !self.look()? || self.gathered {
            return Ok(Vec::new());
        }
        let moves = self.policy.step(&self.view);
        Ok(self.carry_out(moves))
    }

    /// Between two epochs: relieves a package that is too full. Quiet where that cannot be told.
    pub fn guard(&mut self) -> Vec<Moved> {
        let Ok(now) = load::sample(&self.wishes.roots) else { return Vec::new() };
        let Some(before) = self.last_load.replace(now.clone()) else { return Vec::new() };
        if self.gathered || self.view.groups.is_empty() {
            return Vec::new();
        }
        let loads = load::between(&before, &now, &self.topology);
        let mut view = self.view.clone();
        for package in &mut view.packages {
            package.load = loads.get(&package.id).copied().unwrap_or(package.load);
        }
        let moves = self.policy.guard(&view);
        self.carry_out(moves)
    }

    /// Power is lost: what runs, and the adapter's interrupts, gather on its package. A group that is frozen by now stays. Nothing is done
    /// where there is no other package.
    pub fn gather(&mut self) -> Vec<Moved> {
        match Topology::read(&self.wishes.roots) {
            Ok(topology) => self.topology = topology,
            Err(error) => tracing::warn!(%error, "packages are taken to be as they were"),
        }
        if !self.has_choice() {
            return Vec::new();
        }
        let nic = self.nic();
        let running: Vec<Group> = self.groups.iter().filter(|group| !group.is_frozen()).cloned().collect();
        let views = running.iter().map(|group| self.group_view(group, 0.0, None)).collect();
        let packages = self.topology.ids();
        let moves = gasp::gather(&Scene { nic, packages, running: views, dirty: BTreeMap::new() });
        self.gathered = true;
        if let (Some(nic), Some(device), Some(actuator)) = (nic, &self.wishes.nic, &mut self.actuator)
            && let Err(error) = actuator.place_interrupts(device, &[nic].into(), &self.topology)
        {
            tracing::warn!(%error, "the adapter's interrupts stay where they are");
        }
        self.carry_out(moves)
    }

    /// Power is back: everything is as it was before pmemha changed it, and the policy begins anew. Says what could not be undone.
    pub fn disperse(&mut self) -> Vec<String> {
        self.gathered = false;
        self.policy = Policy::new(Settings::default());
        self.restore()
    }

    /// Undoes every change. Says what could not be undone.
    pub fn restore(&mut self) -> Vec<String> {
        match self.actuator.as_mut().map(|actuator| actuator.restore(&self.groups)) {
            None => Vec::new(),
            Some(Ok(left)) => left,
            Some(Err(error)) => vec![error.to_string()],
        }
    }

    /// Reads everything; whether there was an earlier reading to compare with.
    fn look(&mut self) -> Result<bool, KeeperError> {
        let roots = self.wishes.roots.clone();
        let usages = self.groups.iter().filter_map(|group| Some((group.name.clone(), group.usage(&roots)?)));
        let now = Sample {
            at: Instant::now(),
            groups: usages.collect(),
            load: load::sample(&roots).map_err(KeeperError::Load)?,
            energy: energy::sample(&roots),
        };
        self.last_load = Some(now.load.clone());
        let shares = match self.residency.as_mut().map(|source| source.sample()) {
            Some(Ok(shares)) => shares,
            Some(Err(error)) => {
                self.without = vec![error.to_string()];
                Shares::new()
            }
            None => Shares::new(),
        };
        let Some(before) = &self.last else {
            self.last = Some(now);
            return Ok(false);
        };
        let seconds = (now.at - before.at).as_secs_f64().max(1e-3);
        let loads = load::between(&before.load, &now.load, &self.topology);
        let used = group::between(&before.groups, &now.groups, seconds);
        self.watts = (!now.energy.is_empty()).then(|| energy::between(&before.energy, &now.energy) / seconds);
        self.last = Some(now);
        self.windows.push_back(Window { load: loads.clone(), residency: shares.clone() });
        if self.windows.len() > WINDOWS {
            self.windows.pop_front();
        }
        let packages = self.topology.packages.iter().map(|(id, package)| PackageView {
            id: *id,
            cpus: package.cpus.len() as u32,
            load: loads.get(id).copied().unwrap_or(0.0),
            residency: self.residency_of(*id, &shares),
        });
        let packages = packages.collect();
        let groups = self.groups.clone();
        let groups = groups.iter().filter_map(|group| {
            let (load, waited) = used.get(&group.name)?;
            Some(self.group_view(group, *load, *waited))
        });
        let groups = groups.collect();
        self.view = View { packages, groups, keep: self.nic() };
        Ok(true)
    }

    /// R: time in every state that is not known to wait for other packages.
    fn residency_of(&self, id: PackageId, shares: &Shares) -> Option<f64> {
        let known = dependence(self.windows.iter());
        let counts = |state: &String| known.get(state) != Some(&Dependence::Dependent);
        let states = shares.get(&id)?;
        Some(states.iter().filter(|(state, _)| counts(state)).map(|(_, share)| share).sum::<f64>().min(1.0))
    }

    fn group_view(&mut self, group: &Group, load: f64, pressure: Option<f64>) -> GroupView {
        let all = self.topology.ids();
        let cpus = group.cpus(&self.wishes.roots);
        let on = self.topology.packages_of(&cpus);
        let memory = self.bound(group);
        let mut limits = group.limits(&self.wishes.roots, &self.topology, memory.as_ref());
        let whole: super::cpus::CpuSet = self.topology.cpus(&on);
        if cpus.is_empty() {
            limits.fixed = Some("it has no processor".into());
        } else if !whole.is_subset(&cpus) {
            limits.fixed.get_or_insert_with(|| "it is confined to some processors of a package".into());
        }
        // Whoever confined it before pmemha came meant it.
        let home = self.homes.entry(group.name.clone()).or_insert_with(|| (on != all).then(|| on.clone()));
        if let Some(home) = home {
            limits.within = Some(match limits.within {
                Some(within) => &within & home,
                None => home.clone(),
            });
        }
        GroupView {
            id: group.name.clone(),
            load,
            on,
            limits: Limits { whole: false, ..limits },
            pressure,
            p99: None,
        }
    }

    /// What the group's memory is bound to, read anew when that was long ago.
    fn bound(&mut self, group: &Group) -> Option<PackageSet> {
        let known = self.bound.get(&group.name).filter(|(at, _)| at.elapsed() < BOUND);
        if let Some((_, bound)) = known {
            return bound.clone();
        }
        let bound = group.bound(&self.wishes.roots, &self.topology);
        self.bound.insert(group.name.clone(), (Instant::now(), bound.clone()));
        bound
    }

    fn nic(&self) -> Option<PackageId> {
        irq::package(&self.wishes.roots, self.wishes.nic.as_deref()?, &self.topology)
    }

    /// Carries moves out, all of a reason or none: where one fails, it and those before it are taken back; in need, it alone.
    fn carry_out(&mut self, moves: Vec<Move>) -> Vec<Moved> {
        let mut done: Vec<Moved> = Vec::new();
        for moved in moves {
            let started = Instant::now();
            let result = self.place(&moved.group, &moved.to);
            let failed = result.err().map(|error| self.whole_again(&moved, &error));
            let stop =
                failed.is_some() && !matches!(moved.reason, Reason::Overload { .. } | Reason::Gather { .. });
            done.push(Moved {
                moved,
                took_us: started.elapsed().as_micros() as u64,
                failed,
                dry: self.actuator.is_none(),
            });
            if stop {
                self.take_back(&mut done);
                break;
            }
        }
        for moved in &done {
            self.moves += u64::from(moved.failed.is_none() && !moved.dry);
            self.moved.push_back(moved.clone());
            if self.moved.len() > REMEMBERED {
                self.moved.pop_front();
            }
        }
        done
    }

    /// A group of which some threads were moved goes back. Says what went wrong.
    fn whole_again(&mut self, moved: &Move, error: &MoveError) -> String {
        match self.place(&moved.group, &moved.from) {
            Ok(()) => error.to_string(),
            Err(back) => format!("{error}; what was moved of it could not be taken back: {back}"),
        }
    }

    fn take_back(&mut self, done: &mut [Moved]) {
        for moved in done.iter_mut().rev().filter(|moved| moved.failed.is_none()) {
            let back = self.place(&moved.moved.group, &moved.moved.from);
            let why = "taken back, since not all could be moved";
            moved.failed =
                Some(back.map_or_else(|error| format!("{why}, which failed: {error}"), |()| why.into()));
        }
    }

    fn place(&mut self, name: &str, to: &PackageSet) -> Result<(), MoveError> {
        let Some(group) = self.groups.iter().find(|group| group.name == name) else { return Ok(()) };
        match &mut self.actuator {
            Some(actuator) => actuator.place(group, to, &self.topology),
            None => Ok(()),
        }
    }

    /// How everything is.
    pub fn status(&self) -> PlacementStatus {
        let classes = self.policy.classes();
        let packages = self.view.packages.iter().map(|package| PackageStatus {
            package: package.id,
            cpus: super::cpus::format(
                &self.topology.packages.get(&package.id).cloned().unwrap_or_default().cpus,
            ),
            load: package.load,
            residency: package.residency,
            class: classes.get(&package.id).copied(),
        });
        let groups = self.view.groups.iter().map(|group| GroupStatus {
            name: group.id.clone(),
            load: group.load,
            pressure: group.pressure,
            on: group.on.iter().copied().collect(),
            fixed: group.limits.fixed.clone(),
        });
        PlacementStatus {
            active: self.actuator.is_some() && self.has_choice(),
            gathered: self.gathered,
            residency_source: self.residency.as_ref().map(|source| source.name().into()),
            without_residency: self.without.clone(),
            nic_package: self.nic(),
            watts: self.watts,
            packages: packages.collect(),
            groups: groups.collect(),
            moves: self.moves,
            last_moves: self.moved.iter().cloned().collect(),
        }
    }
}

/// How long it is believed what memory is bound to: to find out, the kernel walks the page tables of processes.
const BOUND: Duration = Duration::from_secs(60);

/// Time of an epoch, and between two looks of the guard.
pub const EPOCH: Duration = Duration::from_secs(1);
/// See [`EPOCH`].
pub const GUARD: Duration = Duration::from_millis(50);
