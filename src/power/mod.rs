//! Power: is external power there, how long will the battery last, and how well do we know.
//!
//! Every source of such knowledge (a watched [`mod@file`], a UPS by [`nut`], the kernel's power supplies, a command) is a
//! [`PowerSource`]; [`combine`] makes one view of several, and [`Debounce`] keeps a flickering mains from thawing a group too
//! early. Never guesses: what is not known is `None`, never "online". The agent's `power_watch` asks the sources and turns
//! changes into events of the group machines; [`budget`] says whether the battery is enough for what is exposed.
//! `docs/power.md` is the operator's page.

pub mod budget;
pub mod combine;
pub mod command;
pub mod file;
pub mod nut;
pub mod supply;

use std::time::{Duration, Instant};

/// What a source says.
#[derive(Clone, Debug, PartialEq)]
pub struct PowerState {
    /// External power: there, lost, or unknown.
    pub online: Option<bool>,
    /// How long the battery will last at the present load, if known.
    pub runtime: Option<Duration>,
    /// Charge of the battery, 0 to 1, if known.
    pub charge: Option<f32>,
    /// The battery is about to end: the source says so itself.
    pub low: bool,
    /// What is wrong: why nothing is known, since the source is silent or what it says makes no sense; or, of a source that
    /// says whether there is power, what it cannot do.
    pub fault: Option<String>,
    /// When this was true.
    pub as_of: Instant,
}

impl PowerState {
    /// Nothing has been said.
    pub fn silent(as_of: Instant) -> Self {
        Self { online: None, runtime: None, charge: None, low: false, fault: None, as_of }
    }

    /// Nothing is known, for this reason.
    pub fn unknown(reason: impl Into<String>, as_of: Instant) -> Self {
        Self { fault: Some(reason.into()), ..Self::silent(as_of) }
    }
}

/// Something that knows about power. Used by one thread.
pub trait PowerSource: Send {
    /// For status and messages.
    fn name(&self) -> &str;
    /// What it says now; blocks for no longer than the source's own deadline, a second or so.
    fn poll(&mut self) -> PowerState;
    /// Waits until it may say something else, or for `timeout`; then as [`poll`](Self::poll).
    fn wait(&mut self, timeout: Duration) -> PowerState;
}

/// A change that the group machines are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// External power failed.
    Lost,
    /// It is back and has stayed.
    Back,
}

/// Turns views into events: a loss counts once it was confirmed, a return once it has lasted.
#[derive(Clone, Debug)]
pub struct Debounce {
    confirm: Duration,
    settle: Duration,
    told: Option<PowerEvent>,
    lost_since: Option<Instant>,
    online_since: Option<Instant>,
}

impl Debounce {
    /// `confirm`: how long power must be lost before it counts; with none the first word of it does. `settle`: how long it must be
    /// back.
    pub fn new(confirm: Duration, settle: Duration) -> Self {
        Self { confirm, settle, told: None, lost_since: None, online_since: None }
    }

    /// The event that `state`, seen at `now`, amounts to. The first view that there is power settles at once. Unknown interrupts a
    /// return; a loss that is being confirmed only power itself interrupts, and a battery that is low confirms it.
    pub fn event(&mut self, state: &PowerState, now: Instant) -> Option<PowerEvent> {
        let lasted = |since: Instant, wanted: Duration| now.saturating_duration_since(since) >= wanted;
        match state.online {
            Some(true) => self.lost_since = None,
            _ => self.online_since = None,
        }
        let event = match state.online? {
            false => {
                let since = *self.lost_since.get_or_insert(now);
                if !state.low && !lasted(since, self.confirm) {
                    return None;
                }
                PowerEvent::Lost
            }
            true => {
                // Between two words of the source, not between two looks at one.
                let since = *self.online_since.get_or_insert(state.as_of);
                if self.told.is_some() && state.as_of.saturating_duration_since(since) < self.settle {
                    return None;
                }
                PowerEvent::Back
            }
        };
        (self.told != Some(event)).then(|| {
            self.told = Some(event);
            event
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(online: Option<bool>, seconds: u64, as_of: Instant) -> PowerState {
        let runtime = Some(Duration::from_secs(seconds));
        PowerState { online, runtime, ..PowerState::silent(as_of) }
    }

    #[test]
    fn a_loss_counts_at_once_and_a_return_only_when_it_lasts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut debounce = Debounce::new(Duration::ZERO, Duration::from_millis(100));
        let mut event = |online, ms| debounce.event(&view(online, 1, at(ms)), at(ms));
        let (back, lost) = (Some(true), Some(false));
        assert_eq!(event(back, 0), Some(PowerEvent::Back));
        assert_eq!(event(lost, 1), Some(PowerEvent::Lost));
        assert_eq!(event(back, 2), None);
        assert_eq!(event(lost, 50), None);
        assert_eq!(event(back, 60), None);
        assert_eq!(event(None, 120), None);
        assert_eq!(event(back, 161), None);
        assert_eq!(event(back, 261), Some(PowerEvent::Back));
        assert_eq!(event(back, 300), None);
    }

    #[test]
    fn one_word_that_power_is_back_is_not_made_more_by_looking_at_it_again() {
        let start = Instant::now();
        let mut debounce = Debounce::new(Duration::ZERO, Duration::from_millis(100));
        assert_eq!(debounce.event(&view(Some(false), 1, start), start), Some(PowerEvent::Lost));
        let back = view(Some(true), 1, start + Duration::from_millis(1));
        for seconds in 1..10 {
            assert_eq!(debounce.event(&back, start + Duration::from_secs(seconds)), None);
        }
    }

    #[test]
    fn a_loss_that_is_to_be_confirmed_counts_when_it_lasts_and_at_once_where_the_battery_is_low() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (lost, back) = (view(Some(false), 1, start), view(Some(true), 1, start));
        let new = || Debounce::new(Duration::from_millis(100), Duration::ZERO);
        let mut debounce = new();
        assert_eq!(debounce.event(&back, at(0)), Some(PowerEvent::Back));
        assert_eq!(debounce.event(&lost, at(10)), None);
        assert_eq!(debounce.event(&back, at(50)), None);
        assert_eq!(debounce.event(&lost, at(60)), None);
        assert_eq!(debounce.event(&view(None, 1, start), at(100)), None);
        assert_eq!(debounce.event(&lost, at(159)), None);
        assert_eq!(debounce.event(&lost, at(160)), Some(PowerEvent::Lost));
        let low = PowerState { low: true, ..lost };
        assert_eq!(new().event(&low, at(0)), Some(PowerEvent::Lost));
    }
}
