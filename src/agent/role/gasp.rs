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

    /// An open group that `gasp` has taken in.
    struct Rig {
        bench: Bench,
        group: Arc<Group>,
        gasp: Gasp,
        sight: Sight,
    }

    impl Rig {
        fn new(gasp: impl FnOnce(Generation) -> Gasp) -> Rig {
            let bench = Bench::new();
            let (group, _) = bench.open(1);
            let (gasp, sight) = (gasp(group.generation()), Sight::default());
            gasp.takes_in(&group, &sight);
            Rig { bench, group, gasp, sight }
        }

        fn hold_still(&self, token: &Token) -> bool {
            self.gasp.hold_still(token, self.group.generation(), &self.sight)
        }

        /// Whether a file that comes now is entered.
        fn records(&self, name: &str) -> bool {
            let before = self.group.regions().len();
            std::fs::write(self.bench.path(name), "content").unwrap();
            // Once to see it, once to see that nobody writes to it.
            self.group.look_for_files();
            self.group.look_for_files();
            self.group.regions().len() > before
        }
    }

    #[test]
    fn a_gasp_keeps_a_group_still_until_it_is_called_off_and_one_called_off_before_it_ran_does_not() {
        let rig = Rig::new(|_| Gasp::default());
        assert!(rig.records("a.pool"));
        let token = rig.gasp.begin();
        assert!(rig.hold_still(&token) && !rig.records("b.pool"));
        rig.gasp.call_off(&rig.sight);
        assert!(rig.records("c.pool") && token.load(Ordering::Acquire));
        assert!(!rig.hold_still(&token), "its thread ran too late");
        assert!(rig.records("d.pool"));
    }

    #[test]
    fn another_gasp_ends_the_one_before_and_an_end_leaves_all_still() {
        let rig = Rig::new(|_| Gasp::default());
        let [first, second] = [rig.gasp.begin(), rig.gasp.begin()];
        assert!(!rig.hold_still(&first) && rig.hold_still(&second));
        rig.gasp.end();
        assert!(second.load(Ordering::Acquire) && !rig.records("a.pool"));
    }

    #[test]
    fn a_group_that_an_earlier_agent_gave_up_is_opened_still_and_one_of_a_later_generation_is_not() {
        let rig = Rig::new(|generation| Gasp::new(Some(generation)));
        assert!(!rig.records("a.pool"));
        rig.gasp.call_off(&rig.sight);
        assert!(rig.records("b.pool"));
        let later = Rig::new(|generation| Gasp::new(Some(Generation(generation.0 - 1))));
        assert!(later.records("a.pool"));
    }
}
