//! How much is asked of the machine, and when.

use super::chance::Chance;
use super::parameters as p;

/// A kind of load.
#[derive(Clone, Debug, PartialEq)]
pub enum Trace {
    /// The same share of the machine all the time.
    Constant(f64),
    /// A day, squeezed.
    Diurnal,
    /// Quiet, with bursts by chance.
    Bursty,
    /// Up and down at the pace of hysteresis and cool-down.
    Square,
    /// Up whenever the placement has emptied a package.
    Bait,
    /// What another run was asked, slot by slot.
    Recorded(String, Vec<f64>),
}

impl Trace {
    /// Every trace that placements are compared on.
    pub fn all() -> Vec<Trace> {
        let constant = p::CONSTANT.into_iter().map(Trace::Constant);
        constant.chain([Trace::Diurnal, Trace::Bursty, Trace::Square, Trace::Bait]).collect()
    }

    /// For people.
    pub fn name(&self) -> String {
        match self {
            Trace::Constant(load) => format!("constant {:.0} %", load * 100.0),
            Trace::Diurnal => "diurnal".into(),
            Trace::Bursty => "bursty".into(),
            Trace::Square => "adversarial, square".into(),
            Trace::Bait => "adversarial, baiting".into(),
            Trace::Recorded(name, _) => name.clone(),
        }
    }

    /// Begins it.
    pub fn begin(&self, seed: u64) -> Playing {
        Playing { trace: self.clone(), chance: Chance::new(seed), high_until: 0.0, next: f64::NAN }
    }
}

/// A trace that is being played.
#[derive(Clone, Debug)]
pub struct Playing {
    trace: Trace,
    chance: Chance,
    high_until: f64,
    /// When the next burst begins.
    next: f64,
}

impl Playing {
    /// Share of the machine that is asked in the slot that begins at `now`. `emptied`: whether some package has no service.
    pub fn load(&mut self, slot: usize, now: f64, emptied: bool) -> f64 {
        match &self.trace {
            Trace::Constant(load) => *load,
            Trace::Diurnal => {
                let (low, high, day) = p::DIURNAL;
                let turn = (now / day * std::f64::consts::TAU).cos();
                low + (high - low) * (1.0 - turn) / 2.0
            }
            Trace::Bursty => {
                let (low, high, pause, shortest, longest) = p::BURSTY;
                if self.next.is_nan() {
                    self.next = self.chance.exponential(pause);
                }
                if now >= self.next {
                    self.high_until = now + shortest + (longest - shortest) * self.chance.unit();
                    self.next = self.high_until + self.chance.exponential(pause);
                }
                if now < self.high_until { high } else { low }
            }
            Trace::Square => {
                let (low, high, down, up) = p::SQUARE;
                if now % (down + up) < down { low } else { high }
            }
            Trace::Bait => {
                let (low, high, keeps) = p::BAIT;
                if emptied && now >= self.high_until {
                    self.high_until = now + keeps;
                }
                if now < self.high_until { high } else { low }
            }
            Trace::Recorded(_, loads) => loads.get(slot).copied().unwrap_or(0.0),
        }
    }
}
