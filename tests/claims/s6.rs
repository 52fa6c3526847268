//! S6, prioritised mapping of large pages: real processes, their real page tables, real large pages.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pmemha::node::largepage::actuator::{Advice, Outcome};
use pmemha::node::largepage::governor::{Governor, Step};
use pmemha::node::largepage::mappings;
use pmemha::node::largepage::policy::{Action, Asked, Bits, Look, Range, Ranking, Settings, Standing};
use pmemha::node::largepage::source::{AccessBits, Kind, Tables, WriteLog};
use pmemha::region::dirty;
use pmemha::region::memory::SharedMem;
use pmemha_testkit::dirs;
use pmemha_testkit::ranges::{RANGE, Ranges};
use tempfile::TempDir;

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(60);

/// Periods within which the system must have done what it put off.
const PATIENCE: usize = 40;

const PROC: &str = "/proc";

/// S6.1: for each L1 page table (2 MiB) the set access bits are counted periodically, and a current count value is calculated from
/// them.
///
/// The program touches what its plan says, once a period; the counts must be exactly that, and the value the mean of its last one and
/// the count.
#[test]
fn s6_1_set_access_bits_of_each_page_table_are_counted_and_averaged() {
    let Some((mut program, mut governor)) = governed("anon", "D-SC", Settings::default()) else { return };
    let plans = ["D-SC", "D-SC", "S-D-", "SSDD", "----"];
    let mut expected = [0.0; 4];
    for plan in plans {
        program.plan(plan);
        program.once();
        governor.step(false, Asked::default()).expect("it runs");
        let counts = plan.chars().map(|c| match c {
            'D' => 512.0,
            'S' => 8.0,
            _ => 0.0,
        });
        for (value, count) in expected.iter_mut().zip(counts) {
            *value = (*value + count) / 2.0;
        }
        let values = of_program(&governor, &program).map(|s| s.ccv);
        println!("plan {plan}: {values:?}");
        assert_eq!(values, expected, "plan {plan}");
    }
}

/// S6.2: in the first phase nothing is mapped large, even if identified as such.
#[test]
fn s6_2_in_the_first_phase_nothing_is_mapped_large() {
    let settings = Settings { settle: 3, ..Settings::default() };
    let Some((mut program, mut governor)) = governed("anon", "DD", settings) else { return };
    for period in 1..=PATIENCE {
        program.once();
        let step = governor.step(true, Asked::default()).expect("it runs");
        let large = large_bytes(&program);
        println!("period {period}: {large} bytes large, {:?}", step.actions);
        if period <= 3 {
            let identified = of_program::<2>(&governor, &program);
            assert!(identified.iter().all(|s| settings.threshold <= s.score), "{identified:?}");
            assert_eq!(
                step.actions.len(),
                if period < 3 { 0 } else { 2 },
                "period {period}: {:?}",
                step.actions
            );
        }
        assert!(period >= 3 || large == 0, "period {period}: {large} bytes large");
        none_is_refused(&step);
        if large == 2 * RANGE {
            return;
        }
    }
    panic!("the system put it off for {PATIENCE} periods");
}

/// S6.3: after it, the count ranks the candidates, highest first, with a threshold under which nothing is mapped large.
///
/// One range a period may be mapped. Uses differ: all pages, all pages after a late beginning, eight pages, none. In anonymous
/// memory, a memfd, and a file on tmpfs.
#[test]
fn s6_3_the_count_ranks_the_candidates_and_a_threshold_bounds_them() {
    let dir = dirs::in_memory();
    let tmpfs = dir.path().to_str().expect("a plain name");
    for kind in ["anon", "memfd", tmpfs] {
        let settings = Settings { budget: 1, ..Settings::default() };
        let Some((mut program, mut governor)) = governed(kind, "S-D-D", settings) else { return };
        let first = Range::of(program.base()).0;
        let (mut tried, mut mapped) = (Vec::new(), Vec::new());
        // The third range begins later than the fifth, and so ranks below it; both have earned it once the first phase is over.
        let plans = ["S---D", "S---D", "S-D-D", "S-D-D", "S-D-D", "S-D-D", "S-D-D"];
        let plans = plans.into_iter().chain(std::iter::repeat("S-D-D")).take(PATIENCE).enumerate();
        for (period, plan) in plans {
            if period >= 7 && mapped.len() == 2 {
                break;
            }
            program.plan(plan);
            program.once();
            let step = governor.step(true, Asked::default()).expect("it runs");
            none_is_refused(&step);
            for (action, outcome) in &step.actions {
                let Action::Map(range) = action else { panic!("{kind}: {action:?}") };
                let range = range.0 - first;
                if !tried.contains(&range) {
                    tried.push(range);
                }
                if outcome == &Some(Outcome::Done) {
                    let (before, after) = step.large_bytes;
                    assert_eq!(after, before + RANGE, "{kind}: it is seen in the page tables");
                    mapped.push(range);
                }
            }
        }
        println!("{kind}: mapped {mapped:?}");
        assert_eq!(tried, [4, 2], "{kind}: the best first, the sparse one and the unused ones never");
        assert_eq!(mapped.len(), 2, "{kind}: {mapped:?}");
        assert_eq!(large_bytes(&program), 2 * RANGE, "{kind}");
    }
}

