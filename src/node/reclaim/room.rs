//! Making the room that a plan promises: what was taken is measured, and what worked on nobody is not tried again.
//!
//! Effects sit behind [`Taker`]; the loop around it is bounded in rounds and by the need's time.

use std::io;
use std::time::Duration;

use serde::Serialize;

use super::classes::{Class, Estimate};
use super::decision::{Host, Need, Plan, Take, Technique, Tenant, plan};
use super::page_out::Effect;

/// Takes memory.
pub trait Taker {
    /// Does a piece of a plan. An error is of this tenant alone.
    fn take(&mut self, tenant: &Tenant, take: &Take) -> io::Result<Effect>;
}

/// A piece that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Done {
    /// What was planned.
    pub take: Take,
    /// What it did.
    pub effect: Effect,
    /// Why it could not be done; its tenant is left alone from then on.
    pub error: Option<String>,
}

/// What became of a need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Room {
    /// In order.
    pub done: Vec<Done>,
    /// Bytes that were measured to be free now.
    pub made: u64,
    /// Bytes that are missing.
    pub short: u64,
}

/// Makes room for `need`. `elapsed` tells how long it has taken so far.
pub fn make_room(
    host: Host,
    mut tenants: Vec<Tenant>,
    need: Need,
    taker: &mut dyn Taker,
    elapsed: &dyn Fn() -> Duration,
) -> Room {
    let mut room = Room { short: need.bytes, ..Room::default() };
    for _ in 0..ROUNDS {
        let left = need.within.map(|within| within.saturating_sub(elapsed()));
        let Plan { takes, .. } = plan(host, &tenants, Need { bytes: room.short, within: left, ..need });
        if takes.is_empty() || room.short == 0 {
            break;
        }
        for take in takes {
            if room.short == 0 || need.within.is_some_and(|within| elapsed() >= within) {
                return room;
            }
            let tenant = &mut tenants[take.tenant];
            // A piece of a tenant that turned out not to be takeable this way in this very round.
            if !is_open(tenant, take.technique) {
                continue;
            }
            let (effect, error) = match taker.take(tenant, &take) {
                Ok(effect) => (effect, None),
                Err(error) => (Effect::default(), Some(error.to_string())),
            };
            if error.is_some() || effect.is_in_vain() || effect.moved == 0 {
                close(tenant, take.technique);
            }
            gone(tenant, take.class, effect.moved.max(take.bytes.min(effect.asked)), effect.moved);
            room.made = room.made.saturating_add(effect.moved);
            room.short = need.bytes.saturating_sub(room.made);
            room.done.push(Done { take, effect, error });
        }
    }
    room
}

fn is_open(tenant: &Tenant, technique: Technique) -> bool {
    match technique {
        Technique::Balloon => tenant.means.balloon.is_some() && !tenant.means.balloon_stalled,
        Technique::Limit => tenant.means.limit.is_some(),
        Technique::PageOut => tenant.means.page_out.is_some(),
    }
}

fn close(tenant: &mut Tenant, technique: Technique) {
    match technique {
        Technique::Balloon => tenant.means.balloon_stalled = true,
        Technique::Limit => tenant.means.limit = None,
        Technique::PageOut => tenant.means.page_out = None,
    }
}

/// Of a class so much was gone over and is not to be counted on again; so much has left the tenant.
fn gone(tenant: &mut Tenant, class: Class, over: u64, moved: u64) {
    let Estimate { bytes, least, most } = tenant.classes[class];
    let less = |value: u64| value.saturating_sub(over);
    tenant.classes[class] = Estimate { bytes: less(bytes), least: less(least), most: less(most) };
    tenant.size = tenant.size.saturating_sub(moved);
}

/// Plans that are made at most: each after the first has to do without what failed.
const ROUNDS: usize = 4;

#[cfg(test)]
#[path = "room/tests.rs"]
mod tests;
