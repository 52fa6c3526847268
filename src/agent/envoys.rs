//! The state machine's requests, each to the node that it concerns, and the answers back.
//!
//! Most concern the heir. Whether the group is still this node's is asked of everyone who may have taken it over, and it is
//! only once all of them have said that they follow.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::messenger::{Messenger, Route};
use super::ownership::Teller;
use crate::failover::{Answer, Event, NodeName, Request};
use crate::locks::lock;

/// A messenger to each node that may own the group.
pub struct Envoys {
    nodes: Vec<String>,
    messengers: Vec<(String, Messenger)>,
    asked: Arc<Mutex<Asked>>,
}

/// Whose answers are awaited.
#[derive(Default)]
struct Asked {
    life: u64,
    /// Who has yet to say that it follows.
    silent: BTreeSet<String>,
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
        let messenger = |node: &String| {
            let (name, teller, asked) = (node.clone(), teller.clone(), asked.clone());
            let hear = move |answer| {
                if lock(&asked).passes(&name, &answer) {
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
        Envoys { nodes: nodes.to_vec(), messengers, asked }
    }

    /// Whom the group was given up to last.
    pub fn heir(&self) -> Option<NodeName> {
        lock(&self.asked).heir.clone()
    }

    /// Has `request` delivered; its answer comes as an event.
    pub fn send(&self, request: &Request) {
        let to = match request {
            Request::Ask { life, .. } => {
                let mut asked = lock(&self.asked);
                (asked.life, asked.silent) = (*life, self.nodes.iter().cloned().collect());
                drop(asked);
                return self.messengers.iter().for_each(|(_, messenger)| messenger.send(request.clone()));
            }
            Request::SaveStarted { heir, trigger: false, .. } => Some(heir.clone()),
            Request::SaveStarted { heir, .. } | Request::Saved { heir, .. } => {
                lock(&self.asked).heir = Some(heir.clone());
                Some(heir.clone())
            }
            Request::Cancel { .. } | Request::Confirm { .. } => lock(&self.asked).heir.clone(),
        };
        let named = |(node, _): &&(String, Messenger)| to.as_ref().is_some_and(|to| to.0 == *node);
        if let Some((_, messenger)) = self.messengers.iter().find(named) {
            messenger.send(request.clone());
        }
    }
}

impl Asked {
    /// Whether the machine is to hear what `node` answers.
    fn passes(&mut self, node: &str, answer: &Answer) -> bool {
        match answer {
            Answer::Follows { life } if *life == self.life => {
                self.silent.remove(node);
                self.silent.is_empty()
            }
            Answer::Follows { .. } => false,
            Answer::Fenced { .. } => true,
            _ => self.heir.as_ref().is_some_and(|heir| heir.0 == node),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

    #[test]
    fn the_group_is_still_ours_once_everyone_has_said_so() {
        let silent = ["beta", "gamma"].map(String::from).into();
        let mut asked = Asked { life: 7, silent, heir: None };
        let follows = |life| Answer::Follows { life };
        assert!(!asked.passes("beta", &follows(7)));
        assert!(!asked.passes("beta", &follows(7)), "twice the same");
        assert!(!asked.passes("gamma", &follows(6)), "to an earlier life");
        assert!(asked.passes("gamma", &follows(7)));
        let fenced = Answer::Fenced { generation: Generation(3), owned: true };
        assert!(asked.passes("gamma", &fenced));
    }

    #[test]
    fn of_a_handover_only_the_heir_decides() {
        let heir = Some(NodeName("gamma".into()));
        let mut asked = Asked { heir, ..Asked::default() };
        let round = crate::failover::Round { generation: Generation(2), attempt: 1 };
        let refused = Answer::Refused { round };
        assert!(!asked.passes("beta", &refused) && asked.passes("gamma", &refused));
    }
}
