//! Users of the configuration as the numbers that the kernel knows.

use std::process::Command;

use super::config::UserRef;

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// uid
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
}

/// Finds a user through the name service, as `login` would. A uid without an entry keeps its number as group.
pub fn resolve(user: &UserRef) -> Result<User, String> {
    let key = match user {
        UserRef::Id(uid) => uid.to_string(),
        UserRef::Name(name) => name.clone(),
    };
    let entry = Command::new("getent")
        .args(["passwd", "--", &key])
        .output()
        .map_err(|e| format!("cannot look up user `{key}`: getent: {e}"))?;
    match (parse(&String::from_utf8_lossy(&entry.stdout)), user) {
        (Some(found), _) => Ok(found),
        (None, UserRef::Id(uid)) => Ok(User { uid: *uid, gid: *uid }),
        (None, UserRef::Name(name)) => Err(format!(
            "there is no user `{name}` on this machine; create it or name another in the configuration"
        )),
    }
}

/// Every group that a user is in; none of one without an entry.
pub fn groups_of(user: &UserRef) -> Vec<u32> {
    let key = match user {
        UserRef::Id(uid) => uid.to_string(),
        UserRef::Name(name) => name.clone(),
    };
    let said = Command::new("id").args(["-G", "--", &key]).output().map(|out| out.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).split_whitespace().filter_map(|gid| gid.parse().ok()).collect()
}

/// A line of passwd(5).
fn parse(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.lines().next()?.split(':').collect();
    let [_, _, uid, gid, ..] = fields[..] else { return None };
    Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number_and_strangers_are_named() {
        let root = User { uid: 0, gid: 0 };
        assert_eq!(resolve(&UserRef::Name("root".into())).unwrap(), root);
        assert_eq!(resolve(&UserRef::Id(0)).unwrap(), root);
        assert!(groups_of(&UserRef::Id(0)).contains(&0));
        assert!(groups_of(&UserRef::Id(4_000_000)).is_empty());
        assert_eq!(resolve(&UserRef::Id(4_000_000)).unwrap().uid, 4_000_000);
        assert!(resolve(&UserRef::Name("no-such-user".into())).unwrap_err().contains("no-such-user"));
        assert!(resolve(&UserRef::Name("--help".into())).unwrap_err().contains("--help"));
    }
}
