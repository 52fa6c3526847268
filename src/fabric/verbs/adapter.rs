//! Which adapter, which port and which of its addresses a connection uses: a rule over what sysfs tells.
//!
//! A port has several GIDs (one per address and RoCE version), and their order differs between adapters. The rule:
//! the address that the control connection to this peer uses, if the port has it; then one of the same family; then
//! a global one rather than a link-local one; then RoCE v2; then the lowest index. What the configuration names
//! (`device`, `port`, `gid_index`) goes before the rule.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::VerbsError;
use crate::file_id::FileId;

/// Where the kernel lists its adapters.
pub const SYSFS: &str = "/sys/class/infiniband";

/// Where the kernel lists what programs open of its adapters.
pub const SYSFS_VERBS: &str = "/sys/class/infiniband_verbs";

/// An adapter's entry in the kernel's list of what programs may open, which is gone as soon as the adapter is being removed.
///
/// A kernel driver that can take an adapter from its users says so by an event. One that cannot, as Soft-RoCE's, lets them go on,
/// tells them nothing, and has the removal wait until the last of them has closed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    path: PathBuf,
    id: FileId,
}

impl Seat {
    /// That of `device` in the list `verbs`; none if it is not there.
    pub fn of(verbs: &Path, device: &str) -> Option<Seat> {
        let mut entries = fs::read_dir(verbs).ok()?.flatten().map(|entry| entry.path());
        let named =
            |path: &PathBuf| fs::read_to_string(path.join("ibdev")).is_ok_and(|name| name.trim() == device);
        let path = entries.find(named)?;
        Some(Seat { id: FileId::at(&path).ok()?, path })
    }

    /// Whether the entry is gone, or another one's.
    pub fn is_gone(&self) -> bool {
        match FileId::at(&self.path) {
            Ok(id) => id != self.id,
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// What an operator may fix; the rule chooses the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Adapter, as `ibv_devices` names it.
    pub device: Option<String>,
    /// Port, from 1.
    pub port: Option<u8>,
    /// Index in the port's table of GIDs.
    pub gid_index: Option<u8>,
}

/// What a GID is an address of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand, or RoCE v1: an Ethernet frame of its own type, which no router forwards.
    V1,
    /// RoCE v2: UDP.
    V2,
}

/// An address of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gid {
    /// Index in the port's table.
    pub index: u8,
    /// 128 bits; IPv4 addresses are mapped.
    pub address: [u8; 16],
    /// See [`GidKind`].
    pub kind: GidKind,
}

/// A port as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its adapter.
    pub device: String,
    /// Its number, from 1.
    pub number: u8,
    /// Packets can pass.
    pub active: bool,
    /// Ethernet below (RoCE), else InfiniBand.
    pub ethernet: bool,
    /// Its addresses.
    pub gids: Vec<Gid>,
}

/// What a connection uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Adapter.
    pub device: String,
    /// Port.
    pub port: u8,
    /// Address.
    pub gid: Gid,
}

/// Chooses for a peer to which our control connection has the address `local`.
pub fn select(ports: &[Port], choice: &Choice, local: Option<IpAddr>) -> Result<Selected, VerbsError> {
    let wanted = |p: &&Port| {
        choice.device.as_ref().is_none_or(|d| *d == p.device) && choice.port.is_none_or(|n| n == p.number)
    };
    if ports.is_empty() {
        return Err(VerbsError::NoDevice);
    }
    let named: Vec<&Port> = ports.iter().filter(wanted).collect();
    if named.is_empty() {
        let known = ports.iter().map(|p| format!("{} port {}", p.device, p.number)).collect::<Vec<_>>();
        return Err(VerbsError::UnknownPort { known: known.join(", ") });
    }
    let up = named.iter().filter(|p| p.active);
    let best = up.filter_map(|p| Some((p, best_gid(p, choice, local)?)));
    let (port, gid) =
        best.min_by_key(|(_, gid)| rank(gid, local)).ok_or_else(|| nothing_usable(&named, choice))?;
    Ok(Selected { device: port.device.clone(), port: port.number, gid })
}

fn best_gid(port: &Port, choice: &Choice, local: Option<IpAddr>) -> Option<Gid> {
    match choice.gid_index {
        Some(index) => port.gids.iter().find(|gid| gid.index == index).copied(),
        // On InfiniBand the first entry is the port's own; others are aliases.
        None if !port.ethernet => port.gids.iter().min_by_key(|gid| gid.index).copied(),
        None => port.gids.iter().min_by_key(|gid| (rank(gid, local), gid.index)).copied(),
    }
}

