//! Makes one group's role: its parts, who owned the group when an earlier agent ended, and its machine.

use std::fs;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::plan::{Plan, as_owner, policy};
use super::{RolesError, system};
use crate::agent::application::Application;
use crate::agent::context::Context;
use crate::agent::envoys::Envoys;
use crate::agent::fabrics::Fabrics;
use crate::agent::group::{Group, STATE_FILE};
use crate::agent::messenger::Route;
use crate::agent::ownership::{DurableFile, Inbox, Ownership};
use crate::agent::role::{Door, Gasp, Role, RoleDeeds, RoleLook, Sight};
use crate::agent::standby::Standby;
use crate::agent::state::GroupState;
use crate::agent::users;
use crate::agent::{chance, config};
use crate::fabric::tls::TlsIdentity;
use crate::failover::{Answer, BootId, Durable, Event, Life, Machine, Policy, Stage, Standing};
use crate::locks::lock;
use crate::types::Generation;

/// Makes the role that `plan` asks for and sets its machine going.
pub(super) fn start_role(
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
    let given_up = stored.as_ref().and_then(|durable| match durable.standing {
        Standing::GivenUp { .. } => Some(durable.generation),
        _ => None,
    });
    let starts_as_owner = group.is_some();
    let config = match group {
        Some(group) => group,
        None => as_owner(context, replica.as_ref().expect("a plan has one of both"))?,
    };
    let peer = |node: &String| {
        let address = context.config.address_of(node);
        let address = address.ok_or_else(|| wrong(format!("add a `[[peer]]` for `{node}`")))?;
        Ok(config::Peer { name: node.clone(), address })
    };
    let destinations: Vec<_> = config.destinations.iter().map(peer).collect::<Result<_, RolesError>>()?;
    let standby = replica.map(|r| Standby::open(r, context.states.clone(), fabrics.clone())).transpose()?;
    let mut peers: Vec<String> = config.destinations.clone();
    peers.extend(standby.iter().flat_map(|s| s.config().from.clone()));
    let owner = match &config.user {
        Some(user) => users::resolve(user).map(|u| Some((u.uid, u.gid))).map_err(wrong)?,
        None => None,
    };
    let policy = policy(identity.node(), &config, &destinations, boot);
    let given_up_to = match stored.as_ref().map(|durable| &durable.standing) {
        Some(Standing::GivenUp { heir, .. }) => Some(heir.clone()),
        _ => None,
    };
    // One that the group was given up to decides, whether or not it is a destination still.
    let mut others = destinations.clone();
    if let Some(heir) = given_up_to.iter().find(|heir| destinations.iter().all(|to| to.name != heir.0)) {
        others.push(peer(&heir.0)?);
    }
    let sight = Arc::<Sight>::default();
    let look = Box::new(RoleLook(sight.clone()));
    let hears = inbox.teller();
    let hear = Arc::new(move |event| hears.tell(event));
    let application = Application::of_group(context, &config, owner, None, look, hear)?;
    let role = Arc::new_cyclic(|me: &Weak<Role>| {
        let route = |node: &str, hear: Box<dyn Fn(Answer) + Send>| {
            let (me, other) = (me.clone(), me.clone());
            let peer = others.iter().find(|peer| peer.name == node).expect("one of them").clone();
            Route {
                group: name.clone(),
                id: Box::new(move || me.upgrade()?.id()),
                peer,
                identity: identity.clone(),
                hear,
                another_group: Box::new(move || {
                    other.upgrade().iter().for_each(|role| role.is_another_group());
                }),
            }
        };
        let names: Vec<String> = others.iter().map(|peer| peer.name.clone()).collect();
        let envoys = Envoys::start(&names, given_up_to, &inbox.teller(), route);
        Role {
            name: name.clone(),
            context: context.clone(),
            identity: identity.clone(),
            fabrics: fabrics.clone(),
            peers,
            destinations,
            standby,
            owner,
            teller: inbox.teller(),
            envoys,
            application,
            ownership: OnceLock::new(),
            open: Mutex::new(None),
            stale: Mutex::new(None),
            door: Door::default(),
            sight,
            copies: Mutex::new(None),
            gasp: Gasp::new(given_up),
            stop: AtomicBool::new(false),
            contested: AtomicBool::new(false),
            config,
        }
    });
    let first = stored.is_none();
    let durable = match stored {
        Some(durable) => durable,
        None if starts_as_owner => first_owner(&policy),
        None => Durable::first_standby(&policy, Generation(0)),
    };
    let rebooted = durable.boot != policy.boot;
    let durable = open_left(&role, &policy, durable)?;
    let owns = matches!(durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. });
    // A log that is lost is told as a reboot.
    let log_lost = owns && durable.boot != policy.boot;
    // Nothing outlives a reboot, and of a group that nobody has owned here nothing is to be ended.
    if !first && !rebooted && (log_lost || !owns) {
        // The agent that was to end the program may have been killed before it did. Or the program goes on in a log that its owner
        // has lost: no other one may be started beside it.
        match role.see_stale() {
            // A log of another version of pmemha, for one: that does not keep this node from following the group.
            Err(error) if !log_lost && error.is_of_an_unreadable_log() => {
                let what = "a program that writes to the log of an earlier generation is not seen";
                tracing::error!(group = role.name, %error, "{what}");
            }
            seen => seen?,
        }
    }
    recover(&role, policy, durable, store, inbox)?;
    Ok(role)
}

