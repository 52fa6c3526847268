//! The status as a person reads it in one glance: a line a group, a line a destination, trouble marked by `!`.

use std::fmt::Write;

use super::{
    DestinationState, DestinationStatus, GroupStatus, LogStatus, RdmaStatus, RegionStatus, Role, Status,
    SyncStatus, VerifyStatus, power,
};
use crate::agent::config::format_bytes;
use crate::agent::unusable::UNUSABLE;
use crate::region::kind::MemoryKind;

/// `status` as text, ending with a newline.
pub fn render(status: &Status) -> String {
    let mut out = String::new();
    let node = &status.node;
    let power = power::words(status.power.as_ref());
    let up = duration(node.uptime_s);
    push(
        &mut out,
        format_args!("{}  pmemha {}  up {up}  {power}  {}", node.name, node.version, status.as_of),
    );
    power::render_sources(&mut out, status.power.as_ref());
    render_rdma(&mut out, &node.rdma);
    if status.groups.is_empty() {
        push(&mut out, format_args!("no groups: see pmemhad.conf(5)"));
    }
    for group in &status.groups {
        render_group(&mut out, group);
    }
    out
}

/// Nothing where nobody asked for RDMA.
fn render_rdma(out: &mut String, rdma: &RdmaStatus) {
    match rdma {
        RdmaStatus { wanted: false, .. } => {}
        RdmaStatus { off: Some(why), .. } => push(out, format_args!("! verbs is off: {why}")),
        RdmaStatus { device, port, address, .. } => push(
            out,
            format_args!(
                "verbs  {} port {}  {}",
                device.as_deref().unwrap_or("?"),
                port.unwrap_or(0),
                address.as_deref().unwrap_or("?")
            ),
        ),
    }
}

fn render_group(out: &mut String, group: &GroupStatus) {
    let role = match group.role {
        Role::Source => "source",
        Role::Destination => "destination",
    };
    let regions = match group.region_count() {
        0 => "nothing protected".into(),
        n => format!("{n} region{} of {}", plural(n), format_bytes(group.region_bytes())),
    };
    let regions = match kinds(&group.regions) {
        kinds if kinds.is_empty() => regions,
        kinds => format!("{regions} ({kinds})"),
    };
    let sessions = match group.sessions.len() {
        0 => String::new(),
        n => format!(", {n} process{}", if n == 1 { "" } else { "es" }),
    };
    push(
        out,
        format_args!(
            "\n{}  {role}  {}  generation {}  {regions}{sessions}",
            group.name, group.state, group.generation
        ),
    );
    match &group.error {
        Some(error) if group.state == UNUSABLE => {
            push(out, format_args!("  ! UNPROTECTED: it could not be opened: {error}"))
        }
        Some(error) if group.destinations.is_empty() => {
            push(out, format_args!("  ! the command does not run: {error}"))
        }
        Some(error) => push(out, format_args!("  ! nothing is decided: {error}")),
        None => {}
    }
    if let Some(log) = &group.log {
        render_log(out, log);
    }
    for file in group.unprotected_files.iter().take(FILES_SHOWN) {
        push(out, format_args!("  ! matches `protect` and is not protected: {}: {}", file.path, file.why));
    }
    let more =
        group.unprotected_files_more + group.unprotected_files.len().saturating_sub(FILES_SHOWN) as u64;
    if more > 0 {
        push(out, format_args!("  ! and {more} more, see unprotected_files of `pmemha status --json`"));
    }
    if let Some(archive) = &group.archive {
        match (archive.lsn_durable, &archive.last_error) {
            (Some(lsn), _) => push(out, format_args!("  archive  {}  up to {lsn}", archive.dir)),
            (None, Some(error)) => push(out, format_args!("  archive  {}  ! {error}", archive.dir)),
            (None, None) => push(out, format_args!("  archive  {}  starting", archive.dir)),
        }
    }
    for destination in &group.destinations {
        render_destination(out, destination);
    }
    if let Some(budget) = &group.budget {
        power::render_budget(out, budget);
    }
    let unprotected = group.role == Role::Source && !group.destinations.iter().any(counts);
    if unprotected && group.state != UNUSABLE {
        push(out, format_args!("  ! UNPROTECTED: no destination holds a copy that counts"));
    }
}

