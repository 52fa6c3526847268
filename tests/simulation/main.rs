//! The simulator: the product's own code that copies, ships, lands, applies, promotes and decides, on simulated machines, of which
//! everything that fails is decided by a seed.
//!
//! What is real: the log and its appenders, `ship`, `replica`, the state machine of `failover`. What is simulated: the fabric and the
//! network, storage and its loss, the clock and whose turn it is, external power, the program, and the agent's glue between these rooms.
//!
//! A seed replays exactly: `PMEMHA_SIM_SEED=n` runs one and prints what happened. `PMEMHA_SIM_SEEDS=n` says how many are run,
//! `PMEMHA_SIM_FIRST=n` from which on.

mod agent;
mod clock;
mod fabric;
mod node;
mod oracle;
mod program;
mod source;
mod standby;
mod world;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pmemha::locks::lock;
use pmemha_testkit::chance::Chance;
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use clock::Turns;

/// A seed takes milliseconds, on a busy machine seconds.
const HANGS: Duration = Duration::from_secs(120);

/// Seeds of a test run.
const SEEDS: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Runs a seed: what was found wrong, if anything, and what happened.
fn run(seed: u64, trace: bool) -> (Option<String>, Vec<String>) {
    let mut config = Config::new();
    config.stack_size = 512 << 10;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::None;
    config.silence_warnings = true;
    let (found, said) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(Vec::new())));
    let (tell, say) = (found.clone(), said.clone());
    let chance = Chance::seeded(seed);
    let turns = Turns(Some(chance.lane(1)), chance.lane(2));
    let body = move || {
        clock::begin(chance.lane(3), trace);
        *lock(&tell) = world::run();
        *lock(&say) = clock::end();
    };
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Runner::new(turns, config).run(body)));
    let panicked = ran.err().map(|panic| {
        let literal = panic.downcast_ref::<&str>().map(|text| text.to_string());
        format!("panicked: {}", panic.downcast_ref::<String>().cloned().or(literal).unwrap_or_default())
    });
    let said = match panicked {
        Some(_) => clock::end(),
        None => std::mem::take(&mut *lock(&said)),
    };
    (panicked.or(lock(&found).take()), said)
}

#[test]
fn whatever_fails_every_promise_holds() {
    if let Some(seed) = number("PMEMHA_SIM_SEED") {
        let (found, said) = run(seed, true);
        said.iter().for_each(|line| println!("{line}"));
        assert_eq!(found, None, "seed {seed}");
        return;
    }
    let (first, seeds) =
        (number("PMEMHA_SIM_FIRST").unwrap_or(0), number("PMEMHA_SIM_SEEDS").unwrap_or(SEEDS));
    let (next, lowest, began) = (AtomicU64::new(first), AtomicU64::new(u64::MAX), Instant::now());
    let (failed, done) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    let under_way: Vec<_> = (0..workers).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        let work = |mine: &UnderWay| loop {
            let seed = next.fetch_add(1, Relaxed);
            // What comes behind one that failed would not be the first.
            if seed >= first + seeds || seed > lowest.load(Relaxed) {
                *lock(mine) = None;
                return;
            }
            *lock(mine) = Some((seed, Instant::now()));
            if let Some(found) = run(seed, false).0 {
                lowest.fetch_min(seed, Relaxed);
                lock(&failed).push((seed, found));
            }
        };
        let workers: Vec<_> = under_way.iter().map(|mine| scope.spawn(move || work(mine))).collect();
        let watch = scope.spawn(|| watch(&under_way, &done));
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Relaxed);
        watch.join().expect("it only looks");
        ended.into_iter().for_each(|ended| ended.expect("a seed that panics is caught"));
    });
    let mut failed = failed.into_inner().expect("nobody panicked under it");
    failed.sort();
    println!(
        "seeds: {}, in {:.1} s",
        next.load(Relaxed).min(first + seeds) - first,
        began.elapsed().as_secs_f64()
    );
    for (seed, found) in &failed {
        println!("PMEMHA_SIM_SEED={seed}: {found}");
    }
    assert!(failed.is_empty(), "found within {} seeds", failed[0].0 - first + 1);
}

/// The seed that a thread runs, and since when.
type UnderWay = Mutex<Option<(u64, Instant)>>;

/// One that hangs where no simulated time passes would hang for ever, and nobody would know which.
fn watch(under_way: &[UnderWay], done: &AtomicBool) {
    while !done.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        for worker in under_way {
            let hangs = lock(worker).filter(|(_, since)| since.elapsed() > HANGS);
            if let Some((seed, _)) = hangs {
                eprintln!("PMEMHA_SIM_SEED={seed} hangs");
                std::process::abort();
            }
        }
    }
}
