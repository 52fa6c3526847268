//! `pmemha memory`: what tenants of this host use their memory for, and what would be taken from whom to make room. Takes it only
//! where that is asked for; access bits are cleared in any case.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use pmemha::agent::config::{format_bytes, parse_bytes, parse_duration};
use pmemha::node::kernel::tables::PageTables;
use pmemha::node::reclaim::classes::{Class, Estimate, PerClass};
use pmemha::node::reclaim::decision::{
    self, Depth, Host, Means, Need, Plan, Take, Technique, Tenant, allotment, working_set,
};
use pmemha::node::reclaim::group::Group;
use pmemha::node::reclaim::page_out::{Effect, page_out};
use pmemha::node::reclaim::process::Process;
use pmemha::node::reclaim::room::{Room, Taker, make_room};
use pmemha::node::reclaim::sample::sample;
use serde::Serialize;

use crate::failure::{Failure, NO_PERMISSION, SOFTWARE, UNAVAILABLE, USAGE};
use crate::output::{json_line, print};

/// `pmemha memory`
#[derive(Args)]
pub struct Memory {
    /// Tenants: numbers of processes, and directories of control groups
    #[arg(value_name = "PID|CGROUP", required = true)]
    tenants: Vec<String>,
    /// Plan how to make so much room, and how much of it is missing
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    need: Option<u64>,
    /// In what time that room must be there
    #[arg(long, value_name = "TIME", requires = "need", value_parser = parse_duration)]
    within: Option<Duration>,
    /// Plan to take caches that are in use, too
    #[arg(long, requires = "need")]
    active_buffer: bool,
    /// Do what is planned, and say what it brought
    #[arg(long, requires = "need")]
    act: bool,
    /// Interval over which processes' pages count as used
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,
    /// Pages of a process to look at
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    samples: u32,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Told {
    host: Host,
    tenants: Vec<Row>,
    need: Option<Need>,
    plan: Option<Plan>,
    /// What was done; none for a dry run.
    room: Option<Room>,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    tenant: Tenant,
    working_set: u64,
    allotment: u64,
    /// Pages that were looked at; none where the kernel counts.
    sampled: Option<u64>,
}

enum Source {
    Process(Process),
    Group(Group),
}

impl Memory {
    /// Looks, plans if a need is given, acts if asked to, and tells. The exit code says whether the need is met.
    pub fn execute(self) -> Result<u8, Failure> {
        if self.interval > LONGEST {
            return Err(Failure::new(USAGE, "--interval is an hour at most"));
        }
        let sources: Vec<(&String, Source)> =
            self.tenants.iter().map(|name| Ok((name, source(name)?))).collect::<Result<_, Failure>>()?;
        if self.act
            && let Some((name, _)) = sources.iter().find(|(_, s)| s.group().is_some_and(|g| !g.can_reclaim()))
        {
            return Err(Failure::new(
                UNAVAILABLE,
                format!(
                    "{name} has no memory.reclaim (control groups of version 2, Linux 5.19): nothing can be taken from it, \
                     and its limit is not lowered; leave it out, or leave out --act"
                ),
            ));
        }
        let swap = swap_free().map_err(Failure::system("/proc/swaps"))?;
        let processes: Vec<&Process> = sources.iter().filter_map(|(_, s)| s.process()).collect();
        let mut tables = None;
        if !processes.is_empty() {
            tables = Some(PageTables::open().map_err(cannot_read)?);
            for process in &processes {
                process.begin_interval().map_err(|e| of_process(process.pid(), &e))?;
            }
            thread::sleep(self.interval);
        }
        let rows: Vec<Row> = sources
            .iter()
            .map(|(name, source)| self.row(name, source, tables.as_mut(), swap > 0))
            .collect::<Result<_, _>>()?;
        let host = host().map_err(Failure::system("/proc/meminfo"))?;
        let depth = if self.active_buffer { Depth::ActiveBuffer } else { Depth::Inactive };
        let need = self.need.map(|bytes| Need { bytes, within: self.within, depth });
        let tenants: Vec<Tenant> = rows.iter().map(|row| row.tenant.clone()).collect();
        let plan = need.map(|need| decision::plan(host, &tenants, need));
        let room = match need.filter(|_| self.act) {
            Some(need) => {
                let (sources, began) = (sources.iter().map(|(_, source)| source).collect(), Instant::now());
                let mut taker = Hands { sources, names: &self.tenants, tables };
                Some(make_room(host, tenants, need, &mut taker, &|| began.elapsed()))
            }
            None => None,
        };
        let told = Told { host, tenants: rows, need, plan, room };
        if self.json {
            json_line(&told)?
        } else {
            print(&text(&told, swap))?
        }
        let short = told.room.map_or(told.plan.map_or(0, |plan| plan.short), |room| room.short);
        Ok(if short > 0 { SHORT } else { 0 })
    }