fn render_log(out: &mut String, log: &LogStatus) {
    let used = percent(log.used_bytes, log.ring_bytes);
    let ahead = if log.ahead { "  ! the application is ahead of the log" } else { "" };
    push(out, format_args!("  log  {used} of {} used ({}){ahead}", format_bytes(log.ring_bytes), log.memory));
    if log.commits_given_up > 0 {
        let now = if log.commits_wait { "they wait again" } else { "they do not wait now" };
        let (count, level) = (log.commits_given_up, log.commit);
        push(out, format_args!("    ! {count} drains returned before `{level}` was reached; {now}"));
    }
    if log.unrecorded > 0 {
        let count = log.unrecorded;
        push(
            out,
            format_args!(
                "    ! {count} captures not recorded: too many processes write to this group; it is copied instead"
            ),
        );
    }
}

fn render_destination(out: &mut String, d: &DestinationStatus) {
    let mut link = vec![d.fabric.clone().unwrap_or_else(|| "not connected".into())];
    link.extend(d.durability.clone());
    link.extend(d.encrypted.map(|yes| if yes { "encrypted".into() } else { "NOT encrypted".into() }));
    link.extend(d.memory.map(|kind| landing(kind, d.staged)));
    let rate = d.drain_bytes_per_s.map_or(String::new(), |r| format!("  drains {}/s", format_bytes(r)));
    push(
        out,
        format_args!(
            "  {}  {}  exposure {}{rate}  ({})",
            d.node,
            d.state.word(),
            format_bytes(d.exposure_bytes),
            link.join(", ")
        ),
    );
    push(
        out,
        format_args!(
            "      published {}  received {}  durable {}  applied {}",
            d.lsn_published,
            behind(d, d.lsn_received.0),
            behind(d, d.lsn_durable.0),
            behind(d, d.lsn_applied.0)
        ),
    );
    if let Some(sync) = &d.sync {
        push(out, format_args!("      sync {}", bar(sync)));
    }
    if let Some(verify) = &d.verify {
        render_verify(out, d, verify);
    }
    if d.unprotected_writes > 0 {
        let left = d.unprotected_writes.saturating_sub(d.unprotected_writes_recorded);
        let outcome = match (left, d.unprotected_writes_recorded) {
            (_, 0) => "the copy differs there".into(),
            (0, _) => "no attached program had them open; they were recorded since".into(),
            (left, _) => format!("the copy differs in {left}, the others were recorded since"),
        };
        push(
            out,
            format_args!(
                "    ! {} pages changed without a record (unprotected_writes): {outcome}",
                d.unprotected_writes
            ),
        );
    }
    if let Some(error) = &d.last_error {
        push(out, format_args!("    ! {error}"));
    }
}

fn render_verify(out: &mut String, d: &DestinationStatus, verify: &VerifyStatus) {
    if let Some(progress) = &verify.progress {
        push(out, format_args!("      verify {}", bar(progress)));
    } else if let Some(error) = &verify.error {
        push(out, format_args!("    ! the last comparison ended early: {error}"));
    } else if verify.unrecorded_bytes > 0 && !verify.outdated {
        let unrecorded = format_bytes(verify.unrecorded_bytes);
        let next = if verify.repairs { "it is being repaired" } else { "`pmemha verify --repair` brings it" };
        push(out, format_args!("    ! {unrecorded} differ there without a record: {next}"));
    } else if let Some(lsn) = d.lsn_verified {
        push(out, format_args!("      verified up to {lsn}"));
    }
}

/// `into fsdax, staged`
fn landing(kind: MemoryKind, staged: Option<bool>) -> String {
    match staged {
        Some(true) => format!("into {kind}, staged"),
        _ => format!("into {kind}"),
    }
}

/// `fsdax`, or `fsdax, tmpfs` where files are of several kinds.
fn kinds(regions: &[RegionStatus]) -> String {
    let mut kinds: Vec<&str> = regions.iter().filter_map(|r| r.memory).map(MemoryKind::word).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.join(", ")
}

pub(super) fn push(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Control characters in a path or an error must not reach the terminal.
    let clean = |c: &char| !c.is_control() || *c == '\n';
    out.extend(line.to_string().chars().filter(clean));
    out.push('\n');
}

fn counts(d: &DestinationStatus) -> bool {
    matches!(d.state, DestinationState::Streaming | DestinationState::HandedOver)
}

fn behind(d: &DestinationStatus, lsn: u64) -> String {
    match d.lsn_published.0.saturating_sub(lsn) {
        0 => "all".into(),
        missing => format!("-{}", format_bytes(missing)),
    }
}

