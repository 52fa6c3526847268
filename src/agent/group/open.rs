//! Opening a group: finding the log that an earlier agent left, or making a new one in a new generation.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::numbers::Numbers;
use super::protected::open_itself;
use super::region::{Candidate, share};
use super::roster::{Attached, Roster};
use super::{AGENT_SESSION, Group, Inner, Notice, Origin, Region, STATE_FILE};
use crate::agent::access::Access;
use crate::agent::holder::{FdKeeper, KeeperError};
use crate::agent::state::{GroupState, PlacedFile, RegionState, StateDir, StateError, VERSION};
use crate::agent::{chance, config};
use crate::log::mapped::LogFile;
use crate::log::{Appender, Debt, LogError, LogRegion, LogSpec, Pace, Policy, adopt};
use crate::replica::image::manifest::MAX_REGIONS;
use crate::session::patterns::{PatternError, Patterns};
use crate::types::{Generation, GroupId, LogId};

/// What [`Group::open`] needs.
pub struct OpenGroup<'a> {
    /// The configuration.
    pub config: &'a config::Group,
    /// Where the group's durable state is.
    pub states: &'a Arc<StateDir>,
    /// Who may write to its log.
    pub access: &'a Arc<Access>,
    /// Who keeps its log.
    pub keeper: &'a dyn FdKeeper,
    /// The lowest generation that will do: what the group's state machine owns.
    pub generation: Generation,
    /// Identity that another node gave the group here, for a node that has never been its source.
    pub id: Option<GroupId>,
    /// Files that a promotion put in place. They are the group's from the first moment, whether or not anyone has opened them.
    pub placed: &'a [PlacedFile],
    /// Directories in which nothing is protected that nobody has asked for: the agent's own.
    pub apart: Vec<PathBuf>,
    /// Hears what happens in the group.
    pub notify: Box<dyn Fn(Notice) + Send + Sync>,
}