/// Opens the log that an earlier agent left to the owner that it was. How the group stands by what is found of it.
fn open_left(role: &Arc<Role>, policy: &Policy, mut durable: Durable) -> Result<Durable, RolesError> {
    if matches!(durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. }) {
        let known: Option<GroupState> = role.context.states.load(&role.name, STATE_FILE)?;
        if let (Some(known), Standing::Owner { .. }) = (&known, &durable.standing) {
            // A later log was made here than the machine stored; its generation is used up, so the machine goes on from there.
            durable.generation = durable.generation.max(known.generation);
        }
        if durable.boot == policy.boot {
            match left_log(role, &durable, known.as_ref())? {
                LeftLog::Usable => _ = role.open_group(durable.generation, role.door.entry())?,
                // As lost as with a reboot: the next start makes a log in a generation that the machine knows of.
                LeftLog::Lost => durable.boot = BootId::default(),
                LeftLog::NeverMade => {}
            }
        }
    }
    Ok(durable)
}

/// Finds out what an earlier agent left of the application, and sets the machine going.
fn recover(
    role: &Arc<Role>,
    policy: Policy,
    durable: Durable,
    store: DurableFile,
    inbox: Inbox,
) -> Result<(), RolesError> {
    let (life, processes) = role.running();
    if life == Life::Gone {
        drop(lock(&role.stale).take());
    }
    let machine = Machine::new(policy, durable);
    let ownership =
        Ownership::start(&role.name, machine, store, Box::new(RoleDeeds(Arc::downgrade(role))), inbox)
            .map_err(system("starting a thread"))?;
    let this_life = u64::from_ne_bytes(chance::bytes().map_err(system("reading /dev/urandom"))?);
    ownership.teller().tell(Event::Recovered { application: life, life: this_life });
    let group = role.open().as_ref().map(|open| open.group.clone());
    if let Some(group) = group {
        // Not before: the first that the machine hears is what was found.
        group.watch_found(&processes);
    }
    if role.ownership.set(ownership).is_err() {
        unreachable!("a role is recovered once");
    }
    Ok(())
}

/// What an owner finds of the log of its generation.
enum LeftLog {
    /// It can go on with it.
    Usable,
    /// There was one, which is gone or not of this configuration.
    Lost,
    /// There was none to lose.
    NeverMade,
}

fn left_log(role: &Role, durable: &Durable, known: Option<&GroupState>) -> Result<LeftLog, RolesError> {
    let began = !matches!(durable.standing, Standing::Owner { stage: Stage::Placed | Stage::Promoted, .. });
    Ok(match known {
        Some(known) if known.generation == durable.generation => {
            match Group::resumes(&role.config, &role.context.access, &*role.context.keeper, known)? {
                true => LeftLog::Usable,
                false => LeftLog::Lost,
            }
        }
        Some(known) if known.generation > durable.generation => LeftLog::Lost,
        // Whoever has begun had a log of this generation.
        _ if began => LeftLog::Lost,
        _ => LeftLog::NeverMade,
    })
}

fn first_owner(policy: &Policy) -> Durable {
    let mut durable = Durable::first_owner(policy, Generation(1));
    durable.standing = Standing::Owner { attempt: 0, stage: Stage::Placed };
    durable
}

fn boot_id() -> Result<BootId, RolesError> {
    let text =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(system("reading the boot id"))?;
    BootId::parse(&text).ok_or_else(|| RolesError::System {
        what: "reading the boot id".into(),
        source: io::Error::other(format!("{text:?} is none")),
    })
}

/// File of the group's directory that holds who owns it.
const OWNERSHIP_FILE: &str = "ownership";
