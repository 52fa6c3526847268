//! Joules, by package: the kernel's powercap (RAPL). The counter wraps; the pure part reckons with that.

use std::collections::BTreeMap;
use std::fs;

use super::{Roots, number};
use crate::node::placement::policy::model::PackageId;

/// A package's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Microjoules.
    pub energy: u64,
    /// Where it wraps.
    pub range: u64,
}

/// Counters of the packages that have one; empty where there is no RAPL.
pub fn sample(roots: &Roots) -> BTreeMap<PackageId, Counter> {
    let zones = fs::read_dir(roots.sys.join("class/powercap")).into_iter().flatten().flatten();
    let counter = |zone: fs::DirEntry| {
        let dir = zone.path();
        let name = fs::read_to_string(dir.join("name")).ok()?;
        let package = name.trim().strip_prefix("package-")?.parse().ok()?;
        let (energy, range) = (number(&dir.join("energy_uj"))?, number(&dir.join("max_energy_range_uj"))?);
        Some((PackageId(package), Counter { energy, range }))
    };
    zones.filter_map(counter).collect()
}

/// Joules between two samples, of the packages that both have.
pub fn between(before: &BTreeMap<PackageId, Counter>, after: &BTreeMap<PackageId, Counter>) -> f64 {
    let used = |(id, after): (&PackageId, &Counter)| {
        let before = before.get(id)?;
        let used = match after.energy.checked_sub(before.energy) {
            Some(used) => used,
            None => after.range.checked_sub(before.energy)?.saturating_add(after.energy),
        };
        Some(used as f64 * 1e-6)
    };
    after.iter().filter_map(used).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_wraps_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(dir.path());
        let zone = roots.sys.join("class/powercap/intel-rapl:0");
        fs::create_dir_all(&zone).unwrap();
        let write = |energy: &str| {
            for (name, text) in
                [("name", "package-0\n"), ("energy_uj", energy), ("max_energy_range_uj", "1000000\n")]
            {
                fs::write(zone.join(name), text).unwrap();
            }
            sample(&roots)
        };
        let (first, second, third) = (write("900000\n"), write("950000\n"), write("50000\n"));
        assert!((between(&first, &second) - 0.05).abs() < 1e-9);
        assert!((between(&second, &third) - 0.1).abs() < 1e-9);
        assert!(write("garbage").is_empty());
    }
}
