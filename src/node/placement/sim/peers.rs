//! The placements that are compared: ours, and what others do.

use std::collections::BTreeMap;

use super::parameters as p;
use crate::node::placement::policy::Policy;
use crate::node::placement::policy::model::{Move, PackageId, PackageSet, Reason, View};
use crate::node::placement::policy::settings::Settings;

/// Decides where services run.
pub trait Placement {
    /// An epoch is over.
    fn epoch(&mut self, view: &View) -> Vec<Move>;
    /// A look between two epochs.
    fn guard(&mut self, _view: &View) -> Vec<Move> {
        Vec::new()
    }
}

/// A placement by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Everything everywhere, as Linux does.
    Spread,
    /// Packed anew each epoch, into as few packages as take it.
    Repack,
    /// The policy without the medium drain.
    FiveClasses,
    /// What intel-lpmd does: all on one part of the machine below a load, everywhere again above another.
    Lpmd,
    /// The policy.
    Ours,
}

impl Peer {
    /// All, what they are compared with first.
    pub const ALL: [Peer; 5] = [Peer::Spread, Peer::Repack, Peer::FiveClasses, Peer::Lpmd, Peer::Ours];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Spread => "spread",
            Peer::Repack => "repack each epoch",
            Peer::FiveClasses => "five classes alone",
            Peer::Lpmd => "intel-lpmd's rule",
            Peer::Ours => "pmemha",
        }
    }

    /// One that has seen nothing.
    pub fn start(self) -> Box<dyn Placement> {
        match self {
            Peer::Spread => Box::new(Spread),
            Peer::Repack => Box::new(Repack),
            Peer::FiveClasses => {
                Box::new(Policy::new(Settings { drain_medium: false, ..Settings::default() }))
            }
            Peer::Lpmd => Box::new(Lpmd { low: false }),
            Peer::Ours => Box::new(Policy::new(Settings::default())),
        }
    }
}

struct Spread;

impl Placement for Spread {
    fn epoch(&mut self, _view: &View) -> Vec<Move> {
        Vec::new()
    }
}

impl Placement for Policy {
    fn epoch(&mut self, view: &View) -> Vec<Move> {
        self.step(view)
    }

    fn guard(&mut self, view: &View) -> Vec<Move> {
        Policy::guard(self, view)
    }
}

/// First fit, the biggest first; what fits nowhere goes everywhere.
struct Repack;

impl Placement for Repack {
    fn epoch(&mut self, view: &View) -> Vec<Move> {
        let mut groups: Vec<_> = view.groups.iter().collect();
        groups.sort_by(|a, b| b.load.total_cmp(&a.load));
        let mut used: BTreeMap<PackageId, f64> =
            view.packages.iter().map(|package| (package.id, 0.0)).collect();
        let mut moves = Vec::new();
        for group in groups {
            let room = |(_, used): &(&PackageId, &mut f64)| **used + group.load <= p::FILL * p::CORES as f64;
            let to = match used.iter_mut().find(room) {
                Some((id, used)) => {
                    *used += group.load;
                    [*id].into()
                }
                None => view.ids(),
            };
            push(&mut moves, &group.id, &group.on, to);
        }
        moves
    }
}

/// intel-lpmd as configured by default, the first package being its part of the machine. The load of a package stands for its
/// busiest processor's, since the cores of the model share evenly.
struct Lpmd {
    low: bool,
}

impl Placement for Lpmd {
    fn epoch(&mut self, view: &View) -> Vec<Move> {
        let (enter, leave) = p::LPMD;
        let Some(first) = view.packages.first() else { return Vec::new() };
        let system =
            view.packages.iter().map(|package| package.load).sum::<f64>() / view.packages.len() as f64;
        self.low = if self.low { first.load <= leave } else { system < enter };
        let to: PackageSet = if self.low { [first.id].into() } else { view.ids() };
        let mut moves = Vec::new();
        view.groups.iter().for_each(|group| push(&mut moves, &group.id, &group.on, to.clone()));
        moves
    }
}

/// A peer says no reason.
fn push(moves: &mut Vec<Move>, group: &str, from: &PackageSet, to: PackageSet) {
    if *from != to {
        moves.push(Move { group: group.into(), from: from.clone(), to, reason: Reason::Return });
    }
}
