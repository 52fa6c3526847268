//! Who may do what on the agent's socket, by the credentials that the kernel vouches for.

use std::collections::BTreeMap;

use super::config::{Config, UserRef};
use super::group::Reader;
use super::users;

/// Who may do what.
#[derive(Clone, Debug, Default)]
pub struct Access {
    owner: u32,
    /// By group and user: the groups of the system that the user is in.
    members: BTreeMap<String, BTreeMap<u32, Vec<u32>>>,
}

impl Access {
    /// By the configuration; `owner` is the user that the agent runs as. Fails on a user that this machine does not have.
    pub fn new(config: &Config, owner: u32) -> Result<Access, String> {
        let of_groups = config.groups.iter().flat_map(|g| {
            let users = g.users.iter().chain(&g.user);
            users.map(|user| (&g.name, user))
        });
        // Without a `user` a command runs as we do.
        let by_groups = config.groups.iter().filter(|g| !g.command.is_empty() && g.user.is_none());
        let by_replicas = config.replicas.iter().filter(|r| !r.start.is_empty() && r.user.is_none());
        let as_ours = by_groups.map(|g| &g.name).chain(by_replicas.map(|r| &r.group));
        // Whom the agent starts the application as after a promotion, the application attaches as.
        let of_replicas = config.replicas.iter().flat_map(|r| r.user.iter().map(|user| (&r.group, user)));
        let mut members: BTreeMap<String, BTreeMap<u32, Vec<u32>>> = BTreeMap::new();
        for group in as_ours {
            let groups = users::groups_of(&UserRef::Id(owner));
            members.entry(group.clone()).or_default().insert(owner, groups);
        }
        for (group, user) in of_groups.chain(of_replicas) {
            let found = users::resolve(user).map_err(|e| format!("group `{group}`: {e}"))?;
            let groups = [vec![found.gid], users::groups_of(user)].concat();
            members.entry(group.clone()).or_default().insert(found.uid, groups);
        }
        Ok(Access { owner, members })
    }

    /// Root and the agent's own user may do everything.
    pub fn is_operator(&self, uid: u32) -> bool {
        uid == 0 || uid == self.owner
    }

    /// Whether `uid` may attach to `group`.
    pub fn may_attach(&self, uid: u32, group: &str) -> bool {
        self.is_operator(uid) || self.is_member(uid, group)
    }

    /// Whether the application of `group` runs as `uid`, by the configuration.
    pub fn is_member(&self, uid: u32, group: &str) -> bool {
        self.members.get(group).is_some_and(|users| users.contains_key(&uid))
    }

    /// Whom the application of `group` runs as: by the configuration, and as `seen`; if nobody is named, as the agent does.
    pub fn readers(&self, group: &str, seen: &[u32]) -> Vec<Reader> {
        let mut users = self.members.get(group).cloned().unwrap_or_default();
        if users.is_empty() && seen.is_empty() {
            users.insert(self.owner, Vec::new());
        }
        seen.iter().for_each(|uid| _ = users.entry(*uid).or_default());
        users.into_iter().map(|(uid, groups)| Reader::new(uid, groups)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn only_named_users_root_and_the_agents_own_may_attach() {
        let text = "[node]\nname='a'\n[[group]]\nname='db'\nusers=[1000]\n[[group]]\nname='web'\n";
        let access = Access::new(&Config::parse(text, Path::new("t")).unwrap(), 500).unwrap();
        for (uid, db, web) in [(0, true, true), (500, true, true), (1000, true, false), (1001, false, false)]
        {
            assert_eq!((access.may_attach(uid, "db"), access.may_attach(uid, "web")), (db, web), "uid {uid}");
            assert!(uid > 500 || access.is_operator(uid));
        }
        assert!(!access.may_attach(1000, "no-such-group"));
        assert!(!access.is_operator(1000));
    }

    #[test]
    fn whom_the_command_runs_as_may_attach_before_and_after_a_failover() {
        let text = "[node]\nname='a'\nlisten='10.0.0.1:7475'\n[tls]\nca='/ca'\ncert='/cert'\nkey='/key'\n\
                    [[group]]\nname='db'\nuser=1000\ncommand=['/db']\n\
                    [[replica]]\ngroup='web'\nfrom=['b']\ndir='/r'\ndurability='disk'\nuser=1001\nstart=['/web']\n\
                    [[peer]]\nname='b'\naddress='10.0.0.2:7475'\n";
        let access = Access::new(&Config::parse(text, Path::new("t")).unwrap(), 0).unwrap();
        for (uid, db, web) in [(1000, true, false), (1001, false, true)] {
            assert_eq!((access.may_attach(uid, "db"), access.may_attach(uid, "web")), (db, web), "uid {uid}");
        }
        assert!(!access.is_member(0, "db"), "root may attach, and the application runs as another");
        let text = "[node]\nname='a'\n[[group]]\nname='db'\ncommand=['/db']\n";
        let access = Access::new(&Config::parse(text, Path::new("t")).unwrap(), 500).unwrap();
        assert!(access.is_member(500, "db") && !access.is_member(0, "db"));
    }

    #[test]
    fn a_user_that_does_not_exist_is_named_with_the_group() {
        let text = "[node]\nname='a'\n[[group]]\nname='db'\nusers=['no-such-user']\n";
        let error = Access::new(&Config::parse(text, Path::new("t")).unwrap(), 0).unwrap_err();
        assert!(error.contains("db") && error.contains("no-such-user"), "{error}");
    }
}