/// S6.4: counting goes on after the first phase, and the ranking follows.
///
/// The hot part moves: what is hot now is mapped large, and what was hot gets its small pages back when memory is asked for.
#[test]
fn s6_4_counting_goes_on_and_the_ranking_follows() {
    let Some((mut program, mut governor)) = governed("anon", "DD--", Settings::default()) else { return };
    let mut live = |plan: &str, asked: Asked, governor: &mut Governor| {
        program.plan(plan);
        let (mut period, mut last) = (0, 8);
        while period < last {
            period += 1;
            program.once();
            let step = governor.step(true, asked).expect("it runs");
            none_is_refused(&step);
            if step.actions.iter().any(|(_, outcome)| matches!(outcome, Some(Outcome::Busy(_)))) {
                last = (period + 8).min(PATIENCE);
            }
        }
        let standings = of_program::<4>(governor, &program);
        println!("plan {plan}: {standings:?}");
        let large = standings.map(|s| s.large);
        assert_eq!(large_bytes(&program), RANGE * large.iter().filter(|l| **l).count() as u64);
        let mut order: Vec<usize> = (0..4).collect();
        order.sort_by(|a, b| standings[*b].score.total_cmp(&standings[*a].score));
        (large, [order[0].min(order[1]), order[0].max(order[1])])
    };
    let nothing = Asked::default();
    assert_eq!(live("DD--", nothing, &mut governor), ([true, true, false, false], [0, 1]));
    assert_eq!(live("--DD", nothing, &mut governor), ([true; 4], [2, 3]), "nobody asked for memory");
    let memory = Asked { by_memory: 8, by_tracking: 0 };
    assert_eq!(live("--DD", memory, &mut governor), ([false, false, true, true], [2, 3]));
}

