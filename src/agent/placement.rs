//! The thread that places groups of threads over processor packages: all the time where that is configured, else only while power is
//! lost.
//!
//! It waits for word of the power and, where it is on, for the next look. Whatever it has changed is undone when it is stopped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde_json::json;

use super::config::{self, Config, PlacementMode};
use super::context::Context;
use super::events::{Events, Kind};
use crate::failover::supervise::{Hierarchy, hierarchies};
use crate::locks::lock;
use crate::mounts;
use crate::node::placement::keeper::{EPOCH, GUARD, Keeper, KeeperError, Wishes};
use crate::node::placement::monitor::Roots;
use crate::node::placement::monitor::group::{Group, Members};
use crate::node::placement::monitor::idle_trace::{TRACEFS, remove_left};
use crate::node::placement::status::{Moved, PlacementStatus};

/// The journal in the state directory.
const JOURNAL: &str = "placement.journal";

/// The name of the group that the agent's own threads are.
pub const OWN: &str = "pmemhad";

/// The thread; stopped on drop at the latest.
pub struct Placement {
    tell: Sender<Word>,
    status: Arc<Mutex<PlacementStatus>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Word {
    /// External power is there, or not.
    Power(bool),
    Stop,
}

impl Placement {
    /// Undoes what an earlier agent has left, and begins, unless it is configured off. A machine that it cannot be on is no reason not to
    /// start: it says why, and there is none.
    pub fn start(context: &Arc<Context>) -> Option<Placement> {
        remove_left(&Roots::default().sys.join(TRACEFS), std::process::id());
        let mode = mode(&context.config);
        let journal = journal(&context.config);
        if mode == PlacementMode::Off && !journal.exists() {
            return None;
        }
        let wishes = wishes(&context.config, Some(journal));
        match begin(context, wishes, mode) {
            Ok(placement) => placement,
            Err(error) => {
                tracing::error!(%error, "groups are not placed over packages");
                None
            }
        }
    }

    /// Tells it of the power.
    pub fn power(&self, online: bool) {
        // It is finishing if nobody listens.
        let _ = self.tell.send(Word::Power(online));
    }

    /// Ends it, and undoes whatever it has changed.
    pub fn stop(&self) {
        // It has ended if nobody listens.
        let _ = self.tell.send(Word::Stop);
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    /// How it is.
    pub fn status(&self) -> PlacementStatus {
        lock(&self.status).clone()
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the configuration says, or `last-gasp`.
fn mode(config: &Config) -> PlacementMode {
    config.placement.as_ref().map_or(PlacementMode::default(), |placement| placement.mode)
}

/// Where the agent keeps the journal.
pub fn journal(config: &Config) -> PathBuf {
    config.node.state_dir.join(JOURNAL)
}

/// What is to be placed on this machine. `journal`: none to change nothing.
pub fn wishes(config: &Config, journal: Option<PathBuf>) -> Wishes {
    let named = config.placement.as_ref().and_then(|placement| placement.nic.clone());
    Wishes { roots: Roots::default(), nic: named.or_else(|| config.rdma.device.clone()), journal }
}

/// The groups of the configuration: those named, the applications that the agent supervises, and the agent itself, process `pid`.
pub fn groups(config: &Config, pid: u32) -> Vec<Group> {
    let named = config
        .placement
        .iter()
        .flat_map(|placement| &placement.groups)
        .map(|group| Group { name: group.name.clone(), members: Members::Cgroup(group.cgroup.clone()) });
    let mounted = mounts::read().unwrap_or_default();
    let hierarchy = hierarchies(&mounted).into_iter().next();
    let applications = config.groups.iter().filter_map(|group| {
        let (Hierarchy::V1(root) | Hierarchy::V2(root)) = hierarchy.clone()?;
        let members = Members::Listed(root.join("pmemha").join(&group.name).join("cgroup.procs"));
        Some(Group { name: group.name.clone(), members })
    });
    let own = Group { name: OWN.into(), members: Members::Threads { pid, prefix: String::new() } };
    let mut seen = BTreeSet::new();
    named.chain(applications).chain([own]).filter(|group| seen.insert(group.name.clone())).collect()
}

fn begin(
    context: &Arc<Context>,
    wishes: Wishes,
    mode: PlacementMode,
) -> Result<Option<Placement>, KeeperError> {
    let (mut keeper, left) = Keeper::start(wishes)?;
    tell_left(&context.events, &left);
    if mode == PlacementMode::Off {
        return Ok(None);
    }
    keeper.set_groups(groups(&context.config, std::process::id()));
    let status = Arc::new(Mutex::new(keeper.status()));
    let (tell, told) = channel();
    let always = mode == PlacementMode::On && keeper.has_choice();
    let (shared, context) = (status.clone(), context.clone());
    let work = move || {
        if always {
            keeper.watch_residency();
        }
        serve(&mut keeper, &told, always, &shared, &context);
        tell_left(&context.events, &keeper.restore());
    };
    let thread = thread::Builder::new().name("placement".into()).spawn(work).map_err(KeeperError::Load)?;
    Ok(Some(Placement { tell, status, thread: Mutex::new(Some(thread)) }))
}

/// Until it is stopped. `always`: also while there is power.
fn serve(
    keeper: &mut Keeper,
    told: &Receiver<Word>,
    always: bool,
    status: &Mutex<PlacementStatus>,
    context: &Context,
) {
    let mut next = Instant::now();
    let mut gathered = false;
    loop {
        let word = if always {
            told.recv_timeout(GUARD)
        } else {
            told.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match word {
            Ok(Word::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Word::Power(online)) if online == gathered => {
                gathered = !online;
                if online {
                    tell_left(&context.events, &keeper.disperse());
                } else {
                    tell_moves(&context.events, &keeper.gather());
                }
            }
            Ok(Word::Power(_)) => {}
            Err(RecvTimeoutError::Timeout) if Instant::now() >= next => {
                next = Instant::now() + EPOCH;
                match keeper.epoch() {
                    Ok(moves) => tell_moves(&context.events, &moves),
                    Err(error) => tracing::warn!(%error, "an epoch of placement is left out"),
                }
            }
            Err(RecvTimeoutError::Timeout) => tell_moves(&context.events, &keeper.guard()),
        }
        *lock(status) = keeper.status();
    }
}

fn tell_moves(events: &Events, moves: &[Moved]) {
    for moved in moves {
        events.emit(None, Kind::GroupPlaced, json!({ "move": moved, "text": moved.line() }));
    }
}

fn tell_left(events: &Events, left: &[String]) {
    for why in left {
        events.emit(None, Kind::PlacementLeft, json!({ "why": why }));
    }
}

/// Observes for some epochs what a configuration would have placed here, and moves nothing.
pub fn dry_run(config: &Config, pid: u32, epochs: u32) -> Result<PlacementStatus, KeeperError> {
    let (mut keeper, _) = Keeper::start(wishes(config, None))?;
    keeper.set_groups(groups(config, pid));
    keeper.watch_residency();
    keeper.epoch()?;
    for _ in 0..epochs {
        thread::sleep(EPOCH);
        keeper.epoch()?;
    }
    Ok(keeper.status())
}

/// A checked configuration of `file`, or one without groups if there is no such file.
pub fn configuration(file: &Path) -> Result<Config, config::ConfigError> {
    if file.exists() {
        return Config::load(file);
    }
    Config::parse("[node]\nname = \"here\"\n", file)
}
