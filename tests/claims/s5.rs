//! S5, memory reclamation by usage class: real processes as tenants, their real pages, a real swap.
//!
//! What a guest alone can tell (its free pages, its caches) is not decided here: S5.7 has no test.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pmemha::node::kernel::tables::{Entry, PageTables};
use pmemha::node::largepage::policy::Range;
use pmemha::node::reclaim::balloon::{Balloon, Progress};
use pmemha::node::reclaim::classes::{Class, Estimate, PerClass};
use pmemha::node::reclaim::decision::{
    self, Depth, Host, Instead, Means, Need, Plan, Technique, Tenant, plan,
};
use pmemha::node::reclaim::page_out::page_out;
use pmemha::node::reclaim::process::Process;
use pmemha::node::reclaim::sample::{Sampled, sample};
use pmemha_testkit::chance::Chance;
use pmemha_testkit::ranges::{RANGE, Ranges};
use pmemha_testkit::{dirs, wait};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// S5.1: the host categorises pages over a time interval into: unreclaimable, active and inactive anonymous, active and inactive buffer, free.
///
/// One program has anonymous memory, another a mapped file of a disk. Half of each is used in the interval. An eighth is said to be registered
/// with an adapter, and used. (That a page is free is told by a flag of the kernel's; no process has such a page.)
#[test]
fn s5_1_pages_are_categorised_by_kind_and_use_over_an_interval() {
    let Some(mut tables) = page_tables() else { return };
    let plan = format!("{}{}", "F".repeat(16), "-".repeat(16));
    let disk = tempfile::tempdir_in(dirs::repo()).expect("a directory on a disk");
    // The kernel may map the file by pages of any size: their bits tell less the larger they are, so what is used lies together.
    let kinds = [
        ("anon", Class::ActiveAnonymous, Class::InactiveAnonymous),
        (disk.path().to_str().expect("a plain name"), Class::ActiveBuffer, Class::InactiveBuffer),
    ];
    for (kind, active, inactive) in kinds {
        let mut program = Ranges::start(kind, &plan);
        let process = begin_interval(&program);
        program.once();
        let registered = [(program.base(), program.base() + 4 * RANGE)];
        let found = look(&mut tables, &process, 1500, &registered, 1);
        println!("{kind}: {found:?}");
        let close = |class: Class, ranges: u64| {
            let off = found.classes[class].bytes.abs_diff(ranges * RANGE);
            assert!(off <= found.resident / 20, "{kind}: {class:?} is off by {off} of {}", found.resident);
        };
        close(Class::Unreclaimable, 4);
        close(active, 12);
        close(inactive, 16);
        // The next interval is one of its own: now nothing is used.
        let process = begin_interval(&program);
        let found = look(&mut tables, &process, 1500, &[], 2);
        assert!(found.classes[inactive].bytes > found.resident * 9 / 10, "{kind}: {found:?}");
    }
}

/// S5.2: totals per class are estimated from sampled pages.
///
/// The truth is counted in the page tables, entry by entry. 1,500 pages must be within 5 % of the program's memory in 95 of 100
/// repetitions, and their bounds must hold it nearly as often as they say.
#[test]
fn s5_2_totals_are_estimated_from_samples() {
    let Some(mut tables) = page_tables() else { return };
    let plan = format!("{}{}", "D".repeat(10), "-".repeat(22));
    let mut program = Ranges::start("anon", &plan);
    let process = begin_interval(&program);
    program.once();
    let first = Range::of(program.base()).0;
    let starts: Vec<u64> = (first..first + 32).map(|n| n * RANGE).collect();
    let entries = tables.look(program.pid(), &starts).expect("it runs");
    let used = |entry: &Entry| match entry {
        Entry::Table { accessed, .. } => u64::from(*accessed) * 4096,
        _ => 0,
    };
    let truth: u64 = entries.iter().map(used).sum();
    let (mut close, mut within) = (0, 0);
    for repetition in 0..100 {
        let found = look(&mut tables, &process, 1500, &[], repetition);
        let Estimate { bytes, least, most } = found.classes[Class::ActiveAnonymous];
        assert!(found.pages <= 1500);
        close += (bytes.abs_diff(truth) <= found.resident / 20) as u32;
        within += (least..=most).contains(&truth) as u32;
    }
    println!("{close} of 100 within 5 %, {within} of 100 within their bounds; the truth is {truth}");
    assert!(close >= 95 && within >= 85, "{close} close, {within} within");
}

