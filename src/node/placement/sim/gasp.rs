//! The last gasp in the model: bytes shipped per joule, with the plan and without.

use std::collections::BTreeMap;

use super::parameters as p;
use super::run::Run;
use crate::node::placement::gasp::{Scene, Step, gather, order};
use crate::node::placement::policy::model::{GroupView, Limits, PackageId, PackageSet};

/// What a last gasp took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shipped {
    /// Bytes.
    pub bytes: f64,
    /// Seconds.
    pub seconds: f64,
    /// Of all packages and their memory.
    pub joules: f64,
}

impl Shipped {
    /// What a joule ships.
    pub fn bytes_per_joule(&self) -> f64 {
        self.bytes / self.joules
    }
}

/// How a last gasp goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Shipping runs on as many packages as it has cores, and takes dirty memory as the regions lie: everywhere at once.
    Unmanaged,
    /// By the plan, which finds everything spread: what runs on takes its memory along first.
    Gathered,
    /// By the plan, which finds what runs on, and its memory, on the NIC's package: placement was on in normal running.
    Settled,
}

/// Ships all that is dirty behind `packages` packages.
pub fn ship(manner: Manner, packages: usize, seed: u64) -> Shipped {
    let managed = manner != Manner::Unmanaged;
    let (rate, cores, behind, rest) = p::GASP;
    let mut run = Run::new(packages, seed);
    let ids: PackageSet = (0..packages).map(|package| PackageId(package as u32)).collect();
    let dirty: BTreeMap<PackageId, u64> = ids.iter().map(|id| (*id, behind as u64)).collect();
    let bytes = behind * packages as f64;
    let seconds = bytes / rate;
    let mut steps = Vec::new();
    if managed {
        let running = p::SERVICES.iter().map(|service| GroupView {
            id: service.name.into(),
            load: 0.0,
            on: ids.clone(),
            limits: Limits::default(),
            pressure: None,
            p99: None,
        });
        let scene =
            Scene { nic: Some(PackageId(0)), packages: ids.clone(), running: running.collect(), dirty };
        let moves = gather(&scene);
        steps = order(&scene, &moves);
        if manner == Manner::Settled {
            run.settle(&moves);
        } else {
            run.apply(0.0, moves);
        }
    }
    (0..cores).for_each(|core| run.occupy(0.0, if managed { 0 } else { core % packages }, seconds));
    let slots = (seconds / p::GUARD).ceil() as usize;
    for slot in 0..slots {
        let now = slot as f64 * p::GUARD;
        let read: Vec<usize> =
            if managed { vec![being_shipped(&steps, now * rate)] } else { (0..packages).collect() };
        read.into_iter().for_each(|package| run.hold(now, package, now + p::GUARD));
        run.slot(now, rest);
    }
    // Memory that is read at the NIC's rate draws what busy memory does, wherever it is.
    let reading = seconds * (p::DRAM_BUSY - p::DRAM_IDLE);
    Shipped { bytes, seconds, joules: run.energy(seconds) + reading }
}

/// Behind which package the byte lies that is shipped after `shipped` others.
fn being_shipped(steps: &[Step], shipped: f64) -> usize {
    let mut before = 0.0;
    for step in steps {
        if let Step::Ship { package, bytes } = step {
            before += *bytes as f64;
            if shipped < before {
                return package.0 as usize;
            }
        }
    }
    0
}
