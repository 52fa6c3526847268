//! Answers other agents: who may speak of which group, the opening of a stream, questions of ownership.

use std::sync::Arc;
use std::time::Duration;

use crate::agent::control::message::{Answer, Ask, GroupOpened, OpenGroup, Refusal, pong, refused};
use crate::agent::control::{PeerSession, Responder};
use crate::agent::role::Role;
use crate::agent::standby::{Opened, Standby};
use crate::fabric::RemoteKey;
use crate::failover::{self, Request};
use crate::replica::peek::BaseQuery;
use crate::types::{Generation, GroupId, Lsn};

/// Answers other agents.
pub(super) struct Desk {
    pub(super) roles: Vec<Arc<Role>>,
    /// Names of groups that could not be started.
    pub(super) unusable: Arc<[String]>,
}

impl Responder for Desk {
    fn admit(&self, peer: &str) -> Result<Box<dyn PeerSession>, String> {
        let shared: Vec<_> =
            self.roles.iter().filter(|r| r.peers.iter().any(|p| p == peer)).cloned().collect();
        if shared.is_empty() {
            let text = format!("no group here names {peer} in `from` or `destinations`");
            return Err(match self.unusable.join(", ") {
                none if none.is_empty() => text,
                names => format!("{text}; groups that could not be opened here: {names}"),
            });
        }
        let unusable = self.unusable.clone();
        Ok(Box::new(Visitor { peer: peer.to_owned(), roles: shared, unusable, opened: None, open: None }))
    }
}

/// One channel of another agent.
struct Visitor {
    peer: String,
    /// The groups that it may speak of.
    roles: Vec<Arc<Role>>,
    unusable: Arc<[String]>,
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
            Ask::Ping {} => match &self.open {
                Some(role) => pong(role.standby.as_ref().and_then(Standby::fault)),
                None => out_of_order("no group is open on this channel"),
            },
            Ask::Digests { region, pages } => match self.open.as_ref().and_then(|r| r.standby.as_ref()) {
                Some(standby) => Answer::Digests { digests: standby.digests(region, &pages) },
                None => out_of_order("no group is open on this channel"),
            },
            Ask::Base { group, id, generation, begin, name, block, first, count } => {
                let role = match self.kept_for_peer(&group, id) {
                    Ok(role) => role,
                    Err(no) => return no,
                };
                let Some(standby) = &role.standby else { return self.unknown(&group) };
                let (block, count) = (block as usize, count as usize);
                let base = standby.base(BaseQuery { generation, begin, name: &name, block, first, count });
                let begun = base.is_some();
                let (region, digests) = base.flatten().map_or((None, Vec::new()), |(r, d)| (Some(r), d));
                Answer::Base { begun, region, digests }
            }
            Ask::Image { group, id, generation, region, block, first, count } => {
                let role = match self.kept_for_peer(&group, id) {
                    Ok(role) => role,
                    Err(no) => return no,
                };
                let Some(standby) = &role.standby else { return self.unknown(&group) };
                let asked = (block as usize, first, count as usize);
                Answer::Image { digests: standby.blocks(generation, region, asked) }
            }
            Ask::Ownership { group, id, request } => {
                let Some(role) = self.role(&group) else { return self.unknown(&group) };
                if let Some(no) = another_group(&role, id) {
                    return no;
                }
                role.look_at_image();
                match role.teller.ask(request, MACHINE_WITHIN) {
                    Some(reply) => Answer::Ownership { reply },
                    None => refused(Refusal::Failed, Generation(0), role.fault()),
                }
            }
        }
    }
}

impl Visitor {
    fn role(&self, group: &str) -> Option<Arc<Role>> {
        self.roles.iter().find(|r| r.name == group).cloned()
    }

    /// The role of a group of this identity that is kept here, if the peer may ship it.
    fn kept_for_peer(&self, group: &str, id: GroupId) -> Result<Arc<Role>, Answer> {
        let admits = |role: &Arc<Role>| {
            role.standby.as_ref().is_some_and(|standby| standby.config().from.contains(&self.peer))
        };
        let role = self.role(group).filter(admits).ok_or_else(|| self.unknown(group))?;
        another_group(&role, id).map_or(Ok(role), Err)
    }

    fn unknown(&self, group: &str) -> Answer {
        let text = match self.unusable.iter().any(|name| name == group) {
            true => {
                format!("group `{group}` could not be opened here: `pmemha status` on this node says why")
            }
            false => format!("no configuration here shares group `{group}` with {}", self.peer),
        };
        refused(Refusal::UnknownGroup, Generation(0), text)
    }
}

/// The refusal for whoever means another group than the one of this name here. Before the machine hears of anything: what it
/// believed of the other group's generations would cost ours its owner.
fn another_group(role: &Role, id: GroupId) -> Option<Answer> {
    role.id().filter(|known| *known != id)?;
    role.is_another_group();
    let text = format!("{} is another group of the same name here", role.name);
    Some(refused(Refusal::WrongGroup, Generation(0), text))
}

fn open_group(role: &Arc<Role>, peer: &str, open: &OpenGroup) -> Result<(Opened, GroupOpened), Answer> {
    if let Some(no) = another_group(role, open.id) {
        return Err(no);
    }
    let Some(standby) = &role.standby else {
        let text = format!("group `{}` has no `[[replica]]` on this node", role.name);
        return Err(refused(Refusal::UnknownGroup, open.generation, text));
    };
    if !standby.config().from.iter().any(|node| node == peer) {
        let text = format!("`from` of the replica `{}` does not name {peer}", role.name);
        return Err(refused(Refusal::NotAdmitted, Generation(0), text));
    }
    // Before the machine is asked: what it orders revoked after its answer then finds this stream, or voids it.
    let turn = standby.turn();
    // The machine decides whether the asker is, or may be, the source: the question makes it follow a newer one.
    let question = Request::Ask { generation: open.generation, life: 0 };
    match role.teller.ask(question, MACHINE_WITHIN) {
        Some(failover::Answer::Follows { .. }) => standby.open_group(peer, open, turn),
        Some(failover::Answer::Fenced { generation, owned: true }) => {
            // A first owner's machine answers while its group is only being opened, and then it is known which one that is.
            if let Some(no) = another_group(role, open.id) {
                return Err(no);
            }
            if role.id().is_none() {
                let text = format!("group `{}` is still being opened on this node", role.name);
                return Err(refused(Refusal::Failed, Generation(0), text));
            }
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
        None => Err(refused(Refusal::Failed, open.generation, role.fault())),
    }
}

fn attach(role: &Arc<Role>, opened: Opened, ack: RemoteKey, from: Lsn, fresh: Option<u32>) -> Answer {
    match &role.standby {
        Some(standby) => standby.attach(opened, ack, from, fresh),
        None => refused(Refusal::OutOfOrder, Generation(0), "the group is not open"),
    }
}

/// The machine answers at once unless its state cannot be stored.
const MACHINE_WITHIN: Duration = Duration::from_secs(5);