/// S5.3: the reclamation target comes from the class estimates and differs by technique.
#[test]
fn s5_3_the_target_comes_from_the_classes_and_differs_by_technique() {
    let machine = machine("m", [40, 60, 50, 120, 150, 80]);
    let planned = plan(PLENTY, std::slice::from_ref(&machine), need(2000));
    let (balloon, swap) = (planned.of(0, Technique::Balloon), planned.of(0, Technique::PageOut));
    assert_eq!((balloon, swap), ((80 + 150) * MIB, 120 * MIB), "{planned:?}");
    let mut more = machine;
    more.classes[Class::InactiveAnonymous] = Estimate::exactly(200 * MIB);
    let planned = plan(PLENTY, &[more], need(2000));
    assert_eq!(planned.of(0, Technique::Balloon), balloon);
    assert_eq!(planned.of(0, Technique::PageOut), swap + 80 * MIB);
}

/// S5.4: ballooning when available host memory is above a threshold; swapping below it, or when ballooning stalls, or when its
/// deadline does not fit the restart budget.
///
/// The stalled balloon is a real one: a machine under emulation with a balloon and no driver for it.
#[test]
fn s5_4_ballooning_above_a_threshold_and_swapping_below_it_or_when_it_stalls_or_is_late() {
    let technique = |host: Host, means: Means, within: Option<u64>| {
        let mut machine = machine("m", [40, 60, 50, 0, 300, 0]);
        machine.means = means;
        let within = within.map(Duration::from_millis);
        let Plan { takes, short } = plan(host, &[machine], Need { within, ..need(200) });
        assert_eq!((takes.len(), short), (1, 0), "{takes:?}");
        (takes[0].technique, takes[0].instead)
    };
    assert_eq!(technique(PLENTY, MEANS, None), (Technique::Balloon, None));
    let scarce = Host { available: PLENTY.threshold - 1, ..PLENTY };
    assert_eq!(technique(scarce, MEANS, None), (Technique::PageOut, Some(Instead::BelowThreshold)));
    assert_eq!(technique(PLENTY, MEANS, Some(300)), (Technique::PageOut, Some(Instead::Deadline)));
    let Some(stalled) = balloon_without_a_driver_stalls() else { return };
    let means = Means { balloon_stalled: stalled, ..MEANS };
    assert_eq!(technique(PLENTY, means, None), (Technique::PageOut, Some(Instead::Stalled)));
}

/// S5.5: allocated size is a function of working set and static entitlement; a VM that is short of it has its reclaim target cut.
#[test]
fn s5_5_who_is_short_of_what_it_is_allotted_has_its_target_cut() {
    let plain = machine("plain", [50, 50, 50, 150, 0, 0]);
    let busier = machine("busier", [50, 100, 100, 50, 0, 0]);
    assert!(decision::allotment(&busier) > decision::allotment(&plain), "by the working set");
    let mut promised = machine("promised", [50, 50, 50, 150, 0, 0]);
    promised.entitlement = 4000 * MIB;
    assert!(decision::allotment(&promised) > decision::allotment(&plain), "by the entitlement");
    let planned = plan(PLENTY, &[promised, plain], need(100));
    let of = |i| planned.of(i, Technique::PageOut);
    assert_eq!((of(0), of(1), planned.short), (0, 100 * MIB, 0), "{planned:?}");
}

/// S5.6: placement of what fails over to here uses the classes: whether it fits, and what must go.
#[test]
fn s5_6_whether_a_promoted_region_fits_is_answered_from_the_classes() {
    let region = need(256);
    let ask = |classes| plan(PLENTY, &[machine("m", classes)], region);
    let (cache, cold, hot) =
        (ask([40, 60, 20, 10, 370, 12]), ask([40, 60, 10, 390, 10, 2]), ask([40, 430, 30, 4, 4, 4]));
    assert_eq!(
        (cache.short, cache.takes[0].class, cache.takes[0].technique),
        (0, Class::Free, Technique::Balloon)
    );
    assert!(
        cache.takes.iter().any(|t| t.class == Class::InactiveBuffer && t.technique == Technique::Balloon)
    );
    assert_eq!(cold.short, 0);
    assert!(
        cold.takes.iter().any(|t| t.class == Class::InactiveAnonymous && t.technique == Technique::PageOut)
    );
    assert_eq!(hot.short, (256 - 12) * MIB, "all hot: refused, and how much is missing is said");
}