/// `[#####.....] 50 %  1.0 of 2.0 GiB`
fn bar(sync: &SyncStatus) -> String {
    const WIDTH: u64 = 20;
    let filled =
        sync.done_bytes.saturating_mul(WIDTH).checked_div(sync.total_bytes).unwrap_or(WIDTH).min(WIDTH);
    let (done, left) = ("#".repeat(filled as usize), ".".repeat((WIDTH - filled) as usize));
    let percent = percent(sync.done_bytes, sync.total_bytes);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "[{done}{left}] {percent}  {} of {}",
        format_bytes(sync.done_bytes),
        format_bytes(sync.total_bytes)
    );
    if let (Some(rate), Some(eta)) = (sync.bytes_per_s, sync.eta_s) {
        let _ = write!(text, ", {}/s, {} left", format_bytes(rate), duration(eta));
    }
    text
}

fn percent(part: u64, whole: u64) -> String {
    format!("{} %", part.saturating_mul(100).checked_div(whole).unwrap_or(100))
}

pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        s if s >= 86_400 => format!("{} d {} h", s / 86_400, s / 3600 % 24),
        s if s >= 3600 => format!("{} h {} min", s / 3600, s / 60 % 60),
        s if s >= 60 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// Unprotected files that a glance takes in.
const FILES_SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::render;
    use crate::agent::status::sample::status;
    use crate::agent::unusable::UNUSABLE;

    #[test]
    fn a_healthy_group_takes_three_lines() {
        assert_eq!(
            render(&status()),
            "alpha  pmemha 0.1.0  up 1 h 2 min  power not watched  2026-01-01T00:00:00.000000Z\n\
             \n\
             db  source  running  generation 3  1 region of 8.00 MiB (fsdax)\n\
             \x20 beta  streaming  exposure 1.00 KiB  drains 120 MiB/s  (tcp, disk, encrypted, into file)\n\
             \x20     published 10000  received all  durable -1.00 KiB  applied -4.00 KiB\n"
        );
    }

    #[test]
    fn drains_that_returned_without_their_level_are_told_of() {
        let mut s = status();
        s.groups[0].log = Some(LogStatus {
            memory: MemoryKind::Memfd,
            memory_bytes: 2 << 20,
            memory_limit_bytes: 9 << 20,
            ring_bytes: 64 << 20,
            used_bytes: 0,
            times_ahead: 0,
            blocked_ms: 0,
            fillers: 0,
            torn_copies: 0,
            commit: Level::Received,
            commits_wait: false,
            commits_given_up: 7,
            unrecorded: 3,
            ahead: false,
        });
        let text = render(&s);
        assert!(
            text.contains("! 7 drains returned before `received` was reached; they do not wait now"),
            "{text}"
        );
        assert!(text.contains("! 3 captures not recorded"), "{text}");
    }

    #[test]
    fn a_group_that_could_not_be_opened_says_why_and_once_that_it_is_unprotected() {
        let mut s = status();
        let group = &mut s.groups[0];
        (group.state, group.error) = (UNUSABLE.into(), Some("its state is damaged".into()));
        group.destinations.clear();
        let text = render(&s);
        assert!(text.contains("  ! UNPROTECTED: it could not be opened: its state is damaged\n"), "{text}");
        assert_eq!(text.matches("UNPROTECTED").count(), 1, "{text}");
    }

    #[test]
    fn kinds_of_memory_are_named_at_either_end_and_what_is_staged_is_said() {
        let mut s = status();
        let region = s.groups[0].regions[0].clone();
        s.groups[0].regions.push(RegionStatus { memory: Some(MemoryKind::Devdax), ..region.clone() });
        s.groups[0].regions.push(region);
        let row = &mut s.groups[0].destinations[0];
        (row.memory, row.staged) = (Some(MemoryKind::Fsdax), Some(true));
        let text = render(&s);
        assert!(text.contains("3 regions of 24.0 MiB (devdax, fsdax)\n"), "{text}");
        assert!(text.contains(", into fsdax, staged)\n"), "{text}");
        let row = &mut s.groups[0].destinations[0];
        (row.memory, row.staged) = (None, None);
        assert!(
            render(&s).contains("(tcp, disk, encrypted)\n"),
            "nothing is known while there is no connection"
        );
    }

    #[test]
    fn trouble_is_marked() {
        let mut s = status();
        let row = &mut s.groups[0].destinations[0];
        row.state = DestinationState::Syncing;
        row.sync = Some(SyncStatus::at(1 << 30, 4 << 30, 64 << 20));
        s.groups[0].error = Some("cannot store it: no space left".into());
        let row = &mut s.groups[0].destinations[0];
        row.last_error = Some("connection \x1b[31mlost".into());
        let text = render(&s);
        assert!(text.contains("! UNPROTECTED"), "{text}");
        assert!(text.contains("\n  ! nothing is decided: cannot store it: no space left\n"), "{text}");
        assert!(
            text.contains("[#####...............] 25 %  1.00 GiB of 4.00 GiB, 64.0 MiB/s, 48 s left"),
            "{text}"
        );
        assert!(text.contains("! connection [31mlost"), "{text}");
        s.groups[0].destinations.clear();
        s.groups[0].error = Some("starting /db: no such file".into());
        let text = render(&s);
        assert!(text.contains("\n  ! the command does not run: starting /db: no such file\n"), "{text}");
    }

    #[test]
    fn files_that_are_not_protected_are_named_and_not_too_many() {
        let mut s = status();
        let file = |n| UnprotectedFile { path: format!("/mnt/f{n}"), why: "user 7 may not read it".into() };
        s.groups[0].unprotected_files = (0..10).map(file).collect();
        s.groups[0].unprotected_files_more = 5;
        let text = render(&s);
        assert!(
            text.contains("! matches `protect` and is not protected: /mnt/f7: user 7 may not read it\n"),
            "{text}"
        );
        assert!(!text.contains("/mnt/f8") && text.contains("! and 7 more"), "{text}");
    }

    #[test]
    fn a_group_of_many_files_fits_into_an_answer_and_none_is_forgotten() {
        let mut s = status();
        let region = s.groups[0].regions[0].clone();
        s.groups[0].regions = vec![RegionStatus { len: 1 << 20, ..region }; 4000];
        let file = UnprotectedFile { path: "/x".repeat(2000), why: "user 7 may not read it".into() };
        s.groups[0].unprotected_files = vec![file; 64];
        let range = RangeStatus {
            region: RegionId(1),
            path: "p".repeat(1000),
            offset: 0,
            bytes: 64,
            unflushed: true,
        };
        let found = VerifyStatus { ranges: vec![range; 64], ..VerifyStatus::default() };
        s.groups[0].destinations[0].verify = Some(found);
        let s = s.shortened(60_000);
        assert!(serde_json::to_vec(&s).unwrap().len() <= 60_000);
        assert!(!s.groups[0].regions.is_empty() && !s.groups[0].unprotected_files.is_empty());
        assert!(render(&s).contains("4000 regions of 3.91 GiB"), "{}", render(&s));
        let verify = s.groups[0].destinations[0].verify.as_ref().unwrap();
        assert_eq!(verify.ranges.len() as u64 + verify.ranges_more, 64);
        assert_eq!(s.groups[0].unprotected_files.len() as u64 + s.groups[0].unprotected_files_more, 64);
        let small = status();
        assert_eq!(small.clone().shortened(60_000), small);
    }

    #[test]
    fn verbs_is_spoken_of_where_it_is_configured() {
        let mut s = status();
        s.node.rdma.off = Some("no adapter".into());
        assert!(!render(&s).contains("verbs"), "nobody asked for it");
        s.node.rdma.wanted = true;
        assert!(render(&s).contains("\n! verbs is off: no adapter\n"));
        s.node.rdma = RdmaStatus {
            wanted: true,
            device: Some("rxe0".into()),
            port: Some(1),
            address: Some("10.0.0.1".into()),
            off: None,
        };
        assert!(render(&s).contains("\nverbs  rxe0 port 1  10.0.0.1\n"));
    }

    #[test]
    fn every_row_has_the_documented_fields_and_nothing_renames_them() {
        let document = serde_json::to_value(status()).unwrap();
        let row = document["groups"][0]["destinations"][0].as_object().unwrap();
        for field in [
            "role",
            "generation",
            "state",
            "lsn_published",
            "lsn_received",
            "lsn_durable",
            "lsn_applied",
            "exposure_bytes",
            "drain_bytes_per_s",
            "fabric",
            "durability",
            "encrypted",
            "memory",
            "staged",
            "unprotected_writes",
            "last_error",
            "as_of",
        ] {
            assert!(row.contains_key(field), "{field} is missing in {row:?}");
        }
        assert_eq!(row["state"], DestinationState::Streaming.word());
        assert_eq!(serde_json::from_value::<Status>(document).unwrap(), status());
    }
}
