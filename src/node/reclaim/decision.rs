//! Who gives up how much of which memory, by which technique: a pure decision.
//!
//! The classes of each tenant say what taking it would cost. They are taken in an order: free, inactive buffer, inactive
//! anonymous, and only where that is allowed, active buffer, active anonymous; unreclaimable never. First from tenants that have more than
//! they are allotted, then from all. `docs/reclaim.md` has the tables.

use std::time::Duration;

use serde::Serialize;

use super::classes::{Class, Estimate, PerClass};

/// How the host stands, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// What it could hand out now.
    pub available: u64,
    /// Below this, ballooning is too slow a remedy: what is taken is swapped.
    pub threshold: u64,
}

/// A virtual machine or a control group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Bytes of the host that it has.
    pub size: u64,
    /// Bytes that it was promised.
    pub entitlement: u64,
    /// What its pages are used for.
    pub classes: PerClass<Estimate>,
    /// How it can be made smaller.
    pub means: Means,
}

/// What works on a tenant, each with the bytes that it was seen to bring in a second; none where it does not work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Means {
    /// A balloon in the guest.
    pub balloon: Option<u64>,
    /// Whether the balloon has stopped growing short of its target.
    pub balloon_stalled: bool,
    /// A control group's `memory.reclaim`.
    pub limit: Option<u64>,
    /// Page-out of exactly chosen pages to the host's swap.
    pub page_out: Option<u64>,
}

/// What is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Bytes to make available, beyond what is.
    pub bytes: u64,
    /// Within what time: what is left of a restart's budget. No limit if none.
    pub within: Option<Duration>,
    /// How far to go.
    pub depth: Depth,
}

/// The last class that may be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// What nobody uses.
    #[default]
    Inactive,
    /// Pages of files that are in use, too: they are read again.
    ActiveBuffer,
    /// Everything but what is unreclaimable: tenants will stand still for their memory.
    ActiveAnonymous,
}

/// How memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Technique {
    /// The guest gives it up.
    Balloon,
    /// The control group's kernel memory management gives it up.
    Limit,
    /// The host writes it to swap.
    PageOut,
}

/// One piece of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Take {
    /// Index of the tenant.
    pub tenant: usize,
    /// What is taken.
    pub class: Class,
    /// How.
    pub technique: Technique,
    /// Bytes.
    pub bytes: u64,
    /// Why it is not the technique of this class.
    pub instead: Option<Instead>,
}

/// Why another technique is used than the one of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Instead {
    /// It does not work on this tenant.
    Absent,
    /// The host has less available than its threshold.
    BelowThreshold,
    /// The balloon has stopped growing.
    Stalled,
    /// It would take longer than there is time.
    Deadline,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In order.
    pub takes: Vec<Take>,
    /// Bytes of the need for which nothing is found: more than 0 means that it does not fit.
    pub short: u64,
}

impl Plan {
    /// Bytes taken of a tenant by a technique.
    pub fn of(&self, tenant: usize, technique: Technique) -> u64 {
        let its = self.takes.iter().filter(|t| t.tenant == tenant && t.technique == technique);
        its.map(|t| t.bytes).sum()
    }

    /// Bytes of all.
    pub fn total(&self) -> u64 {
        self.takes.iter().map(|t| t.bytes).sum()
    }
}

/// How much a tenant is allotted: its working set, and of what it was promised beyond that, [`KEPT_IDLE`] in a hundred.
pub fn allotment(tenant: &Tenant) -> u64 {
    let working = working_set(tenant);
    let idle = tenant.entitlement.saturating_sub(working);
    working.saturating_add(idle / 100 * KEPT_IDLE).min(tenant.size)
}

/// Unreclaimable and active memory.
pub fn working_set(tenant: &Tenant) -> u64 {
    let of = Class::ALL.iter().filter(|class| class.is_working_set());
    of.map(|class| tenant.classes[*class].bytes).fold(0, u64::saturating_add).min(tenant.size)
}

/// Plans for a need. Nothing is taken that is needed less than what is left.
pub fn plan(host: Host, tenants: &[Tenant], need: Need) -> Plan {
    let mut left = Left { need: need.bytes, time: need.within, plan: Plan::default() };
    let mut order: Vec<usize> = (0..tenants.len()).collect();
    let surplus = |i: &usize| tenants[*i].size.saturating_sub(allotment(&tenants[*i]));
    order.sort_by(|a, b| {
        surplus(b).cmp(&surplus(a)).then(tenants[*a].name.cmp(&tenants[*b].name)).then(a.cmp(b))
    });
    // A tenant that is short of its allotment has its target cut to nothing in the first round.
    for within_allotment in [true, false] {
        for class in IDLE {
            for i in &order {
                let may = if within_allotment { surplus(i) } else { u64::MAX };
                left.take(host, &tenants[*i], *i, class, may);
            }
        }
    }
    let more = [(Depth::ActiveBuffer, Class::ActiveBuffer), (Depth::ActiveAnonymous, Class::ActiveAnonymous)];
    for (_, class) in more.into_iter().filter(|(depth, _)| *depth <= need.depth) {
        for i in &order {
            left.take(host, &tenants[*i], *i, class, u64::MAX);
        }
    }
    left.plan.short = left.need;
    left.plan
}