/// Smaller is better.
fn rank(gid: &Gid, local: Option<IpAddr>) -> (bool, bool, bool, bool) {
    let address = canonical(gid.address);
    let exact = local == Some(address);
    let family = local.is_none_or(|local| local.is_ipv4() == address.is_ipv4());
    let global = !matches!(address, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80);
    (!exact, !family, !global, gid.kind != GidKind::V2)
}

fn canonical(gid: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(gid).to_canonical()
}

fn nothing_usable(named: &[&Port], choice: &Choice) -> VerbsError {
    let first = named[0];
    let (device, port) = (first.device.clone(), first.number);
    match choice.gid_index {
        Some(index) if named.iter().any(|p| p.active) => VerbsError::NoGid { device, port, index },
        _ if named.iter().any(|p| p.active) => VerbsError::NoAddress { device, port },
        _ => VerbsError::PortDown { device, port },
    }
}

/// All ports of all adapters below `root`, in the order of their names.
pub fn ports(root: &Path) -> io::Result<Vec<Port>> {
    let mut found = Vec::new();
    for device in names(root)? {
        let below = root.join(&device).join("ports");
        for name in names(&below)? {
            let Ok(number) = name.parse() else { continue };
            let port = below.join(&name);
            let line = |file: &str| fs::read_to_string(port.join(file)).unwrap_or_default();
            found.push(Port {
                device: device.clone(),
                number,
                active: line("state").contains("ACTIVE"),
                ethernet: line("link_layer").trim() == "Ethernet",
                gids: gids(&port)?,
            });
        }
    }
    Ok(found)
}

