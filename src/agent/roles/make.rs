//! Makes one group's role: its parts, who owned the group when an earlier agent ended, and its machine.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::plan::{Plan, as_owner, policy};
use super::{RolesError, system};
use crate::agent::application::Application;
use crate::agent::config;
use crate::agent::context::Context;
use crate::agent::fabrics::Fabrics;
use crate::agent::group::STATE_FILE;
use crate::agent::messenger::{Messenger, Route};
use crate::agent::ownership::{DurableFile, Inbox, Ownership};
use crate::agent::role::{Role, RoleDeeds};
use crate::agent::standby::Standby;
use crate::agent::state::GroupState;
use crate::agent::users;
use crate::fabric::tls::TlsIdentity;
use crate::failover::{BootId, Durable, Event, Machine, Policy, Stage, Standing};
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
    let made: Arc<OnceLock<Weak<Role>>> = Arc::default();
    let present = made.clone();
    let look =
        Box::new(move || present.get().and_then(Weak::upgrade).map(|r| r.present()).unwrap_or_default());
    let hears = inbox.teller();
    let hear = Arc::new(move |event| hears.tell(event));
    let application = Application::of_group(context, &config, owner, look, hear)?;
    let role = Arc::new_cyclic(|me: &Weak<Role>| {
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
            stop: AtomicBool::new(false),
            chance,
            config,
        }
    });
    made.get_or_init(|| Arc::downgrade(&role));
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
    let owns = matches!(durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. });
    if owns && durable.boot == policy.boot {
        let state: Option<GroupState> = role.context.states.load(&role.name, STATE_FILE)?;
        let kept = state.filter(|s| s.generation == durable.generation).map(|s| s.generation);
        let kept = kept.filter(|g| log_is_kept(role, *g));
        match kept {
            Some(generation) => role.open_group(generation)?,
            // A log that is lost without a reboot is as lost as with one; a first start has none to lose.
            None if matches!(
                durable.standing,
                Standing::Owner { stage: Stage::Begun | Stage::Ended, .. }
            ) =>
            {
                durable.boot = BootId::default();
            }
            None => {}
        }
    }
    let (life, processes) = role.running();
    let machine = Machine::new(policy, durable);
    let ownership =
        Ownership::start(&role.name, machine, store, Box::new(RoleDeeds(Arc::downgrade(role))), inbox)
            .map_err(system("starting a thread"))?;
    ownership
        .teller()
        .tell(Event::Recovered { application: life, life: u64::from(chance()) << 32 | u64::from(chance()) });
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

fn log_is_kept(role: &Role, generation: Generation) -> bool {
    let names = role.context.keeper.list().unwrap_or_default();
    names.contains(&format!("{}.{generation}", role.name))
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

/// A number by chance: the keys of a hasher come from the kernel's.
fn chance() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

/// File of the group's directory that holds who owns it.
const OWNERSHIP_FILE: &str = "ownership";
