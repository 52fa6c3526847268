//! Power as the kernel says it: the supplies of sysfs's class `power_supply`, and its word on netlink that one has changed.
//!
//! [`read`] reads a class directory into plain [`Supply`]s, [`meaning`] makes one view of them, [`uevent`] wakes whoever waits. Where no
//! uevents can be had the files are read at every asking, ten times a second.

pub mod read;
pub mod uevent;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{PowerSource, PowerState};
use read::{Kind, Supply, supplies};
use uevent::Uevents;

/// Where the kernel lists them.
pub const CLASS: &str = "/sys/class/power_supply";

/// The kernel's power supplies.
#[derive(Debug)]
pub struct SupplySource {
    class: PathBuf,
    only: Option<Vec<String>>,
    name: String,
    uevents: Option<Uevents>,
}

impl SupplySource {
    /// Those in `class`, of these names where any are given.
    pub fn new(class: impl Into<PathBuf>, only: Option<Vec<String>>) -> SupplySource {
        SupplySource::waked_by(class.into(), only, Uevents::of_kernel().ok())
    }

    fn waked_by(class: PathBuf, only: Option<Vec<String>>, uevents: Option<Uevents>) -> SupplySource {
        let of = only.as_ref().map_or(String::new(), |names| format!(" {}", names.join(" ")));
        SupplySource { class, name: format!("kernel{of}"), only, uevents }
    }

    fn look(&self, class: &Path) -> Result<PowerState, String> {
        let mut found = supplies(class)
            .map_err(|why| format!("cannot list the supplies in {}: {why}", class.display()))?;
        if let Some(only) = &self.only {
            let missing: Vec<_> =
                only.iter().filter(|name| !found.iter().any(|s| s.name == **name)).cloned().collect();
            if !missing.is_empty() {
                return Err(format!("there is no {} in {}", missing.join(", "), class.display()));
            }
            found.retain(|supply| only.contains(&supply.name));
        }
        meaning(&found, Instant::now())
    }
}

impl PowerSource for SupplySource {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&mut self) -> PowerState {
        // Emptied before reading: a change during the reading wakes the next wait.
        self.uevents.iter_mut().for_each(Uevents::drain);
        self.look(&self.class).unwrap_or_else(|why| PowerState::unknown(why, Instant::now()))
    }

    fn wait(&mut self, timeout: Duration) -> PowerState {
        match &mut self.uevents {
            Some(uevents) => uevents.wait(timeout),
            None => std::thread::sleep(timeout),
        }
        self.poll()
    }
}

/// What the supplies together say. Pure.
///
/// With adapters among them (mains, USB): there is power if one is online, it is lost if none is, and unknown if one that is not known
/// could make the difference. Without: it is lost if a battery or UPS discharges, and there if none does. Batteries of devices such as mice do
/// not count. What batteries hold is added up.
pub fn meaning(supplies: &[Supply], now: Instant) -> Result<PowerState, String> {
    let of_system = || supplies.iter().filter(|s| !s.of_device);
    let adapters: Vec<_> = of_system().filter(|s| s.kind == Kind::Adapter).collect();
    let batteries: Vec<_> = of_system().filter(|s| s.kind == Kind::Battery && s.present).collect();
    if adapters.is_empty() && batteries.is_empty() {
        return Err("the kernel knows no adapter and no battery of this machine".into());
    }
    let mut state = PowerState::silent(now);
    let all_say = |says: &dyn Fn(&Supply) -> Option<bool>, of: &[&Supply]| match of {
        of if of.iter().all(|s| says(s).is_some()) => Some(of.iter().any(|s| says(s) == Some(true))),
        of => of.iter().any(|s| says(s) == Some(true)).then_some(true),
    };
    state.online = match adapters.is_empty() {
        false => all_say(&|s| s.online, &adapters),
        true => all_say(&|s| s.discharging, &batteries).map(|lost| !lost),
    };
    state.runtime = runtime(&batteries);
    state.charge = charge(&batteries);
    if state.online.is_none() {
        let silent =
            |s: &&&Supply| if adapters.is_empty() { s.discharging.is_none() } else { s.online.is_none() };
        let of = if adapters.is_empty() { &batteries } else { &adapters };
        let names: Vec<_> = of.iter().filter(silent).map(|s| s.name.as_str()).collect();
        state.fault = Some(format!("not known of {}", names.join(", ")));
    }
    Ok(state)
}

/// How long the batteries last: their energy by what they give together, or what one says itself.
fn runtime(batteries: &[&Supply]) -> Option<Duration> {
    let energy: Option<f64> = batteries.iter().map(|b| b.energy_wh).sum();
    let draw: f64 = batteries.iter().filter(|b| b.discharging == Some(true)).filter_map(|b| b.power_w).sum();
    let by_energy = energy.filter(|_| draw > 0.0).map(|wh| wh * 3600.0 / draw);
    let said = batteries.iter().filter_map(|b| b.time_to_empty).max();
    said.or_else(|| Duration::try_from_secs_f64(by_energy?).ok())
}

