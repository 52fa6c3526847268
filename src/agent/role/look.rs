//! What the application's thread sees of a role's groups.

use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use crate::agent::application::{Look, Present};
use crate::agent::group::{Crowd, Group};
use crate::locks::lock;

/// The groups whose processes the role sees: the present one; any that was closed while a session was about to attach to it, for
/// as long as that lasts; and one that was found given up, until its processes have been ended. A lock of its own: the role's is held while a group is being opened.
#[derive(Default)]
pub(in crate::agent) struct Sight(Mutex<Vec<Weak<Group>>>);

impl Sight {
    /// The processes of `group` are to be seen.
    pub(super) fn add(&self, group: &Arc<Group>) {
        let mut groups = lock(&self.0);
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(group));
    }

    pub(super) fn groups(&self) -> Vec<Arc<Group>> {
        lock(&self.0).iter().filter_map(Weak::upgrade).collect()
    }
}

/// Looks at the groups of a role.
pub(in crate::agent) struct RoleLook(pub(in crate::agent) Arc<Sight>);

impl Look for RoleLook {
    fn present(&self) -> Present {
        let groups = self.0.groups();
        let mut present =
            Present { attached: groups.iter().any(|group| group.has_processes()), ..Present::default() };
        for writer in groups.iter().flat_map(|group| group.appending()) {
            match writer.pid {
                Some(pid) => present.writers.push(pid),
                None => present.doubtful.extend(writer.seen),
            }
        }
        present
    }

    fn everyone(&self, deadline: Instant) -> Crowd {
        let mut crowd = Crowd::default();
        self.0.groups().iter().for_each(|group| crowd.extend(group.everyone(deadline)));
        crowd
    }

    fn owns(&self, pid: u32) -> bool {
        self.0.groups().iter().any(|group| group.owns(pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::group::{Process, tests::Bench};

    #[test]
    fn a_process_that_attached_to_a_group_as_it_was_closed_is_seen_and_no_later_one_attaches() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let sight = Arc::new(Sight::default());
        sight.add(&group);
        let process =
            Process { pid: Some(1), uid: 0, program: "db".into(), tracks: None, indoors: None, pidfd: None };
        // The session has been shown the group; the role lets go of it.
        let session = group.clone();
        assert!(session.attach(process.clone(), None).is_some());
        group.close();
        drop(group);
        let look = RoleLook(sight);
        assert!(look.present().attached);
        assert!(session.attach(process, None).is_none(), "nobody would kill it");
        drop(session);
        assert!(!look.present().attached);
    }
}
