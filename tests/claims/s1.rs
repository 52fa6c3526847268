//! S1, application-transparent battery-backed replication, as far as it is about the battery: what is exposed, and what bounds it.

use std::fs;
use std::time::{Duration, Instant};

use pmemha::log::threshold::{Delay, Thresholds};
use pmemha_testkit::load::Load;
use pmemha_testkit::node::{Node, Pair, PairOptions};
use pmemha_testkit::wait;
use serde_json::Value;

use super::BINARIES;

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(30);

/// What one drain of the program publishes at most, and the agent's own records beside it.
pub(super) const DRAIN: u64 = 64 << 10;

/// Freezing and handing over, as the configuration below has it.
const FIXED: f64 = 0.1 + 0.1;

/// A pair whose group has this `budget`, and a battery that lasts so long.
pub(super) fn with_battery(budget: &str, seconds: f64) -> Pair {
    let group = format!("log_size = \"64MiB\"\nfreeze_deadline = \"100ms\"\nbudget = \"{budget}\"");
    let mut pair = Pair::prepare(BINARIES, &PairOptions { group, ..PairOptions::default() });
    pair.alpha.configure_more("[budget]\ndetect = \"0s\"\nsafety = 1\n");
    battery(&pair.alpha, seconds);
    pair.beta.start();
    pair.alpha.start();
    pair
}

/// The battery of `node` lasts so long from now on, as its UPS says; there is line power.
pub(super) fn battery(node: &Node, seconds: f64) {
    let aside = node.dir().join("battery.new");
    fs::write(&aside, format!("online=1\nbattery_runtime_s={seconds}\n")).expect("own directory");
    fs::rename(&aside, node.power()).expect("own directory");
}

/// Exposure, and what the battery carries.
struct Sample {
    exposed: u64,
    t2: u64,
    counts: bool,
}

fn sample(node: &Node) -> Sample {
    let group = node.status().expect("the agent answers")["groups"][0].take();
    let row = &group["destinations"][0];
    Sample {
        exposed: row["exposure_bytes"].as_u64().expect("bytes"),
        t2: group["budget"]["t2_bytes"].as_u64().unwrap_or(0),
        counts: row["state"] == "streaming" && group["log"]["ahead"] == false,
    }
}

/// S1.2: above a first threshold of dirty bytes the application is slowed, the more the nearer to the second; dirty never exceeds that.
///
/// A program that never pauses and waits for no commit level runs against a destination that takes records, and then against one that stands
/// still. With `budget = "enforce"` what is exposed stays under the second threshold, in the end because the program stands still;
/// it goes on when the destination does. With `budget = "alarm"` it exceeds the threshold, and that is told.
#[test]
fn s1_2_a_program_is_slowed_above_t1_and_exposure_stays_below_t2() {
    // The nearer, the longer.
    let thresholds = Thresholds::of(1 << 20, 1 << 20);
    let delays: Vec<_> = (0..=64).map(|at| thresholds.delay(4096, at << 14)).collect();
    assert!(delays[..=32].iter().all(|d| *d == Delay::None) && delays[64] == Delay::UntilLess);
    let times = delays[33..64].iter().map(|d| if let Delay::For(time) = d { *time } else { panic!("{d:?}") });
    assert!(times.is_sorted_by(|a, b| a < b));

    // Enough that a stream which at first waits for each drain, and so is measured slow, has a budget to grow in.
    let pair = with_battery("enforce", FIXED + 0.1);
    let mut load = Load::start(&pair.alpha, "raw");
    pair.alpha.await_streaming();
    wait::until("a budget", SOON, || (sample(&pair.alpha).t2 > DRAIN).then_some(()));
    let mut carried = Vec::new();
    let mut most = 0;
    let mut watch = |what: &str, time: Duration| {
        let began = Instant::now();
        let mut seen = 0;
        while began.elapsed() < time {
            let now = sample(&pair.alpha);
            if !now.counts {
                carried.clear();
                continue;
            }
            // The agent reckons it anew a few times a second, and what was published before stays: the most there was counts.
            carried.push(now.t2);
            let t2 = carried.iter().copied().max().expect("one");
            if carried.len() > 1 {
                assert!(now.exposed <= t2 + DRAIN, "{what}: {} exposed, {t2} carried", now.exposed);
                most = most.max(now.exposed);
                seen += 1;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("{what}: {seen} samples, at most {most} bytes exposed");
        seen
    };
    assert!(watch("shipped", Duration::from_secs(2)) > 0);
    pair.beta.stand_still();
    let mut looks = 0;
    wait::until("the program to be held", SOON, || {
        let before = load.files.done();
        looks += watch("the destination stands still", Duration::from_millis(500));
        (load.files.done() == before).then_some(())
    });
    assert!(looks > 0, "nobody looked while it counted");
    pair.beta.go_on();
    load.files.await_progress("with the destination", 100);
    load.assert_alive();
    drop((load, pair));

    let pair = with_battery("alarm", FIXED + 0.02);
    let load = Load::start(&pair.alpha, "raw");
    pair.alpha.await_streaming();
    wait::until("a budget", SOON, || (sample(&pair.alpha).t2 > DRAIN).then_some(()));
    pair.beta.stand_still();
    let over = wait::until("more exposed than the battery carries", SOON, || {
        Some(sample(&pair.alpha)).filter(|now| now.exposed > now.t2 + DRAIN)
    });
    println!("not enforced: {} exposed, {} carried", over.exposed, over.t2);
    pair.alpha.await_event("budget_low");
    load.files.await_progress("although the battery is not enough", 10);
    pair.beta.go_on();
}

/// S1.7: T2 follows from hold-up x bandwidth, and moves when they do; likewise from the battery's energy.
///
/// The battery's word and the measured drain rate are in one status with the thresholds: they agree whenever one of them has moved.
#[test]
fn s1_7_t2_is_hold_up_times_bandwidth_and_moves_with_them() {
    let pair = with_battery("alarm", 10.0);
    let _load = Load::start(&pair.alpha, "raw");
    pair.alpha.await_streaming();
    let mut seen = Vec::new();
    for seconds in [10.0, 40.0, 5.0, 0.1, 20.0] {
        battery(&pair.alpha, seconds);
        let budget = pair.alpha.await_group("the battery's new word in the budget", |g| {
            let budget: &Value = &g["budget"];
            let known =
                budget["available_s"].as_f64() == Some(seconds) && budget["drain_bytes_per_s"].is_number();
            known.then(|| budget.clone())
        });
        let number = |key: &str| budget[key].as_f64().unwrap_or_else(|| panic!("{key} in {budget:#}"));
        let carried = number("drain_bytes_per_s") * (seconds - FIXED).max(0.0);
        let (t1, t2) = (number("t1_bytes"), number("t2_bytes"));
        assert!((t2 - carried).abs() <= 1.0 + carried * 1e-6, "{t2} is not {carried}: {budget:#}");
        assert!((t1 - t2 / 2.0).abs() <= 1.0);
        seen.push(t2 as u64);
    }
    println!("T2 for 10, 40, 5, 0.1 and 20 s: {seen:?}");
    assert!(seen[1] > seen[2] && seen[2] > seen[3] && seen[3] < seen[4], "{seen:?}");
}
