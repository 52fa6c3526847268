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
        // First, since it is at a port that the configuration names, and what listens at any free port might get that one. Who
        // connects already is answered once the roles are there.
        let listener = listen_at(listen).map_err(system(&format!("listening on {listen}")))?;
        let data = node.data_address().unwrap_or(listen);
        let fabrics =
            Arc::new(Fabrics::start(data, node.advertise.clone(), &identity, &context.config.rdma)?);
        for plan in plans {
            let role = start_role(context, &identity, &fabrics, plan)?;
            let watched = role.clone();
            let watcher = thread::Builder::new().name(format!("image-{}", role.name));
            let watcher = watcher.spawn(move || watched.watch_image());
            roles.watchers.push(watcher.map_err(system("starting a thread"))?);
            roles.roles.push(role);
        }
        let responder = Arc::new(Desk { roles: roles.roles.clone() });
        let server = Server::start(listener, identity, responder).map_err(system("starting a thread"))?;
        roles.server = Some(server);
        Ok(roles)
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
