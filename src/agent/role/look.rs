//! What the application's thread sees of a role's open group.

use std::sync::{Arc, OnceLock, Weak};

use super::Role;
use crate::agent::application::{Look, Present};
use crate::agent::group::Group;

/// Looks at the group of a role, which is made later; there is nothing to see while none is open. Weak, since the role owns the
/// application.
pub(in crate::agent) struct RoleLook(pub(in crate::agent) Arc<OnceLock<Weak<Role>>>);

impl RoleLook {
    fn group(&self) -> Option<Arc<Group>> {
        let role = self.0.get().and_then(Weak::upgrade)?;
        let open = role.open();
        open.as_ref().map(|open| open.group.clone())
    }
}

impl Look for RoleLook {
    fn present(&self) -> Present {
        let Some(group) = self.group() else { return Present::default() };
        let writers = group.appending().into_iter().filter_map(|writer| writer.pid).collect();
        Present { attached: group.has_processes(), writers }
    }

    fn everyone(&self) -> Vec<u32> {
        self.group().map(|group| group.everyone()).unwrap_or_default()
    }

    fn owns(&self, pid: u32) -> bool {
        self.group().is_some_and(|group| group.owns(pid))
    }
}
