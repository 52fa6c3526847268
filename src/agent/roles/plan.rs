//! What the configuration says of the groups that this node shares: which they are, and how each one is to be run.

use std::collections::BTreeMap;
use std::path::Path;

use crate::agent::config;
use crate::agent::context::Context;
use crate::agent::role::PLACED_FILE;
use crate::agent::state::{PlacedFile, StateError};
use crate::agent::status::Role;
use crate::failover::{BootId, NodeName, Patience, Policy};

/// What the configuration says of one group.
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) group: Option<config::Group>,
    pub(super) replica: Option<config::Replica>,
}

impl Plan {
    /// What this node is to do with the group, as the configuration has it.
    pub(super) fn part(&self) -> Role {
        if self.group.is_some() { Role::Source } else { Role::Destination }
    }
}

/// One for each group with another node in it.
pub(super) fn plans(config: &config::Config) -> Vec<Plan> {
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

/// What the state machine is to go by.
pub(super) fn policy(node: &str, config: &config::Group, heirs: &[config::Peer], boot: BootId) -> Policy {
    Policy {
        node: NodeName(node.to_owned()),
        heirs: heirs.iter().map(|heir| NodeName(heir.name.clone())).collect(),
        on_death: config.on_death,
        trigger: config.trigger,
        has_command: !config.command.is_empty(),
        start_limit: START_LIMIT,
        patience: Patience { freeze: config.freeze_deadline * 2, ..Patience::default() },
        boot,
    }
}

/// How a node runs a group that it inherited: by what its own configuration of the replica says.
pub(super) fn as_owner(context: &Context, replica: &config::Replica) -> Result<config::Group, StateError> {
    let placed: Vec<PlacedFile> = context.states.load(&replica.group, PLACED_FILE)?.unwrap_or_default();
    let mut protect: Vec<String> = placed.iter().map(|placed| literal(&placed.path)).collect();
    for path in replica.paths.values() {
        protect.push(literal(path));
        protect.push(format!("{}/**", literal(path)));
    }
    let destinations: Vec<String> =
        replica.from.iter().filter(|node| context.config.address_of(node).is_some()).cloned().collect();
    Ok(config::Group {
        protect,
        destinations,
        command: replica.start.clone(),
        user: replica.user.clone(),
        working_dir: replica.working_dir.clone(),
        env: replica.env.clone(),
        ..config::Group::named(&replica.group)
    })
}

/// A pattern that matches this path only.
fn literal(path: &Path) -> String {
    glob::Pattern::escape(&path.to_string_lossy())
}

/// Starts of an application in a row that may fail.
const START_LIMIT: u32 = 3;
