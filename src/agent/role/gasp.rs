//! The last gasp that is under way: how it is called off, and who keeps still for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::look::Sight;
use crate::agent::group::Group;
use crate::locks::lock;
use crate::types::Generation;

/// The last gasp of a role. The end of the log that the heir is told has to stay the end: from the gasp on, and in the next
/// lives of the agent, nothing is recorded that no program asked for, until the tail is called off.
#[derive(Default)]
pub(in crate::agent) struct Gasp(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// Set when the newest gasp is not wanted any more.
    over: Arc<AtomicBool>,
    /// Groups of this generation, and of those before, keep still.
    still: Option<Generation>,
}

/// One gasp: set once it is not wanted any more.
pub(super) type Token = Arc<AtomicBool>;

impl Gasp {
    /// `given_up`: the generation that an earlier agent gave up, if it has not been handed back.
    pub(in crate::agent) fn new(given_up: Option<Generation>) -> Gasp {
        Gasp(Mutex::new(Inner { still: given_up, ..Inner::default() }))
    }

    /// A gasp begins; the one before is over.
    pub(super) fn begin(&self) -> Token {
        let mut inner = lock(&self.0);
        inner.over.store(true, Ordering::Release);
        inner.over = Token::default();
        inner.over.clone()
    }

    /// Nobody waits for the tail any more.
    pub(super) fn end(&self) {
        lock(&self.0).over.store(true, Ordering::Release);
    }

    /// The gasp of `token` keeps `groups` still up to `generation`, unless it is over. Whether it goes on.
    pub(super) fn hold_still(&self, token: &Token, generation: Generation, groups: &Sight) -> bool {
        let mut inner = lock(&self.0);
        if token.load(Ordering::Acquire) {
            return false;
        }
        inner.still = Some(generation);
        groups.groups().iter().for_each(|group| inner.tell(group));
        true
    }

    /// The tail is not wanted any more, and the application may go on.
    pub(super) fn call_off(&self, groups: &Sight) {
        let mut inner = lock(&self.0);
        inner.over.store(true, Ordering::Release);
        inner.still = None;
        groups.groups().iter().for_each(|group| inner.tell(group));
    }

    /// `group` is about to be open, and to be among `groups`.
    pub(super) fn takes_in(&self, group: &Arc<Group>, groups: &Sight) {
        let inner = lock(&self.0);
        groups.add(group);
        inner.tell(group);
    }
}

impl Inner {
    fn tell(&self, group: &Group) {
        match self.still {
            Some(last) if group.generation() <= last => group.hold_still(),
            _ => group.go_on(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::group::tests::Bench;

    fn seen(group: &Arc<Group>, gasp: &Gasp) -> Sight {
        let sight = Sight::default();
        gasp.takes_in(group, &sight);
        sight
    }

    /// Whether a file that comes now is entered.
    fn records(bench: &Bench, group: &Group, name: &str) -> bool {
        let before = group.regions().len();
        std::fs::write(bench.path(name), "content").unwrap();
        // Once to see it, once to see that nobody writes to it.
        group.look_for_files();
        group.look_for_files();
        group.regions().len() > before
    }

    #[test]
    fn a_gasp_keeps_a_group_still_until_it_is_called_off_and_one_called_off_before_it_ran_does_not() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let gasp = Gasp::default();
        let sight = seen(&group, &gasp);
        assert!(records(&bench, &group, "a.pool"));
        let token = gasp.begin();
        assert!(gasp.hold_still(&token, group.generation(), &sight));
        assert!(!records(&bench, &group, "b.pool"));
        gasp.call_off(&sight);
        assert!(records(&bench, &group, "c.pool"));
        assert!(token.load(Ordering::Acquire));
        assert!(!gasp.hold_still(&token, group.generation(), &sight), "its thread ran too late");
        assert!(records(&bench, &group, "d.pool"));
    }

    #[test]
    fn another_gasp_ends_the_one_before_and_an_end_leaves_all_still() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let gasp = Gasp::default();
        let sight = seen(&group, &gasp);
        let first = gasp.begin();
        let second = gasp.begin();
        assert!(!gasp.hold_still(&first, group.generation(), &sight));
        assert!(gasp.hold_still(&second, group.generation(), &sight));
        gasp.end();
        assert!(second.load(Ordering::Acquire) && !records(&bench, &group, "a.pool"));
    }

    #[test]
    fn a_group_that_an_earlier_agent_gave_up_is_opened_still_and_one_of_a_later_generation_is_not() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let gasp = Gasp::new(Some(group.generation()));
        let sight = seen(&group, &gasp);
        assert!(!records(&bench, &group, "a.pool"));
        gasp.call_off(&sight);
        assert!(records(&bench, &group, "b.pool"));
        let later = Gasp::new(Some(Generation(group.generation().0 - 1)));
        seen(&group, &later);
        assert!(records(&bench, &group, "c.pool"));
    }
}
