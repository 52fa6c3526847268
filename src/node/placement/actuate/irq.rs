//! The interrupts of a network adapter, and the package that it is at.

use std::fs;
use std::path::{Path, PathBuf};

use crate::node::placement::cpus;
use crate::node::placement::monitor::topology::Topology;
use crate::node::placement::monitor::{Roots, number};
use crate::node::placement::policy::model::PackageId;

/// Numbers of the adapter's interrupts: a network interface's, or an RDMA device's. None where the system does not list them.
pub fn of(roots: &Roots, device: &str) -> Vec<u32> {
    let mut found = classes(roots, device)
        .iter()
        .map(|dir| listed(dir))
        .find(|irqs| !irqs.is_empty())
        .unwrap_or_default();
    found.sort_unstable();
    found
}

/// The interrupts that a device's directory names.
fn listed(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir(dir.join("msi_irqs")).into_iter().flatten().flatten();
    let found: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    if found.is_empty() {
        return number::<u32>(&dir.join("irq")).filter(|irq| *irq > 0).into_iter().collect();
    }
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

/// Directories of the device behind an adapter. That of a virtio device is a step below the one which has its interrupts; above any
/// other device is a bridge, whose interrupts are not the adapter's.
fn classes(roots: &Roots, device: &str) -> Vec<PathBuf> {
    let plain = !device.is_empty() && !device.contains(['/', '\0']) && device != "." && device != "..";
    let dirs = ["net", "infiniband"]
        .iter()
        .filter(|_| plain)
        .map(|class| roots.sys.join("class").join(class).join(device));
    let behind = |dir: PathBuf| {
        let device = dir.join("device");
        let bus = fs::read_link(device.join("subsystem")).ok();
        let virtio = bus.is_some_and(|bus| bus.file_name() == Some("virtio".as_ref()));
        let parent = virtio.then(|| device.join(".."));
        [Some(device), parent].into_iter().flatten()
    };
    dirs.flat_map(behind).filter(|dir| dir.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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

    #[test]
    fn the_parent_s_interrupts_are_a_virtio_device_s_and_no_other_s() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(dir.path());
        let parent = dir.path().join("pci");
        let device = parent.join("device");
        fs::create_dir_all(parent.join("msi_irqs")).unwrap();
        fs::write(parent.join("msi_irqs/24"), "msix\n").unwrap();
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(roots.sys.join("class/net/eth0")).unwrap();
        symlink(&device, roots.sys.join("class/net/eth0/device")).unwrap();
        symlink("../../bus/pci", device.join("subsystem")).unwrap();
        assert_eq!(of(&roots, "eth0"), Vec::<u32>::new(), "a bridge's");
        fs::remove_file(device.join("subsystem")).unwrap();
        symlink("../../bus/virtio", device.join("subsystem")).unwrap();
        assert_eq!(of(&roots, "eth0"), [24]);
        fs::write(device.join("irq"), "9\n").unwrap();
        assert_eq!(of(&roots, "eth0"), [9], "what the device itself has comes first, and alone");
    }
}
