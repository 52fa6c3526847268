//! RDMA: adapters, their ports and addresses, and what is below them.

use std::net::Ipv6Addr;

use super::{Finding, Host};
use crate::region::ethtool::Counters;

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
            found.extend(self.marks(&name));
            found.extend(self.pauses(&name));
        }
        found.extend(self.lost(&name));
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

    /// What adapter and network interface have counted that tells of losses, since they were set up.
    fn lost(&self, name: &str) -> Option<Finding> {
        let of_interface = self.network_device().map(|device| format!("sys/class/net/{device}/statistics"));
        let told: Counters = [
            self.counted(&self.path("hw_counters"), &REPEATED),
            self.counted(&self.path("counters"), &DAMAGED),
            of_interface.map(|dir| self.counted(&dir, &DROPPED)).unwrap_or_default(),
        ]
        .concat();
        if told.is_empty() {
            return None;
        }
        let some = listed(told.iter().filter(|(_, count)| *count > 0));
        const MEANS: &str =
            "Packets that are lost, damaged or late are repeated, and what follows them waits.";
        Some(if some.is_empty() {
            Finding::good("rdma_counters", format!("{name}: {} counters of losses, all 0", told.len()), MEANS)
        } else {
            Finding::advice(
                "rdma_counters",
                format!("{name}: {some}"),
                MEANS,
                "Ask again under load: what grows is to be mended (cable, switch, PFC or ECN: docs/hardware.md, RoCE); what stands \
                 still tells of the past, such as a peer that was switched off.",
            )
        })
    }

    /// Whether congestion has ever been told of by marks, as the adapter counts them.
    fn marks(&self, name: &str) -> Option<Finding> {
        let told = self.counted(&self.path("hw_counters"), &MARKED);
        if told.is_empty() {
            return None;
        }
        let found = format!("{name}: {}", listed(told.iter()));
        Some(if told.iter().any(|(_, count)| *count > 0) {
            Finding::good("rdma_ecn", found, "ECN is at work: senders are told of congestion, and slow down.")
        } else {
            Finding::unknown(
                "rdma_ecn",
                found,
                "No packet has been marked yet: nothing was congested, or ECN is off somewhere on the way.",
            )
        })
    }

    /// Whether packets have been held back by pauses, as the driver of the network interface counts them: by priority (PFC), or
    /// for all of them.
    fn pauses(&self, name: &str) -> Option<Finding> {
        let device = self.network_device()?;
        let counted = self.host.driver_counters(&device);
        let pauses: Vec<_> = counted.into_iter().filter(|(name, _)| is_pause(name)).collect();
        if pauses.is_empty() {
            return None;
        }
        const MEANS: &str =
            "Pauses hold packets back before a buffer overflows; with PFC only those of one priority.";
        let some = listed(pauses.iter().filter(|(_, count)| *count > 0));
        Some(if some.is_empty() {
            let found = format!("{name}: {device} counts pauses, {} counters, all 0", pauses.len());
            Finding::unknown("rdma_pauses", found, MEANS)
        } else if pauses.iter().any(|(name, count)| *count > 0 && name.contains("prio")) {
            Finding::good("rdma_pauses", format!("{name}: {device}: {some}"), MEANS)
        } else {
            Finding::advice(
                "rdma_pauses",
                format!("{name}: {device}: {some}"),
                "Pauses for all priorities hold up everything else on the link, too, and spread from switch to switch.",
                "PFC for the one priority of RoCE in place of global pauses: docs/hardware.md, RoCE.",
            )
        })
    }

    /// Those of the counters in a directory that are there.
    fn counted(&self, dir: &str, counters: &[&str]) -> Counters {
        let read =
            |name: &&str| Some((name.to_string(), self.host.read(&format!("{dir}/{name}"))?.parse().ok()?));
        counters.iter().filter_map(read).collect()
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

/// Counters of adapters for packets that had to be sent again or came out of order, under the names of several drivers.
const REPEATED: [&str; 16] = [
    "out_of_sequence",
    "packet_seq_err",
    "implied_nak_seq_err",
    "local_ack_timeout_err",
    "rnr_nak_retry_err",
    "out_of_buffer",
    "rx_icrc_encapsulated",
    "roce_adp_retrans",
    "seq_err_naks_rcvd",
    "to_retransmits",
    "max_retry_exceeded",
    "rcvd_seq_err",
    "out_of_seq_request",
    "completer_retry_err",
    "retry_exceeded_err",
    "retry_rnr_exceeded_err",
];

/// Counters of ports that every driver keeps.
const DAMAGED: [&str; 4] =
    ["port_rcv_errors", "port_xmit_discards", "symbol_error", "excessive_buffer_overrun_errors"];

/// Counters of network interfaces. `rx_dropped` is not among them: it counts what nobody wanted, too.
const DROPPED: [&str; 4] = ["rx_missed_errors", "rx_fifo_errors", "rx_crc_errors", "tx_errors"];

/// Counters of adapters for packets that were marked by ECN, and for what they said and heard because of it.
const MARKED: [&str; 4] = ["np_ecn_marked_roce_packets", "np_cnp_sent", "rp_cnp_handled", "rp_cnp_ignored"];

const LOSSES: &str =
    "Ask the driver's own tool (mlnx_qos, dcb), and set the switches alike: docs/hardware.md, RoCE.";

/// `name 3, other 0`
fn listed<'c>(counters: impl Iterator<Item = &'c (String, u64)>) -> String {
    counters.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// Of frames sent or received, such as `rx_prio3_pause`; not how long they held.
fn is_pause(counter: &str) -> bool {
    counter.contains("pause")
        && !["duration", "transition", "storm"].iter().any(|other| counter.contains(other))
}
