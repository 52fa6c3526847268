//! A machine, as the checks see it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::region::dirty;
use crate::region::ethtool::{self, Counters};

/// A machine's files below a root, and what can only be found by trying.
#[derive(Clone, Debug)]
pub struct Host {
    pub(super) root: PathBuf,
    /// What the verbs fabric would use, or why it is off; none where that was not tried.
    pub verbs: Option<Result<String, String>>,
    /// How dirty pages would be found; none where that was not tried.
    pub tracker: Option<dirty::Kind>,
    /// What drivers of network interfaces count, asked for by the interface's name; none where that was not tried.
    pub drivers: Option<fn(&str) -> Counters>,
}

impl Host {
    /// This machine: everything is tried.
    pub fn this() -> Host {
        Host {
            root: "/".into(),
            verbs: Some(verbs()),
            tracker: Some(dirty::best().kind()),
            drivers: Some(drivers),
        }
    }

    /// The machine whose `/proc` and `/sys` stand below `root`: nothing is tried.
    pub fn below(root: &Path) -> Host {
        Host { root: root.into(), verbs: None, tracker: None, drivers: None }
    }

    /// What the driver of a network interface counts; nothing where it does not tell.
    pub fn driver_counters(&self, interface: &str) -> Counters {
        self.drivers.map(|ask| ask(interface)).unwrap_or_default()
    }

    /// What a file says, without the blanks at its ends; none where it cannot be read.
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    /// Names in a directory, sorted; none where it cannot be read.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(dir)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Whether something is there.
    pub fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

fn drivers(interface: &str) -> Counters {
    ethtool::statistics(interface).unwrap_or_default()
}

#[cfg(feature = "verbs")]
fn verbs() -> Result<String, String> {
    use crate::fabric::verbs::{Choice, VerbsFabric};
    let found = VerbsFabric::probe(&Choice::default()).map_err(|e| e.to_string())?;
    let address = std::net::Ipv6Addr::from(found.gid.address).to_canonical();
    Ok(format!("{} port {}, {address} (GID {})", found.device, found.port, found.gid.index))
}

#[cfg(not(feature = "verbs"))]
fn verbs() -> Result<String, String> {
    Err("this program was built without the feature `verbs`".into())
}
