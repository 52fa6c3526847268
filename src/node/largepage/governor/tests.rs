//! A governor with a source and an actuator that the test owns, over a procfs of its own.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;

use super::*;

/// What both sides saw and did.
#[derive(Default)]
struct World {
    counts: Vec<(u64, u16)>,
    large: Vec<Range>,
    refuse: Option<Range>,
    busy: Vec<Range>,
    clears: usize,
    acts: Vec<Action>,
}

#[derive(Clone, Default)]
struct Fake(Rc<RefCell<World>>);

impl AccessBits for Fake {
    fn kind(&self) -> Kind {
        Kind::PageTables
    }

    fn count(&mut self, ranges: &[Range]) -> io::Result<Vec<Bits>> {
        let world = self.0.borrow();
        let of = |range: &Range| {
            let set = world.counts.iter().find(|(n, _)| *n == range.0).map_or(0, |(_, set)| *set);
            if world.large.contains(range) { Bits::Large(set > 0) } else { Bits::Small(set) }
        };
        Ok(ranges.iter().map(of).collect())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.0.borrow_mut().clears += 1;
        Ok(())
    }
}

impl Actuator for Fake {
    fn act(&mut self, action: Action) -> io::Result<Outcome> {
        let mut world = self.0.borrow_mut();
        world.acts.push(action);
        let (Action::Map(range) | Action::Demote(range)) = action;
        if world.refuse == Some(range) {
            return Ok(Outcome::Refused("it is what it is".into()));
        }
        if world.busy.contains(&range) {
            return Ok(Outcome::Busy("somebody has it pinned".into()));
        }
        world.large.retain(|r| *r != range);
        if matches!(action, Action::Map(_)) {
            world.large.push(range);
        }
        Ok(Outcome::Done)
    }
}

/// A process 7 with ranges 1 to 4.
fn governed(settings: Settings) -> (Governor, Fake, tempfile::TempDir) {
    let proc = tempfile::tempdir().unwrap();
    fs::create_dir(proc.path().join("7")).unwrap();
    let text = "200000-a00000 rw-p 00000000 00:00 0\nKernelPageSize: 4 kB\nAnonHugePages: 0 kB\n";
    fs::write(proc.path().join("7/smaps"), text).unwrap();
    let fake = Fake::default();
    let (bits, actuator) = (Box::new(fake.clone()), Box::new(fake.clone()));
    (Governor::new(proc.path(), 7, bits, actuator, settings, Duration::ZERO), fake, proc)
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let (mut governor, fake, _proc) = governed(Settings { settle: 1, steady: 1, ..Settings::default() });
    fake.0.borrow_mut().counts = vec![(2, 512), (3, 300), (4, 10)];
    assert_eq!(governor.step(false, Asked::default()).unwrap().ranges, 0, "the first only clears");
    let step = governor.step(false, Asked::default()).unwrap();
    assert_eq!((step.ranges, step.settled), (4, true));
    assert_eq!(step.actions, [(Action::Map(Range(2)), None), (Action::Map(Range(3)), None)]);
    assert_eq!((fake.0.borrow().acts.len(), fake.0.borrow().clears), (0, 2));
    assert_eq!(governor.totals().mapped, 0);
}

#[test]
fn the_best_are_mapped_period_by_period_and_a_refusal_is_remembered() {
    let settings = Settings { settle: 2, budget: 1, ..Settings::default() };
    let (mut governor, fake, _proc) = governed(settings);
    fake.0.borrow_mut().counts = vec![(1, 200), (2, 512), (3, 300)];
    fake.0.borrow_mut().refuse = Some(Range(3));
    for _ in 0..7 {
        governor.step(true, Asked::default()).unwrap();
    }
    assert_eq!(fake.0.borrow().acts, [2, 3, 1].map(|n| Action::Map(Range(n))));
    let totals = governor.totals();
    assert_eq!((totals.mapped, totals.refused, totals.periods), (2, 1, 6));
    fake.0.borrow_mut().counts = vec![];
    for _ in 0..6 {
        governor.step(true, Asked { by_memory: 1, by_tracking: 0 }).unwrap();
    }
    assert_eq!(fake.0.borrow().large, [], "what went cold has small pages again");
}

#[test]
fn ranges_that_are_always_busy_rest_longer_each_time_and_starve_nobody() {
    let (mut governor, fake, _proc) =
        governed(Settings { settle: 1, steady: 1, budget: 2, ..Settings::default() });
    fake.0.borrow_mut().counts = vec![(1, 512), (2, 500), (3, 300), (4, 200)];
    fake.0.borrow_mut().busy = vec![Range(1), Range(2)];
    let mut periods = Vec::new();
    for period in 0..=20 {
        governor.step(true, Asked::default()).unwrap();
        let acts = std::mem::take(&mut fake.0.borrow_mut().acts);
        periods.extend(acts.into_iter().map(|act| (period, act)));
    }
    let of = |n| {
        let its = periods.iter().filter(|(_, act)| *act == Action::Map(Range(n)));
        its.map(|(period, _)| *period).collect::<Vec<_>>()
    };
    assert_eq!((of(3), of(4)), (vec![2], vec![2]), "while the best two rest, the budget is theirs");
    assert_eq!((of(1), of(2)), (vec![1, 3, 6, 11, 20], vec![1, 3, 6, 11, 20]), "rests of 1, 2, 4, 8 periods");
    assert_eq!(governor.totals().busy, 10);
    // What is let go is mapped once its rest is over.
    fake.0.borrow_mut().busy.clear();
    for _ in 0..17 {
        governor.step(true, Asked::default()).unwrap();
    }
    assert_eq!(governor.totals().mapped, 4);
}

#[test]
fn a_process_that_ended_ends_its_governor() {
    let (mut governor, _fake, proc) = governed(Settings::default());
    governor.step(true, Asked::default()).unwrap();
    fs::remove_dir_all(proc.path().join("7")).unwrap();
    assert!(governor.step(true, Asked::default()).is_err());
}
