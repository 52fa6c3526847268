//! `pmemha-perf largepages`: what large pages gain a program, by how many of its ranges have them and in which order they got them.
//!
//! A program has ranges that are dense and hot, sparse and hot, and cold, mixed over its addresses. Five of it run beside each other. One
//! keeps its small pages; each of the others has its ranges mapped large step by step in another order: by address, as khugepaged goes; at random; by the
//! policy's ranking from access bits that it counted itself; and by what only the plan knows. At each step all read at random, in
//! turns.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use pmemha::node::kernel::tables::{Entry, PageTables};
use pmemha::node::largepage::actuator::{Actuator, Advice, Outcome as Answer};
use pmemha::node::largepage::governor::Governor;
use pmemha::node::largepage::policy::{Action, Asked, Bits, Look, PAGES, Range, Ranking, Settings};
use pmemha::node::largepage::source::{AccessBits, Tables, WriteLog};
use pmemha::region::dirty;
use pmemha_testkit::chance::Chance;
use pmemha_testkit::ranges::Ranges;
use rustix::time::{ClockId, clock_gettime};

use crate::Outcome;
use crate::fabric::adapters;
use crate::report::{Absent, Aim, Output, Report, Row, Series};

/// Options of `pmemha-perf largepages`.
#[derive(Args, Debug)]
pub struct Options {
    /// Kinds of memory: anon, memfd, tmpfs
    #[arg(long, value_delimiter = ',', default_values_t = ["anon".to_owned(), "memfd".into(), "tmpfs".into()], value_parser = ["anon", "memfd", "tmpfs"])]
    kinds: Vec<String>,
    /// Ranges of 2 MiB of each program
    #[arg(long, default_value_t = 160, value_parser = clap::value_parser!(u32).range(20..=4096))]
    ranges: u32,
    /// Steps, in percent of the ranges that are mapped large
    #[arg(long, value_delimiter = ',', default_values_t = [5, 10, 20, 40, 100], value_parser = clap::value_parser!(u32).range(1..=100))]
    shares: Vec<u32>,
    /// Processor time that a program reads for at each step
    #[arg(long, default_value_t = 200)]
    time_ms: u64,
    /// Rounds; each begins with new programs
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    output: Output,
}

/// Percent of the ranges that are to bring nearly all of the gain.
const FEW: u32 = 20;

/// Turns that programs take at each step.
const SLICES: u64 = 8;

/// The programs: by the order in which their ranges are mapped large, ours first, and the one whose ranges are not.
const ORDERS: [&str; 5] = ["ours", "address order", "random", "oracle", "all small"];

/// Index of the program that keeps its small pages.
const SMALL: usize = 4;

/// Measures, and tells a row for each kind of memory, step and order.
pub fn run(options: &Options) -> Outcome<()> {
    let mut report = Report::new("largepages", &options.output, options.kinds.len() * options.rounds);
    let mut shares = options.shares.clone();
    shares.push(100);
    shares.sort_unstable();
    shares.dedup();
    for kind in &options.kinds {
        let mut seen = Seen::new(shares.len());
        for round in 1..=options.rounds {
            report.step(format!("{kind}, round {round}"));
            one_round(kind, options, &shares, round as u64, &mut seen)?;
        }
        seen.tell(kind, options, &shares, &mut report);
    }
    writes(options, &mut report)?;
    if adapters().is_empty() {
        let remedy =
            "this machine has no RDMA adapter, and there is nothing else that memory is registered with"
                .into();
        report.lacks(Absent { name: "registration of large pages", remedy });
    }
    report.note(
        "Reads a second of a processor's time, at random places of what is hot, each waiting for the last one. A program's ranges: a tenth dense and hot, a fifth sparse and \
         hot (8 pages), the rest cold (4 reads of some 600), mixed by chance, the same in all programs of a round.",
    );
    report.note(
        "Writes are found by userfaultfd or soft-dirty bits in memory of this process: of 16 ranges that are read as a whole, eight are written in \
         one page. Where userfaultfd is armed, the kernel takes large pages of anonymous memory apart at the first write, so that none is marked in vain.",
    );
    report.note(
        "Sampling is processor time of this process for each GiB that is mapped by small pages: `sampling` reads the page tables, its peer is \
         clear_refs, which begins a new period.",
    );
    report.finish()
}

