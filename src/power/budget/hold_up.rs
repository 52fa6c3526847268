//! How long the battery lasts: the least of what is known, and less the longer ago that was. Pure.

use std::time::{Duration, Instant};

use crate::power::PowerState;

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
    /// Since when power is lost or unknown.
    away_since: Option<Instant>,
}

impl HoldUp {
    /// Nothing has been heard yet.
    pub fn new(battery: Battery) -> HoldUp {
        HoldUp { battery, heard: None, away_since: None }
    }

    /// How long the battery lasts from `now` on; none: nobody knows.
    ///
    /// From the source: `runtime`, and what its charge gives by the configured energy and draw, whichever is less. Where the source
    /// says nothing, or not any more, what it said last, as if power had been away ever since. Where it never said
    /// anything, what is configured, as if power had been away for as long as it is not known to be there.
    pub fn at(&mut self, state: &PowerState, now: Instant) -> Option<Duration> {
        if state.online == Some(true) {
            self.away_since = None;
        } else {
            self.away_since.get_or_insert(now);
        }
        let by_charge = self.battery.energy.zip(state.charge).and_then(|((wh, watts), charge)| {
            Duration::try_from_secs_f64(wh * 3600.0 * f64::from(charge) / watts).ok()
        });
        let said = [state.runtime, by_charge].into_iter().flatten().min();
        if let Some(said) = said.filter(|_| state.online.is_some()) {
            self.heard = Some((said, state.as_of));
        }
        let since = |then: Instant| now.saturating_duration_since(then);
        let heard = self.heard.map(|(said, at)| match state.online {
            // As it was said: while there is power nothing is used up.
            Some(true) => said,
            _ => said.saturating_sub(since(at)),
        });
        let used = self.away_since.map_or(Duration::ZERO, since);
        let configured = self.battery.at_least.map(|least| least.saturating_sub(used));
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
        assert_eq!(hold_up.at(&said(Some(true), None, None, at(26)), at(26)), Some(SECOND * 30));
    }
}
