//! Breadth-first search over every world that can be reached, and fair runs from each.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use pmemha::failover::{Cause, Event, Life, Mains, Phase, Standing};

use crate::bugs::Bug;
use crate::world::{BUG, Cut, Move, Node, Pending, SETTING, Sent, Setting, World, patient};

/// Rounds after which a fair run must have reached its goal; a handover with a refusal takes about twenty.
const FAIR_ROUNDS: usize = 80;

pub struct Explored {
    pub states: usize,
    pub transitions: usize,
    pub fair_runs: usize,
    pub violation: Option<String>,
}

/// Explores `setting` to its end, or to the first violation, or to `limit` states.
pub fn explore(setting: &Setting, bug: Option<Bug>, limit: usize, fair: bool) -> Explored {
    SETTING.set(Some(Rc::new(setting.clone())));
    BUG.set(bug);
    let mut seen = HashSet::new();
    let mut trail: Vec<(usize, Option<Move>)> = vec![(0, None)];
    let mut queue = VecDeque::from([(0, World::new(setting))]);
    let mut found = Explored { states: 1, transitions: 0, fair_runs: 0, violation: None };
    seen.insert(fingerprint(&queue[0].1));
    while let Some((at, world)) = queue.pop_front() {
        if fair && let Some(missing) = unfair(&world, &mut found.fair_runs) {
            found.violation = Some(story(&trail, at, missing, &world));
            return found;
        }
        for m in world.moves() {
            let Some(next) = world.after(&m) else { continue };
            found.transitions += 1;
            let wrong = next.violation();
            if wrong.is_none() && !seen.insert(fingerprint(&next)) {
                continue;
            }
            trail.push((at, Some(m)));
            let here = trail.len() - 1;
            if let Some(wrong) = wrong {
                found.violation = Some(story(&trail, here, wrong, &next));
                return found;
            }
            found.states += 1;
            if found.states >= limit {
                return found;
            }
            queue.push_back((here, next));
        }
    }
    found
}

/// 128 bits: a collision among some million states is out of the question.
fn fingerprint(world: &World) -> u128 {
    let hash = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        world.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    hash(1) << 64 | hash(2)
}

fn story(trail: &[(usize, Option<Move>)], mut at: usize, wrong: &str, world: &World) -> String {
    let mut moves = Vec::new();
    while let (parent, Some(m)) = &trail[at] {
        moves.push(format!("  {m:?}"));
        at = *parent;
    }
    moves.reverse();
    format!("{wrong}, after\n{}\n  -> {}", moves.join("\n"), describe(world))
}

/// Runs on from `world` without further faults, fairly; says what should have happened and did not.
fn unfair(world: &World, runs: &mut usize) -> Option<&'static str> {
    let source = &world.nodes[0];
    let mut promised = Vec::new();
    for (i, heir) in world.nodes.iter().enumerate().skip(1) {
        if let (true, Standing::Triggered { .. }, Some(state)) = (heir.on, &heir.stored.standing, &heir.state)
            && !matches!(state.phase, Phase::Doubtful | Phase::Unable)
        {
            // The source's battery ends now: the heir is on its own.
            let mut alone = world.clone();
            alone.crash(0, Cut::Machine);
            promised.push((
                alone,
                Fair { only: Some(i), ..Fair::default() },
                Goal::Runs(i),
                "triggered, the heir does not run",
            ));
        }
    }
    for missing in heirs_that_may_be_missing(world) {
        // On battery to the end, and nothing else goes wrong.
        let others = Fair { without: missing, ..Fair::default() };
        promised.push((world.clone(), others, Goal::OneOwner, "one heir was unable, and nobody runs"));
    }
    if let Some(state) = &source.state
        && matches!(source.stored.standing, Standing::Owner { .. })
        && matches!(state.phase, Phase::Freezing | Phase::Saving)
        && state.cause == Cause::Power
        && source.application != Life::Gone
        && !source.pending.contains(&Pending::Kill)
    {
        // Mains are back before the trigger, and the heir is out of reach.
        let mut back = world.clone();
        back.nodes[0].mains = true;
        back.handle(0, &Event::PowerBack);
        if back.nodes[0].application != Life::Running {
            return Some("power back before the trigger, the application is not thawed");
        }
    }
    let mut healed = world.clone();
    healed.nodes.iter_mut().for_each(|n| n.mains = true);
    promised.push((healed, Fair::default(), Goal::OneOwner, "all is well again, nobody owns the group"));
    for (mut start, fair, goal, missing) in promised {
        *runs += 1;
        let reached = fair.reaches(&mut start, goal);
        if let Some(wrong) = start.violation() {
            return Some(wrong);
        }
        if !reached {
            return Some(missing);
        }
    }
    None
}

