//! The agent as a whole: start, serve, finish.
//!
//! [`Daemon::start`] takes the state directory, finds what an earlier agent left, and serves; nothing that it does
//! before the last step is visible to applications, so a start that fails changes nothing. [`Daemon::finish`] stops
//! accepting, has every group bring out what is published within a deadline, and says what is left.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use sd_notify::NotifyState;
use serde_json::json;

use super::access::Access;
use super::budget_watch::BudgetWatch;
use super::clock::WallTime;
use super::config::{self, Config};
use super::context::Context;
use super::events::{Events, Kind};
use super::fabrics::rdma_status;
use super::fdstore::FdStore;
use super::group::{Controller, GroupError};
use super::holder::{FdKeeper, Holder, KeeperError};
use super::large_pages::LargePages;
use super::local::Local;
use super::metrics::Metrics;
use super::placement::Placement;
use super::power_watch::PowerWatch;
use super::roles::{self, Roles, RolesError};
use super::sessions::{Node, Sessions};
use super::state::{StateDir, StateError, check_usable};
use super::status::{GroupStatus, NodeStatus, Role, Status};
use super::unusable::Unusable;
use crate::fabric::tls::{TlsError, TlsIdentity};
use crate::failover::Alarm;
use crate::locks::lock;
use crate::remedy;
use crate::session::socket::{Listener, SocketError};

/// How long finishing may take: below the 90 s after which systemd kills a service.
pub const FINISH_WITHIN: Duration = Duration::from_secs(30);