/// What is still to be found, in what time.
struct Left {
    need: u64,
    time: Option<Duration>,
    plan: Plan,
}

impl Left {
    /// Takes of a class of a tenant what is needed, is there, and leaves its plan at `may` bytes at most.
    fn take(&mut self, host: Host, tenant: &Tenant, index: usize, class: Class, may: u64) {
        let taken: u64 = self.plan.takes.iter().filter(|t| t.tenant == index).map(|t| t.bytes).sum();
        let of_class: u64 =
            self.plan.takes.iter().filter(|t| t.tenant == index && t.class == class).map(|t| t.bytes).sum();
        // The lower bound is what is there for certain; of the whole it is never more than what the tenant has.
        let there = tenant.classes[class].least.saturating_sub(of_class);
        let there = there.min(may.saturating_sub(taken)).min(tenant.size.saturating_sub(taken));
        let wanted = there.min(self.need);
        if wanted == 0 {
            return;
        }
        let Some((technique, speed, instead)) = self.choose(host, tenant.means, class, wanted) else {
            return;
        };
        let bytes = wanted.min(self.in_time(speed));
        if bytes == 0 {
            return;
        }
        self.need -= bytes;
        if let Some(time) = &mut self.time {
            *time = time.saturating_sub(duration(bytes, speed));
        }
        self.plan.takes.push(Take { tenant: index, class, technique, bytes, instead });
    }

    /// The technique for a class: its own, unless something speaks against it and there is another one.
    fn choose(
        &self,
        host: Host,
        means: Means,
        class: Class,
        bytes: u64,
    ) -> Option<(Technique, u64, Option<Instead>)> {
        let swap = means.page_out.map(|speed| (Technique::PageOut, speed));
        let gentle = match means.balloon {
            Some(speed) => Some((Technique::Balloon, speed)),
            None => means.limit.map(|speed| (Technique::Limit, speed)),
        };
        // Anonymous memory that a guest gives up goes to the guest's own swap, if it has one: the host's page-out is exact.
        let own =
            if matches!(class, Class::InactiveAnonymous | Class::ActiveAnonymous) { swap } else { gentle };
        let other = if own == swap { gentle.filter(|(t, _)| *t == Technique::Limit) } else { swap };
        let against = match own {
            None => Some(Instead::Absent),
            Some((Technique::Balloon, _)) if means.balloon_stalled => Some(Instead::Stalled),
            Some((Technique::Balloon, _)) if host.available < host.threshold => Some(Instead::BelowThreshold),
            Some((_, speed)) if self.in_time(speed) < bytes => Some(Instead::Deadline),
            Some(_) => None,
        };
        let stalled = against == Some(Instead::Stalled);
        let chosen = match (against, own, other) {
            (None, Some((technique, speed)), _) => (technique, speed, None),
            // A deadline speaks for whatever brings more by then.
            (Some(Instead::Deadline), Some(own), Some(other)) if other.1 <= own.1 => (own.0, own.1, None),
            (Some(why), _, Some((technique, speed))) => (technique, speed, Some(why)),
            // There is nothing else: late or slow is better than not at all, but a balloon that is stalled brings nothing.
            (Some(_), Some((technique, speed)), None) if !stalled => (technique, speed, None),
            _ => return None,
        };
        Some(chosen)
    }

    /// Bytes that a technique of so many bytes a second brings in the time that is left.
    fn in_time(&self, speed: u64) -> u64 {
        self.time.map_or(u64::MAX, |time| {
            (u128::from(speed) * time.as_millis() / 1000).min(u64::MAX.into()) as u64
        })
    }
}

fn duration(bytes: u64, speed: u64) -> Duration {
    Duration::from_millis((u128::from(bytes) * 1000).div_ceil(speed.max(1).into()).min(u64::MAX.into()) as u64)
}

/// Taken in this order, before anything that is in use.
const IDLE: [Class; 3] = [Class::Free, Class::InactiveBuffer, Class::InactiveAnonymous];

/// Percent of its idle entitlement that a tenant keeps as long as others have more: idle memory is worth less than memory in use, and
/// not nothing (C. Waldspurger, "Memory resource management in VMware ESX Server", OSDI 2002, taxes it by 75 %).
pub const KEPT_IDLE: u64 = 25;

#[cfg(test)]
#[path = "decision/tests.rs"]
mod tests;
