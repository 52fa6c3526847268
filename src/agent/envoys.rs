//! The state machine's requests, each to the node that it concerns, and the answers back.
//!
//! Most concern the heir. Whether the group is still this node's is asked of everyone who may have taken it over, and it is
//! only once all of them have said, of late, that they follow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::messenger::{Messenger, Route};
use super::ownership::Teller;
use crate::failover::{Answer, Event, NodeName, Request};
use crate::locks::lock;

/// A messenger to each node that may own the group.
pub struct Envoys {
    messengers: Vec<(String, Messenger)>,
    asked: Arc<Mutex<Asked>>,
}

/// Whose answers are awaited.
#[derive(Default)]
struct Asked {
    life: u64,
    /// When each has said that it follows.
    followed: BTreeMap<String, Instant>,
    /// Whom the group was given up to last: only its word decides of that.
    heir: Option<NodeName>,
}

impl Envoys {
    /// Messengers on these routes. `heir`: whom the group was given up to, if it was; `route` makes a route to a node whose answers
    /// go to the function that it is given.
    pub fn start(
        nodes: &[String],
        heir: Option<NodeName>,
        teller: &Teller,
        route: impl Fn(&str, Box<dyn Fn(Answer) + Send>) -> Route,
    ) -> Envoys {
        let asked = Arc::new(Mutex::new(Asked { heir, ..Asked::default() }));
        let all: Arc<[String]> = nodes.into();
        let messenger = |node: &String| {
            let (name, teller, asked, all) = (node.clone(), teller.clone(), asked.clone(), all.clone());
            let hear = move |answer| {
                if lock(&asked).passes(&name, &answer, &all, Instant::now()) {
                    teller.tell(Event::Answer(answer));
                }
            };
            let route = route(node, Box::new(hear));
            let group = route.group.clone();
            Messenger::start(route)
                .inspect_err(|error| tracing::error!(group, node, %error, "no way to the other node"))
                .ok()
                .map(|messenger| (node.clone(), messenger))
        };
        let messengers = nodes.iter().filter_map(messenger).collect();
        Envoys { messengers, asked }
    }

    /// Whom the group was given up to last.
    pub fn heir(&self) -> Option<NodeName> {
        lock(&self.asked).heir.clone()
    }

    /// The machine wants `request` sent. From here on, before it goes out, the answers count of whom it concerns.
    pub fn prepare(&self, request: &Request) {
        let mut asked = lock(&self.asked);
        match request {
            Request::Ask { life, .. } => asked.asks(*life),
            // Another one may be the heir this time.
            Request::SaveStarted { trigger: false, .. } => asked.heir = None,
            Request::SaveStarted { heir, .. } | Request::Saved { heir, .. } => {
                asked.heir = Some(heir.clone())
            }
            Request::Cancel { .. } | Request::Confirm { .. } => {}
        }
    }

    /// Has `request`, which was prepared, delivered; its answer comes as an event.
    pub fn send(&self, request: &Request) {
        let to = match request {
            Request::Ask { .. } => {
                return self.messengers.iter().for_each(|(_, messenger)| messenger.send(request.clone()));
            }
            Request::SaveStarted { heir, .. } | Request::Saved { heir, .. } => Some(heir.clone()),
            Request::Cancel { .. } | Request::Confirm { .. } => lock(&self.asked).heir.clone(),
        };
        let named = |(node, _): &&(String, Messenger)| to.as_ref().is_some_and(|to| to.0 == *node);
        if let Some((_, messenger)) = self.messengers.iter().find(named) {
            messenger.send(request.clone());
        }
    }
}

impl Asked {
    /// The question of this life of the agent goes out, for the first time or again.
    fn asks(&mut self, life: u64) {
        if self.life != life {
            (self.life, self.followed) = (life, BTreeMap::new());
        }
    }

    /// Whether the machine is to hear what `node`, one of `all`, answers `now`.
    fn passes(&mut self, node: &str, answer: &Answer, all: &[String], now: Instant) -> bool {
        match answer {
            Answer::Follows { life } if *life == self.life => {
                self.followed.insert(node.to_owned(), now);
                let fresh = |at: &Instant| now.saturating_duration_since(*at) <= FRESH;
                all.iter().all(|node| self.followed.get(node).is_some_and(fresh))
            }
            Answer::Follows { .. } => false,
            Answer::Fenced { .. } => true,
            _ => self.heir.as_ref().is_some_and(|heir| heir.0 == node),
        }
    }
}

/// For so long it is believed that a node follows: it may be promoted by force at any time. Asked again every half second, one that
/// can be reached says so within this.
const FRESH: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

    #[test]
    fn the_group_is_still_ours_once_everyone_has_said_so_of_late() {
        let (mut asked, all, now) = (Asked::default(), ["beta", "gamma"].map(String::from), Instant::now());
        asked.asks(7);
        let mut passes = |node, life, at| asked.passes(node, &Answer::Follows { life }, &all, at);
        assert!(!passes("beta", 7, now));
        assert!(!passes("beta", 7, now), "twice the same");
        assert!(!passes("gamma", 6, now), "to an earlier life");
        assert!(!passes("gamma", 7, now + 2 * FRESH), "by now the other one may own it");
        assert!(passes("beta", 7, now + 2 * FRESH));
        asked.asks(7);
        assert!(asked.passes("gamma", &Answer::Follows { life: 7 }, &all, now + 2 * FRESH), "asked again");
        let fenced = Answer::Fenced { generation: Generation(3), owned: true };
        assert!(asked.passes("gamma", &fenced, &all, now));
        asked.asks(8);
        assert!(!asked.passes("gamma", &Answer::Follows { life: 8 }, &all, now + 2 * FRESH));
    }

    #[test]
    fn of_a_handover_only_the_heir_decides() {
        let heir = Some(NodeName("gamma".into()));
        let mut asked = Asked { heir, ..Asked::default() };
        let round = crate::failover::Round { generation: Generation(2), attempt: 1 };
        let refused = Answer::Refused { round };
        let now = Instant::now();
        assert!(!asked.passes("beta", &refused, &[], now) && asked.passes("gamma", &refused, &[], now));
    }
}
