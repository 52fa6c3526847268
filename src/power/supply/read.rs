//! Reads a class directory of power supplies: one file a value, none of them trusted to be there or to make sense.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

/// Longest value that is read.
const MAX_VALUE: u64 = 256;

/// Most supplies that are looked at.
const MAX_SUPPLIES: usize = 64;

/// What a supply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Brings power from outside: `Mains`, `USB` of any kind, `Wireless`.
    Adapter,
    /// Holds some: `Battery`, `UPS`.
    Battery,
    /// Something else.
    Other,
}

/// One supply. What it does not say, or not sensibly, is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Supply {
    /// Its name in the class.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it supplies a device such as a mouse, and not the machine.
    pub of_device: bool,
    /// Of an adapter: whether power comes in.
    pub online: Option<bool>,
    /// Of a battery: whether it is there.
    pub present: bool,
    /// Of a battery: whether it gives power.
    pub discharging: Option<bool>,
    /// 0 to 1.
    pub capacity: Option<f32>,
    /// Watt-hours that it holds.
    pub energy_wh: Option<f64>,
    /// Watt-hours that it holds when full.
    pub full_wh: Option<f64>,
    /// Watts that it gives or takes.
    pub power_w: Option<f64>,
    /// How long it lasts, as it says itself.
    pub time_to_empty: Option<Duration>,
}

/// All supplies in `class`, by name.
pub fn supplies(class: &Path) -> io::Result<Vec<Supply>> {
    let names: io::Result<Vec<_>> = fs::read_dir(class)?.map(|entry| Ok(entry?.file_name())).collect();
    let mut names: Vec<_> = names?.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.sort_unstable();
    names.truncate(MAX_SUPPLIES);
    Ok(names.into_iter().map(|name| supply(&class.join(&name), name)).collect())
}

fn supply(dir: &Path, name: String) -> Supply {
    let value = |file: &str| value(&dir.join(file));
    // The kernel's unit is a millionth; what is drawn from a battery is negative with some drivers.
    let micro = |file: &str| {
        let number = value(file)?.parse::<i64>().ok()?;
        Some(number.unsigned_abs() as f64 / 1e6)
    };
    let volts = micro("voltage_now");
    let energy = |energy: &str, charge: &str| micro(energy).or_else(|| Some(micro(charge)? * volts?));
    let kind = match value("type").as_deref() {
        Some("Mains" | "Wireless") => Kind::Adapter,
        Some(usb) if usb.starts_with("USB") || usb == "BrickID" => Kind::Adapter,
        Some("Battery" | "UPS") => Kind::Battery,
        _ => Kind::Other,
    };
    Supply {
        kind,
        of_device: value("scope").is_some_and(|scope| scope == "Device"),
        online: match value("online").as_deref() {
            Some("0") => Some(false),
            // 2: one that can be programmed.
            Some("1" | "2") => Some(true),
            _ => None,
        },
        present: value("present").is_none_or(|present| present != "0"),
        discharging: match value("status").as_deref() {
            Some("Discharging") => Some(true),
            Some("Charging" | "Full" | "Not charging") => Some(false),
            _ => None,
        },
        capacity: value("capacity")
            .and_then(|c| c.parse::<u8>().ok())
            .filter(|c| *c <= 100)
            .map(|c| f32::from(c) / 100.0),
        energy_wh: energy("energy_now", "charge_now"),
        full_wh: energy("energy_full", "charge_full"),
        power_w: micro("power_now").or_else(|| Some(micro("current_now")? * volts?)),
        time_to_empty: value("time_to_empty_now")
            .and_then(|s| s.parse().ok())
            .filter(|s| *s > 0)
            .map(Duration::from_secs),
        name,
    }
}

fn value(file: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(file).ok()?.take(MAX_VALUE).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}