fn gids(port: &Path) -> io::Result<Vec<Gid>> {
    let mut found = Vec::new();
    for name in names(&port.join("gids"))? {
        let Ok(index) = name.parse() else { continue };
        let text = fs::read_to_string(port.join("gids").join(&name)).unwrap_or_default();
        let Ok(address) = text.trim().parse::<Ipv6Addr>() else { continue };
        // An entry that is not in use is all zeros, and its type cannot be read.
        if address.is_unspecified() {
            continue;
        }
        let Ok(kind) = fs::read_to_string(port.join("gid_attrs/types").join(&name)) else { continue };
        let kind = if kind.trim() == "RoCE v2" { GidKind::V2 } else { GidKind::V1 };
        found.push(Gid { index, address: address.octets(), kind });
    }
    found.sort_by_key(|gid| gid.index);
    Ok(found)
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, address: &str, kind: GidKind) -> Gid {
        let address: IpAddr = address.parse().unwrap();
        let v6 = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Gid { index, address: v6.octets(), kind }
    }

    fn port(device: &str, gids: Vec<Gid>) -> Port {
        Port { device: device.into(), number: 1, active: true, ethernet: true, gids }
    }

    /// As an mlx5 port with two addresses shows them.
    fn usual() -> Vec<Gid> {
        vec![
            gid(0, "fe80::1", GidKind::V1),
            gid(1, "fe80::1", GidKind::V2),
            gid(2, "10.0.0.1", GidKind::V1),
            gid(3, "10.0.0.1", GidKind::V2),
            gid(4, "fd00::1", GidKind::V1),
            gid(5, "fd00::1", GidKind::V2),
            gid(6, "10.0.9.1", GidKind::V2),
        ]
    }

    fn chosen(gids: Vec<Gid>, local: Option<&str>) -> u8 {
        let local = local.map(|l| l.parse().unwrap());
        select(&[port("mlx5_0", gids)], &Choice::default(), local).unwrap().gid.index
    }

    #[test]
    fn a_seat_is_gone_with_its_entry_and_also_where_another_adapter_has_taken_it() {
        let verbs = tempfile::tempdir().unwrap();
        let enter = |entry: &str, device: &str| {
            fs::create_dir(verbs.path().join(entry)).unwrap();
            fs::write(verbs.path().join(entry).join("ibdev"), format!("{device}\n")).unwrap();
        };
        enter("uverbs0", "mlx5_0");
        enter("uverbs1", "mlx5_1");
        assert_eq!(Seat::of(verbs.path(), "mlx5_2"), None);
        let seat = Seat::of(verbs.path(), "mlx5_1").unwrap();
        assert!(!seat.is_gone());
        fs::rename(verbs.path().join("uverbs1"), verbs.path().join("away")).unwrap();
        assert!(seat.is_gone());
        enter("uverbs1", "mlx5_1");
        assert!(seat.is_gone(), "the entry is another one's");
    }

    #[test]
    fn the_address_of_the_control_connection_comes_first() {
        assert_eq!(chosen(usual(), Some("10.0.9.1")), 6);
        assert_eq!(chosen(usual(), Some("10.0.0.1")), 3);
        assert_eq!(chosen(usual(), Some("fd00::1")), 5);
    }

    #[test]
    fn then_family_then_scope_then_version_then_index() {
        assert_eq!(chosen(usual(), Some("127.0.0.1")), 3);
        assert_eq!(chosen(usual(), Some("2001:db8::7")), 5);
        assert_eq!(chosen(usual(), None), 3);
        assert_eq!(chosen(vec![gid(0, "fe80::1", GidKind::V2), gid(1, "fd00::1", GidKind::V1)], None), 1);
        assert_eq!(chosen(vec![gid(4, "10.0.0.1", GidKind::V1), gid(7, "10.0.0.2", GidKind::V1)], None), 4);
    }

    #[test]
    fn what_the_operator_names_goes_before_the_rule() {
        let ports = [port("mlx5_0", usual()), port("mlx5_1", usual())];
        let choice = Choice { device: Some("mlx5_1".into()), port: Some(1), gid_index: Some(2) };
        let selected = select(&ports, &choice, Some("10.0.9.1".parse().unwrap())).unwrap();
        assert_eq!((selected.device.as_str(), selected.gid.index), ("mlx5_1", 2));
        let wrong = |choice| select(&ports, &choice, None).unwrap_err().to_string();
        let missing = wrong(Choice { device: Some("rxe9".into()), ..Choice::default() });
        assert!(missing.contains("mlx5_0 port 1, mlx5_1 port 1"), "{missing}");
        let missing = wrong(Choice { gid_index: Some(99), ..Choice::default() });
        assert!(missing.contains("99"), "{missing}");
    }

    #[test]
    fn an_adapter_with_the_right_address_wins_over_the_first() {
        let ports = [
            port("mlx5_0", vec![gid(0, "10.0.0.1", GidKind::V2)]),
            port("mlx5_1", vec![gid(0, "10.0.9.1", GidKind::V2)]),
        ];
        let selected =
            |local: &str| select(&ports, &Choice::default(), Some(local.parse().unwrap())).unwrap();
        assert_eq!(selected("10.0.9.1").device, "mlx5_1");
        assert_eq!(selected("192.0.2.1").device, "mlx5_0");
    }

    #[test]
    fn ports_that_are_down_or_have_no_address_are_said_to_be_so() {
        let down = Port { active: false, ..port("rxe0", usual()) };
        let error = |p: Port| select(&[p], &Choice::default(), None).unwrap_err();
        assert!(matches!(error(down), VerbsError::PortDown { .. }));
        assert!(matches!(error(port("rxe0", Vec::new())), VerbsError::NoAddress { .. }));
        assert!(matches!(select(&[], &Choice::default(), None), Err(VerbsError::NoDevice)));
    }

    #[test]
    fn infiniband_uses_its_first_gid() {
        let gids = vec![gid(0, "fe80::2", GidKind::V1), gid(1, "fd00::2", GidKind::V1)];
        let ib = Port { ethernet: false, ..port("mlx5_0", gids) };
        let selected = select(&[ib], &Choice::default(), Some("10.0.0.1".parse().unwrap())).unwrap();
        assert_eq!(selected.gid.index, 0);
    }

    #[test]
    fn sysfs_is_read_as_the_kernel_writes_it() {
        let root = tempfile::tempdir().unwrap();
        let port = root.path().join("rxe0/ports/1");
        let write = |file: &str, text: &str| {
            let path = port.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("state", "4: ACTIVE\n");
        write("link_layer", "Ethernet\n");
        write("gids/0", "fe80:0000:0000:0000:0000:00ff:fe00:0001\n");
        write("gids/1", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
        write("gids/2", "0000:0000:0000:0000:0000:0000:0000:0000\n");
        write("gid_attrs/types/0", "RoCE v2\n");
        write("gid_attrs/types/1", "IB/RoCE v1\n");
        let expected = vec![gid(0, "fe80::ff:fe00:1", GidKind::V2), gid(1, "10.0.0.1", GidKind::V1)];
        assert_eq!(ports(root.path()).unwrap(), [super::tests::port("rxe0", expected)]);
        assert_eq!(ports(&root.path().join("nothing")).unwrap(), []);
    }
}
