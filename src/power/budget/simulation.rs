//! The budget against recorded-like and adversarial traces: flapping power, an ageing battery, falling bandwidth, bursts.
//!
//! A world knows what is true: how fast the link will be, when power goes, how long the battery really lasts. The agent's side knows what an
//! agent would: a UPS that says so late and rounds, a drain rate measured from what was shipped. Both run in steps of [`STEP`]; writers
//! append as fast as their trace wants and [`Thresholds::delay`] lets them. At every step what is exposed is compared with what the battery
//! could carry from there: an integral over the link's future that no agent could know. Traces keep to what the safety factor covers
//! (`docs/power.md`): the battery gives at least 1 / 1.1 of what the UPS says, the link does not fall faster than a fifth in the
//! time that the battery lasts, and a loss is seen in the configured time. Each [`Planted`] fault must be found by it.

use std::time::Instant;

use super::drain::{Drain, Look};
use super::hold_up::{Battery, HoldUp};
use super::*;
use crate::power::PowerState;
use crate::types::Lsn;

const STEP: f64 = 0.02;

/// An agent looks this often.
const LOOKS: f64 = 0.24;

/// Length of a trace; afterwards power stays away.
const LENGTH: f64 = 120.0;

const DETECT: f64 = 2.0;
const FREEZE: f64 = 0.5;

/// How long the battery lasts at the beginning.
const FULL: f64 = 30.0;

/// Largest epoch of a writer.
const EPOCH: u64 = 64 << 10;

const MIB: f64 = (1 << 20) as f64;

/// A fault of the agent's that the simulation must find.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Planted {
    Nothing,
    /// `budget = "alarm"`: nobody is delayed.
    NotEnforced,
    /// The first word of the battery is believed for ever.
    BatteryNeverAges,
    /// The best rate ever seen is reckoned with.
    BandwidthNeverFalls,
    /// Seconds in which nothing is shipped yet are not reckoned with, nor is there any safety.
    NoFixedTime,
    /// Appends are delayed by a fixed millisecond, however much is exposed.
    DelayDoesNotGrow,
}

#[derive(Clone, Copy, Debug)]
enum Scenario {
    /// A quarter of the time power is away, seconds at a time.
    Flapping,
    /// The battery loses most of what it gives.
    Ageing,
    /// The link falls to a quarter, and comes back.
    Falling,
    /// Nothing for long, then ten times what the link takes.
    Bursts,
    /// All of it.
    Everything,
}

const ALL: [Scenario; 5] =
    [Scenario::Flapping, Scenario::Ageing, Scenario::Falling, Scenario::Bursts, Scenario::Everything];

struct Chance(u64);

impl Chance {
    /// 0 to 1.
    fn part(&mut self) -> f64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.part()
    }
}

/// What is true, a value a step.
struct World {
    bandwidth: Vec<f64>,
    /// Bytes that the link carries from the beginning to a step.
    carried: Vec<f64>,
    online: Vec<bool>,
    /// What a full battery gives, seconds.
    full: Vec<f64>,
    /// Bytes a second that the writers would append.
    demand: Vec<f64>,
}

impl World {
    fn of(scenario: Scenario, chance: &mut Chance) -> World {
        let steps = ((LENGTH + 2.0 * FULL) / STEP) as usize;
        let is = |all: &[Scenario]| {
            all.iter().any(|s| std::mem::discriminant(s) == std::mem::discriminant(&scenario))
        };
        use Scenario::*;
        let (flaps, ages) = (is(&[Flapping, Everything]), is(&[Ageing, Everything]));
        let (falls, bursts) = (is(&[Falling, Everything]), is(&[Bursts, Everything]));
        let mut world =
            World { bandwidth: vec![], carried: vec![0.0], online: vec![], full: vec![], demand: vec![] };
        let mut rate = 100.0 * MIB;
        let (bad, least) = (chance.between(5.0, 30.0)..chance.between(60.0, 180.0), chance.between(0.2, 0.6));
        let (mut online, mut switch) = (true, chance.between(5.0, 20.0));
        let (mut demand, mut change) = (MIB * chance.between(150.0, 3000.0), 0.0);
        for step in 0..steps {
            let now = step as f64 * STEP;
            if falls {
                let wanted = 100.0 * MIB * if bad.contains(&now) { least } else { 1.0 };
                // As fast as the contract allows, which is a fifth in the time that the battery lasts.
                let most = 1.0 + 0.2 / FULL * STEP;
                rate = f64::clamp(wanted, rate / most, rate * 1.5);
            }
            if flaps && now >= switch && now < LENGTH {
                online = !online;
                switch = now + if online { chance.between(4.0, 15.0) } else { chance.between(0.1, 4.0) };
            }
            if bursts && now >= change {
                let idle = demand > 0.0;
                demand = if idle { 0.0 } else { 2000.0 * MIB };
                change = now + if idle { chance.between(1.0, 15.0) } else { chance.between(1.0, 8.0) };
            }
            let age = if ages { 1.0 - 0.8 * (now / LENGTH).min(1.0) } else { 1.0 };
            world.carried.push(world.carried[step] + rate * STEP);
            world.bandwidth.push(rate);
            world.online.push(online && now < LENGTH);
            world.full.push(FULL * age);
            world.demand.push(demand);
        }
        world
    }
}

