//! Wall-clock times as people and machines read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// An instant of the wall clock; written as RFC 3339 in UTC with microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub SystemTime);

impl WallTime {
    /// Nanoseconds since 1970.
    pub fn from_ns(ns: u64) -> WallTime {
        WallTime(UNIX_EPOCH + Duration::from_nanos(ns))
    }

    /// This instant.
    pub fn now() -> WallTime {
        WallTime(SystemTime::now())
    }

    /// Reads what `Display` writes; none if it is anything else.
    pub fn parse(text: &str) -> Option<WallTime> {
        let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
        let mut date = date.splitn(3, '-').map(|n| n.parse::<u64>().ok());
        let (year, month, day) = (date.next()??, date.next()??, date.next()??);
        let (clock, micros) = time.split_once('.')?;
        let mut clock = clock.splitn(3, ':').map(|n| n.parse::<u64>().ok());
        let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
        let sane = (1970..10_000).contains(&year) && (1..=12).contains(&month) && day <= 31;
        if !sane || hour >= 24 || minute >= 60 || second >= 60 || micros.len() != 6 {
            return None;
        }
        let days = days_since_epoch(year, month, day)?;
        let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
        let micros = seconds * 1_000_000 + micros.parse::<u64>().ok()?;
        let parsed = WallTime(UNIX_EPOCH + Duration::from_micros(micros));
        (parsed.to_string() == text).then_some(parsed)
    }
}

impl std::fmt::Display for WallTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let micros = since.subsec_micros();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{micros:06}Z", second % 60)
    }
}

impl Serialize for WallTime {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Year, month and day of a number of days since 1970-01-01 (Gregorian; Hinnant's algorithm on eras of 400 years
/// that start in March).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil`], for dates of its epoch and later.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year - u64::from(month <= 2);
    let year_of_era = year % 400;
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (year / 400 * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_date_says_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            let time = WallTime(UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(time.to_string(), text);
            assert_eq!(WallTime::parse(text), Some(time));
        }
        let micro = WallTime(UNIX_EPOCH + Duration::from_micros(1_500_001));
        assert_eq!(micro.to_string(), "1970-01-01T00:00:01.500001Z");
    }
    #[test]
    fn what_is_no_time_is_not_read_as_one() {
        for text in [
            "",
            "2025-01-01",
            "2025-02-30T00:00:00.000000Z",
            "2025-01-01T25:00:00.000000Z",
            "2025-00-01T00:00:00.000000Z",
            "2025-01-00T00:00:00.000000Z",
            "2025-01-01T00:00:00Z",
        ] {
            assert_eq!(WallTime::parse(text), None, "{text}");
        }
    }
}
