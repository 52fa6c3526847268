//! The loop with a taker that the test owns: it moves a share of what it is asked for, by technique.

use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::node::reclaim::classes::PerClass;
use crate::node::reclaim::decision::{Depth, Means};

const MIB: u64 = 1 << 20;

/// Percent of what is asked that moves, by balloon, limit, page-out; milliseconds that each takes.
struct Fake<'a> {
    moves: [u64; 3],
    asked: Vec<Technique>,
    clock: &'a Cell<Duration>,
    takes: Duration,
}

impl Taker for Fake<'_> {
    fn take(&mut self, _tenant: &Tenant, take: &Take) -> io::Result<Effect> {
        self.asked.push(take.technique);
        self.clock.set(self.clock.get() + self.takes);
        match self.moves[take.technique as usize] {
            101.. => Err(io::Error::other("broken")),
            percent => Ok(Effect { asked: take.bytes, moved: take.bytes * percent / 100 }),
        }
    }
}

fn tenant(classes: [u64; 6]) -> Tenant {
    let of =
        |class| Estimate::exactly(classes[Class::ALL.iter().position(|c| *c == class).expect("one")] * MIB);
    let means = Means { balloon: Some(100 * MIB), page_out: Some(200 * MIB), ..Means::default() };
    let size = classes.iter().sum::<u64>() * MIB;
    Tenant { name: "t".into(), size, entitlement: 0, classes: PerClass::of(of), means }
}

fn made(tenants: Vec<Tenant>, need: Need, moves: [u64; 3], takes_ms: u64) -> (Room, Vec<Technique>) {
    let clock = Cell::new(Duration::ZERO);
    let takes = Duration::from_millis(takes_ms);
    let mut fake = Fake { moves, asked: Vec::new(), clock: &clock, takes };
    let host = Host { available: 1000 * MIB, threshold: 0 };
    let room = make_room(host, tenants, need, &mut fake, &|| clock.get());
    (room, fake.asked)
}

fn need(mib: u64, within_ms: Option<u64>) -> Need {
    Need { bytes: mib * MIB, within: within_ms.map(Duration::from_millis), depth: Depth::Inactive }
}

#[test]
fn a_balloon_that_moves_nothing_gives_way_to_page_out() {
    let (room, asked) = made(vec![tenant([10, 10, 0, 0, 100, 0])], need(50, None), [0, 0, 100], 1);
    assert_eq!(asked, [Technique::Balloon, Technique::PageOut]);
    assert_eq!((room.made, room.short), (50 * MIB, 0), "{room:?}");
}

#[test]
fn what_is_pinned_moves_nothing_and_is_left_alone() {
    let (room, asked) = made(vec![tenant([10, 10, 0, 200, 0, 0])], need(100, None), [100, 100, 0], 1);
    assert_eq!(asked, [Technique::PageOut]);
    assert_eq!((room.made, room.short), (0, 100 * MIB));
}

#[test]
fn an_error_is_told_and_others_are_asked() {
    let (room, _) = made(vec![tenant([10, 10, 0, 80, 80, 0])], need(100, None), [101, 0, 100], 1);
    assert_eq!(room.done[0].error.as_deref(), Some("broken"));
    assert_eq!(room.short, 0, "{room:?}");
}

#[test]
fn nothing_is_begun_after_the_time_is_over() {
    let many = vec![tenant([0, 0, 0, 0, 20, 0]); 10];
    let (room, asked) = made(many, need(200, Some(2500)), [100, 0, 0], 1000);
    assert_eq!((asked.len(), room.short), (3, 140 * MIB), "{room:?}");
}

proptest! {
    #[test]
    fn it_ends_and_never_takes_on_once_the_need_is_met(
        classes in prop::collection::vec(prop::array::uniform6(0u64..200), 0..5),
        mib in 0u64..500,
        moves in prop::array::uniform3(0u64..110),
    ) {
        let tenants: Vec<Tenant> = classes.into_iter().map(tenant).collect();
        let count = tenants.len();
        let (room, asked) = made(tenants, need(mib, None), moves, 1);
        prop_assert!(asked.len() <= ROUNDS * 6 * count.max(1));
        prop_assert_eq!(room.short, (mib * MIB).saturating_sub(room.made));
        let before_last: u64 = room.done.iter().rev().skip(1).map(|d| d.effect.moved).sum();
        prop_assert!(room.done.is_empty() || before_last < mib * MIB);
        // Whoever failed or moved nothing by a technique was not asked for it again.
        for (i, d) in room.done.iter().enumerate().filter(|(_, d)| d.error.is_some() || d.effect.moved == 0) {
            let again = room.done[i + 1..].iter().any(|x| (x.take.tenant, x.take.technique) == (d.take.tenant, d.take.technique));
            prop_assert!(!again, "{:?}", room);
        }
    }
}