/// How it went.
#[derive(Debug, Default)]
struct Outcome {
    /// The first step at which more was exposed than the battery could carry.
    exceeded: Option<String>,
    /// Bytes exposed when the battery ended.
    lost: u64,
    /// Bytes appended, and the most that was exposed.
    appended: f64,
    most: f64,
    /// It was told that the budget is low.
    told: bool,
}

/// What the agent knows and says.
struct Agent {
    planted: Planted,
    start: Instant,
    drain: Drain,
    best: u64,
    hold_up: HoldUp,
    first: Option<Duration>,
    verdict: Verdict,
    thresholds: Thresholds,
}

impl Agent {
    fn look(&mut self, now: f64, look: &Look, said: (Option<bool>, f64)) -> bool {
        let at = self.start + Duration::from_secs_f64(now);
        let mut rate = self.drain.take(look, at);
        self.best = self.best.max(look.measured);
        let state = PowerState {
            online: said.0,
            // A UPS counts whole seconds.
            runtime: Some(Duration::from_secs(said.1 as u64)),
            ..PowerState::silent(at)
        };
        let mut hold_up = self.hold_up.at(&state, at);
        let (mut detect, mut freeze, mut safety) = (DETECT, FREEZE, 1.5);
        match self.planted {
            Planted::BatteryNeverAges => {
                hold_up = Some(*self.first.get_or_insert(hold_up.unwrap_or_default()))
            }
            Planted::BandwidthNeverFalls => rate = Some(self.best).filter(|b| *b > 0),
            Planted::NoFixedTime => (detect, freeze, safety) = (0.0, 0.0, 1.0),
            _ => {}
        }
        let means = Means { hold_up, detect: Duration::from_secs_f64(detect), safety };
        let exposed = look.published.since(look.durable);
        let to = DestinationLoad {
            node: "beta".into(),
            counts: true,
            exposed: vec![(None, exposed)],
            drain: rate,
        };
        let group = GroupLoad {
            name: "db".into(),
            enforced: true,
            freeze: Duration::from_secs_f64(freeze),
            destinations: vec![to],
        };
        let assessment = &assess(&means, &[group])[0];
        self.thresholds = assessment.thresholds;
        self.verdict.tell(assessment.ratio()) == Some(Told::Low)
    }

    fn delay(&self, bytes: u64, exposed: u64) -> Delay {
        match self.planted {
            Planted::NotEnforced => Delay::None,
            Planted::DelayDoesNotGrow => Delay::For(Duration::from_millis(1)),
            _ => self.thresholds.delay(bytes, exposed),
        }
    }
}

/// The battery and the UPS that speaks of it.
struct Ups {
    left: f64,
    away_since: Option<f64>,
    /// What it said last, and when it measures again.
    says: f64,
    again: f64,
    late: f64,
    boast: f64,
}

impl Ups {
    fn step(&mut self, world: &World, step: usize) {
        let now = step as f64 * STEP;
        match world.online[step] {
            true => {
                self.left = (self.left + STEP * 0.1).min(world.full[step]);
                self.away_since = None;
            }
            false => {
                self.left -= STEP;
                self.away_since.get_or_insert(now);
            }
        }
        if now >= self.again {
            self.says = (self.left * self.boast).max(0.0);
            self.again = now + 0.5;
        }
    }

    /// Whether it says that there is power: it is late with a loss.
    fn online(&self, now: f64) -> bool {
        self.away_since.is_none_or(|since| now - since < self.late)
    }
}

