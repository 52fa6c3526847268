//! Which processors and memory nodes make up each package: `/sys/devices/system/cpu` and `…/node`.
//!
//! Read anew each epoch, since processors come and go. One that tells no package, or vanishes while it is looked at, is left out;
//! what is left must have a package at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{Roots, number};
use crate::node::placement::cpus::{self, CpuSet};
use crate::node::placement::policy::model::{PackageId, PackageSet};

/// A package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Its processors that are online.
    pub cpus: CpuSet,
    /// The memory nodes that are behind it.
    pub nodes: CpuSet,
}

/// The machine's packages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// By number.
    pub packages: BTreeMap<PackageId, Package>,
}

/// Why there is no topology.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The list of processors cannot be read.
    #[error("{path} cannot be read: {source}; is sysfs mounted?")]
    Unreadable {
        /// Which file.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The list is none.
    #[error("{path} is no list of processors: `{text}`")]
    Malformed {
        /// Which file.
        path: String,
        /// What it says.
        text: String,
    },
    /// No processor tells its package.
    #[error("none of the processors {cpus} tells its package in topology/physical_package_id")]
    NoPackage {
        /// Those online.
        cpus: String,
    },
}

impl Topology {
    /// As it is now.
    pub fn read(roots: &Roots) -> Result<Topology, TopologyError> {
        let root = roots.sys.join("devices/system/cpu");
        let path = root.join("online");
        let shown = path.display().to_string();
        let text = fs::read_to_string(&path)
            .map_err(|source| TopologyError::Unreadable { path: shown.clone(), source })?;
        let online = cpus::parse(&text).filter(|online| !online.is_empty()).ok_or_else(|| {
            TopologyError::Malformed { path: shown, text: text.chars().take(SHOWN).collect() }
        })?;
        let mut topology = Topology::default();
        for &cpu in &online {
            match number::<u32>(&root.join(format!("cpu{cpu}/topology/physical_package_id"))) {
                Some(package) if package <= LARGEST => {
                    topology.packages.entry(PackageId(package)).or_default().cpus.insert(cpu);
                }
                // Also -1, which virtual machines say.
                _ => tracing::debug!(cpu, "a processor tells no package"),
            }
        }
        if topology.packages.is_empty() {
            return Err(TopologyError::NoPackage { cpus: cpus::format(&online) });
        }
        topology.add_nodes(&roots.sys.join("devices/system/node"));
        Ok(topology)
    }

    /// A node is behind the packages whose processors it lists. Without nodes, memory is behind nobody in particular.
    fn add_nodes(&mut self, root: &Path) {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let node = name.to_str().and_then(|name| name.strip_prefix("node")?.parse::<u32>().ok());
            let list =
                fs::read_to_string(entry.path().join("cpulist")).ok().and_then(|text| cpus::parse(&text));
            let (Some(node), Some(list)) = (node, list) else { continue };
            for package in self.packages.values_mut().filter(|package| !package.cpus.is_disjoint(&list)) {
                package.nodes.insert(node);
            }
        }
    }

    /// All packages.
    pub fn ids(&self) -> PackageSet {
        self.packages.keys().copied().collect()
    }

    /// The processors of some packages.
    pub fn cpus(&self, packages: &PackageSet) -> CpuSet {
        self.packages
            .iter()
            .filter(|(id, _)| packages.contains(id))
            .flat_map(|(_, p)| &p.cpus)
            .copied()
            .collect()
    }

    /// The packages that have any of these processors.
    pub fn packages_of(&self, cpus: &CpuSet) -> PackageSet {
        self.packages.iter().filter(|(_, p)| !p.cpus.is_disjoint(cpus)).map(|(id, _)| *id).collect()
    }

    /// The packages that any of these memory nodes is behind.
    pub fn packages_of_nodes(&self, nodes: &CpuSet) -> PackageSet {
        self.packages.iter().filter(|(_, p)| !p.nodes.is_disjoint(nodes)).map(|(id, _)| *id).collect()
    }
}

/// Largest number of a package that is believed.
const LARGEST: u32 = 4095;

/// Characters that a message shows of a malformed file.
const SHOWN: usize = 40;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A tree in which each processor has the package that is told for it.
    pub(crate) fn machine(root: &Path, packages: &[&str]) -> Roots {
        let roots = Roots::below(root);
        let cpu = roots.sys.join("devices/system/cpu");
        for (number, package) in packages.iter().enumerate() {
            let dir = cpu.join(format!("cpu{number}/topology"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("physical_package_id"), format!("{package}\n")).unwrap();
            let node = roots.sys.join(format!("devices/system/node/node{package}"));
            fs::create_dir_all(&node).unwrap();
            let of: CpuSet =
                packages.iter().enumerate().filter(|(_, p)| *p == package).map(|(n, _)| n as u32).collect();
            fs::write(node.join("cpulist"), cpus::format(&of)).unwrap();
        }
        fs::write(cpu.join("online"), cpus::format(&(0..packages.len() as u32).collect())).unwrap();
        roots
    }

    #[test]
    fn packages_have_their_processors_and_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let roots = machine(dir.path(), &["0", "0", "1", "1"]);
        let topology = Topology::read(&roots).unwrap();
        assert_eq!(topology.packages[&PackageId(1)], Package { cpus: [2, 3].into(), nodes: [1].into() });
        assert_eq!(topology.packages_of(&[1, 2].into()), topology.ids());
        // A processor goes offline, and one loses its topology on the way.
        fs::write(roots.sys.join("devices/system/cpu/online"), "0,2-3").unwrap();
        fs::remove_dir_all(roots.sys.join("devices/system/cpu/cpu3")).unwrap();
        let topology = Topology::read(&roots).unwrap();
        assert_eq!(topology.cpus(&topology.ids()), [0, 2].into());
    }

    #[test]
    fn what_is_malformed_is_said_and_never_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let error = |roots: &Roots| Topology::read(roots).unwrap_err().to_string();
        assert!(error(&Roots::below(dir.path())).contains("online"));
        let roots = machine(dir.path(), &["-1", "x"]);
        assert!(error(&roots).contains("0-1"), "{}", error(&roots));
        fs::write(roots.sys.join("devices/system/cpu/online"), "0-").unwrap();
        assert!(error(&roots).contains("no list of processors"));
    }

    proptest! {
        #[test]
        fn no_tree_makes_it_panic(ids in prop::collection::vec("[0-9\\-x]{0,12}", 1..4), online in "[0-9,\\-]{0,8}") {
            let dir = tempfile::tempdir().unwrap();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let roots = machine(dir.path(), &ids);
            fs::write(roots.sys.join("devices/system/cpu/online"), online).unwrap();
            if let Ok(topology) = Topology::read(&roots) {
                prop_assert!(topology.packages.values().all(|package| !package.cpus.is_empty()));
            }
        }
    }
}