/// Why a group cannot be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// Its state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its log cannot be kept.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Its log cannot be made or used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its log is in use and out of reach.
    #[error(transparent)]
    Unreachable(#[from] adopt::Unreachable),
    /// A program writes to its log, which this agent cannot read.
    #[error(
        "process {pid} writes to the group's log, and {source}: end that program and start pmemhad again, or go back to the \
         version of pmemha before"
    )]
    OfAnotherVersion {
        /// The program.
        pid: u32,
        /// What is wrong with the log.
        source: LogError,
    },
    /// Its patterns cannot be understood.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Its application cannot be supervised.
    #[error(transparent)]
    Supervise(#[from] crate::failover::supervise::SuperviseError),
    /// The user that its application is to run as.
    #[error("{0}")]
    User(String),
    /// Its newest log is not of the generation that this node owns.
    #[error(
        "the newest log is of generation {found}, but this node owns generation {owned}; restart pmemhad, which then goes on in \
         the later one"
    )]
    Generation {
        /// The log's.
        found: Generation,
        /// The state machine's.
        owned: Generation,
    },
    /// Another attempt is to be made in a moment.
    #[error("the files cannot be looked at just now: {0}")]
    Busy(&'static str),
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl GroupError {
    /// Whether a log is out of reach or cannot be read, and all else is as it should be.
    pub fn is_of_an_unreadable_log(&self) -> bool {
        matches!(self, GroupError::Log(_) | GroupError::Unreachable(_) | GroupError::OfAnotherVersion { .. })
    }

    /// Whether the next attempt ends in the same way, unless somebody mends something.
    pub fn lasts(&self) -> bool {
        match self {
            GroupError::State(error) => error.lasts(),
            GroupError::Log(LogError::System { .. }) => false,
            GroupError::Log(_)
            | GroupError::Unreachable(_)
            | GroupError::OfAnotherVersion { .. }
            | GroupError::Pattern(_)
            | GroupError::User(_) => true,
            GroupError::Keeper(_)
            | GroupError::Supervise(_)
            | GroupError::Generation { .. }
            | GroupError::Busy(_)
            | GroupError::System { .. } => false,
        }
    }
}

impl Group {
    /// Resumes the log of the newest generation if the keeper has it or a living program writes to it, else makes one in the next generation.
    ///
    /// A new log protects again what the one before did, or, where another node owned the group in between, what a promotion has
    /// placed: a destination's image must have every file of the group, not only those that the application opens first.
    /// Regions whose files are gone are left out, and said so: their bytes cannot be read for a copy any more.
    pub fn open(open: OpenGroup<'_>) -> Result<Arc<Group>, GroupError> {
        let OpenGroup { config, states, keeper, generation, id, placed, .. } = open;
        let known = states.load::<GroupState>(&config.name, STATE_FILE)?;
        let found = match &known {
            Some(state) if state.generation >= generation => find_log(config, open.access, keeper, state)?,
            _ => None,
        };
        let resumed = found.is_some();
        let before = known.as_ref().map_or_else(Vec::new, |k| k.regions.clone());
        let ended = known.as_ref().map(|k| k.generation.next());
        let (state, log_fd, log) = match (found, known) {
            (Some((fd, log)), Some(state)) => (state, fd, log),
            (_, known) => make_log(config, states, keeper, generation, known, id)?,
        };
        log.set_policy(policy(config));
        // An agent that was killed while it copied may have held everyone up to there.
        log.set_pace(Pace::Free);
        log.set_budget(None);
        // An agent that was killed in the middle of a record is ours to bury: a program in a container cannot see its death.
        log.reclaim_others(AGENT_SESSION);
        let origin = if resumed { Origin::Resumed } else { Origin::Made };
        let group = Group::of(open, &state, log_fd, log, origin)?;
        group.bury_dead_appenders();
        group.take_over_debts();
        group.restore_regions(&state)?;
        match resumed {
            true => {}
            false if ended == Some(group.generation) => group.carry_over(&before),
            false => placed.iter().for_each(|placed| group.protect_placed(placed)),
        }
        Ok(Arc::new(group))
    }

    /// The newest log of a group that this node has given up, or that its owner has lost, if it is kept or a living program writes
    /// to it: so that its processes are seen. Nobody attaches to it, and nothing is recorded.
    pub fn find_stale(open: OpenGroup<'_>) -> Result<Option<Arc<Group>>, GroupError> {
        let OpenGroup { config, states, access, keeper, id, .. } = open;
        let Some(state) = states.load::<GroupState>(&config.name, STATE_FILE)? else { return Ok(None) };
        if id.is_some_and(|id| id != state.id) {
            // Another group of this name, which was never given up.
            return Ok(None);
        }
        let Some((log_fd, log)) = find_any_log(config, access, keeper, &state)? else { return Ok(None) };
        log.reclaim_others(AGENT_SESSION);
        let group = Group::of(open, &state, log_fd, log, Origin::Stale)?;
        // Nobody else does, and a cell of the dead would count as a process that may write.
        group.bury_dead_appenders();
        group.close();
        Ok(Some(Arc::new(group)))
    }

    /// One with this log, which no region has been entered in.
    fn of(
        open: OpenGroup<'_>,
        state: &GroupState,
        log_fd: OwnedFd,
        log: Arc<LogRegion>,
        origin: Origin,
    ) -> Result<Group, GroupError> {
        let OpenGroup { config, states, access, apart, notify, .. } = open;
        let log_file = LogFile::of(log_fd.as_fd()).map_err(looking)?;
        let roster = Arc::new(Roster::of(&state.users));
        Ok(Group {
            config: config.clone(),
            id: state.id,
            generation: state.generation,
            log_fd,
            log_file,
            access: access.clone(),
            appender: Appender::for_agent(log, AGENT_SESSION)?,
            patterns: Patterns::new(&config.protect)?,
            states: states.clone(),
            notify,
            origin,
            roster: roster.clone(),
            still: AtomicBool::new(false),
            apart,
            lookout: Mutex::default(),
            looking: Mutex::default(),
            inner: Mutex::new(Inner {
                regions: BTreeMap::new(),
                numbers: Numbers::new(state.next_region),
                processes: Attached::new(roster),
                found: BTreeSet::new(),
                next_session: state.next_session,
                reserved_sessions: state.next_session,
                paused: state
                    .paused
                    .iter()
                    .filter(|node| config.destinations.contains(node))
                    .cloned()
                    .collect(),
                closed: false,
            }),
        })
    }

    /// Whether [`Group::open`] would resume the log that `state` names, rather than make one in a new generation.
    pub fn resumes(
        config: &config::Group,
        access: &Access,
        keeper: &dyn FdKeeper,
        state: &GroupState,
    ) -> Result<bool, GroupError> {
        Ok(find_log(config, access, keeper, state)?.is_some())
    }

    fn carry_over(&self, regions: &[RegionState]) {
        for known in regions {
            match Region::reopen(known) {
                Ok(region) => {
                    let len = if known.partial { known.len } else { 0 };
                    self.protect_unopened(region.file(), &known.path, len);
                }
                Err(error) => {
                    tracing::warn!(group = self.name(), region = %known.region, %error, "region left out")
                }
            }
        }
    }

    fn protect_placed(&self, placed: &PlacedFile) {
        let path = &placed.path;
        match open_itself(path, placed.file) {
            Ok((file, _)) => self.protect_unopened(file.as_fd(), path, 0),
            Err(why) => self.left_for_later(path, &why),
        }
    }

    /// Protects a file that nobody has opened yet. No client vouches for it, so it is the one that was protected or placed before,
    /// by the descriptor that was seen to be it.
    fn protect_unopened(&self, file: BorrowedFd<'_>, path: &Path, len: u64) {
        let candidate = Candidate::examine(file);
        if let Err(error) = candidate.and_then(|found| self.protect_candidate(file, found, len, false)) {
            self.left_for_later(path, &error.to_string());
        }
    }

    fn left_for_later(&self, path: &Path, error: &str) {
        tracing::warn!(group = self.name(), path = %path.display(), error, "protected once it is opened");
    }

    /// An agent before us ended while it entered a region: only a copy brings for certain all of it.
    fn take_over_debts(&self) {
        if self.log().owes(Debt::Entry) {
            self.log().owe(Debt::Copy);
            self.log().settle(Debt::Entry);
        }
    }

    fn restore_regions(&self, state: &GroupState) -> Result<(), GroupError> {
        let mut inner = self.lock();
        for known in &state.regions {
            match Region::reopen(known) {
                Ok(region) => {
                    // The log's own table still holds its bits; those that are set must keep their meaning.
                    match self.log().region(region.id()) {
                        Some(entry) => {
                            let end = entry.first_bit + share(entry.size, entry.page_shift);
                            inner.numbers.skip_bits(end);
                        }
                        None => self.enter(&mut inner, &region)?,
                    }
                    inner.numbers.found(region.id());
                    inner.regions.insert(region.id(), Arc::new(region));
                }
                Err(error) => {
                    tracing::warn!(group = self.name(), region = %known.region, %error, "region left out");
                }
            }
        }
        Ok(())
    }
}

type FoundLog = Option<(OwnedFd, Arc<LogRegion>)>;

/// The log to go on with.
fn find_log(
    config: &config::Group,
    access: &Access,
    keeper: &dyn FdKeeper,
    state: &GroupState,
) -> Result<FoundLog, GroupError> {
    let Some((fd, log)) = find_any_log(config, access, keeper, state)? else { return Ok(None) };
    let ring = log.spec().ring_bytes;
    if ring == config.log_size || is_in_use(&log) {
        return Ok(Some((fd, log)));
    }
    tracing::info!(group = config.name, ring, "the log that is kept is not of the configured size");
    Ok(None)
}

/// The log of the group and generation in `state`, of whatever size.
fn find_any_log(
    config: &config::Group,
    access: &Access,
    keeper: &dyn FdKeeper,
    state: &GroupState,
) -> Result<FoundLog, GroupError> {
    let name = kept_name(&config.name, state.generation);
    let (fd, log) = match keeper.get(&name)? {
        Some(fd) => match LogRegion::attach(fd.as_fd()) {
            Ok(log) => (fd, log),
            Err(error @ LogError::Version(_)) => {
                // Whoever writes to it knows no other one.
                let looked = adopt::writer_of(fd.as_fd());
                if let Some(pid) = looked.map_err(looking)? {
                    return Err(GroupError::OfAnotherVersion { pid, source: error });
                }
                tracing::warn!(group = config.name, %error, "the log that is kept is given up: nobody writes to it");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        },
        None => {
            let may = |uid| access.may_attach(uid, &config.name);
            let Some((fd, log)) = adopt::from_writers(state.id, state.generation, &may)? else {
                return Ok(None);
            };
            tracing::warn!(group = config.name, "the log's keeper was lost: its programs still have it");
            keeper.put(&name, fd.as_fd())?;
            (fd, log)
        }
    };
    let spec = log.spec();
    if spec.group == state.id && spec.generation == state.generation {
        return Ok(Some((fd, log)));
    }
    tracing::warn!(group = config.name, "what is kept under the log's name is another one: it is left alone");
    Ok(None)
}

/// Whether an application still writes to the log: it knows no other one, so another size has to wait until it has ended.
fn is_in_use(log: &LogRegion) -> bool {
    let owners = (0..log.spec().appenders as u16).filter_map(|cell| log.owner(cell));
    owners.filter(|o| o.session != AGENT_SESSION).any(|owner| !owner.confirmed_dead())
}

fn make_log(
    config: &config::Group,
    states: &StateDir,
    keeper: &dyn FdKeeper,
    lowest: Generation,
    known: Option<GroupState>,
    given: Option<GroupId>,
) -> Result<(GroupState, OwnedFd, Arc<LogRegion>), GroupError> {
    let next = known.as_ref().map_or(lowest, |s| s.generation.next().max(lowest)).max(Generation(1));
    let id = known.as_ref().map(|s| s.id).or(given).map_or_else(random_id, Ok)?;
    // Of another owner's time it says nothing.
    let ours = known.as_ref().filter(|s| s.generation.next() == next);
    let state = GroupState {
        version: VERSION,
        id,
        generation: next,
        next_region: 1,
        next_session: AGENT_SESSION + 1,
        users: Vec::new(),
        paused: ours.map(|s| s.paused.clone()).unwrap_or_default(),
        regions: Vec::new(),
    };
    // The generation is used up before the log exists: two logs never share one.
    states.save(&config.name, STATE_FILE, &state)?;
    let (fd, log) = LogRegion::create(&LogSpec {
        group: id,
        generation: next,
        id: random_log_id()?,
        ring_bytes: config.log_size,
        bitmap_bytes: (config.log_size / 16).clamp(SMALLEST_BITMAP, LARGEST_BITMAP),
        appenders: APPENDERS,
        regions: REGIONS,
        ..LogSpec::default()
    })?;
    if let Some(old) = known {
        keeper.forget(&kept_name(&config.name, old.generation))?;
    }
    keeper.put(&kept_name(&config.name, next), fd.as_fd())?;
    Ok((state, fd, log))
}

fn kept_name(group: &str, generation: Generation) -> String {
    format!("{group}.{generation}")
}

fn policy(config: &config::Group) -> Policy {
    Policy {
        commit: config.commit,
        enforced: config.budget == config::BudgetMode::Enforce,
        commit_timeout: config.commit_timeout,
        on_full: config.on_full,
        block_limit: config.block_limit,
    }
}

fn looking(source: std::io::Error) -> GroupError {
    GroupError::System { what: "looking at the log", source }
}

fn random_id() -> Result<GroupId, GroupError> {
    let id = chance::bytes().map(GroupId);
    id.map_err(no_chance)
}

/// Never that of images which know of no log.
fn random_log_id() -> Result<LogId, GroupError> {
    let id = chance::bytes().map(u64::from_ne_bytes).map_err(no_chance)?;
    Ok(LogId(id.max(1)))
}

fn no_chance(source: std::io::Error) -> GroupError {
    GroupError::System { what: "reading /dev/urandom", source }
}

/// Processes that may append at a time: the largest servers of our users run a few hundred.
const APPENDERS: u32 = 512;

/// A bit a page: 32 GiB of regions at the finest grain.
const SMALLEST_BITMAP: u64 = 1 << 20;

/// 2 TiB of regions at the finest grain.
const LARGEST_BITMAP: u64 = 64 << 20;

/// Files that a generation may protect at a time: no more than a destination takes.
const REGIONS: u32 = MAX_REGIONS as u32;
