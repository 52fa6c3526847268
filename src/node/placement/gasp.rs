//! The last gasp: who gathers where the NIC is, and in which order dirty memory is shipped so that packages can sleep. Pure.
//!
//! What runs on gathers on the NIC's package; a frozen group does not run, so it stays as it is. Dirty memory behind the other
//! packages is shipped first, the least first, since a package that has nothing left to ship needs nothing any more; what lies
//! behind the NIC's package comes last, as that stays awake to the end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::policy::model::{GroupView, Move, PackageId, PackageSet, Reason};

/// What there is when power is lost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scene {
    /// The NIC's package; none where that is not known, and then nothing is gathered.
    pub nic: Option<PackageId>,
    /// All packages.
    pub packages: PackageSet,
    /// Groups that run on.
    pub running: Vec<GroupView>,
    /// Bytes left to ship, by the package whose memory they are in.
    pub dirty: BTreeMap<PackageId, u64>,
}

/// A step of the shipping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Ship what is dirty behind a package.
    Ship {
        /// Which.
        package: PackageId,
        /// How much.
        bytes: u64,
    },
    /// Nothing needs the package any more: nobody touches it or its memory from here on.
    Park {
        /// Which.
        package: PackageId,
    },
}

impl Scene {
    /// The NIC's package, if it is one of these.
    fn center(&self) -> Option<PackageId> {
        self.nic.filter(|nic| self.packages.contains(nic))
    }
}

/// Groups that gather.
pub fn gather(scene: &Scene) -> Vec<Move> {
    let Some(nic) = scene.center() else { return Vec::new() };
    let here: PackageSet = [nic].into();
    let gather = |group: &&GroupView| {
        group.movable() && group.on != here && group.allowed(&scene.packages).contains(&nic)
    };
    let moved = scene.running.iter().filter(gather).map(|group| Move {
        group: group.id.clone(),
        from: group.on.clone(),
        to: here.clone(),
        reason: Reason::Gather { package: nic },
    });
    moved.collect()
}

/// What is shipped, and what sleeps, in which order, once `moves` are made.
pub fn order(scene: &Scene, moves: &[Move]) -> Vec<Step> {
    let Some(nic) = scene.center() else { return ship(scene, &scene.packages) };
    let here: PackageSet = [nic].into();
    // Where something stays that cannot be moved, the package cannot sleep.
    let stays = |package: &PackageId| {
        scene
            .running
            .iter()
            .any(|group| group.on.contains(package) && moves.iter().all(|m| m.group != group.id))
    };
    let others: PackageSet = scene.packages.iter().copied().filter(|package| *package != nic).collect();
    let mut steps = Vec::new();
    for step in ship(scene, &others) {
        let Step::Ship { package, bytes } = step else { continue };
        steps.extend((bytes > 0).then_some(step));
        steps.extend((!stays(&package)).then_some(Step::Park { package }));
    }
    steps.extend(ship(scene, &here).into_iter().filter(|step| !matches!(step, Step::Ship { bytes: 0, .. })));
    steps
}

/// The least first.
fn ship(scene: &Scene, packages: &PackageSet) -> Vec<Step> {
    let bytes = |package: &PackageId| scene.dirty.get(package).copied().unwrap_or(0);
    let mut order: Vec<PackageId> = packages.iter().copied().collect();
    order.sort_by_key(|package| (bytes(package), *package));
    order.into_iter().map(|package| Step::Ship { package, bytes: bytes(&package) }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::node::placement::policy::model::Limits;

    fn group(id: &str, on: &[u32], limits: Limits) -> GroupView {
        let on = on.iter().copied().map(PackageId).collect();
        GroupView { id: id.into(), load: 0.1, on, limits, pressure: None, p99: None }
    }

    fn scene() -> Scene {
        Scene {
            nic: Some(PackageId(1)),
            packages: (0..4).map(PackageId).collect(),
            running: vec![
                group("agent", &[0, 1, 2, 3], Limits::default()),
                group("rest", &[2], Limits::default()),
            ],
            dirty: [(0, 30), (1, 5), (2, 10)].map(|(id, bytes)| (PackageId(id), bytes)).into(),
        }
    }

    #[test]
    fn all_gathers_with_the_nic_and_its_own_memory_comes_last() {
        let moves = gather(&scene());
        assert_eq!(moves.iter().map(|m| m.group.as_str()).collect::<Vec<_>>(), ["agent", "rest"]);
        let park = |id| Step::Park { package: PackageId(id) };
        let ship = |id, bytes| Step::Ship { package: PackageId(id), bytes };
        assert_eq!(
            order(&scene(), &moves),
            [park(3), ship(2, 10), park(2), ship(0, 30), park(0), ship(1, 5)]
        );
    }

    #[test]
    fn a_package_with_a_pinned_group_is_not_parked_and_without_a_nic_nothing_gathers() {
        let mut scene = scene();
        scene.running[1].limits.fixed = Some("pinned".into());
        let moves = gather(&scene);
        let steps = order(&scene, &moves);
        assert!(!steps.contains(&Step::Park { package: PackageId(2) }), "{steps:?}");
        assert_eq!(moves.len(), 1);
        scene.nic = None;
        assert_eq!((gather(&scene), order(&scene, &[]).len()), (Vec::new(), 4));
    }

    proptest! {
        #[test]
        fn every_dirty_byte_is_shipped_once_and_never_after_its_package_was_parked(
            dirty in prop::collection::btree_map(0u32..6, 1u64..1000, 0..6), nic in 0u32..6,
        ) {
            let dirty: BTreeMap<PackageId, u64> = dirty.into_iter().map(|(id, b)| (PackageId(id), b)).collect();
            let scene = Scene {
                nic: Some(PackageId(nic)), packages: (0..6).map(PackageId).collect(), running: Vec::new(), dirty: dirty.clone(),
            };
            let (mut shipped, mut parked) = (BTreeMap::new(), PackageSet::new());
            for step in order(&scene, &[]) {
                match step {
                    Step::Ship { package, bytes } => {
                        prop_assert!(!parked.contains(&package));
                        prop_assert!(shipped.insert(package, bytes).is_none());
                    }
                    Step::Park { package } => prop_assert!(package.0 != nic && parked.insert(package)),
                }
            }
            prop_assert_eq!(shipped, dirty);
            prop_assert_eq!(parked.len(), 5);
        }
    }
}
