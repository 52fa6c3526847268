//! Every group that this node shares with another one: made from the configuration, reached through the control channel.
//!
//! [`Roles::start`] makes a [`Role`] for each `[[group]]` with a destination and each `[[replica]]`, recovers who owned what,
//! and listens for other agents. Called by the daemon.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fs, io};

use super::application::Application;
use super::config;
use super::context::Context;
use super::control::message::{Answer, Ask, Refusal, refused};
use super::control::{PeerSession, Responder, Server};
use super::fabrics::Fabrics;
use super::group::{Controller, GroupError, STATE_FILE};
use super::messenger::{Messenger, Route};
use super::ownership::{DurableFile, Inbox, Ownership, StoreError, Teller};
use super::role::{PLACED_FILE, Role, RoleDeeds};
use super::standby::{Opened, Standby, StandbyError};
use super::state::{GroupState, StateError};
use super::users;
use crate::fabric::FabricError;
use crate::fabric::tls::TlsIdentity;
use crate::failover::supervise::{self, Helper, StartCommand, SuperviseError, hierarchies};
use crate::failover::{
    self, Application as Life, BootId, Durable, Event, Machine, NodeName, Patience, Policy, Request, Stage,
    Standing,
};
use crate::types::{Generation, Lsn};

/// The machine answers at once unless its state cannot be stored.
const MACHINE_WITHIN: Duration = Duration::from_secs(5);

/// Starts of an application in a row that may fail.
const START_LIMIT: u32 = 3;

/// File of the group's directory that holds who owns it.
const OWNERSHIP_FILE: &str = "ownership";

/// Why the groups that this node shares could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RolesError {
    /// The configuration lacks something.
    #[error("group `{group}`: {what}")]
    Config {
        /// The group.
        group: String,
        /// What, and the remedy.
        what: String,
    },
    /// The network.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Who owns a group.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A group's log.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// A group's image.
    #[error(transparent)]
    Standby(#[from] StandbyError),
    /// Supervision of an application.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// The groups and the listener. Dropped, everything stops.
pub struct Roles {
    // Before the roles: nobody asks what is being taken down.
    server: Option<Server>,
    roles: Vec<Arc<Role>>,
    watchers: Vec<JoinHandle<()>>,
}

impl Roles {
    /// Starts them all. Groups without a destination are not ours.
    pub fn start(context: &Arc<Context>) -> Result<Roles, RolesError> {
        let mut roles = Roles { server: None, roles: Vec::new(), watchers: Vec::new() };
        let plans = plans(&context.config);
        if plans.is_empty() {
            return Ok(roles);
        }
        let missing = |what: &str| RolesError::Config { group: plans[0].name.clone(), what: what.into() };
        let identity = context.tls.clone().ok_or_else(|| missing("other nodes need `[tls]`"))?;
        let identity = Arc::new(identity);
        let node = &context.config.node;
        let listen = node.listen.ok_or_else(|| missing("other nodes need `listen` in `[node]`"))?;
        let data = node.data_listen.unwrap_or_else(|| (listen.ip(), 0).into());
        let fabrics = Arc::new(Fabrics::tcp(data, None, &identity)?);
        for plan in plans {
            let role = start_role(context, &identity, &fabrics, plan)?;
            let watched = role.clone();
            let watcher = thread::Builder::new().name(format!("image-{}", role.name));
            let watcher = watcher.spawn(move || watched.watch_image());
            roles.watchers.push(watcher.map_err(system("starting a thread"))?);
            roles.roles.push(role);
        }
        let listener = TcpListener::bind(listen).map_err(system(&format!("listening on {listen}")))?;
        let responder = Arc::new(Desk { roles: roles.roles.clone() });
        let server = Server::start(listener, identity, responder).map_err(system("starting a thread"))?;
        roles.server = Some(server);
        Ok(roles)
    }

    /// The groups, for sessions and operators.
    pub fn controllers(&self) -> Vec<Arc<dyn Controller>> {
        self.roles.iter().map(|r| Arc::new(r.clone()) as Arc<dyn Controller>).collect()
    }

    /// Where other agents reach us.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.server.as_ref().map(Server::address)
    }
}

impl Drop for Roles {
    fn drop(&mut self) {
        drop(self.server.take());
        for role in &self.roles {
            role.stop.store(true, std::sync::atomic::Ordering::Release);
        }
        for watcher in self.watchers.drain(..) {
            let _ = watcher.join();
        }
    }
}

/// What the configuration says of one group.
struct Plan {
    name: String,
    group: Option<config::Group>,
    replica: Option<config::Replica>,
}

