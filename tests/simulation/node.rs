//! A machine: what survives a loss of its power, what survives the death of its agent, and what does not.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use pmemha::failover::{Durable, Life};
use pmemha::locks::lock;
use pmemha::log::LogRegion;
use pmemha::types::{Durability, Generation, Lsn};
use pmemha_testkit::chance::Chance;
use pmemha_testkit::sim_store::SimStore;

use crate::agent::Agent;
use crate::clock::{below, say};
use crate::fabric::Pipe;
use crate::program::Disk;

pub struct Node {
    pub index: usize,
    pub name: String,
    pub durability: Durability,
    inner: Mutex<Inner>,
}

pub struct Inner {
    pub on: bool,
    /// Counts boots.
    pub boot: u8,
    /// Counts lives of the agent, and their ends.
    pub lives: u64,
    pub ends: u64,
    /// An agent is about to start.
    pub starts: bool,
    /// What the machine's state of the group is stored in.
    pub durable: Durable,
    /// The directory of its image.
    pub store: SimStore,
    /// The program's files, where it has run here, and for which generation they were put in place.
    pub disk: Option<Arc<Disk>>,
    pub placed: Option<Generation>,
    /// What it was promoted with.
    pub verified: Option<(Generation, Lsn)>,
    /// The log, which a holder keeps for as long as the machine has power.
    pub log: Option<(OwnedFd, Arc<LogRegion>)>,
    pub program: Program,
    pub agent: Option<Arc<Agent>>,
    /// It gets no power before.
    pub off_until: Duration,
    /// External power.
    pub mains: bool,
    /// Connections of this machine.
    pub pipes: Vec<Weak<Pipe>>,
}

/// The program on one machine.
pub struct Program {
    pub life: Life,
    /// It stays frozen whatever becomes of the agent.
    pub held: bool,
    /// Which of the programs that have run here.
    pub number: u64,
}

impl Node {
    pub fn new(index: usize, durability: Durability, durable: Durable, disk: Option<Disk>) -> Node {
        let program = Program { life: Life::Gone, held: false, number: 0 };
        let inner = Inner {
            on: true,
            boot: 1,
            lives: 0,
            ends: 0,
            starts: false,
            durable,
            store: SimStore::new(),
            disk: disk.map(Arc::new),
            placed: None,
            verified: None,
            log: None,
            program,
            agent: None,
            off_until: Duration::ZERO,
            mains: true,
            pipes: Vec::new(),
        };
        Node { index, name: name(index), durability, inner: Mutex::new(inner) }
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    pub fn agent(&self) -> Option<Arc<Agent>> {
        self.inner().agent.clone()
    }

    /// Whether the image's bytes that were not made durable are lost with the power.
    pub fn is_lossy(&self) -> bool {
        !matches!(self.durability, Durability::Battery | Durability::Eadr)
    }

    /// The machine loses its power.
    pub fn cut_power(&self) {
        say(|| format!("{} loses its power", self.name));
        self.end_agent();
        let mut inner = self.inner();
        inner.on = false;
        inner.log = None;
        inner.program = Program { life: Life::Gone, held: false, number: inner.program.number + 1 };
        inner.disk.iter().for_each(|disk| disk.lose_power());
        inner.renew_store(self.is_lossy());
    }

    /// The agent is killed.
    pub fn kill_agent(&self) {
        say(|| format!("the agent of {} is killed", self.name));
        self.end_agent();
        let mut inner = self.inner();
        if inner.program.life == Life::Frozen && !inner.program.held {
            inner.program.life = Life::Running;
        }
        inner.renew_store(false);
    }

    fn end_agent(&self) {
        let (agent, pipes) = {
            let mut inner = self.inner();
            inner.ends += 1;
            (inner.agent.take(), std::mem::take(&mut inner.pipes))
        };
        // The store first: whoever is in the middle of something does not finish it.
        self.inner().store.cut_after(1);
        pipes.iter().filter_map(Weak::upgrade).for_each(|pipe| pipe.cut());
        agent.iter().for_each(|agent| agent.end());
    }
}

impl Inner {
    fn renew_store(&mut self, lossy: bool) {
        let mut chance = Chance::seeded(below(u64::MAX));
        self.store = self.store.after_crash(&mut chance, lossy);
    }
}

pub fn name(index: usize) -> String {
    ["alpha", "beta", "gamma"][index].to_owned()
}

pub fn number(name: &str) -> usize {
    ["alpha", "beta", "gamma"].iter().position(|known| *known == name).expect("a node")
}