/// S6.5: with hardware assist the bits of the nested page tables are used, with a software MMU those of the shadow page tables: two
/// sources behind one interface.
///
/// Here a guest runs under emulation, and the page tables of QEMU stand for the nested ones: every access of the guest goes through them. A
/// log of writes stands for the shadow page tables. Both must rank the same use alike.
#[test]
fn s6_5_nested_and_shadow_tables_are_two_sources_behind_one_interface() {
    let use_of = |source: &mut dyn AccessBits, ranges: &[Range], what: &str| -> Vec<f64> {
        let mut ranking = Ranking::new(Settings::default());
        let bits = source.count(ranges).expect("it can be counted");
        println!("{what}: {:?} {bits:?}", source.kind());
        let looks = ranges.iter().zip(bits).map(|(range, bits)| Look { range: *range, bits, written: None });
        ranking.observe(&looks.collect::<Vec<_>>());
        let standings = ranking.standings();
        let ccv = |range| standings.iter().find(|s| s.range == range).map(|s| s.ccv);
        ranges.iter().map(|range| ccv(*range).expect("observed")).collect()
    };

    let memory = SharedMem::anonymous(4 * RANGE as usize).expect("memory");
    let base = memory.addr(0) as u64;
    let first = Range(base.div_ceil(RANGE));
    let ranges = [first, Range(first.0 + 1), Range(first.0 + 2)];
    memory.zero(0, memory.len());
    let tracker = dirty::best();
    let mut shadow =
        WriteLog::of(tracker, base as usize, base as usize + memory.len()).expect("it is watched");
    shadow.clear().expect("a new period");
    let at = |range: u64, page: u64| (first.start() - base + range * RANGE + page * 4096) as usize;
    (0..512).for_each(|page| memory.write(at(0, page), b"x"));
    (0..8).for_each(|page| memory.write(at(1, page), b"x"));
    assert_eq!(use_of(&mut shadow, &ranges, "shadow"), [256.0, 4.0, 0.0]);
    assert_eq!(shadow.kind(), Kind::WriteLog);

    let Some(guest) = Guest::boot() else { return };
    let mut nested = match Tables::open(guest.0.id()) {
        Ok(tables) => tables,
        Err(why) => return skipped(&format!("the nested source: {why}")),
    };
    let ranges = guest.ranges();
    let begin = Instant::now();
    // The firmware takes its time before the guest's program begins.
    let seen = loop {
        nested.clear().expect("a new period");
        std::thread::sleep(Duration::from_millis(200));
        let bits = nested.count(&ranges).expect("it runs");
        if bits[..2] == [Bits::Small(512), Bits::Small(8)] || begin.elapsed() > SOON {
            break use_of(&mut nested, &ranges, "nested");
        }
    };
    assert_eq!(seen, [256.0, 4.0, 0.0]);

    // And what it ranks best can be mapped large under the running guest.
    let actuator = Box::new(Advice::on(guest.0.id()).expect("it runs"));
    let settings = Settings { settle: 2, steady: 1, budget: 1, ..Settings::default() };
    let bits = Box::new(nested);
    let mut governor = Governor::new(Path::new(PROC), guest.0.id(), bits, actuator, settings, Duration::ZERO);
    let mut tried = None;
    let done = (0..PATIENCE).any(|_| {
        let step = governor.step(true, Asked::default()).expect("it runs");
        println!("under the guest: {:?}", step.actions);
        none_is_refused(&step);
        std::thread::sleep(Duration::from_millis(300));
        if let [(Action::Map(range), outcome)] = &step.actions[..] {
            tried = Some(*range);
            outcome == &Some(Outcome::Done)
        } else {
            false
        }
    });
    let best = tried.expect("something of it is dense");
    assert!(done, "the system put {best:?} off");
    let dense = ranges[0].0..ranges[0].0 + u64::from(DENSE_PAGES) / 512;
    assert!(dense.contains(&best.0), "{best:?} is none of {dense:?}");
    let standing = governor.standings().into_iter().find(|s| s.range == best).expect("observed");
    assert!(standing.large, "{standing:?}");
}

/// The program, and a governor of it that has begun; nothing, said so, where this machine lets nobody read page tables, or maps all
/// memory large by itself.
fn governed(kind: &str, plan: &str, settings: Settings) -> Option<(Ranges, Governor)> {
    let program = Ranges::start(kind, plan);
    if large_bytes(&program) > 0 {
        skipped("this machine maps all memory large by itself (transparent_hugepage/enabled is always)");
        return None;
    }
    let bits = match Tables::open(program.pid()) {
        Ok(tables) => Box::new(tables),
        Err(why) => {
            skipped(&format!("page tables cannot be read here: {why}"));
            return None;
        }
    };
    let actuator = Box::new(Advice::on(program.pid()).expect("it runs"));
    let mut governor =
        Governor::new(Path::new(PROC), program.pid(), bits, actuator, settings, Duration::ZERO);
    governor.step(false, Asked::default()).expect("the first one clears");
    Some((program, governor))
}

/// What the system puts off is tried again; what it refuses never is.
fn none_is_refused(step: &Step) {
    let refused = step.actions.iter().any(|(_, outcome)| matches!(outcome, Some(Outcome::Refused(_))));
    assert!(!refused, "{:?}", step.actions);
}

/// How the program's ranges stand, in order of their addresses.
fn of_program<const N: usize>(governor: &Governor, program: &Ranges) -> [Standing; N] {
    let all = governor.standings();
    let first = Range::of(program.base()).0;
    let of = |i: usize| all.iter().find(|s| s.range.0 == first + i as u64).copied();
    std::array::from_fn(|i| of(i).unwrap_or_else(|| panic!("range {i} was not looked at: {all:?}")))
}

/// Bytes of the program's memory that are mapped large, as the kernel tells.
fn large_bytes(program: &Ranges) -> u64 {
    let all = mappings::of(Path::new(PROC), program.pid()).expect("it runs");
    all.iter().filter(|m| m.contains(program.base())).map(|m| m.large).sum()
}