fn plans(config: &config::Config) -> Vec<Plan> {
    let mut plans: BTreeMap<String, Plan> = BTreeMap::new();
    for group in config.groups.iter().filter(|g| !g.destinations.is_empty()) {
        let plan = Plan { name: group.name.clone(), group: Some(group.clone()), replica: None };
        plans.insert(group.name.clone(), plan);
    }
    let local = |name: &str| config.groups.iter().any(|g| g.name == name && g.destinations.is_empty());
    for replica in config.replicas.iter().filter(|r| !local(&r.group)) {
        let name = replica.group.clone();
        let plan = plans.entry(name.clone()).or_insert(Plan { name, group: None, replica: None });
        plan.replica = Some(replica.clone());
    }
    plans.into_values().collect()
}

fn start_role(
    context: &Arc<Context>,
    identity: &Arc<TlsIdentity>,
    fabrics: &Arc<Fabrics>,
    plan: Plan,
) -> Result<Arc<Role>, RolesError> {
    let Plan { name, group, replica } = plan;
    let wrong = |what: String| RolesError::Config { group: name.clone(), what };
    let boot = boot_id()?;
    let dir = context.states.group_dir(&name)?;
    let store = DurableFile::new(dir.join(OWNERSHIP_FILE));
    let stored = store.load()?;
    let inbox = Inbox::new();
    let starts_as_owner = group.is_some();
    let config = match group {
        Some(group) => group,
        None => as_owner(context, replica.as_ref().expect("a plan has one of both"))?,
    };
    let heir = match config.destinations.first() {
        Some(node) => {
            let address = context.config.address_of(node);
            let address = address.ok_or_else(|| wrong(format!("add a `[[peer]]` for `{node}`")))?;
            Some(config::Peer { name: node.clone(), address })
        }
        None => None,
    };
    let standby = replica.map(|r| Standby::open(r, context.states.clone(), fabrics.clone())).transpose()?;
    let mut peers: Vec<String> = config.destinations.clone();
    peers.extend(standby.iter().flat_map(|s| s.config().from.clone()));
    let owner = match &config.user {
        Some(user) => users::resolve(user).map(|u| Some((u.uid, u.gid))).map_err(wrong)?,
        None => None,
    };
    let policy = policy(identity.node(), &config, heir.as_ref(), boot);
    let application = application(context, &name, &config, owner, inbox.teller())?;
    let role = Arc::new_cyclic(|me: &std::sync::Weak<Role>| {
        let (me, teller) = (me.clone(), inbox.teller());
        let route = heir.clone().map(|peer| Route {
            group: name.clone(),
            id: Box::new(move || me.upgrade()?.id()),
            peer,
            identity: identity.clone(),
            teller,
        });
        Role {
            name: name.clone(),
            context: context.clone(),
            identity: identity.clone(),
            fabrics: fabrics.clone(),
            peers,
            heir,
            standby,
            owner,
            teller: inbox.teller(),
            messenger: route.and_then(|route| {
                Messenger::start(route)
                    .inspect_err(|error| tracing::error!(group = name, %error, "no way to the other node"))
                    .ok()
            }),
            application,
            ownership: OnceLock::new(),
            open: Mutex::new(None),
            copies: Mutex::new(None),
            gasp: Mutex::default(),
            commanded: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            chance,
            config,
        }
    });
    let durable = match stored {
        Some(durable) => durable,
        None if starts_as_owner => first_owner(&policy),
        None => Durable::first_standby(&policy, Generation(0)),
    };
    recover(&role, policy, durable, store, inbox)?;
    Ok(role)
}

/// Finds out what an earlier agent left, and sets the machine going.
fn recover(
    role: &Arc<Role>,
    policy: Policy,
    mut durable: Durable,
    store: DurableFile,
    inbox: Inbox,
) -> Result<(), RolesError> {
    let mut life = Life::Gone;
    let owns = matches!(durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. });
    if owns && durable.boot == policy.boot {
        let state: Option<GroupState> = role.context.states.load(&role.name, STATE_FILE)?;
        let kept = state.filter(|s| s.generation == durable.generation).map(|s| s.generation);
        let kept = kept.filter(|g| log_is_kept(role, *g));
        match kept {
            Some(generation) => {
                role.open_group(generation)?;
                life = role.running();
            }
            // A log that is lost without a reboot is as lost as with one; a first start has none to lose.
            None if matches!(durable.standing, Standing::Owner { stage: Stage::Begun, .. }) => {
                durable.boot = BootId::default();
            }
            None => {}
        }
    }
    let machine = Machine::new(policy, durable);
    let ownership =
        Ownership::start(&role.name, machine, store, Box::new(RoleDeeds(Arc::downgrade(role))), inbox)
            .map_err(system("starting a thread"))?;
    ownership
        .teller()
        .tell(Event::Recovered { application: life, life: u64::from(chance()) << 32 | u64::from(chance()) });
    if role.ownership.set(ownership).is_err() {
        unreachable!("a role is recovered once");
    }
    Ok(())
}