/// Figures of one kind of memory, a value a round.
struct Seen {
    /// By step, then by program.
    rates: Vec<[Vec<f64>; 5]>,
    /// What the policy mapped by itself: share of the ranges, and what this gained.
    chosen: Vec<f64>,
    chosen_gain: Vec<f64>,
    reading: Vec<f64>,
    clearing: Vec<f64>,
    collapse_ms: Vec<f64>,
}

impl Seen {
    fn new(steps: usize) -> Seen {
        let rates = (0..steps).map(|_| Default::default()).collect();
        let none = Vec::new;
        Seen {
            rates,
            chosen: none(),
            chosen_gain: none(),
            reading: none(),
            clearing: none(),
            collapse_ms: none(),
        }
    }

    fn tell(&self, kind: &str, options: &Options, shares: &[u32], report: &mut Report) {
        let series = |values: &[f64]| Series::from(values.to_vec());
        for (step, share) in shares.iter().enumerate() {
            let bytes = u64::from(count_of(*share, options.ranges)) * Range::BYTES;
            let row = || Row::new(format!("reads, {kind}"), Some(bytes), "M/s", series(&self.rates[step][0]));
            for (order, name) in ORDERS.iter().enumerate().skip(1) {
                report.push(row().beside(name, series(&self.rates[step][order])));
            }
        }
        let gains = |rates: &[Vec<f64>; 5]| -> Vec<f64> {
            rates[0].iter().zip(&rates[SMALL]).map(|(rate, small)| gain(*rate, *small)).collect()
        };
        let all = gains(&self.rates[shares.len() - 1]);
        let beside_all = |what: String, ours: &[f64]| {
            let row = Row::new(what, None, "share", series(ours)).beside("gain of all large", series(&all));
            row.aiming(Some(Aim::AtLeast(0.9)))
        };
        if let Some(step) = shares.iter().rposition(|share| *share <= FEW) {
            let what = format!("gain of the best {} %, {kind}", shares[step]);
            report.push(beside_all(what, &gains(&self.rates[step])));
        }
        report.push(beside_all(format!("gain of what the policy maps, {kind}"), &self.chosen_gain));
        let share =
            Row::new(format!("ranges that the policy maps, {kind}"), None, "share", series(&self.chosen));
        report.push(share.aiming(Some(Aim::OursBelow(0.2001))));
        let sampling = Row::new(format!("sampling, {kind}"), None, "ms/GiB", series(&self.reading));
        report.push(sampling.beside("clear_refs", series(&self.clearing)).aiming(Some(Aim::OursBelow(1.0))));
        report.push(Row::new(
            format!("mapping a range large, {kind}"),
            None,
            "ms",
            series(&self.collapse_ms),
        ));
    }
}

fn one_round(kind: &str, options: &Options, shares: &[u32], round: u64, seen: &mut Seen) -> Outcome<()> {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let at = if kind == "tmpfs" { dir.path().to_str().ok_or("a plain name")? } else { kind };
    let mut chance = Chance::seeded(round);
    let plan = plan(options.ranges as usize, &mut chance);
    let mut programs: Vec<Ranges> = ORDERS.iter().map(|_| Ranges::start(at, &plan)).collect();
    let first = Range::of(programs[0].base()).0;
    let ranked = rank(&mut programs[0], options.ranges, seen)?;
    let mut random: Vec<u64> = (0..u64::from(options.ranges)).collect();
    shuffle(&mut random, &mut chance);
    let mut oracle: Vec<u64> = (0..u64::from(options.ranges)).collect();
    let worth = |range: &u64| "DSC".find(plan.as_bytes()[*range as usize] as char);
    oracle.sort_by_key(worth);
    let by_address = (0..u64::from(options.ranges)).collect();
    let orders: [Vec<u64>; 4] =
        [ranked.order.iter().map(|r| r - first).collect(), by_address, random, oracle];

    let rates = |programs: &mut [Ranges]| -> Vec<f64> {
        let slice = (options.time_ms / SLICES).max(1);
        let mut rates = vec![0.0; programs.len()];
        for turn in 0..SLICES as usize {
            // Who comes first changes, and so does who comes after whom.
            for i in 0..programs.len() {
                let i = (turn + i * (1 + turn % 4)) % programs.len();
                rates[i] += programs[i].run(slice) / 1e6 / SLICES as f64;
            }
        }
        rates
    };
    let mut advice = Vec::new();
    for program in &programs {
        advice.push((Advice::on(program.pid())?, Range::of(program.base()).0));
    }
    // What the policy decides by itself comes first, then the steps that are larger or smaller than that.
    let mut done = [0; SMALL];
    let mut chosen = false;
    for (step, share) in shares.iter().enumerate() {
        let count = count_of(*share, options.ranges) as usize;
        if !chosen && count >= ranked.earned {
            chosen = true;
            let mapped = advance(&mut advice[0], &orders[0], &mut done[0], ranked.earned, seen)?;
            seen.chosen.push(mapped as f64 / f64::from(options.ranges));
            let rates = rates(&mut programs);
            seen.chosen_gain.push(gain(rates[0], rates[SMALL]));
        }
        for order in 0..SMALL {
            advance(&mut advice[order], &orders[order], &mut done[order], count, seen)?;
        }
        for (order, rate) in rates(&mut programs).into_iter().enumerate() {
            seen.rates[step][order].push(rate);
        }
    }
    Ok(())
}