/// How often systemd's watchdog is answered at most; a third of what a unit usually sets.
const WATCHDOG: Duration = Duration::from_secs(5);

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Log regions cannot be kept.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Its certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The socket cannot be opened.
    #[error("{0}; `runtime_dir` in [node] must be writable and no other agent's")]
    Socket(#[from] SocketError),
    /// A group cannot be opened.
    #[error("group `{group}`: {source}")]
    Group {
        /// Which.
        group: String,
        /// Why.
        source: GroupError,
    },
    /// A group that is shared with another node cannot be started.
    #[error(transparent)]
    Roles(#[from] RolesError),
    /// The configuration asks for what this machine does not have.
    #[error("{0}")]
    Machine(String),
    /// The system refused.
    #[error("cannot {what} {}: {source}{}", path.display(), remedy::of(source))]
    System {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Tells a running agent to finish: the handler of SIGTERM, and operators' sessions.
#[derive(Clone, Debug)]
pub struct Stop(Sender<()>);

impl Stop {
    /// A stop and where it arrives.
    pub fn new() -> (Stop, Receiver<()>) {
        let (tell, told) = channel();
        (Stop(tell), told)
    }

    /// The agent is to finish; may be called any number of times.
    pub fn tell(&self) {
        // The agent is finishing already if nobody listens.
        let _ = self.0.send(());
    }
}

/// A running agent.
pub struct Daemon {
    parts: Arc<Parts>,
    sessions: Arc<Sessions>,
    metrics: Option<Metrics>,
    large_pages: Option<LargePages>,
    socket: PathBuf,
}

/// What sessions see of the agent.
struct Parts {
    context: Arc<Context>,
    controllers: Vec<Arc<dyn Controller>>,
    power: Option<Arc<PowerWatch>>,
    budget: Option<BudgetWatch>,
    placement: Option<Arc<Placement>>,
    /// Keeps listening for other agents.
    _roles: Roles,
    stop: Mutex<Stop>,
}

impl Daemon {
    /// Starts everything that `config` asks for. `program` is the `pmemhad` to start helpers with.
    pub fn start(config: Config, program: &Path, stop: Stop) -> Result<Daemon, DaemonError> {
        let states = Arc::new(StateDir::open(&config.node.state_dir)?);
        make_runtime_dir(&config.node.runtime_dir)?;
        let owner = rustix::process::geteuid().as_raw();
        let access = Access::new(&config, owner).map_err(DaemonError::Machine)?;
        let tls = config.tls.as_ref().map(|t| TlsIdentity::load(&t.ca, &t.cert, &t.key)).transpose()?;
        let context = Arc::new(Context {
            keeper: keeper(&config, program)?,
            states,
            access: Arc::new(access),
            events: Events::new(),
            tls,
            program: program.into(),
            started: Instant::now(),
            config,
        });
        // First, as the agents' own listener: at a port that the configuration names.
        let metrics = bind_metrics(&context.config)?;
        let mut roles = Roles::start(&context)?;
        let (mut controllers, mut failed) = start_groups(&context)?;
        controllers.extend(roles.controllers());
        failed.extend(roles.take_failed().into_iter().map(Failed::from));
        if controllers.is_empty() && !failed.is_empty() {
            return Err(failed.swap_remove(0).error);
        }
        controllers.extend(stand_ins(&context, failed));
        // A program that names no group gets the first, whether it can be used or not.
        let place = |name: &str| context.config.groups.iter().position(|group| group.name == name);
        controllers.sort_by_key(|c| place(c.name()).unwrap_or(usize::MAX));
        let placement = Placement::start(&context).map(Arc::new);
        let power = context.config.power.as_ref().map(|power| {
            PowerWatch::start(power, &context, controllers.clone(), placement.clone())
                .map_err(|why| DaemonError::Machine(why.to_string()))
        });
        let power = power.transpose()?.map(Arc::new);
        let budget = BudgetWatch::start(&context, &controllers, power.as_ref())
            .map_err(|why| DaemonError::Machine(format!("cannot watch the battery budget: {why}")))?;
        let stop = Mutex::new(stop);
        let parts = Arc::new(Parts { context, controllers, power, budget, placement, _roles: roles, stop });
        let socket = parts.context.config.socket();
        let sessions = Sessions::start(Listener::bind(&socket, SOCKET_MODE)?, parts.clone())
            .map_err(|source| DaemonError::System { what: "serve", path: socket.clone(), source })?;
        let sessions = Arc::new(sessions);
        let metrics = metrics.map(|metrics| serve_metrics(metrics, &parts, &sessions)).transpose()?;
        let large_pages = start_large_pages(&parts)?;
        let node = &parts.context.config.node.name;
        parts.context.events.emit(
            None,
            Kind::AgentStarted,
            json!({ "node": node, "pid": std::process::id() }),
        );
        Ok(Daemon { parts, sessions, metrics, large_pages, socket })
    }

    /// Where applications and operators reach it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Serves until `stop` arrives, telling systemd that it is alive.
    pub fn run(&self, stop: &Receiver<()>) {
        notify(&[NotifyState::Ready]);
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(WATCHDOG) {
            notify(&[NotifyState::Watchdog]);
        }
        notify(&[NotifyState::Stopping]);
    }

    /// Stops accepting, has every group bring out what it can by `deadline`, sets back what placement has changed, and returns what is
    /// left, a sentence each.
    pub fn finish(mut self, deadline: Instant) -> Vec<String> {
        drop(self.metrics);
        // Groups come first: what it is at is waited for when they have brought out theirs.
        self.large_pages.iter_mut().for_each(LargePages::stop);
        drop(self.sessions);
        // Whoever connects from here on finds no agent instead of one that does not answer.
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::warn!(%error, socket = %self.socket.display(), "the socket could not be removed");
        }
        let controllers = &self.parts.controllers;
        let left = thread::scope(|scope| {
            let finishing: Vec<_> =
                controllers.iter().map(|c| scope.spawn(move || c.finish(deadline))).collect();
            let outcome = finishing.into_iter().zip(controllers).filter_map(|(thread, controller)| {
                thread
                    .join()
                    .unwrap_or_else(|_| Some(format!("group `{}`: stopping failed", controller.name())))
            });
            outcome.collect()
        });
        drop(self.large_pages);
        // Whoever else still holds it must not keep changes in place.
        self.parts.placement.iter().for_each(|placement| placement.stop());
        left
    }
}

impl Node for Parts {
    fn access(&self) -> &Access {
        &self.context.access
    }

    fn controllers(&self) -> &[Arc<dyn Controller>] {
        &self.controllers
    }

    fn events(&self) -> &Events {
        &self.context.events
    }

    fn status(&self, sessions: usize) -> Status {
        let node = &self.context.config.node;
        Status {
            as_of: WallTime::now().to_string(),
            node: NodeStatus {
                name: node.name.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                uptime_s: self.context.started.elapsed().as_secs(),
                listen: node.listen.map(|a| a.to_string()),
                sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
                rdma: rdma_status(&self.context.config),
            },
            power: self.power.as_ref().map(|power| power.status()),
            placement: self.placement.as_ref().map(|placement| placement.status()),
            groups: self.controllers.iter().map(|c| self.report(c)).collect(),
        }
    }

    fn shutdown(&self) {
        lock(&self.stop).tell();
    }
}

impl Parts {
    fn report(&self, controller: &Arc<dyn Controller>) -> GroupStatus {
        let mut report = controller.report();
        report.budget = self.budget.as_ref().and_then(|budget| budget.status(controller.name()));
        report
    }
}

/// A group that could not be started, which the others do without.
struct Failed {
    name: String,
    role: Role,
    error: DaemonError,
}

impl From<roles::Failed> for Failed {
    fn from(failed: roles::Failed) -> Failed {
        Failed { name: failed.name, role: failed.role, error: failed.error.into() }
    }
}

/// Those that could be started, and those that could not.
type Started = (Vec<Arc<dyn Controller>>, Vec<Failed>);

/// Starts the groups that are shipped nowhere.
fn start_groups(context: &Arc<Context>) -> Result<Started, DaemonError> {
    let (mut controllers, mut failed) = Started::default();
    for group in context.config.groups.iter().filter(|g| g.destinations.is_empty()) {
        match Local::start(context, group) {
            Ok(local) => controllers.push(local),
            Err(source) => {
                let lasts = source.lasts();
                let (name, group) = (group.name.clone(), group.name.clone());
                let error = DaemonError::Group { group, source };
                if !lasts {
                    // The next attempt may end better: whoever starts the agent makes one.
                    return Err(error);
                }
                failed.push(Failed { name, role: Role::Source, error });
            }
        }
    }
    Ok((controllers, failed))
}

/// Who stands for the groups that could not be started.
fn stand_ins(context: &Context, failed: Vec<Failed>) -> Vec<Arc<dyn Controller>> {
    let stand_in = |Failed { name, role, error }: Failed| -> Arc<dyn Controller> {
        let why = error.to_string();
        tracing::error!(group = name, error = why, "the group could not be opened, and is not protected");
        context.events.emit(Some(&name), Kind::OpenFailed, json!({ "why": why }));
        let message = format!("{}: {why}", Alarm::Unusable.message());
        context.events.emit(Some(&name), Kind::Alarm, json!({ "what": Alarm::Unusable, "message": message }));
        Arc::new(Unusable::new(&name, role, why))
    };
    failed.into_iter().map(stand_in).collect()
}

fn bind_metrics(config: &Config) -> Result<Option<Metrics>, DaemonError> {
    let bind = |config: &config::Metrics| {
        Metrics::bind(config.listen).map_err(|why| {
            DaemonError::Machine(format!(
                "cannot serve metrics at {}: {why}; `listen` in [metrics] must name a free port of this machine",
                config.listen
            ))
        })
    };
    config.metrics.as_ref().map(bind).transpose()
}

fn serve_metrics(
    metrics: Metrics,
    parts: &Arc<Parts>,
    sessions: &Arc<Sessions>,
) -> Result<Metrics, DaemonError> {
    // Not held, so that whoever is slow to take an answer does not keep the agent from finishing.
    let (parts, sessions) = (Arc::downgrade(parts), Arc::downgrade(sessions));
    let status = move || Some(parts.upgrade()?.status(sessions.upgrade()?.count()));
    metrics.serve(status).map_err(|why| DaemonError::Machine(format!("cannot serve metrics: {why}")))
}

fn start_large_pages(parts: &Arc<Parts>) -> Result<Option<LargePages>, DaemonError> {
    let weak = Arc::downgrade(parts);
    let attached = move || -> Option<Vec<u32>> {
        let reports = weak.upgrade()?.controllers.iter().map(|c| c.report()).collect::<Vec<_>>();
        let its = reports.iter().filter(|g| g.role == Role::Source).flat_map(|g| &g.sessions);
        Some(its.filter_map(|session| session.pid).collect())
    };
    let start = |wanted| LargePages::start(wanted, attached);
    let started = parts.context.config.largepages.as_ref().map(start).transpose();
    started.map_err(|why| DaemonError::Machine(format!("cannot start the thread of [largepages]: {why}")))
}

fn keeper(config: &Config, program: &Path) -> Result<Box<dyn FdKeeper>, KeeperError> {
    Ok(match config.node.keeper {
        config::Keeper::Systemd => Box::new(FdStore::from_environment()?),
        config::Keeper::Holder => {
            Box::new(Holder::find_or_start(&config.node.runtime_dir.join(HOLDER_SOCKET), program)?)
        }
    })
}

fn make_runtime_dir(dir: &Path) -> Result<(), DaemonError> {
    let failed = |what| move |source| DaemonError::System { what, path: dir.into(), source };
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(failed("make the runtime directory"))?;
    // Before the holder is started, which could only say that it cannot listen.
    check_usable(dir).map_err(failed("use the runtime directory"))
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

/// The holder's socket in the runtime directory.
pub const HOLDER_SOCKET: &str = "holder.sock";

/// Anyone may connect; credentials decide.
const SOCKET_MODE: u32 = 0o666;
