//! Processes of other pid namespaces: containers. Their numbers mean other processes here, so each is looked for as both see it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::{fs, io};

use crate::log::Owner;
use crate::log::owner::pid_namespace;

/// A process as its own pid namespace has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Indoors {
    /// Its number there.
    pub number: u32,
    /// Inode of the namespace.
    pub namespace: u64,
}

impl Indoors {
    /// The process that is `pid` here, if it can be looked at.
    pub fn of(pid: u32) -> Option<Indoors> {
        Indoors::read(pid).ok()
    }

    fn read(pid: u32) -> io::Result<Indoors> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        // One for each namespace from ours down to its own.
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let numbers: Vec<u32> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        match numbers[..] {
            [] => Err(io::ErrorKind::InvalidData.into()),
            // What nobody may look into is of no concern here.
            [number] => Ok(Indoors { number, namespace: pid_namespace() }),
            [.., number] => {
                Ok(Indoors { number, namespace: fs::metadata(format!("/proc/{pid}/ns/pid"))?.ino() })
            }
        }
    }

    /// Whether `owner` is this process, or was. `session`: that of the process, which tells it where no `/proc` told the owner
    /// its own namespace.
    pub fn is(&self, owner: &Owner, session: u32) -> bool {
        owner.pid == self.number
            && (owner.namespace == self.namespace || (owner.namespace == 0 && owner.session == session))
    }
}

/// Every process of the machine by what it is indoors.
#[derive(Debug)]
pub struct Everyone(BTreeMap<Indoors, u32>);

impl Everyone {
    /// Looks at them all. `None` if some may be hidden from here: then nobody's absence means anything.
    pub fn look() -> Option<Everyone> {
        if pid_namespace() != INITIAL_NAMESPACE {
            return None;
        }
        let mut all = BTreeMap::new();
        for entry in fs::read_dir("/proc").ok()? {
            let name = entry.ok()?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            match Indoors::read(pid) {
                Ok(indoors) => drop(all.insert(indoors, pid)),
                // It has ended since it was listed, and been reaped.
                Err(_) if !fs::exists(format!("/proc/{pid}")).ok()? => {}
                Err(_) => return None,
            }
        }
        Some(Everyone(all))
    }

    /// The number here of `owner`, if it is still there.
    pub fn find(&self, owner: &Owner) -> Option<u32> {
        self.0.get(&Indoors { number: owner.pid, namespace: owner.namespace }).copied()
    }
}

/// The namespace that sees every process (`PROC_PID_INIT_INO` of the kernel).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFC;