fn log_is_kept(role: &Role, generation: Generation) -> bool {
    let names = role.context.keeper.list().unwrap_or_default();
    names.contains(&format!("{}.{generation}", role.name))
}

fn first_owner(policy: &Policy) -> Durable {
    let mut durable = Durable::first_owner(policy, Generation(1));
    durable.standing = Standing::Owner { attempt: 0, stage: Stage::Placed };
    durable
}

fn policy(node: &str, config: &config::Group, heir: Option<&config::Peer>, boot: BootId) -> Policy {
    Policy {
        node: NodeName(node.to_owned()),
        heir: heir.map(|h| NodeName(h.name.clone())),
        on_death: match config.on_death {
            config::OnDeath::Failover => failover::OnDeath::Failover,
            config::OnDeath::Restart => failover::OnDeath::Restart,
            config::OnDeath::None => failover::OnDeath::None,
        },
        trigger: match config.trigger {
            config::Trigger::Saved => failover::Trigger::Saved,
            config::Trigger::SaveStarted => failover::Trigger::SaveStarted,
        },
        start_limit: START_LIMIT,
        patience: Patience { freeze: config.freeze_deadline * 2, ..Patience::default() },
        boot,
    }
}

/// How a node runs a group that it inherited: by what its own configuration of the replica says.
fn as_owner(context: &Context, replica: &config::Replica) -> Result<config::Group, RolesError> {
    let placed: Vec<PathBuf> = context.states.load(&replica.group, PLACED_FILE)?.unwrap_or_default();
    let mut protect: Vec<String> = placed.iter().map(|path| literal(path)).collect();
    for path in replica.paths.values() {
        protect.push(literal(path));
        protect.push(format!("{}/**", literal(path)));
    }
    let destinations: Vec<String> =
        replica.from.iter().filter(|node| context.config.address_of(node).is_some()).cloned().collect();
    let text = format!("name = {:?}", replica.group);
    let mut group: config::Group = toml::from_str(&text)
        .map_err(|e| RolesError::Config { group: replica.group.clone(), what: e.to_string() })?;
    group.protect = protect;
    group.destinations = destinations;
    group.command = replica.start.clone();
    group.user = replica.user.clone();
    group.working_dir = replica.working_dir.clone();
    group.env = replica.env.clone();
    Ok(group)
}

/// A pattern that matches this path only.
fn literal(path: &Path) -> String {
    glob::Pattern::escape(&path.to_string_lossy())
}

fn application(
    context: &Context,
    name: &str,
    config: &config::Group,
    owner: Option<(u32, u32)>,
    teller: Teller,
) -> Result<Application, RolesError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(system("reading the mounts"))?;
    // Two agents of one machine (a demo, a test) must not freeze each other's applications.
    let dir = context.config.node.state_dir.as_os_str().as_encoded_bytes();
    let unit = format!("{name}-{:08x}", crc32c::crc32c(dir));
    let helper = || Helper { argv: vec![context.program.clone().into()] };
    let mut made = Err(None);
    for hierarchy in hierarchies(&mounts).iter().map(Some).chain([None]) {
        match supervise::Application::new(&unit, hierarchy, helper()) {
            Ok(means) => {
                made = Ok(means);
                break;
            }
            Err(error) => {
                tracing::debug!(group = name, %error, "not supervised by this hierarchy");
                made = Err(Some(error));
            }
        }
    }
    let means = made.map_err(|error| match error {
        Some(error) => RolesError::Supervise(error),
        None => RolesError::Config { group: name.to_owned(), what: "nothing supervises".into() },
    })?;
    let mut env: Vec<_> = config.env.iter().map(|(k, v)| (k.into(), v.into())).collect();
    env.push(("PMEMHA_SOCKET".into(), context.config.socket().into_os_string()));
    env.push(("PMEMHA_GROUP".into(), name.into()));
    let command = (!config.command.is_empty()).then(|| StartCommand {
        argv: config.command.iter().map(Into::into).collect(),
        env,
        directory: config.working_dir.clone(),
        user: owner,
        inherit_input: false,
    });
    Application::start(name, means, command, config.freeze_deadline, teller)
        .map_err(system("starting a thread"))
}

fn boot_id() -> Result<BootId, RolesError> {
    let text =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(system("reading the boot id"))?;
    BootId::parse(&text).ok_or_else(|| RolesError::System {
        what: "reading the boot id".into(),
        source: io::Error::other(format!("{text:?} is none")),
    })
}

/// A number by chance: the keys of a hasher come from the kernel's.
fn chance() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

fn system(what: &str) -> impl FnOnce(io::Error) -> RolesError {
    let what = what.to_owned();
    move |source| RolesError::System { what, source }
}

/// Answers other agents.
struct Desk {
    roles: Vec<Arc<Role>>,
}

