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
    messengers: Vec<(String, Messenger)>,
    asked: Arc<Mutex<Asked>>,
    heir: Mutex<Option<NodeName>>,
}

/// Who has yet to say that it follows.
#[derive(Default)]
struct Asked {
    life: u64,
    silent: BTreeSet<String>,
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
        let asked = Arc::<Mutex<Asked>>::default();
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
        Envoys { messengers, asked, heir: Mutex::new(heir) }
    }

    /// Has `request` delivered; its answer comes as an event.
    pub fn send(&self, request: &Request) {
        let to = match request {
            Request::Ask { life, .. } => {
                let silent = self.messengers.iter().map(|(node, _)| node.clone()).collect();
                *lock(&self.asked) = Asked { life: *life, silent };
                return self.messengers.iter().for_each(|(_, messenger)| messenger.send(request.clone()));
            }
            Request::SaveStarted { heir, .. } | Request::Saved { heir, .. } => {
                *lock(&self.heir) = Some(heir.clone());
                Some(heir.clone())
            }
            Request::Cancel { .. } | Request::Confirm { .. } => lock(&self.heir).clone(),
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
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

    #[test]
    fn the_group_is_still_ours_once_everyone_has_said_so() {
        let mut asked = Asked { life: 7, silent: ["beta", "gamma"].map(String::from).into() };
        let follows = |life| Answer::Follows { life };
        assert!(!asked.passes("beta", &follows(7)));
        assert!(!asked.passes("beta", &follows(7)), "twice the same");
        assert!(!asked.passes("gamma", &follows(6)), "to an earlier life");
        assert!(asked.passes("gamma", &follows(7)));
        let fenced = Answer::Fenced { generation: Generation(3), owned: true };
        assert!(asked.passes("gamma", &fenced));
    }
}
