//! Sizes and durations as people write them: `64MiB`, `5s`, `250ms`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Binary units only: a log of `64MB` would leave the reader guessing.
const BYTE_UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// For waits that may have no end.
const FOREVER: &str = "forever";

const TIME_UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Bytes that `text` stands for: a whole number and one of B, KiB, MiB, GiB, TiB.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    quantity(text, &BYTE_UNITS).ok_or_else(|| {
        format!("`{text}` is no size: write a whole number with B, KiB, MiB, GiB or TiB, such as \"64MiB\"")
    })
}

/// The duration that `text` stands for: a whole number and one of ns, us, ms, s, min, h, d.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    quantity(text, &TIME_UNITS).map(Duration::from_nanos).ok_or_else(|| {
        format!("`{text}` is no duration: write a whole number with us, ms, s, min, h or d, such as \"5s\"")
    })
}

/// `bytes` as it can be written in a configuration: what [`parse_bytes`] reads, in the largest unit that divides it.
pub fn exact_bytes(bytes: u64) -> String {
    let (unit, size) =
        BYTE_UNITS.iter().rev().find(|(_, size)| bytes.is_multiple_of(*size)).unwrap_or(&BYTE_UNITS[0]);
    format!("{}{unit}", bytes / size)
}

/// `bytes` for a person, to three digits.
pub fn format_bytes(bytes: u64) -> String {
    let (unit, size) = BYTE_UNITS.iter().rev().find(|(_, size)| bytes >= *size).unwrap_or(&BYTE_UNITS[0]);
    let value = bytes as f64 / *size as f64;
    let digits = if *size == 1 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

pub(super) fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    parse_bytes(&String::deserialize(d)?).map_err(de::Error::custom)
}

/// Bytes a second, as a size with `/s` behind it.
pub(super) fn some_rate<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    parse_rate(&String::deserialize(d)?).map(Some).map_err(de::Error::custom)
}

/// Bytes a second that `text` stands for: a size with `/s` behind it, above 0.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let size = text.trim().strip_suffix("/s").and_then(|size| quantity(size, &BYTE_UNITS));
    size.filter(|bytes| *bytes > 0).ok_or_else(|| {
        format!("`{text}` is no rate: write a whole number above 0 with B/s, KiB/s, MiB/s or GiB/s, such as \"100MiB/s\"")
    })
}

pub(super) fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(d)?).map_err(de::Error::custom)
}

/// A duration, or `forever`: [`Duration::MAX`].
pub(super) fn duration_or_forever<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    match String::deserialize(d)?.as_str() {
        FOREVER => Ok(Duration::MAX),
        text => parse_duration(text).map_err(de::Error::custom),
    }
}

pub(super) fn some_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    duration(d).map(Some)
}
