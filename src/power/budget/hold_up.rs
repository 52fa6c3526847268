//! How long the battery lasts: the least of what is known, and less the longer ago that was. Pure.

use std::time::{Duration, Instant};

use crate::power::PowerState;

/// A battery takes so many times as long to be charged as to be used up.
const RECHARGE: u32 = 10;

/// What is known beside what the sources say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Battery {
    /// It holds at least so long.
    pub at_least: Option<Duration>,
    /// What it gives when full, watt-hours, and what the machine draws, watts.
    pub energy: Option<(f64, f64)>,
}

/// Estimates hold-up from what power sources say over time.
#[derive(Clone, Debug)]
pub struct HoldUp {
    battery: Battery,
    /// What was estimated last from words of a source, and of when those were.
    heard: Option<(Duration, Instant)>,
    /// When it was looked last, and whether power was lost or unknown then.
    last: Option<(Instant, bool)>,
    /// What of the configured time is used up.
    used: Duration,
}

impl HoldUp {
    /// Nothing has been heard yet.
    pub fn new(battery: Battery) -> HoldUp {
        HoldUp { battery, heard: None, last: None, used: Duration::ZERO }
    }

    /// How long the battery lasts from `now` on; none: nobody knows.
    ///
    /// From the source: `runtime`, and what its charge gives by the configured energy and draw, whichever is less. Where the source
    /// says nothing, or not any more, what it said last, as if power had been away ever since; but with power and no word of the
    /// battery, what was said on battery is over. What is configured is used up while power is not known to be there, and comes back ten
    /// times as slowly. A battery that is low and does not say how low has nothing.
    pub fn at(&mut self, state: &PowerState, now: Instant) -> Option<Duration> {
        let away = state.online != Some(true);
        let since = |then: Instant| now.saturating_duration_since(then);
        if let Some((then, was_away)) = self.last.replace((now, away)) {
            self.used = match was_away {
                true => self.used + since(then),
                false => self.used.saturating_sub(since(then) / RECHARGE),
            };
        }
        if away && state.low && state.runtime.is_none() {
            return Some(Duration::ZERO);
        }
        let by_charge = self.battery.energy.zip(state.charge).and_then(|((wh, watts), charge)| {
            Duration::try_from_secs_f64(wh * 3600.0 * f64::from(charge) / watts).ok()
        });
        let said = [state.runtime, by_charge].into_iter().flatten().min();
        if !away && said.is_none() {
            self.heard = None;
        }
        if let Some(said) = said.filter(|_| state.online.is_some()) {
            self.heard = Some((said, state.as_of));
        }
        let heard = self.heard.map(|(said, at)| match state.online {
            // As it was said: while there is power nothing is used up.
            Some(true) => said,
            _ => said.saturating_sub(since(at)),
        });
        let configured = self.battery.at_least.map(|least| least.saturating_sub(self.used));
        // A source that was heard knows better than whoever wrote the configuration, unless that promises less.
        [heard, configured].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn said(online: Option<bool>, runtime: Option<u64>, charge: Option<f32>, at: Instant) -> PowerState {
        let runtime = runtime.map(Duration::from_secs);
        PowerState { online, runtime, charge, ..PowerState::silent(at) }
    }

    #[test]
    fn the_least_of_what_is_known_counts() {
        let now = Instant::now();
        let battery = Battery { at_least: Some(SECOND * 1000), energy: Some((100.0, 360.0)) };
        // 100 Wh at 360 W: 1000 s when full.
        let mut hold_up = HoldUp::new(battery);
        assert_eq!(hold_up.at(&said(Some(true), Some(900), Some(1.0), now), now), Some(SECOND * 900));
        assert_eq!(hold_up.at(&said(Some(true), Some(900), Some(0.5), now), now), Some(SECOND * 500));
        assert_eq!(HoldUp::new(Battery::default()).at(&said(Some(true), None, Some(0.5), now), now), None);
    }

    #[test]
    fn what_is_not_heard_any_more_shrinks_and_comes_back_when_it_is_heard() {
        let start = Instant::now();
        let at = |s: u32| start + SECOND * s;
        let mut hold_up = HoldUp::new(Battery::default());
        assert_eq!(hold_up.at(&said(Some(true), Some(100), None, at(0)), at(30)), Some(SECOND * 100));
        assert_eq!(hold_up.at(&PowerState::unknown("stale", at(40)), at(40)), Some(SECOND * 60));
        assert_eq!(hold_up.at(&PowerState::unknown("stale", at(200)), at(200)), Some(Duration::ZERO));
        assert_eq!(hold_up.at(&said(Some(true), Some(100), None, at(201)), at(201)), Some(SECOND * 100));
        // A battery that does not say how long it lasts, on battery.
        assert_eq!(hold_up.at(&said(Some(false), None, None, at(211)), at(211)), Some(SECOND * 90));
    }

    #[test]
    fn what_is_configured_is_used_up_while_power_is_not_known_to_be_there() {
        let start = Instant::now();
        let at = |s: u32| start + SECOND * s;
        let mut hold_up = HoldUp::new(Battery { at_least: Some(SECOND * 30), energy: None });
        assert_eq!(hold_up.at(&said(Some(true), None, None, at(0)), at(0)), Some(SECOND * 30));
        assert_eq!(hold_up.at(&said(Some(false), None, None, at(10)), at(10)), Some(SECOND * 30));
        assert_eq!(hold_up.at(&said(Some(false), None, None, at(25)), at(25)), Some(SECOND * 15));
        assert_eq!(hold_up.at(&said(Some(true), None, None, at(26)), at(26)), Some(SECOND * 14));
        // It is not full at once.
        assert_eq!(hold_up.at(&said(Some(true), None, None, at(36)), at(36)), Some(SECOND * 15));
        assert_eq!(hold_up.at(&said(Some(true), None, None, at(999)), at(999)), Some(SECOND * 30));
    }

    #[test]
    fn what_a_battery_said_on_battery_is_over_with_power_and_a_low_one_has_nothing() {
        let start = Instant::now();
        let at = |s: u32| start + SECOND * s;
        let mut hold_up = HoldUp::new(Battery::default());
        assert_eq!(hold_up.at(&said(Some(false), Some(30), None, at(0)), at(0)), Some(SECOND * 30));
        assert_eq!(hold_up.at(&said(Some(true), None, None, at(1)), at(1)), None);
        let mut hold_up = HoldUp::new(Battery { at_least: Some(SECOND * 30), energy: None });
        let low = PowerState { low: true, ..said(Some(false), None, None, at(0)) };
        assert_eq!(hold_up.at(&low, at(0)), Some(Duration::ZERO));
    }
}
