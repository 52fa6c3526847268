//! systemd's file descriptor store as the keeper of log regions.
//!
//! Used when the agent runs as a service with `FileDescriptorStoreMax=`: systemd then hands the descriptors
//! back at every start of the service, and no holder process is needed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};

use sd_notify::NotifyState;

use super::holder::{FdKeeper, KeeperError};
use crate::locks::lock;

/// The descriptors that systemd keeps for us.
#[derive(Debug)]
pub struct FdStore {
    held: Mutex<BTreeMap<String, OwnedFd>>,
}

impl FdStore {
    /// The store with what systemd handed over at this start.
    pub fn from_environment() -> Result<FdStore, KeeperError> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Err(KeeperError::Refused(NO_SERVICE.into()));
        }
        let mut held = BTreeMap::new();
        for (fd, name) in sd_notify::listen_fds_with_names(false)? {
            // Opening a memfd anew by its descriptor gives an equal one that is ours to own.
            let file = File::options().read(true).write(true).open(format!("/proc/self/fd/{fd}"))?;
            held.insert(name, OwnedFd::from(file));
        }
        Ok(FdStore { held: Mutex::new(held) })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        lock(&self.held)
    }
}

impl FdKeeper for FdStore {
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), KeeperError> {
        // systemd allows these characters in a name, and takes no answer: what it refuses is found missing later.
        if !name.bytes().all(|b| b.is_ascii_graphic() && b != b':') || name.is_empty() {
            return Err(KeeperError::Refused(format!(
                "`{name}` cannot name a descriptor in systemd's store"
            )));
        }
        let copy = fd.try_clone_to_owned()?;
        sd_notify::notify_with_fds(false, &[NotifyState::FdStore, NotifyState::FdName(name)], &[fd])?;
        self.held().insert(name.into(), copy);
        Ok(())
    }

    fn get(&self, name: &str) -> Result<Option<OwnedFd>, KeeperError> {
        Ok(self.held().get(name).map(|fd| fd.as_fd().try_clone_to_owned()).transpose()?)
    }

    fn list(&self) -> Result<Vec<String>, KeeperError> {
        Ok(self.held().keys().cloned().collect())
    }

    fn forget(&self, name: &str) -> Result<(), KeeperError> {
        sd_notify::notify(false, &[NotifyState::FdStoreRemove, NotifyState::FdName(name)])?;
        self.held().remove(name);
        Ok(())
    }
}

const NO_SERVICE: &str = "keeper = \"systemd\" works only in a service of Type=notify with FileDescriptorStoreMax=; \
                          use keeper = \"holder\" elsewhere";
