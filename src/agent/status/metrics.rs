//! The status document as Prometheus reads it: OpenMetrics text, a gauge or counter for every number and a labelled 1 for every
//! word. What is not known is absent, never 0. `docs/guide.md` lists the names.

use std::sync::atomic::AtomicU64;
use std::time::UNIX_EPOCH;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

use super::{BudgetStatus, DestinationStatus, GroupStatus, LogStatus, Role, Status};
use crate::agent::clock::WallTime;
use crate::node::placement::status::{PackageStatus, PlacementStatus};

/// `status` in the text format of OpenMetrics 1.0, which Prometheus reads as its own.
pub fn render(status: &Status) -> String {
    let mut page = Page(Registry::with_prefix("pmemha"));
    page.node(status);
    status.placement.iter().for_each(|placement| page.placement(placement));
    page.groups(&status.groups);
    page.logs(&status.groups);
    page.budgets(&status.groups);
    page.destinations(&status.groups);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &page.0);
    text
}

type Labels = Vec<(&'static str, String)>;

/// A number of a part of the document: its name, what it says, and where it is.
type Reading<T, N> = (&'static str, &'static str, fn(&T) -> N);

/// A row: its labels and the number.
type Sample = (Labels, f64);

struct Page(Registry);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = Sample>) {
        self.family(name, help, samples, |gauge: &Gauge<f64, AtomicU64>, value| {
            gauge.set(value);
        });
    }

    /// The name gets the suffix `_total`.
    fn counter(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = Sample>) {
        self.family(name, help, samples, |counter: &Counter<f64, AtomicU64>, value| {
            counter.inc_by(value);
        });
    }

    /// Nothing where there is no sample.
    fn family<M: Metric + TypedMetric + Default>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
        put: impl Fn(&M, f64),
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let family = Family::<Labels, M>::default();
        samples.for_each(|(labels, value)| put(&family.get_or_create(&labels), value));
        self.0.register(name, help, family);
    }

    fn node(&mut self, status: &Status) {
        let node = &status.node;
        let who = vec![("node", node.name.clone()), ("version", node.version.clone())];
        self.gauge("agent", "The agent that answers", [(who, 1.0)]);
        self.gauge("agent_uptime_seconds", "Since the agent started", [(vec![], node.uptime_s as f64)]);
        self.gauge("sessions", "Open, of applications and operators", [(vec![], f64::from(node.sessions))]);
        if node.rdma.wanted {
            let on = node.rdma.off.is_none();
            self.gauge("rdma_available", "Whether the verbs fabric has its adapter", [(vec![], flag(on))]);
        }
        let power = status.power.as_ref();
        let known = |value: Option<f64>| value.map(|value| (vec![], value));
        self.gauge(
            "power_online",
            "Whether there is external power",
            known(power.and_then(|p| p.online).map(flag)),
        );
        self.gauge(
            "power_runtime_seconds",
            "How long the battery lasts at the present load",
            known(power.and_then(|p| p.runtime_s).map(|s| s as f64)),
        );
        self.gauge(
            "power_charge_ratio",
            "Charge of the battery, 0 to 1",
            known(power.and_then(|p| p.charge).map(f64::from)),
        );
        let sources = power
            .iter()
            .flat_map(|p| &p.sources)
            .filter_map(|source| Some((vec![("source", source.name.clone())], flag(source.online?))));
        self.gauge("power_source_online", "Whether a source says that there is external power", sources);
    }

    fn placement(&mut self, placement: &PlacementStatus) {
        let of = |package: &PackageStatus| vec![("package", package.package.to_string())];
        let packages = || placement.packages.iter();
        self.gauge("package_load_ratio", "Share of a package in use", packages().map(|p| (of(p), p.load)));
        self.gauge(
            "package_residency_ratio",
            "Share of time that a package sleeps whatever the others do",
            packages().filter_map(|p| Some((of(p), p.residency?))),
        );
        let class = packages().filter_map(|p| Some((with(of(p), "class", &p.class?.to_string()), 1.0)));
        self.gauge("package_class", "1 for the package's present class", class);
        let watts = placement.watts.map(|watts| (vec![], watts));
        self.gauge("package_power_watts", "Power of all packages", watts);
        self.gauge(
            "placement_gathered",
            "Whether all has gathered on battery",
            [(vec![], flag(placement.gathered))],
        );
        self.counter(
            "placement_moves",
            "Groups of threads that were moved",
            [(vec![], placement.moves as f64)],
        );
    }

    fn groups(&mut self, groups: &[GroupStatus]) {
        let state = |g: &GroupStatus| (with(of(g), "state", &g.state), 1.0);
        self.gauge("group_state", "1 for the group's present state", groups.iter().map(state));
        let generation = |g: &GroupStatus| (of(g), f64::from(g.generation.0));
        self.gauge("group_generation", "Generation known here", groups.iter().map(generation));
        let attached = |g: &GroupStatus| (of(g), g.sessions.len() as f64);
        self.gauge("group_processes", "Attached processes of the application", groups.iter().map(attached));
        let regions = groups.iter().flat_map(|g| {
            g.regions.iter().map(move |region| (with(of(g), "path", &region.path), region.len as f64))
        });
        self.gauge("region_bytes", "Size of a protected file", regions);
        let left_out =
            |g: &GroupStatus| (of(g), g.unprotected_files.len() as f64 + g.unprotected_files_more as f64);
        self.gauge(
            "group_unprotected_files",
            "Files that match `protect` and are not protected",
            groups.iter().map(left_out),
        );
        let archived = groups.iter().filter_map(|g| {
            let archive = g.archive.as_ref()?;
            Some((with(of(g), "dir", &archive.dir), archive.lsn_durable?.0 as f64))
        });
        self.gauge("archive_lsn_durable_bytes", "End of what is durable in the archive", archived);
    }

    fn logs(&mut self, groups: &[GroupStatus]) {
        let logs: Vec<(Labels, &LogStatus)> =
            groups.iter().filter_map(|g| Some((of(g), g.log.as_ref()?))).collect();
        for (name, help, value) in LOG_GAUGES {
            self.gauge(name, help, logs.iter().map(|(labels, log)| (labels.clone(), value(log))));
        }
        for (name, help, value) in LOG_COUNTERS {
            self.counter(name, help, logs.iter().map(|(labels, log)| (labels.clone(), value(log))));
        }
    }

    fn budgets(&mut self, groups: &[GroupStatus]) {
        let budgets: Vec<(Labels, &BudgetStatus)> =
            groups.iter().filter_map(|g| Some((of(g), g.budget.as_ref()?))).collect();
        for (name, help, value) in BUDGET_GAUGES {
            let known = budgets.iter().filter_map(|(labels, b)| Some((labels.clone(), value(b)?)));
            self.gauge(name, help, known);
        }
    }

    fn destinations(&mut self, groups: &[GroupStatus]) {
        let rows: Vec<(Labels, &DestinationStatus)> = groups
            .iter()
            .flat_map(|g| g.destinations.iter().map(move |d| (with(of(g), "destination", &d.node), d)))
            .collect();
        let state =
            |(labels, d): &(Labels, &DestinationStatus)| (with(labels.clone(), "state", d.state.word()), 1.0);
        self.gauge("destination_state", "1 for the destination's present state", rows.iter().map(state));
        let durability = rows.iter().filter_map(|(labels, d)| {
            let labels = with(labels.clone(), "durability", d.durability.as_ref()?);
            Some((with(labels, "fabric", d.fabric.as_deref().unwrap_or("")), 1.0))
        });
        self.gauge("destination_durability", "1 for what makes bytes survive at the destination", durability);
        for (name, help, value) in DESTINATION_GAUGES {
            let known = rows.iter().filter_map(|(labels, d)| Some((labels.clone(), value(d)?)));
            self.gauge(&format!("destination_{name}"), help, known);
        }
        let unprotected = rows.iter().map(|(labels, d)| (labels.clone(), d.unprotected_writes as f64));
        self.counter("destination_unprotected_writes", "Pages found changed without a record", unprotected);
    }
}

