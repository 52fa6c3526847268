//! A host under pressure, told as a trace of needs, and whoever makes room on it: our plan, MOM's rules, balloons only, swap only.
//!
//! A balloon gets what the guest has free, then its cache, the idle part first, and stops at anonymous memory: these guests have no
//! swap. A blind page-out hits all pages alike, since the host knows no classes. What was in use comes back at once: a refault.

use super::*;

/// Room that was made, of what was asked, and what it did to the guests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    pub asked: u64,
    pub made: u64,
    /// Bytes taken that were in use.
    pub refaults: u64,
    pub seconds: f64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Who {
    Ours,
    Mom,
    BalloonOnly,
    SwapOnly,
}

/// A trace: what is needed, in what time, guest by guest mixtures in MiB.
pub struct Event {
    pub guests: Vec<[u64; 6]>,
    pub need: u64,
    pub within: Duration,
    pub available: u64,
}

const BALLOON: u64 = 400 * MIB;
const SWAP: u64 = 800 * MIB;

pub fn live(trace: &[Event], who: Who) -> Score {
    let mut score = Score::default();
    for event in trace {
        let host = Host { available: event.available * MIB, threshold: 500 * MIB };
        let guests: Vec<Tenant> = event.guests.iter().map(|g| tenant("g", *g, all_means())).collect();
        let need = event.need * MIB;
        score.asked += need;
        let (made, refaults, seconds) = match who {
            Who::Ours => ours(host, &guests, need, event.within),
            Who::Mom => balloons(host, &guests, need, event.within, true),
            Who::BalloonOnly => balloons(host, &guests, need, event.within, false),
            Who::SwapOnly => blind(&guests, need, event.within),
        };
        score.made += made.min(need);
        score.refaults += refaults;
        score.seconds += seconds;
    }
    score
}

fn ours(host: Host, guests: &[Tenant], need: u64, within: Duration) -> (u64, u64, f64) {
    let plan = plan(host, guests, Need { bytes: need, within: Some(within), depth: Depth::Inactive });
    let speed = |t: &Take| if t.technique == Technique::Balloon { BALLOON } else { SWAP };
    let in_use = plan.takes.iter().filter(|t| t.class.is_working_set()).map(|t| t.bytes).sum();
    (plan.total(), in_use, plan.takes.iter().map(|t| t.bytes as f64 / speed(t) as f64).sum())
}

/// An equal share of each guest; by MOM's rules (its balloon.rules: only while a fifth of the host is not free, by 5 % of the guest at
/// a time, as long as a fifth of the guest is free) or as much as is needed.
fn balloons(host: Host, guests: &[Tenant], need: u64, within: Duration, mom: bool) -> (u64, u64, f64) {
    let (mut made, mut refaults, mut seconds) = (0, 0, 0.0);
    for guest in guests {
        let get = |class: Class| guest.classes[class].bytes;
        let mut wanted = need / guests.len() as u64;
        if mom {
            let usable = get(Class::Free) + get(Class::InactiveBuffer) + get(Class::ActiveBuffer);
            // The rules run at once, and then every so often.
            let steps = (within.as_secs_f64() / MOM_INTERVAL).floor() as u64 + 1;
            let bound = usable.saturating_sub(guest.size / 5).min(guest.size / 20 * steps);
            wanted = if host.available < 5000 * MIB { wanted.min(bound) } else { 0 };
        }
        wanted = wanted.min((within.as_secs_f64() * BALLOON as f64) as u64 / guests.len() as u64);
        for class in [Class::Free, Class::InactiveBuffer, Class::ActiveBuffer] {
            let bytes = wanted.min(get(class));
            wanted -= bytes;
            made += bytes;
            seconds += bytes as f64 / BALLOON as f64;
            refaults += if class == Class::ActiveBuffer { bytes } else { 0 };
        }
    }
    (made, refaults, seconds)
}

fn blind(guests: &[Tenant], need: u64, within: Duration) -> (u64, u64, f64) {
    let of = |which: fn(Class) -> bool| -> u64 {
        guests
            .iter()
            .flat_map(|g| Class::ALL.iter().filter(|c| which(**c)).map(|c| g.classes[*c].bytes))
            .sum()
    };
    let (all, used) = (
        of(|c| c != Class::Unreclaimable),
        of(|c| matches!(c, Class::ActiveAnonymous | Class::ActiveBuffer)),
    );
    let made = need.min(all).min((within.as_secs_f64() * SWAP as f64) as u64);
    (made, made * used / all.max(1), made as f64 / SWAP as f64)
}

/// Seconds between two runs of MOM's rules.
const MOM_INTERVAL: f64 = 10.0;

#[test]
fn on_traces_of_pressure_ours_makes_the_room_and_harms_least() {
    let ms = Duration::from_millis;
    // A promoted region of 256 MiB, on a host whose guests are: full of cache; of cold anonymous memory; mixed; all hot.
    let cache = [60, 90, 20, 10, 320, 12];
    let cold = [60, 90, 10, 330, 10, 12];
    let mixed = [60, 150, 60, 120, 90, 32];
    let hot = [60, 420, 20, 4, 4, 4];
    let event = |guests: &[[u64; 6]], within, available| Event {
        guests: guests.to_vec(),
        need: 256,
        within: ms(within),
        available,
    };
    let trace = [
        event(&[cache, cache], 5000, 800),
        event(&[cold, cold], 5000, 800),
        event(&[mixed, mixed, hot], 5000, 800),
        event(&[cache, cold], 400, 800),
        event(&[cache, mixed], 5000, 100),
        event(&[hot, cold], 1500, 600),
    ];
    let [ours, mom, balloon, swap] = [Who::Ours, Who::Mom, Who::BalloonOnly, Who::SwapOnly].map(|who| {
        let score = live(&trace, who);
        println!(
            "{who:?}: {} of {} MiB, {} MiB of it in use, {:.1} s",
            score.made / MIB,
            score.asked / MIB,
            score.refaults / MIB,
            score.seconds
        );
        score
    });
    assert_eq!(ours.made, ours.asked, "every need is met");
    assert_eq!(ours.refaults, 0);
    assert!(balloon.made < ours.made && mom.made < balloon.made, "balloons stop at anonymous memory");
    assert!(swap.made == swap.asked && swap.refaults > swap.made / 5, "blind page-out hits what is in use");
    // All hot: refused whole or in part, and nothing in use is touched.
    let refused = live(&[event(&[hot, hot], 5000, 800)], Who::Ours);
    assert!(refused.made < refused.asked && refused.refaults == 0, "{refused:?}");
}
