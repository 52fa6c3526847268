//! RDMA: adapters, their ports and addresses, and what is below them.

use std::net::Ipv6Addr;

use super::{Finding, Host};

/// Where the kernel lists adapters.
const ADAPTERS: &str = "sys/class/infiniband";

/// Ethernet frames that carry RDMA packets of 4096 bytes and their headers.
const MTU_OF_4096: u32 = 4200;

/// Adapters, ports, addresses, and whether the verbs fabric can use them.
pub fn findings(host: &Host) -> Vec<Finding> {
    let adapters = host.names(ADAPTERS);
    if adapters.is_empty() {
        return vec![Finding::unknown(
            "rdma",
            "no adapter",
            "Groups travel by tcp, which needs nothing. `fabric = \"verbs\"` would leave its group unprotected.",
        )];
    }
    let mut found = Vec::new();
    for adapter in &adapters {
        for number in host.names(&format!("{ADAPTERS}/{adapter}/ports")) {
            found.extend(Port { host, adapter, number: &number }.findings());
        }
    }
    found.extend(fabric(host));
    found
}

fn fabric(host: &Host) -> Option<Finding> {
    Some(match host.verbs.as_ref()? {
        Ok(chosen) => Finding::good(
            "verbs",
            chosen.clone(),
            "What `fabric = \"verbs\"` uses unless [rdma] names another.",
        ),
        Err(why) => Finding::trouble(
            "verbs",
            why.clone(),
            "There is an adapter, and `fabric = \"verbs\"` cannot use it.",
            "Install libibverbs1 and ibverbs-providers, bring the port up, and give its network interface an address.",
        ),
    })
}

/// A port of an adapter.
struct Port<'h> {
    host: &'h Host,
    adapter: &'h str,
    number: &'h str,
}

impl Port<'_> {
    fn findings(&self) -> Vec<Finding> {
        let name = format!("{} port {}", self.adapter, self.number);
        let state = self.read("state").unwrap_or_default();
        if !state.contains("ACTIVE") {
            return vec![Finding::trouble(
                "rdma_port",
                format!("{name}: {state}"),
                "No packet passes here.",
                "Check cable, switch and `ip link`; on InfiniBand also the subnet manager.",
            )];
        }
        let ethernet = self.read("link_layer").is_some_and(|layer| layer == "Ethernet");
        let kind = if ethernet { "RoCE" } else { "InfiniBand" };
        let rate = self.read("rate").unwrap_or_else(|| "unknown rate".into());
        let mut found = vec![match self.is_software() {
            true => Finding::advice(
                "rdma_port",
                format!("{name}: active, {kind} by software, {rate}"),
                "The processor is the adapter: right for tests, slow, and a read after a write proves nothing of durability.",
                "Use a real adapter where speed matters.",
            ),
            false => Finding::good("rdma_port", format!("{name}: active, {kind}, {rate}"), "Packets pass."),
        }];
        if ethernet {
            found.push(self.addresses(&name));
            found.extend(self.mtu(&name));
            found.extend(self.losses(&name));
        }
        found
    }

    /// A global address of RoCE v2 is what crosses a router.
    fn addresses(&self, name: &str) -> Finding {
        let mut gids = Vec::new();
        for index in self.host.names(&self.path("gids")) {
            let gid = self.read(&format!("gids/{index}")).and_then(|text| text.parse::<Ipv6Addr>().ok());
            let kind = self.read(&format!("gid_attrs/types/{index}"));
            if let (Some(gid), Some(kind)) = (gid.filter(|gid| !gid.is_unspecified()), kind) {
                gids.push((index, gid, kind));
            }
        }
        let link_local = |gid: &Ipv6Addr| gid.segments()[0] & 0xffc0 == 0xfe80;
        let routed = gids.iter().any(|(_, gid, kind)| kind == "RoCE v2" && !link_local(gid));
        let list: Vec<String> =
            gids.iter().map(|(i, gid, kind)| format!("{i}: {} {kind}", gid.to_canonical())).collect();
        let found = format!("{name}: {}", if list.is_empty() { "none".into() } else { list.join(", ") });
        if routed {
            return Finding::good(
                "rdma_gid",
                found,
                "A RoCE v2 address that nodes of other networks reach, too.",
            );
        }
        let remedy =
            "Give the port's network interface an address: `ip address add` (its GID appears at once).";
        if gids.is_empty() {
            return Finding::trouble(
                "rdma_gid",
                found,
                "Without an address no connection can be made.",
                remedy,
            );
        }
        Finding::advice(
            "rdma_gid",
            found,
            "Only nodes on the same link are reached: no global RoCE v2 address.",
            remedy,
        )
    }

    fn mtu(&self, name: &str) -> Option<Finding> {
        let device = self.network_device()?;
        let mtu: u32 = self.host.read(&format!("sys/class/net/{device}/mtu"))?.parse().ok()?;
        let found = format!("{name}: {device} has an MTU of {mtu}");
        Some(if mtu >= MTU_OF_4096 {
            Finding::good("rdma_mtu", found, "RDMA packets carry 4096 bytes, the most that there is.")
        } else {
            Finding::advice(
                "rdma_mtu",
                found,
                "RDMA packets carry 1024 bytes or less: more packets for the same bytes.",
                "Set an MTU of 4200 or more (9000 is usual) on both nodes and every switch between them.",
            )
        })
    }

    /// RoCE runs on a network that loses nothing, or tells early that it is about to.
    fn losses(&self, name: &str) -> Option<Finding> {
        const MEANS: &str = "RoCE repeats whole windows after a loss; PFC or ECN keeps losses away.";
        if self.is_software() {
            return None;
        }
        let device = self.network_device()?;
        let ecn = format!("sys/class/net/{device}/ecn/roce_np/enable");
        let priorities = self.host.names(&ecn);
        if priorities.is_empty() {
            let found = format!("{name}: this driver does not tell whether PFC or ECN is on");
            return Some(Finding::unknown("rdma_losses", found, MEANS).or_remedy(LOSSES));
        }
        let on = priorities
            .iter()
            .filter(|p| self.host.read(&format!("{ecn}/{p}")).as_deref() == Some("1"))
            .count();
        let found = format!("{name}: ECN is on for {on} of {} priorities", priorities.len());
        Some(if on > 0 {
            Finding::good("rdma_losses", found, MEANS)
        } else {
            Finding::advice("rdma_losses", found, MEANS, LOSSES)
        })
    }

    fn network_device(&self) -> Option<String> {
        self.host
            .names(&self.path("gid_attrs/ndevs"))
            .iter()
            .find_map(|i| self.read(&format!("gid_attrs/ndevs/{i}")))
    }

    /// An adapter of hardware is a device of a bus.
    fn is_software(&self) -> bool {
        !self.host.has(&format!("{ADAPTERS}/{}/device", self.adapter))
    }

    fn path(&self, file: &str) -> String {
        format!("{ADAPTERS}/{}/ports/{}/{file}", self.adapter, self.number)
    }

    fn read(&self, file: &str) -> Option<String> {
        self.host.read(&self.path(file))
    }
}

const LOSSES: &str =
    "Ask the driver's own tool (mlnx_qos, dcb), and set the switches alike: docs/hardware.md, RoCE.";