/// What a rate gains over that of small pages, measured in the same turns.
fn gain(rate: f64, small: f64) -> f64 {
    (rate / small - 1.0).max(0.0)
}

/// Maps ranges of an order large until `count` are; how many are.
fn advance(
    advice: &mut (Advice, u64),
    order: &[u64],
    done: &mut usize,
    count: usize,
    seen: &mut Seen,
) -> Outcome<usize> {
    let begin = Instant::now();
    let before = *done;
    while *done < count.min(order.len()) {
        let range = Range(advice.1 + order[*done]);
        match advice.0.act(Action::Map(range))? {
            Answer::Done => *done += 1,
            Answer::Busy(why) | Answer::Refused(why) => {
                return Err(format!("{range:?} is not mapped large: {why}").into());
            }
        }
    }
    if *done > before {
        seen.collapse_ms.push(begin.elapsed().as_secs_f64() * 1e3 / (*done - before) as f64);
    }
    Ok(*done)
}

/// The ranges of a program as the policy ranks them, and how many of them earn it.
struct Ranked {
    order: Vec<u64>,
    earned: usize,
}

fn rank(program: &mut Ranges, ranges: u32, seen: &mut Seen) -> Outcome<Ranked> {
    let settings = Settings { budget: ranges as usize, ..Settings::default() };
    let (bits, actuator) = (Box::new(Tables::open(program.pid())?), Box::new(Advice::on(program.pid())?));
    let mut governor =
        Governor::new(Path::new("/proc"), program.pid(), bits, actuator, settings, Duration::ZERO);
    governor.step(false, Asked::default())?;
    let mut last = None;
    for _ in 0..2 * settings.settle {
        program.run(60);
        last = Some(governor.step(false, Asked::default())?);
    }
    let first = Range::of(program.base()).0;
    let is_ours = |range: Range| (first..first + u64::from(ranges)).contains(&range.0);
    let order =
        governor.standings().into_iter().map(|s| s.range).filter(|r| is_ours(*r)).map(|r| r.0).collect();
    let of = |action: &Action| matches!(action, Action::Map(range) if is_ours(*range));
    let earned = last.map_or(0, |step| step.actions.iter().filter(|(action, _)| of(action)).count());

    let mut tables = PageTables::open()?;
    let starts: Vec<u64> = (0..u64::from(ranges)).map(|i| (first + i) * Range::BYTES).collect();
    let gib = (u64::from(ranges) * Range::BYTES) as f64 / (1u64 << 30) as f64;
    tables.look(program.pid(), &starts)?;
    let begin = processor_ms();
    let entries = tables.look(program.pid(), &starts)?;
    seen.reading.push((processor_ms() - begin) / gib);
    if !entries.iter().all(|entry| matches!(entry, Entry::Table { present: PAGES, .. })) {
        return Err("this machine maps memory large by itself: echo madvise >/sys/kernel/mm/transparent_hugepage/enabled".into());
    }
    let begin = processor_ms();
    std::fs::write(format!("/proc/{}/clear_refs", program.pid()), "1")?;
    seen.clearing.push((processor_ms() - begin) / gib);
    Ok(Ranked { order, earned })
}