fn of(group: &GroupStatus) -> Labels {
    let role = match group.role {
        Role::Source => "source",
        Role::Destination => "destination",
    };
    vec![("group", group.name.clone()), ("role", role.into())]
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_owned()));
    labels
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn seconds(as_of: &str) -> Option<f64> {
    let since = WallTime::parse(as_of)?.0.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

const LOG_GAUGES: [Reading<LogStatus, f64>; 6] = [
    ("log_ring_bytes", "Size of the ring", |l| l.ring_bytes as f64),
    ("log_used_bytes", "Of the ring, what some consumer still needs", |l| l.used_bytes as f64),
    ("log_memory_bytes", "Memory that the log region takes at present", |l| l.memory_bytes as f64),
    ("log_memory_limit_bytes", "Memory that it takes at most", |l| l.memory_limit_bytes as f64),
    ("log_ahead", "Whether the application is ahead of the log", |l| flag(l.ahead)),
    ("log_commits_wait", "Whether drains wait for the commit level at present", |l| flag(l.commits_wait)),
];

const LOG_COUNTERS: [Reading<LogStatus, f64>; 6] = [
    ("log_times_ahead", "Times that the application outran the ring", |l| l.times_ahead as f64),
    ("log_fillers", "Slots whose writer died in the middle", |l| l.fillers as f64),
    ("log_torn_copies", "Lines whose writer never paused for a consistent reading", |l| l.torn_copies as f64),
    ("log_commits_given_up", "Drains that returned without their level", |l| l.commits_given_up as f64),
    ("log_unrecorded", "Captures of processes that found no place in the log", |l| l.unrecorded as f64),
    ("log_blocked_seconds", "Time that a full ring held processes back", |l| l.blocked_ms as f64 / 1e3),
];

const BUDGET_GAUGES: [Reading<BudgetStatus, Option<f64>>; 5] = [
    ("budget_required_seconds", "What a last gasp takes from the loss of power, with safety", |b| {
        b.required_s
    }),
    ("budget_available_seconds", "What the battery lasts", |b| b.available_s),
    ("budget_ratio", "Required by available: above 1 the battery is not enough", |b| b.ratio),
    ("budget_t1_bytes", "Exposure above which appends are delayed, with `enforce`", |b| {
        Some(b.t1_bytes as f64)
    }),
    ("budget_t2_bytes", "Exposure that the battery carries", |b| Some(b.t2_bytes as f64)),
];

const DESTINATION_GAUGES: [Reading<DestinationStatus, Option<f64>>; 13] = [
    ("lsn_published_bytes", "End of what the application published", |d| Some(d.lsn_published.0 as f64)),
    ("lsn_received_bytes", "End of what has landed at the destination", |d| Some(d.lsn_received.0 as f64)),
    ("lsn_durable_bytes", "End of what survives the loss of the source", |d| Some(d.lsn_durable.0 as f64)),
    ("lsn_applied_bytes", "End of what is in the image", |d| Some(d.lsn_applied.0 as f64)),
    ("exposure_bytes", "What would be lost with the source at this instant", |d| {
        Some(d.exposure_bytes as f64)
    }),
    ("drain_bytes_per_second", "Rate at which the tail was last seen to drain", |d| {
        d.drain_bytes_per_s.map(|rate| rate as f64)
    }),
    ("encrypted", "Whether the data travels encrypted", |d| d.encrypted.map(flag)),
    ("sync_done_bytes", "Of a copy that is under way, what was looked at", |d| {
        d.sync.map(|s| s.done_bytes as f64)
    }),
    ("sync_total_bytes", "Of a copy that is under way, all", |d| d.sync.map(|s| s.total_bytes as f64)),
    ("sync_eta_seconds", "Of a copy that is under way, how long the rest takes at the rate so far", |d| {
        d.sync.and_then(|s| s.eta_s).map(|s| s as f64)
    }),
    (
        "lsn_verified_bytes",
        "Up to where a comparison of everything found nothing that no record tells of",
        |d| d.lsn_verified.map(|lsn| lsn.0 as f64),
    ),
    ("verify_unrecorded_bytes", "What the last comparison found that no record tells of", |d| {
        d.verify.as_ref().filter(|v| v.ended.is_some() && !v.outdated).map(|v| v.unrecorded_bytes as f64)
    }),
    ("as_of_timestamp_seconds", "When the destination's row was true", |d| seconds(&d.as_of)),
];

#[cfg(test)]
mod tests {
    use super::super::sample::status;
    use super::super::{ArchiveStatus, LogStatus, PowerSourceStatus, PowerStatus, SyncStatus};
    use super::*;
    use crate::node::placement::policy::model::{Class, PackageId};
    use crate::region::kind::MemoryKind;
    use crate::types::{Level, Lsn};

    /// With everything that has a metric.
    fn whole() -> Status {
        let mut s = status();
        s.node.rdma.wanted = true;
        s.power = Some(PowerStatus {
            source: "file".into(),
            online: Some(false),
            runtime_s: Some(900),
            charge: Some(0.5),
            low: false,
            error: None,
            as_of: s.as_of.clone(),
            sources: vec![PowerSourceStatus {
                name: "ups".into(),
                online: Some(false),
                runtime_s: Some(900),
                charge: Some(0.5),
                low: false,
                error: None,
                as_of: s.as_of.clone(),
            }],
        });
        s.placement = Some(PlacementStatus {
            watts: Some(99.5),
            packages: vec![PackageStatus {
                package: PackageId(1),
                cpus: "4-7".into(),
                load: 0.25,
                residency: Some(0.5),
                class: Some(Class::Medium),
            }],
            moves: 3,
            ..PlacementStatus::default()
        });
        let group = &mut s.groups[0];
        group.destinations[0].sync = Some(SyncStatus::at(1, 4, 2));
        group.archive = Some(ArchiveStatus {
            dir: "/srv/archive".into(),
            lsn_durable: Some(Lsn(4096)),
            last_error: None,
            as_of: s.as_of.clone(),
        });
        group.budget = Some(BudgetStatus {
            mode: "alarm".into(),
            required_s: Some(2.5),
            available_s: Some(900.0),
            ratio: Some(2.5 / 900.0),
            destination: Some("beta".into()),
            exposed_bytes: 1024,
            t1_bytes: 1 << 29,
            t2_bytes: 1 << 30,
            drain_bytes_per_s: Some(120 << 20),
            action: "none".into(),
            as_of: "2026-01-01T00:00:00.000000Z".into(),
        });
        group.log = Some(LogStatus {
            memory: MemoryKind::Memfd,
            memory_bytes: 2 << 20,
            memory_limit_bytes: 9 << 20,
            ring_bytes: 64 << 20,
            used_bytes: 96,
            times_ahead: 2,
            fillers: 0,
            torn_copies: 0,
            commit: Level::Received,
            commits_wait: true,
            commits_given_up: 7,
            unrecorded: 3,
            blocked_ms: 250,
            ahead: false,
        });
        s
    }

    #[test]
    fn numbers_are_told_with_their_group_and_destination() {
        let text = render(&whole());
        for line in [
            "pmemha_power_online 0.0",
            "pmemha_power_charge_ratio 0.5",
            "pmemha_package_class{package=\"1\",class=\"medium\"} 1.0",
            "pmemha_placement_moves_total 3.0",
            "pmemha_group_state{group=\"db\",role=\"source\",state=\"running\"} 1.0",
            "pmemha_log_commits_given_up_total{group=\"db\",role=\"source\"} 7.0",
            "pmemha_destination_exposure_bytes{group=\"db\",role=\"source\",destination=\"beta\"} 1024.0",
            "pmemha_destination_as_of_timestamp_seconds{group=\"db\",role=\"source\",destination=\"beta\"} 1767225600.0",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let mut s = whole();
        s.power.as_mut().unwrap().online = None;
        s.groups[0].destinations[0].encrypted = None;
        let text = render(&s);
        assert!(!text.contains("power_online") && !text.contains("destination_encrypted"), "{text}");
    }

    #[test]
    fn a_path_cannot_forge_a_line() {
        let mut s = whole();
        s.groups[0].regions[0].path = "/a\"} 1\npmemha_forged 1".into();
        assert!(!render(&s).lines().any(|l| l.starts_with("pmemha_forged")));
    }

    #[test]
    fn the_guide_lists_every_metric() {
        let guide = include_str!("../../../docs/guide.md");
        let text = render(&whole());
        let names: Vec<_> =
            text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let missing: Vec<_> = names.iter().filter(|name| !guide.contains(&format!("`{name}"))).collect();
        assert!(names.len() > 30 && missing.is_empty(), "docs/guide.md does not explain {missing:?}");
    }
}
