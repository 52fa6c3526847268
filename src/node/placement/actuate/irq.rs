//! The interrupts of a network adapter, and the package that it is at.

use std::fs;
use std::path::PathBuf;

use crate::node::placement::cpus;
use crate::node::placement::monitor::topology::Topology;
use crate::node::placement::monitor::{Roots, number};
use crate::node::placement::policy::model::PackageId;

/// Numbers of the adapter's interrupts: a network interface's, or an RDMA device's. None where the system does not list them.
pub fn of(roots: &Roots, device: &str) -> Vec<u32> {
    let entries =
        classes(roots, device).into_iter().filter_map(|dir| fs::read_dir(dir.join("msi_irqs")).ok());
    let mut found: Vec<u32> =
        entries.flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    if found.is_empty() {
        found.extend(
            classes(roots, device)
                .into_iter()
                .filter_map(|dir| number::<u32>(&dir.join("irq")))
                .filter(|irq| *irq > 0),
        );
    }
    found.sort_unstable();
    found
}

/// The package that the adapter is at, by the processors that are local to it; none where it tells none, or several packages'.
pub fn package(roots: &Roots, device: &str, topology: &Topology) -> Option<PackageId> {
    let dirs = classes(roots, device);
    let local = |dir: &PathBuf| cpus::parse(&fs::read_to_string(dir.join("local_cpulist")).ok()?);
    let node =
        |dir: &PathBuf| number::<i64>(&dir.join("numa_node")).and_then(|node| u32::try_from(node).ok());
    let by_cpus = dirs.iter().find_map(local).map(|cpus| topology.packages_of(&cpus));
    let by_node = || dirs.iter().find_map(node).map(|node| topology.packages_of_nodes(&[node].into()));
    let packages = by_cpus.filter(|packages| packages.len() == 1).or_else(by_node)?;
    packages.first().copied().filter(|_| packages.len() == 1)
}

/// Directories of the device behind an adapter. A virtual one's is a step below that of its bus.
fn classes(roots: &Roots, device: &str) -> Vec<PathBuf> {
    let plain = !device.is_empty() && !device.contains(['/', '\0']) && device != "." && device != "..";
    let dirs = ["net", "infiniband"]
        .iter()
        .filter(|_| plain)
        .map(|class| roots.sys.join("class").join(class).join(device));
    dirs.flat_map(|dir| [dir.join("device"), dir.join("device/..")]).filter(|dir| dir.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::placement::monitor::topology::tests::machine;

    #[test]
    fn an_adapter_tells_its_interrupts_and_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let roots = machine(dir.path(), &["0", "1"]);
        let topology = Topology::read(&roots).unwrap();
        let device = roots.sys.join("class/net/eth0/device");
        fs::create_dir_all(device.join("msi_irqs")).unwrap();
        for irq in ["42", "41"] {
            fs::write(device.join("msi_irqs").join(irq), "msix\n").unwrap();
        }
        fs::write(device.join("numa_node"), "1\n").unwrap();
        assert_eq!(
            (of(&roots, "eth0"), package(&roots, "eth0", &topology)),
            (vec![41, 42], Some(PackageId(1)))
        );
        fs::write(device.join("numa_node"), "-1\n").unwrap();
        fs::write(device.join("local_cpulist"), "0\n").unwrap();
        assert_eq!(package(&roots, "eth0", &topology), Some(PackageId(0)));
        fs::write(device.join("local_cpulist"), "0-1\n").unwrap();
        assert_eq!((of(&roots, "../eth0"), package(&roots, "eth0", &topology)), (vec![], None));
    }
}