/// S5.6, carried out: of two programs one is all hot and the other half cold. The command finds the room, makes it by page-out of the cold
/// half, and refuses what there is not.
#[test]
fn s5_6_room_is_made_from_the_one_that_has_it_and_the_rest_is_refused() {
    if page_tables().is_none() {
        return;
    }
    let Some(_swap) = Swap::on() else { return };
    let mut hot = Ranges::start("anon", &"D".repeat(16));
    let mut half = Ranges::start("anon", &format!("{}{}", "D".repeat(8), "-".repeat(16)));
    for program in [&mut hot, &mut half] {
        program.tell("run 600000");
    }
    let pmemha = |need: &str| {
        let out = Command::new(super::BINARIES.cli)
            .args(["memory", "--json", "--act", "--interval", "800ms", "--need", need])
            .args([hot.pid(), half.pid()].map(|pid| pid.to_string()))
            .output()
            .expect("pmemha runs");
        let told: Value = serde_json::from_slice(&out.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
        (out.status.code(), told)
    };
    let (code, told) = pmemha("16MiB");
    let moved = |told: &Value, tenant: u64| -> u64 {
        let done = told["room"]["done"].as_array().expect("a list").iter();
        done.filter(|d| d["take"]["tenant"] == tenant).filter_map(|d| d["effect"]["moved"].as_u64()).sum()
    };
    println!("{:#}", told["room"]);
    assert_eq!(code, Some(0), "{told:#}");
    assert!(moved(&told, 1) >= 15 * MIB && moved(&told, 0) < 2 * MIB, "{told:#}");
    let (code, told) = pmemha("1GiB");
    assert_eq!(code, Some(1), "{told:#}");
    assert!(told["room"]["short"].as_u64().is_some_and(|short| short > 900 * MIB), "{told:#}");
    assert!(moved(&told, 0) < 4 * MIB, "what is hot was left alone: {told:#}");
}

/// S5.8: free, inactive buffer, inactive anonymous (host page-out of exactly those pages), then active ones; pinned memory never.
///
/// The order is the plan's. The page-out is real: exactly the unused pages of a program go to a real swap, its used ones stay, what is
/// registered is not touched, and a pass over what is used afterwards reads nothing back.
#[test]
fn s5_8_exactly_the_unused_pages_are_written_out_and_pinned_ones_never() {
    let order = |depth| {
        let planned = plan(PLENTY, &[machine("m", [40, 60, 50, 120, 150, 80])], Need { depth, ..need(2000) });
        let mut classes: Vec<Class> = planned.takes.iter().map(|t| t.class).collect();
        classes.dedup();
        classes
    };
    use Class::*;
    let idle = [Free, InactiveBuffer, InactiveAnonymous];
    assert_eq!(order(Depth::Inactive), idle);
    assert_eq!(order(Depth::ActiveAnonymous), [&idle[..], &[ActiveBuffer, ActiveAnonymous]].concat());

    let Some(mut tables) = page_tables() else { return };
    let Some(_swap) = Swap::on() else { return };
    let mut program = Ranges::start("anon", &format!("{}{}", "D".repeat(16), "-".repeat(16)));
    let process = begin_interval(&program);
    program.once();
    // Of the unused half a quarter is registered.
    let registered = [(program.base() + 16 * RANGE, program.base() + 20 * RANGE)];
    let wanted = 16 * MIB;
    let effect = page_out(&mut tables, &process, wanted, &registered).expect("it runs");
    println!("{effect:?}");
    assert!(effect.moved >= wanted * 9 / 10 && effect.asked <= wanted + MIB, "{effect:?}");
    assert!(!effect.is_in_vain());
    let (first, pid) = (Range::of(program.base()).0, program.pid());
    let present = |tables: &mut PageTables, ranges: std::ops::Range<u64>| -> u64 {
        let starts: Vec<u64> = ranges.map(|n| (first + n) * RANGE).collect();
        let entries = tables.look(pid, &starts).expect("it runs");
        entries
            .iter()
            .map(|e| if let Entry::Table { present, .. } = e { u64::from(*present) } else { 0 })
            .sum()
    };
    assert_eq!(present(&mut tables, 0..16), 16 * 512, "what is used stayed");
    assert_eq!(present(&mut tables, 16..20), 4 * 512, "what is registered stayed");
    assert!(present(&mut tables, 20..32) < 12 * 512 - 3600);
    let faults = major_faults(program.pid());
    let pass = program.pass();
    assert_eq!(
        major_faults(program.pid()),
        faults,
        "a pass over what is used reads nothing back ({pass} us)"
    );
    // All of the rest but what is registered: there is no more.
    let rest = page_out(&mut tables, &process, 1 << 30, &registered).expect("it runs");
    assert!(rest.asked < 12 * RANGE && present(&mut tables, 16..20) == 4 * 512, "{rest:?}");
}

const PLENTY: Host = Host { available: 4000 * MIB, threshold: 500 * MIB };

const MEANS: Means =
    Means { balloon: Some(400 * MIB), balloon_stalled: false, limit: None, page_out: Some(800 * MIB) };

/// With MiB of each class in the order of [`Class::ALL`].
fn machine(name: &str, classes: [u64; 6]) -> Tenant {
    let size = classes.iter().sum::<u64>() * MIB;
    let of = |class| classes[Class::ALL.iter().position(|c| *c == class).expect("one of them")] * MIB;
    let classes = PerClass::of(|class| Estimate::exactly(of(class)));
    Tenant { name: name.into(), size, entitlement: size, classes, means: MEANS }
}

fn need(mib: u64) -> Need {
    Need { bytes: mib * MIB, within: None, depth: Depth::Inactive }
}

fn begin_interval(program: &Ranges) -> Process {
    let process = Process::open(program.pid()).expect("it runs");
    process.begin_interval().expect("it runs");
    process
}

fn look(
    tables: &mut PageTables,
    process: &Process,
    count: usize,
    registered: &[(u64, u64)],
    seed: u64,
) -> Sampled {
    let mut chance = Chance::seeded(seed);
    sample(tables, process, count, registered, || chance.number()).expect("it runs")
}

fn page_tables() -> Option<PageTables> {
    PageTables::open().inspect_err(|why| skipped(&format!("page tables cannot be read here: {why}"))).ok()
}

/// Faults of a process that had to wait for what was read.
fn major_faults(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let behind_name = stat.rsplit_once(") ").expect("a name in brackets").1;
    behind_name.split(' ').nth(9).and_then(|n| n.parse().ok()).expect("the twelfth field")
}

/// Boots a machine with a balloon and nothing that drives it, and asks for half of its memory; whether that stalls.
fn balloon_without_a_driver_stalls() -> Option<bool> {
    let dir = dirs::in_memory();
    let socket = dir.path().join("qmp");
    let machine = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-m",
            "64M",
            "-nodefaults",
            "-nographic",
            "-device",
            "virtio-balloon",
            "-qmp",
        ])
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .stdin(Stdio::null())
        .spawn();
    let mut machine = match machine {
        Ok(machine) => machine,
        Err(why) => {
            skipped(&format!("the stalled balloon: qemu-system-x86_64: {why}"));
            return None;
        }
    };
    let soon = Duration::from_secs(60);
    let mut balloon = wait::until("QEMU to answer", soon, || Balloon::connect(&socket).ok());
    let before = balloon.actual().expect("it has a balloon");
    assert_eq!(before, 64 * MIB);
    balloon.set_target(32 * MIB).expect("a fair wish");
    let mut progress = Progress::towards(32 * MIB, before);
    let mut stalled = false;
    for _ in 0..10 {
        stalled = progress.look(balloon.actual().expect("it runs"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = machine.kill();
    let _ = machine.wait();
    Some(stalled)
}

/// A swap: the machine's own, which is left as it is, or one in compressed memory of 128 MiB that goes on drop. One test at a
/// time has it, since the kernel has one list of swaps for all.
struct Swap {
    /// Number of the device, if it is ours.
    made: Option<String>,
    _alone: MutexGuard<'static, ()>,
}

impl Swap {
    fn on() -> Option<Swap> {
        static ALONE: Mutex<()> = Mutex::new(());
        // A test that failed with it has given it back.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        if swaps.lines().count() > 1 {
            return Some(Swap { made: None, _alone: alone });
        }
        let made = fs::read_to_string("/sys/class/zram-control/hot_add").map(|n| n.trim().to_owned());
        let Ok(number) = made else {
            skipped("this machine has no swap, and no zram to make one of");
            return None;
        };
        let swap = Swap { made: Some(number.clone()), _alone: alone };
        let device = format!("/dev/zram{number}");
        let run = |program: &str| {
            let done =
                Command::new(program).arg(&device).stdout(Stdio::null()).stderr(Stdio::null()).status();
            done.is_ok_and(|status| status.success())
        };
        let sized = fs::write(format!("/sys/block/zram{number}/disksize"), "128M").is_ok();
        if sized && run("mkswap") && run("swapon") {
            return Some(swap);
        }
        skipped("a swap cannot be made here");
        None
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Some(number) = &self.made {
            let _ = Command::new("swapoff").arg(format!("/dev/zram{number}")).stderr(Stdio::null()).status();
            let _ = fs::write("/sys/class/zram-control/hot_remove", number);
        }
    }
}

/// Says, past what the harness captures, that the calling test did not run, and why.
fn skipped(why: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "\nskipped: {name}: {why}");
}
