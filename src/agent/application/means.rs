//! By what an application is supervised on this machine, and whom a process has forked.

use std::fs;
use std::io;

use crate::agent::context::Context;
use crate::failover::supervise::{Helper, SuperviseError, Supervisor, hierarchies};
use crate::{mounts, threads};

/// A control group of its own where one can be made, else signals.
pub(super) fn best_means(context: &Context, name: &str) -> Result<Supervisor, SuperviseError> {
    let mounts = mounts::read().map_err(|e| system("reading the mounts", e))?;
    // Two agents of one machine (a demo, a test) must not freeze each other's applications.
    let dir = context.config.node.state_dir.as_os_str().as_encoded_bytes();
    let unit = format!("{name}-{:08x}", crc32c::crc32c(dir));
    let group_dir = context.states.group_dir(name);
    let lock =
        group_dir.map_err(|e| system("the group's directory", io::Error::other(e)))?.join(WATCHDOG_FILE);
    let helper = || Helper { argv: vec![context.program.clone().into()], lock: Some(lock.clone()) };
    for hierarchy in hierarchies(&mounts) {
        match Supervisor::new(&unit, Some(&hierarchy), helper()) {
            Ok(means) => return Ok(means),
            Err(error) => tracing::debug!(group = name, %error, "not supervised by this hierarchy"),
        }
    }
    Supervisor::new(&unit, None, helper())
}

pub(super) fn system(what: &str, source: io::Error) -> SuperviseError {
    SuperviseError::System { what: what.into(), source }
}

/// The children of a process, where the kernel lists them; one that has ended has none.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let list = |thread: u32| fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).ok();
    let lists = threads::of(pid).into_iter().filter_map(list);
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// File of the group's directory that the watchdog of its application locks.
const WATCHDOG_FILE: &str = "watchdog";