impl Responder for Desk {
    fn admit(&self, peer: &str) -> Result<Box<dyn PeerSession>, String> {
        let shared: Vec<_> =
            self.roles.iter().filter(|r| r.peers.iter().any(|p| p == peer)).cloned().collect();
        if shared.is_empty() {
            return Err(format!("no group here names {peer} in `from` or `destinations`"));
        }
        Ok(Box::new(Visitor { peer: peer.to_owned(), roles: shared, opened: None, open: None }))
    }
}

/// One channel of another agent.
struct Visitor {
    peer: String,
    /// The groups that it may speak of.
    roles: Vec<Arc<Role>>,
    opened: Option<Opened>,
    open: Option<Arc<Role>>,
}

impl PeerSession for Visitor {
    fn answer(&mut self, ask: Ask) -> Answer {
        let out_of_order = |what: &str| refused(Refusal::OutOfOrder, Generation(0), what);
        match ask {
            Ask::Hello { .. } => out_of_order("hello comes once"),
            Ask::OpenGroup(open) => {
                let Some(role) = self.role(&open.group) else { return self.unknown(&open.group) };
                (self.opened, self.open) = (None, None);
                match open_group(&role, &self.peer, &open) {
                    Ok((opened, answer)) => {
                        (self.opened, self.open) = (Some(opened), Some(role));
                        Answer::GroupOpened(answer)
                    }
                    Err(answer) => answer,
                }
            }
            Ask::Attach { ack, from, fresh } => match (self.opened.take(), &self.open) {
                (Some(opened), Some(role)) => attach(role, opened, ack, from, fresh),
                _ => out_of_order("open_group comes before attach"),
            },
            Ask::Ping {} => match self.open.as_ref().and_then(|r| r.standby.as_ref()?.report()) {
                Some(report) => Answer::Pong(report),
                None => out_of_order("no group is open on this channel"),
            },
            Ask::Ownership { group, id, request } => {
                let Some(role) = self.role(&group) else { return self.unknown(&group) };
                if role.id().is_some_and(|known| known != id) {
                    let text = format!("{group} is another group of the same name here");
                    return refused(Refusal::WrongGroup, Generation(0), text);
                }
                role.look_at_image();
                match role.teller.ask(request, MACHINE_WITHIN) {
                    Some(reply) => Answer::Ownership { reply },
                    None => refused(
                        Refusal::Failed,
                        Generation(0),
                        "the state of the group cannot be stored here",
                    ),
                }
            }
        }
    }
}

impl Visitor {
    fn role(&self, group: &str) -> Option<Arc<Role>> {
        self.roles.iter().find(|r| r.name == group).cloned()
    }

    fn unknown(&self, group: &str) -> Answer {
        let text = format!("no configuration here shares group `{group}` with {}", self.peer);
        refused(Refusal::UnknownGroup, Generation(0), text)
    }
}

fn open_group(
    role: &Arc<Role>,
    peer: &str,
    open: &super::control::message::OpenGroup,
) -> Result<(Opened, super::control::message::GroupOpened), Answer> {
    let Some(standby) = &role.standby else {
        let text = format!("group `{}` has no `[[replica]]` on this node", role.name);
        return Err(refused(Refusal::UnknownGroup, open.generation, text));
    };
    if !standby.config().from.iter().any(|node| node == peer) {
        let text = format!("`from` of the replica `{}` does not name {peer}", role.name);
        return Err(refused(Refusal::NotAdmitted, Generation(0), text));
    }
    // The machine decides whether the asker is, or may be, the source: the question makes it follow a newer one.
    let question = Request::Ask { generation: open.generation, life: 0 };
    match role.teller.ask(question, MACHINE_WITHIN) {
        Some(failover::Answer::Follows { .. }) => standby.open_group(peer, open),
        Some(failover::Answer::Fenced { generation, owned: true }) => {
            let text = format!("this node owns generation {generation} of group `{}`", role.name);
            Err(refused(Refusal::Active, generation, text))
        }
        Some(failover::Answer::Fenced { generation, owned: false }) => {
            let text = format!("group `{}` is in generation {generation} by now", role.name);
            Err(refused(Refusal::StaleGeneration, generation, text))
        }
        Some(_) => {
            let text = format!("this node is taking over group `{}`", role.name);
            Err(refused(Refusal::Promoting, open.generation, text))
        }
        None => {
            let text = "the state of the group cannot be stored here";
            Err(refused(Refusal::Failed, open.generation, text))
        }
    }
}

fn attach(role: &Arc<Role>, opened: Opened, ack: crate::fabric::RemoteKey, from: Lsn, fresh: bool) -> Answer {
    match &role.standby {
        Some(standby) => standby.attach(opened, ack, from, fresh),
        None => refused(Refusal::OutOfOrder, Generation(0), "the group is not open"),
    }
}