/// Where the source is on battery and holds a group that it has given up to an heir which cannot take it: who of the others may be
/// missing from there on. One that has not taken part so far, or nobody; the one that was unable may have been mended.
fn heirs_that_may_be_missing(world: &World) -> Vec<Option<usize>> {
    let [source, heirs @ ..] = &world.nodes[..] else { return Vec::new() };
    let phase = |n: &Node| n.state.as_ref().map(|s| s.phase);
    let waits = matches!(phase(source), Some(Phase::HandingOver | Phase::HandedOver));
    let on_battery = source.state.as_ref().is_some_and(|s| s.cause == Cause::Power && s.mains == Mains::Lost);
    let unable = |n: &Node| phase(n) == Some(Phase::Unable);
    if heirs.len() < 2 || !waits || !on_battery || !heirs.iter().any(unable) {
        return Vec::new();
    }
    let idle = |n: &Node| matches!(n.stored.standing, Standing::Standby { .. });
    let others = (1..).zip(heirs).filter(|(_, n)| idle(n)).map(|(i, _)| Some(i));
    others.chain([None]).collect()
}

#[derive(Clone, Copy)]
enum Goal {
    Runs(usize),
    OneOwner,
}

impl Goal {
    fn reached(self, world: &World) -> bool {
        match self {
            Goal::Runs(i) => world.nodes[i].application == Life::Running,
            Goal::OneOwner => {
                let settled = |n: &Node| {
                    n.state.as_ref().is_some_and(|s| matches!(s.phase, Phase::Running | Phase::Stopped))
                };
                world.nodes.iter().filter(|n| settled(n)).count() == 1
            }
        }
    }
}

/// A schedule without faults: everything begun is finished, everything sent now arrives once, in order.
#[derive(Default)]
struct Fair {
    /// The node that alone takes part; none: all do.
    only: Option<usize>,
    /// But for this one.
    without: Option<usize>,
}

impl Fair {
    fn reaches(&self, world: &mut World, goal: Goal) -> bool {
        let mut known = world.sent.clone();
        for _ in 0..FAIR_ROUNDS {
            if goal.reached(world) {
                return true;
            }
            let busy = self.round(world);
            let before = std::mem::take(&mut known);
            // A message said before counts as said again when a timeout repeats it.
            let news: Vec<_> = world.sent.difference(&before).cloned().collect();
            for sent in &news {
                self.deliver(world, sent);
            }
            known = world.sent.iter().filter(|m| before.contains(*m) || news.contains(m)).cloned().collect();
            if !busy && news.is_empty() {
                self.repeat(world);
            }
        }
        false
    }

    fn takes_part(&self, i: usize) -> bool {
        self.only.is_none_or(|only| only == i) && self.without != Some(i)
    }

    fn can_finish(&self, pending: &Pending) -> bool {
        !matches!(pending, Pending::Ship(_, to) if !self.takes_part(*to))
    }

    /// Finishes what is pending and starts what is down; whether there was anything.
    fn round(&self, world: &mut World) -> bool {
        let mut busy = false;
        for i in (0..world.nodes.len()).filter(|&i| self.takes_part(i)) {
            let m = if !world.nodes[i].on {
                Move::PowerOn(i)
            } else if world.nodes[i].state.is_none() {
                Move::Restart(i)
            } else if let Some(&pending) = world.nodes[i].pending.iter().find(|p| self.can_finish(p)) {
                Move::Finish(i, pending)
            } else if world.nodes[i].mains
                && world.nodes[i].state.as_ref().is_some_and(|s| s.mains != Mains::Online)
            {
                Move::Event(i, Event::PowerBack)
            } else {
                continue;
            };
            busy = true;
            if let Some(next) = world.after(&m) {
                *world = next;
            }
        }
        busy
    }

    /// Time passes: timeouts, and what they repeat arrives.
    fn repeat(&self, world: &mut World) {
        for i in (0..world.nodes.len()).filter(|&i| self.takes_part(i)) {
            let Some(phase) = world.nodes[i].state.as_ref().map(|s| s.phase) else { continue };
            if !patient(phase) {
                continue;
            }
            let before = std::mem::take(&mut world.sent);
            world.handle(i, &Event::Timeout);
            self.converse(world);
            world.sent.extend(before);
        }
    }

    /// Delivers what has just been sent and what is answered to it.
    fn converse(&self, world: &mut World) {
        for _ in 0..4 {
            for sent in std::mem::take(&mut world.sent) {
                self.deliver(world, &sent);
            }
        }
    }

    fn deliver(&self, world: &mut World, sent: &Sent) {
        if self.takes_part(sent.0) && world.nodes[sent.0].state.is_some() {
            *world = world.after(&Move::Deliver(sent.clone())).expect("a living agent hears");
        }
    }
}

fn describe(world: &World) -> String {
    let node = |n: &Node| {
        format!(
            "\n     stored {:?}\n     phase {:?}, application {:?}, held {}, pending {:?}",
            n.stored.standing,
            n.state.as_ref().map(|s| s.phase),
            n.application,
            n.held,
            n.pending
        )
    };
    world.nodes.iter().map(node).collect()
}