/// What dirty tracking finds in memory of which ranges are mapped large, against memory of which none is: the ranges are read as a
/// whole; half of them are written in one page, and half not at all.
fn writes(options: &Options, report: &mut Report) -> Outcome<()> {
    let (mut ours, mut everything, mut small) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        for (mapped, into) in
            [(Which::None, &mut small), (Which::Ranked, &mut ours), (Which::All, &mut everything)]
        {
            into.push(found_written(mapped)? * 4.0 / 1024.0);
        }
    }
    let row = |name, peer: &Vec<f64>| {
        Row::new("found written, ranked", None, "MiB", ours.clone().into()).beside(name, peer.clone().into())
    };
    report.push(row("all small", &small).aiming(Some(Aim::AtMost(1.05))));
    report.push(row("all large", &everything));
    Ok(())
}

enum Which {
    None,
    Ranked,
    All,
}

/// Ranges of the memory of [`found_written`].
const WRITTEN: u64 = 16;

/// Pages that tracking finds in one round of writes to memory of this process.
fn found_written(which: Which) -> Outcome<f64> {
    let memory = Own::map(WRITTEN)?;
    let ranges: Vec<Range> = (0..WRITTEN).map(|i| Range(memory.first.0 + i)).collect();
    let write = || ranges.iter().step_by(2).for_each(|range| memory.touch(*range));
    let (start, end) =
        (memory.first.start() as usize, (memory.first.0 + WRITTEN) as usize * Range::BYTES as usize);
    let mut advice = Advice::on(std::process::id())?;
    let chosen = match which {
        Which::None => Vec::new(),
        Which::All => ranges.clone(),
        Which::Ranked => {
            // All pages are read, and so are in use to the full; what is written tells them apart.
            let mut log = WriteLog::of(dirty::best(), start, end)?;
            log.clear()?;
            let mut ranking = Ranking::new(Settings { budget: ranges.len(), ..Settings::default() });
            for _ in 0..8 {
                write();
                let looks = ranges.iter().zip(log.count(&ranges)?).map(|(range, bits)| {
                    let written = match bits {
                        Bits::Small(n) => Some(n),
                        Bits::Large(_) => None,
                    };
                    Look { range: *range, bits: Bits::Small(PAGES), written }
                });
                ranking.observe(&looks.collect::<Vec<_>>());
            }
            let maps = ranking.decide(Asked::default()).into_iter();
            maps.filter_map(|action| if let Action::Map(range) = action { Some(range) } else { None })
                .collect()
        }
    };
    for range in chosen {
        if let Answer::Busy(why) | Answer::Refused(why) = advice.act(Action::Map(range))? {
            return Err(format!("memory of this process is not mapped large: {why}").into());
        }
    }
    let mut log = WriteLog::of(dirty::best(), start, end)?;
    log.clear()?;
    write();
    let found = log
        .count(&ranges)?
        .into_iter()
        .map(|bits| if let Bits::Small(n) = bits { f64::from(n) } else { 0.0 });
    Ok(found.sum())
}

/// Anonymous memory of this process that begins with a range.
struct Own {
    at: *mut libc::c_void,
    bytes: usize,
    first: Range,
}

impl Own {
    fn map(ranges: u64) -> Outcome<Own> {
        let bytes = (ranges + 1) as usize * Range::BYTES as usize;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let first = Range((at as u64).div_ceil(Range::BYTES));
        let own = Own { at, bytes, first };
        for page in 0..ranges * u64::from(PAGES) {
            own.store(first.start() + page * 4096);
        }
        Ok(own)
    }

    /// Writes to one page of a range.
    fn touch(&self, range: Range) {
        self.store(range.start() + 7 * 4096);
    }

    fn store(&self, address: u64) {
        // SAFETY: the address lies within the mapping, which nobody else knows of.
        unsafe { (address as *mut u8).write_volatile(1) };
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: mapped by us, and not used any more.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

/// A tenth of the ranges dense and hot, a fifth sparse and hot, the others cold.
fn plan(ranges: usize, chance: &mut Chance) -> String {
    let mut kinds: Vec<char> = (0..ranges)
        .map(|i| match i * 10 / ranges {
            0 => 'D',
            1 | 2 => 'S',
            _ => 'C',
        })
        .collect();
    shuffle(&mut kinds, chance);
    kinds.into_iter().collect()
}

fn shuffle<T>(items: &mut [T], chance: &mut Chance) {
    for i in (1..items.len()).rev() {
        items.swap(i, chance.below(i as u64 + 1) as usize);
    }
}

fn count_of(share: u32, ranges: u32) -> u32 {
    (share * ranges).div_ceil(100)
}

/// What this thread has used of a processor.
fn processor_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}
