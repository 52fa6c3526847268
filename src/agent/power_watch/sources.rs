//! The power sources that the configuration names.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::agent::config::{Power, PowerKind, PowerSourceKeys};
use crate::power::command::{CommandSetup, CommandSource};
use crate::power::file::FileSource;
use crate::power::nut::{Credentials, NutSetup, NutSource};
use crate::power::supply::{self, SupplySource};
use crate::power::{PowerSource, PowerState};

/// For how long a word of a source that is asked many times a second is worth something: as long as the longest exchange with upsd.
const GOOD_FOR: Duration = Duration::from_secs(5);

/// Where upsd listens unless told otherwise.
const UPSD: &str = "127.0.0.1:3493";

/// How often a command is run, and how long a run may take, unless told otherwise.
const RUNS: Duration = Duration::from_secs(1);

/// Longest password file.
const MAX_PASSWORD: u64 = 1024;

/// Why a source cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The password cannot be read.
    #[error("cannot read the password of upsd in {}: {source}; its first line is to be the password of `user`, and nobody else may read it", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A source, and for how long what it says is worth something.
type Made = (Box<dyn PowerSource>, Duration);

/// The sources of `power`; `stop` ends what they wait for.
pub(super) fn make(power: &Power, stop: &Arc<AtomicBool>) -> Result<Vec<Made>, SourceError> {
    power.all_sources().iter().map(|keys| Ok(named(keys, one(keys, stop)?))).collect()
}

fn one(keys: &PowerSourceKeys, stop: &Arc<AtomicBool>) -> Result<Made, SourceError> {
    Ok(match keys.kind {
        PowerKind::File => (Box::new(FileSource::new(keys.path.clone().unwrap_or_default())), GOOD_FOR),
        PowerKind::Nut => (Box::new(NutSource::new(nut(keys)?)), GOOD_FOR),
        PowerKind::Kernel => {
            let dir = keys.dir.clone().unwrap_or_else(|| supply::CLASS.into());
            (Box::new(SupplySource::new(dir, keys.supplies.clone())), GOOD_FOR)
        }
        PowerKind::Command => {
            let setup = CommandSetup {
                command: keys.command.clone().unwrap_or_default(),
                every: keys.every.unwrap_or(RUNS),
                deadline: keys.deadline.unwrap_or(RUNS),
            };
            // What a run said is good until the next one has ended.
            let good_for = setup.every + setup.deadline + GOOD_FOR;
            (Box::new(CommandSource::new(setup, stop.clone())), good_for)
        }
    })
}

fn nut(keys: &PowerSourceKeys) -> Result<NutSetup, SourceError> {
    let credentials = keys.user.as_ref().zip(keys.password_file.as_ref()).map(|(user, path)| {
        let password =
            password(path).map_err(|source| SourceError::Password { path: path.clone(), source })?;
        Ok(Credentials { user: user.clone(), password })
    });
    Ok(NutSetup {
        server: keys.server.clone().unwrap_or_else(|| UPSD.into()),
        ups: keys.ups.clone().unwrap_or_default(),
        credentials: credentials.transpose()?,
        login: keys.login.unwrap_or(false),
    })
}

fn password(path: &Path) -> io::Result<String> {
    // Whatever lies there must not hold the agent up.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("no regular file"));
    }
    if found.mode() & 0o077 != 0 {
        let text = format!("its mode is {:o}: others may read it; chmod 600", found.mode() & 0o777);
        return Err(io::Error::other(text));
    }
    let mut text = String::new();
    file.take(MAX_PASSWORD + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_PASSWORD {
        return Err(io::Error::other(format!("longer than {MAX_PASSWORD} bytes")));
    }
    let line = text.lines().next().filter(|line| !line.is_empty() && !line.chars().any(char::is_control));
    line.map(str::to_owned).ok_or_else(|| io::Error::other("its first line is no password"))
}

/// The source by the name that the operator gave it, if any.
fn named(keys: &PowerSourceKeys, (source, good_for): Made) -> Made {
    match &keys.name {
        Some(name) => (Box::new(Named { name: name.clone(), source }), good_for),
        None => (source, good_for),
    }
}

struct Named {
    name: String,
    source: Box<dyn PowerSource>,
}

impl PowerSource for Named {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&mut self) -> PowerState {
        self.source.poll()
    }

    fn wait(&mut self, timeout: Duration) -> PowerState {
        self.source.wait(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_password_is_read_from_a_file_that_nobody_else_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "secret\nmore").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o644);
        assert!(password(&path).unwrap_err().to_string().contains("644"));
        mode(0o600);
        assert_eq!(password(&path).unwrap(), "secret");
        assert!(password(dir.path()).unwrap_err().to_string().contains("no regular file"));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(password(&pipe).unwrap_err().to_string().contains("no regular file"));
    }
}