fn run(scenario: Scenario, planted: Planted, seed: u64) -> Outcome {
    let mut chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let world = World::of(scenario, &mut chance);
    let mut ups = Ups {
        left: FULL,
        away_since: None,
        says: FULL,
        again: 0.0,
        late: chance.between(0.1, DETECT - 2.0 * LOOKS),
        boast: chance.between(0.9, 1.08),
    };
    let mut agent = Agent {
        planted,
        start: Instant::now(),
        drain: Drain::default(),
        best: 0,
        hold_up: HoldUp::new(Battery::default()),
        first: None,
        verdict: Verdict::default(),
        thresholds: Thresholds::default(),
    };
    let writers = 1 + (chance.part() * 8.0) as usize;
    let mut wake = vec![0.0; writers];
    let (mut published, mut durable, mut measured) = (0f64, 0f64, 0f64);
    let (mut outcome, mut next_look, mut frozen_from) = (Outcome::default(), 0.0, None);
    for step in 0..world.online.len() {
        let now = step as f64 * STEP;
        ups.step(&world, step);
        if ups.left <= 0.0 {
            outcome.lost = (published - durable) as u64;
            return outcome;
        }
        // The link carries what there is, whatever else happens.
        let carries = (world.bandwidth[step] * STEP).min(published - durable);
        if carries > 0.0 {
            measured += 0.25 * (world.bandwidth[step] - measured);
            durable += carries;
        }
        if now >= next_look {
            let look = Look {
                published: Lsn(published as u64),
                durable: Lsn(durable as u64),
                measured: measured as u64,
            };
            outcome.told |= agent.look(now, &look, (Some(ups.online(now)), ups.says));
            next_look = now + LOOKS;
            frozen_from = match ups.online(now) {
                true => None,
                false => frozen_from.or(Some(now + FREEZE)),
            };
        }
        if frozen_from.is_none_or(|from| now < from) {
            let mut wants = world.demand[step] * STEP;
            'more: while wants > 0.0 {
                let before = wants;
                for wake in wake.iter_mut().filter(|wake| **wake <= now + STEP) {
                    let bytes = EPOCH.min(wants as u64 + 1);
                    (published, wants) = (published + bytes as f64, wants - bytes as f64);
                    outcome.appended += bytes as f64;
                    match agent.delay(bytes, (published - durable) as u64) {
                        Delay::None => {}
                        Delay::For(time) => *wake = wake.max(now) + time.as_secs_f64(),
                        Delay::UntilLess => *wake = now + 2.0 * STEP,
                    }
                    if wants <= 0.0 {
                        break 'more;
                    }
                }
                if wants == before {
                    break;
                }
            }
        }
        let exposed = published - durable;
        outcome.most = outcome.most.max(exposed);
        // From here the gasp begins when the loss is seen, or would be if power went now, and ends with the battery.
        let seen = ups.away_since.unwrap_or(now) + ups.late + LOOKS + FREEZE;
        let steps = |s: f64| ((s.max(now) / STEP) as usize).min(world.bandwidth.len());
        let end = steps(now + ups.left - HAND_OVER.as_secs_f64());
        let carry = (world.carried[end] - world.carried[steps(seen).min(end)]).max(0.0);
        if exposed > carry + (writers as u64 * EPOCH) as f64 && outcome.exceeded.is_none() {
            outcome.exceeded = Some(format!(
                "{scenario:?}, seed {seed}, at {now:.2} s: {:.1} MiB exposed, the battery carries {:.1} MiB \
                 ({:.1} s left, T2 {:.1} MiB)",
                exposed / MIB,
                carry / MIB,
                ups.left,
                agent.thresholds.t2 as f64 / MIB,
            ));
        }
    }
    outcome
}

const SEEDS: u64 = 24;

#[test]
fn enforced_exposure_never_exceeds_what_the_battery_carries() {
    for scenario in ALL {
        let (mut appended, mut most) = (0.0, 0f64);
        for seed in 1..=SEEDS {
            let outcome = run(scenario, Planted::Nothing, seed);
            assert_eq!(outcome.exceeded, None);
            assert_eq!(outcome.lost, 0, "{scenario:?}, seed {seed}: lost when the battery ended");
            appended += outcome.appended;
            most = most.max(outcome.most);
        }
        println!(
            "{scenario:?}: {:.0} MiB/s appended, at most {:.0} MiB exposed",
            appended / SEEDS as f64 / LENGTH / MIB,
            most / MIB
        );
        // It is not kept by letting nobody append: the link is used, but for what flapping takes.
        assert!(appended / SEEDS as f64 / LENGTH > 20.0 * MIB, "{scenario:?}: {appended}");
    }
}

#[test]
fn a_rule_that_is_broken_on_purpose_is_found_out() {
    for planted in [
        Planted::NotEnforced,
        Planted::BatteryNeverAges,
        Planted::BandwidthNeverFalls,
        Planted::NoFixedTime,
        Planted::DelayDoesNotGrow,
    ] {
        let mut runs = ALL
            .iter()
            .flat_map(|scenario| (1..=SEEDS).map(|seed| (run(*scenario, planted, seed), *scenario, seed)));
        let found = runs.find(|(outcome, ..)| outcome.exceeded.is_some() || outcome.lost > 0);
        let (outcome, ..) = found.unwrap_or_else(|| panic!("{planted:?} was not found"));
        println!("{planted:?}: {} ({} bytes lost)", outcome.exceeded.unwrap_or_default(), outcome.lost);
    }
}

/// With `budget = "alarm"` nobody is delayed: whoever loses bytes was told before.
#[test]
fn without_enforcement_a_loss_was_told_of_before() {
    let mut lost = 0;
    for scenario in ALL {
        for seed in 1..=SEEDS {
            let outcome = run(scenario, Planted::NotEnforced, seed);
            assert!(outcome.told || outcome.lost == 0, "{scenario:?}, seed {seed}: {outcome:?}");
            lost += u64::from(outcome.lost > 0);
        }
    }
    assert!(lost > 0, "none of the traces is bad enough");
}
