//! Every group that this node shares with another one: made from the configuration, reached through the control channel.
//!
//! [`Roles::start`] makes a [`Role`] for each `[[group]]` with a destination and each `[[replica]]`, recovers who owned what,
//! and listens for other agents. Called by the daemon.

mod desk;
mod make;
mod plan;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::context::Context;
use super::control::Server;
use super::fabrics::Fabrics;
use super::group::{Controller, GroupError};
use super::ownership::StoreError;
use super::role::Role;
use super::standby::StandbyError;
use super::state::StateError;
use super::status::Role as Part;
use crate::fabric::FabricError;
use crate::failover::supervise::SuperviseError;
use crate::predecessor::listen_at;
use desk::Desk;
use make::start_role;
use plan::plans;

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

impl RolesError {
    /// Whether what happened concerns one group, says nothing of the others, and would happen again: where the next attempt may
    /// end better, the agent ends, and whoever starts it makes one.
    fn is_of_one_group(&self) -> bool {
        match self {
            RolesError::State(error) => error.lasts(),
            RolesError::Group(error) => error.lasts(),
            RolesError::Store(StoreError::Io { .. }) => false,
            RolesError::Store(_) => true,
            RolesError::Standby(error) => error.lasts(),
            RolesError::Supervise(_)
            | RolesError::Config { .. }
            | RolesError::Fabric(_)
            | RolesError::System { .. } => false,
        }
    }
}

/// The groups and the listener. Dropped, everything stops.
pub struct Roles {
    // Before the roles: nobody asks what is being taken down.
    server: Option<Server>,
    roles: Vec<Arc<Role>>,
    watchers: Vec<JoinHandle<()>>,
    failed: Vec<Failed>,
}

/// A group that could not be started, which the others do without.
pub struct Failed {
    /// Its name.
    pub name: String,
    /// What this node was to do with it.
    pub role: Part,
    /// What happened.
    pub error: RolesError,
}

impl Roles {
    /// Starts all that can be. Groups without a destination are not ours.
    pub fn start(context: &Arc<Context>) -> Result<Roles, RolesError> {
        let mut roles = Roles { server: None, roles: Vec::new(), watchers: Vec::new(), failed: Vec::new() };
        let plans = plans(&context.config);
        if plans.is_empty() {
            return Ok(roles);
        }
        let missing = |what: &str| RolesError::Config { group: plans[0].name.clone(), what: what.into() };
        let identity = context.tls.clone().ok_or_else(|| missing("other nodes need `[tls]`"))?;
        let identity = Arc::new(identity);
        let node = &context.config.node;
        let listen = node.listen.ok_or_else(|| missing("other nodes need `listen` in `[node]`"))?;
        // First, since it is at a port that the configuration names, and what listens at any free port might get that one. Who
        // connects already is answered once the roles are there.
        let listener = listen_at(listen).map_err(system(&format!("listening on {listen}")))?;
        let data = node.data_address().unwrap_or(listen);
        let fabrics =
            Arc::new(Fabrics::start(data, node.advertise.clone(), &identity, &context.config.rdma)?);
        for plan in plans {
            let (name, part) = (plan.name.clone(), plan.part());
            let role = match start_role(context, &identity, &fabrics, plan) {
                Ok(role) => role,
                Err(error) if error.is_of_one_group() => {
                    roles.failed.push(Failed { name, role: part, error });
                    continue;
                }
                Err(error) => return Err(error),
            };
            let watched = role.clone();
            let watcher = thread::Builder::new().name(format!("image-{}", role.name));
            let watcher = watcher.spawn(move || watched.watch_image());
            roles.watchers.push(watcher.map_err(system("starting a thread"))?);
            roles.roles.push(role);
        }
        let unusable = roles.failed.iter().map(|failed| failed.name.clone()).collect();
        let responder = Arc::new(Desk { roles: roles.roles.clone(), unusable });
        let server = Server::start(listener, identity, responder).map_err(system("starting a thread"))?;
        roles.server = Some(server);
        Ok(roles)
    }

    /// Takes those that could not be started.
    pub fn take_failed(&mut self) -> Vec<Failed> {
        std::mem::take(&mut self.failed)
    }

    /// The groups, for sessions and operators.
    pub fn controllers(&self) -> Vec<Arc<dyn Controller>> {
        self.roles.iter().map(|r| Arc::new(r.clone()) as Arc<dyn Controller>).collect()
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

fn system(what: &str) -> impl FnOnce(io::Error) -> RolesError {
    let what = what.to_owned();
    move |source| RolesError::System { what, source }
}