/// A guest under emulation, with a program in place of an operating system: it writes to each of [`DENSE_PAGES`] at [`DENSE`], then to
/// eight pages at [`SPARSE`], and begins again. Killed on drop.
///
/// That is more than a processor remembers translations for: uses of a translation that it remembers set no bit.
///
/// Its memory is a file on tmpfs, since QEMU advises the kernel to map any other large from the beginning.
struct Guest(Child, #[expect(dead_code, reason = "it is removed on drop")] TempDir);

const MEMORY: u64 = 256 << 20;
const DENSE: u32 = 64 << 20;
const DENSE_PAGES: u32 = 6 * 512;
const SPARSE: u32 = 96 << 20;
const UNUSED: u32 = 128 << 20;

impl Guest {
    fn boot() -> Option<Guest> {
        let dir = dirs::in_memory();
        let disk = dir.path().join("disk");
        fs::write(&disk, boot_sector()).expect("memory");
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-m",
                "256M",
                "-machine",
                "pc,memory-backend=m",
                "-nodefaults",
                "-nographic",
            ])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=m,size=256M,share=on,align=2M,mem-path={}/memory",
                dir.path().display()
            ))
            .arg("-drive")
            .arg(format!("if=ide,format=raw,file={}", disk.display()))
            .stdin(Stdio::null())
            .spawn();
        match child {
            Ok(child) => {
                let guest = Guest(child, dir);
                // It has its disk open once it has its memory.
                pmemha_testkit::wait::until("QEMU to have its memory", SOON, || guest.memory());
                Some(guest)
            }
            Err(why) => {
                skipped(&format!("the nested source: qemu-system-x86_64: {why}"));
                None
            }
        }
    }

    /// Where QEMU keeps the guest's memory: resident, and of its size.
    fn memory(&self) -> Option<u64> {
        let all = mappings::of(Path::new(PROC), self.0.id()).unwrap_or_default();
        all.iter().find(|m| m.end - m.start == MEMORY && m.resident > 0).map(|m| m.start)
    }

    fn ranges(&self) -> [Range; 3] {
        let base = self.memory().expect("it runs");
        [DENSE, SPARSE, UNUSED].map(|at| Range::of(base + u64::from(at)))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// 512 bytes that the firmware starts at 0x7c00: into protected mode, and the loop.
fn boot_sector() -> Vec<u8> {
    const AT: u16 = 0x7c00;
    const TABLE: u16 = 0x80;
    const REGISTER: u16 = 0xa0;
    let mut code = vec![0xfa, 0x31, 0xc0, 0x8e, 0xd8]; // cli; xor ax, ax; mov ds, ax
    code.extend([0x0f, 0x01, 0x16]); // lgdt [REGISTER]
    code.extend((AT + REGISTER).to_le_bytes());
    code.extend([0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0]); // mov eax, cr0; or al, 1; mov cr0, eax
    let protected = AT + code.len() as u16 + 5;
    code.push(0xea); // jmp 8:protected
    code.extend(protected.to_le_bytes());
    code.extend([8, 0, 0x66, 0xb8, 0x10, 0, 0x8e, 0xd8]); // mov ax, 16; mov ds, ax
    let again = code.len();
    for (at, pages) in [(DENSE, DENSE_PAGES), (SPARSE, 8)] {
        code.push(0xbe); // mov esi, at
        code.extend(at.to_le_bytes());
        code.push(0xb9); // mov ecx, pages
        code.extend(pages.to_le_bytes());
        code.extend([0xfe, 0x06, 0x81, 0xc6, 0, 0x10, 0, 0, 0xe2, 0xf6]); // inc byte [esi]; add esi, 4096; loop
    }
    code.push(0xe9); // jmp again
    code.extend((again as i32 - (code.len() as i32 + 4)).to_le_bytes());
    code.resize(TABLE.into(), 0);
    for descriptor in [0, 0x00cf_9a00_0000_ffffu64, 0x00cf_9200_0000_ffff] {
        code.extend(descriptor.to_le_bytes());
    }
    code.resize(REGISTER.into(), 0);
    code.extend(23u16.to_le_bytes());
    code.extend(u32::from(AT + TABLE).to_le_bytes());
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code
}

/// Says, past what the harness captures, that the calling test did not run, and why.
fn skipped(why: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "\nskipped: {name}: {why}");
}