/// 0 to 1: of all energy what is left; where that is not known, of the emptiest.
fn charge(batteries: &[&Supply]) -> Option<f32> {
    let sum = |of: fn(&Supply) -> Option<f64>| batteries.iter().map(|b| of(b)).sum::<Option<f64>>();
    let by_energy = sum(|b| b.energy_wh).zip(sum(|b| b.full_wh)).filter(|(_, full)| *full > 0.0);
    let least = batteries.iter().filter_map(|b| b.capacity).min_by(f32::total_cmp);
    by_energy.map(|(left, full)| (left / full).clamp(0.0, 1.0) as f32).or(least)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A class directory of a test's own.
    struct Class(tempfile::TempDir);

    impl Class {
        fn new() -> Class {
            Class(tempfile::tempdir().unwrap())
        }

        fn set(&self, supply: &str, values: &[(&str, &str)]) {
            let dir = self.0.path().join(supply);
            fs::create_dir_all(&dir).unwrap();
            values.iter().for_each(|(file, text)| fs::write(dir.join(file), format!("{text}\n")).unwrap());
        }

        fn source(&self, only: Option<&[&str]>) -> SupplySource {
            let only = only.map(|names| names.iter().map(|n| n.to_string()).collect());
            SupplySource::waked_by(self.0.path().into(), only, None)
        }

        fn online(&self) -> Option<bool> {
            self.source(None).poll().online
        }
    }

    #[test]
    fn one_adapter_that_is_online_is_power_and_one_that_does_not_say_is_none() {
        let class = Class::new();
        assert!(class.source(None).poll().fault.unwrap().contains("no adapter"));
        class.set("AC", &[("type", "Mains"), ("online", "1")]);
        assert_eq!(class.online(), Some(true));
        class.set("AC", &[("online", "0")]);
        assert_eq!(class.online(), Some(false));
        class.set("usb", &[("type", "USB"), ("online", "1")]);
        assert_eq!(class.online(), Some(true));
        class.set("usb", &[("online", "perhaps")]);
        assert_eq!(class.online(), None);
        assert!(class.source(None).poll().fault.unwrap().contains("usb"));
        class.set("AC", &[("online", "1")]);
        assert_eq!(class.online(), Some(true));
        assert_eq!(class.source(Some(&["usb"])).poll().online, None);
        assert!(class.source(Some(&["AC2"])).poll().fault.unwrap().contains("no AC2"));
    }

    #[test]
    fn batteries_alone_say_by_whether_they_discharge_and_a_mouse_says_nothing() {
        let class = Class::new();
        class.set("mouse", &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging")]);
        assert_eq!(class.online(), None);
        class.set("BAT0", &[("type", "Battery"), ("status", "Full")]);
        class.set("BAT1", &[("type", "UPS"), ("status", "Charging")]);
        assert_eq!(class.online(), Some(true));
        class.set("BAT1", &[("status", "Discharging")]);
        assert_eq!(class.online(), Some(false));
        class.set("BAT1", &[("status", "Unknown")]);
        assert_eq!(class.online(), None);
        class.set("BAT1", &[("present", "0")]);
        assert_eq!(class.online(), Some(true));
    }

    #[test]
    fn what_batteries_hold_is_added_up() {
        let class = Class::new();
        class.set("AC", &[("type", "Mains"), ("online", "0")]);
        let battery = [("type", "Battery"), ("status", "Discharging"), ("capacity", "50")];
        class.set("BAT0", &battery);
        class.set("BAT1", &battery);
        assert_eq!(class.source(None).poll().charge, Some(0.5));
        // Microwatt-hours and microwatts; the other in microampere-hours.
        class.set(
            "BAT0",
            &[("energy_now", "30000000"), ("energy_full", "40000000"), ("power_now", "30000000")],
        );
        class.set(
            "BAT1",
            &[
                ("charge_now", "1000000"),
                ("charge_full", "2000000"),
                ("voltage_now", "10000000"),
                ("current_now", "-1000000"),
            ],
        );
        let state = class.source(None).poll();
        // 40 Wh at 40 W, of 60 Wh.
        assert_eq!(state.runtime, Some(Duration::from_secs(3600)));
        assert!((state.charge.unwrap() - 2.0 / 3.0).abs() < 1e-6, "{state:?}");
        class.set("BAT1", &[("time_to_empty_now", "600")]);
        assert_eq!(class.source(None).poll().runtime, Some(Duration::from_secs(600)));
    }

    #[test]
    fn a_uevent_of_a_supply_wakes_and_of_others_it_does_not() {
        let class = Class::new();
        class.set("AC", &[("type", "Mains"), ("online", "1")]);
        let (kernel, ours) = UnixDatagram::pair().unwrap();
        let uevents = Some(Uevents::from(std::os::fd::OwnedFd::from(ours)));
        let mut source = SupplySource::waked_by(class.0.path().into(), None, uevents);
        let began = Instant::now();
        kernel.send(b"change@/devices/disk\0ACTION=change\0SUBSYSTEM=block\0").unwrap();
        source.wait(Duration::from_millis(50));
        assert!(began.elapsed() >= Duration::from_millis(50), "another's change");
        class.set("AC", &[("online", "0")]);
        kernel.send(b"change@/devices/ac\0ACTION=change\0SUBSYSTEM=power_supply\0").unwrap();
        let state = source.wait(Duration::from_secs(3600));
        assert_eq!(state.online, Some(false));
        // Nobody is there any more: not woken for nothing again and again.
        drop(kernel);
        source.wait(Duration::from_millis(10));
    }

    #[test]
    fn this_kernel_can_be_listened_to() {
        Uevents::of_kernel().unwrap().wait(Duration::from_millis(1));
    }
}