    fn row(
        &self,
        name: &str,
        source: &Source,
        tables: Option<&mut PageTables>,
        swaps: bool,
    ) -> Result<Row, Failure> {
        let (size, classes, means, sampled, note) = match (source, tables) {
            (Source::Process(process), Some(tables)) => {
                let told = |e: io::Error| of_process(process.pid(), &e);
                let mut state = u64::from(process.pid()) | 1;
                let found = sample(tables, process, self.samples as usize, &[], || random(&mut state));
                let found = found.map_err(told)?;
                let kvm = process.runs_kvm().map_err(told)?;
                let means = Means { page_out: (swaps && !kvm).then_some(PAGE_OUT), ..Means::default() };
                let note = if kvm { KVM } else { NO_SWAP };
                (found.resident, found.classes, means, Some(found.pages), note)
            }
            (Source::Process(process), None) => {
                let why = format!("process {}: page tables were not opened", process.pid());
                return Err(Failure::new(SOFTWARE, why));
            }
            (Source::Group(group), _) => {
                let told = |e: io::Error| Failure::new(UNAVAILABLE, format!("{name}: {e}"));
                let (size, classes) = (group.usage().map_err(told)?, group.classes().map_err(told)?);
                let means = Means { limit: group.can_reclaim().then_some(LIMIT), ..Means::default() };
                (size, classes, means, None, NO_RECLAIM)
            }
        };
        let mut tenant = Tenant { name: name.to_owned(), size, entitlement: size, classes, means };
        if means.page_out.is_none() && means.limit.is_none() {
            // Said, since otherwise a plan is short for no visible reason.
            tenant.name += note;
        }
        let (working_set, allotment) = (working_set(&tenant), allotment(&tenant));
        Ok(Row { tenant, working_set, allotment, sampled })
    }
}

/// What a plan is carried out by.
struct Hands<'a> {
    sources: Vec<&'a Source>,
    names: &'a [String],
    tables: Option<PageTables>,
}

impl Taker for Hands<'_> {
    fn take(&mut self, _tenant: &Tenant, take: &Take) -> io::Result<Effect> {
        match (self.sources[take.tenant], take.technique, &mut self.tables) {
            (Source::Process(process), Technique::PageOut, Some(tables)) => {
                page_out(tables, process, take.bytes, &[])
            }
            (Source::Group(group), Technique::Limit, _) => group.reclaim(take.bytes),
            _ => Err(io::Error::other(format!("nothing works on {}", self.names[take.tenant]))),
        }
    }
}

impl Source {
    fn process(&self) -> Option<&Process> {
        match self {
            Source::Process(process) => Some(process),
            Source::Group(_) => None,
        }
    }

    fn group(&self) -> Option<&Group> {
        match self {
            Source::Process(_) => None,
            Source::Group(group) => Some(group),
        }
    }
}

fn source(name: &str) -> Result<Source, Failure> {
    if let Ok(pid) = name.parse() {
        return Process::open(pid).map(Source::Process).map_err(|e| of_process(pid, &e));
    }
    Group::at(Path::new(name)).map(Source::Group).map_err(|e| {
        Failure::new(USAGE, format!("{e}; name a process by its number, or a directory below /sys/fs/cgroup"))
    })
}

/// What the host has, by the kernel's own estimate, and its threshold: a tenth of all, under which balloons are too slow.
fn host() -> io::Result<Host> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let of = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|n| n.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) << 10
    };
    Ok(Host { available: of("MemAvailable:"), threshold: of("MemTotal:") / 10 })
}

