//! Carries the state machine's requests to the other node of a group, and its answers back.
//!
//! One thread a group with a connection of its own, kept up while idle, so that nothing has to be connected when the power
//! fails. A request that cannot be delivered is dropped, and so is one that a newer one has overtaken: the machine asks
//! again when its patience is over.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use super::config::Peer;
use super::control::message::{Answer, Ask, Refusal};
use super::control::{Client, ControlError, client::unexpected};
use crate::fabric::tls::TlsIdentity;
use crate::failover::{self, Request};
use crate::types::GroupId;

/// Pause between signs of life on an idle connection, and between attempts to connect one.
const KEEP_WARM: Duration = Duration::from_secs(2);

/// A connection must stand, and an answer be there, within this time: the machine's own patience is longer.
const WITHIN: Duration = Duration::from_secs(2);

/// The requests' way to one node; ends on drop.
pub struct Messenger {
    queue: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// Where requests go.
pub struct Route {
    /// The group's name.
    pub group: String,
    /// The group's identity, once it is known: nothing can be asked before.
    pub id: Box<dyn Fn() -> Option<GroupId> + Send>,
    /// The other node.
    pub peer: Peer,
    /// Who this node is.
    pub identity: Arc<TlsIdentity>,
    /// Hears the answers.
    pub hear: Box<dyn Fn(failover::Answer) + Send>,
    /// Hears that the other node knows another group by this name.
    pub another_group: Box<dyn Fn() + Send>,
}

impl Messenger {
    /// A messenger to `route`'s peer.
    pub fn start(route: Route) -> io::Result<Messenger> {
        let (queue, requests) = mpsc::channel();
        let name = format!("ask-{}-{}", route.group, route.peer.name);
        let thread = thread::Builder::new().name(name).spawn(move || run(&route, &requests))?;
        Ok(Messenger { queue: Some(queue), thread: Some(thread) })
    }

    /// Has `request` delivered; its answer comes as an event.
    pub fn send(&self, request: Request) {
        if let Some(queue) = &self.queue {
            // The thread ends only with us.
            let _ = queue.send(request);
        }
    }
}

impl Drop for Messenger {
    fn drop(&mut self) {
        drop(mem::take(&mut self.queue));
        // The last to let go may be the thread itself, which then simply ends.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn run(route: &Route, requests: &Receiver<Request>) {
    let mut client: Option<Client> = None;
    loop {
        let ask = match requests.recv_timeout(KEEP_WARM) {
            Ok(request) => {
                // What waited behind an unreachable node is out of date: a trigger, say, that is to be cancelled by now.
                let request = requests.try_iter().last().unwrap_or(request);
                let Some(id) = (route.id)() else { continue };
                Ask::Ownership { group: route.group.clone(), id, request }
            }
            Err(RecvTimeoutError::Timeout) => Ask::Ping {},
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match deliver(route, &mut client, &ask) {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(group = route.group, %error, "request not delivered");
                client = None;
            }
        }
    }
}

fn deliver(route: &Route, client: &mut Option<Client>, ask: &Ask) -> Result<(), ControlError> {
    let connected = match client {
        Some(connected) => connected,
        None => {
            let peer = &route.peer;
            let deadline = Instant::now() + WITHIN;
            client.insert(Client::connect(&peer.address, &route.identity, &peer.name, deadline)?)
        }
    };
    match (connected.ask(ask, WITHIN)?, ask) {
        (Answer::Ownership { reply }, Ask::Ownership { .. }) => (route.hear)(reply),
        // Only to keep the connection warm: any answer will do.
        (_, Ask::Ping {}) => {}
        (Answer::Refused { reason: Refusal::WrongGroup, .. }, _) => (route.another_group)(),
        (other, _) => {
            let error = unexpected(connected.peer(), other);
            tracing::warn!(group = route.group, %error, "the other node does not answer who owns the group");
        }
    }
    Ok(())
}