/// Bytes of swap that are free.
fn swap_free() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/swaps")?;
    let of = |line: &str| {
        let mut words = line.split_whitespace().skip(2).map(|n| n.parse::<u64>().unwrap_or(0));
        Some(words.next()?.saturating_sub(words.next()?) << 10)
    };
    Ok(text.lines().skip(1).filter_map(of).sum())
}

/// Xorshift: samples need no more.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn cannot_read(error: io::Error) -> Failure {
    Failure::new(
        NO_PERMISSION,
        format!("page tables cannot be read: {error}; run this as root, or name control groups only"),
    )
}

fn of_process(pid: u32, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(UNAVAILABLE, format!("there is no process {pid}, or it has ended"))
        }
        io::ErrorKind::PermissionDenied => Failure::new(
            NO_PERMISSION,
            format!("process {pid} may not be looked at: {error}; run this as root"),
        ),
        _ => Failure::new(SOFTWARE, format!("process {pid}: {error}")),
    }
}

fn text(told: &Told, swap: u64) -> String {
    let (available, threshold) = (format_bytes(told.host.available), format_bytes(told.host.threshold));
    let mut out =
        format!("host: {available} available, threshold {threshold}, {} of swap free\n", format_bytes(swap));
    for Row { tenant, working_set, allotment, sampled } in &told.tenants {
        let by = sampled.map_or("counted by the kernel".into(), |n| format!("{n} pages sampled"));
        out += &format!(
            "{}: {}, working set {}, allotted {}; {by}\n",
            tenant.name,
            format_bytes(tenant.size),
            format_bytes(*working_set),
            format_bytes(*allotment)
        );
        out += &classes(&tenant.classes);
    }
    let Some(plan) = &told.plan else { return out };
    let done = if told.room.is_some() { "" } else { " (nothing is done)" };
    out += &format!("plan for {}{done}:\n", format_bytes(told.need.map_or(0, |n| n.bytes)));
    for take in &plan.takes {
        let how = match take.technique {
            Technique::Balloon => "by its balloon",
            Technique::Limit => "by memory.reclaim",
            Technique::PageOut => "to swap",
        };
        let name = &told.tenants[take.tenant].tenant.name;
        out += &format!("  {:>10}  {} of {name}, {how}\n", format_bytes(take.bytes), word(take.class));
    }
    if plan.short > 0 {
        out += &format!("  {:>10}  missing: it does not fit\n", format_bytes(plan.short));
    }
    if let Some(room) = &told.room {
        out += &format!("made {}, missing {}:\n", format_bytes(room.made), format_bytes(room.short));
        for done in &room.done {
            let name = &told.tenants[done.take.tenant].tenant.name;
            let (moved, asked) = (format_bytes(done.effect.moved), format_bytes(done.effect.asked));
            let why = done.error.as_ref().map_or(String::new(), |why| format!(": {why}"));
            out += &format!("  {moved:>10}  of {asked} asked of {name}{why}\n");
        }
    }
    out
}

fn classes(classes: &PerClass<Estimate>) -> String {
    let line = |class: &Class| {
        let Estimate { bytes, least, most } = classes[*class];
        let bounds = if least == most {
            String::new()
        } else {
            format!("  ({} to {})", format_bytes(least), format_bytes(most))
        };
        format!("  {:>10}  {}{bounds}\n", format_bytes(bytes), word(*class))
    };
    Class::ALL.iter().map(line).collect()
}

fn word(class: Class) -> &'static str {
    match class {
        Class::Unreclaimable => "unreclaimable",
        Class::ActiveAnonymous => "active anonymous",
        Class::ActiveBuffer => "active buffer",
        Class::InactiveAnonymous => "inactive anonymous",
        Class::InactiveBuffer => "inactive buffer",
        Class::Free => "free",
    }
}

/// What is said of a tenant that nothing can be taken from.
const KVM: &str = " (a machine with KVM: what its guest uses is not seen, nothing is paged out)";
const NO_SWAP: &str = " (no swap to write to)";
const NO_RECLAIM: &str = " (no memory.reclaim: nothing can be taken)";

/// Exit code where not all of the need is met.
const SHORT: u8 = 1;

const LONGEST: Duration = Duration::from_secs(3600);

/// Bytes a second that a plan assumes of what was not measured here: a slow swap, and a control group's caches.
const PAGE_OUT: u64 = 200 << 20;
const LIMIT: u64 = 1 << 30;
