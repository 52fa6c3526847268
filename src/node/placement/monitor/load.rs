//! Processors in use, by package: `/proc/stat`.

use std::collections::BTreeMap;
use std::{fs, io};

use super::Roots;
use super::topology::Topology;
use crate::node::placement::policy::model::PackageId;

/// Ticks of a processor since the start: in use, and all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// In use.
    pub busy: u64,
    /// All.
    pub all: u64,
}

/// Ticks of every processor online.
pub type Sample = BTreeMap<u32, Ticks>;

/// As it is now.
pub fn sample(roots: &Roots) -> io::Result<Sample> {
    Ok(parse(&fs::read_to_string(roots.proc.join("stat"))?))
}

/// The lines `cpuN user nice system idle iowait irq softirq steal …`; others are passed over.
pub fn parse(text: &str) -> Sample {
    let line = |line: &str| {
        let mut words = line.strip_prefix("cpu")?.split_whitespace();
        let cpu = words.next()?.parse().ok()?;
        let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
        let [user, nice, system, idle, iowait, rest @ ..] = &ticks[..] else { return None };
        let busy = [user, nice, system].into_iter().chain(rest).fold(0u64, |sum, n| sum.saturating_add(*n));
        let idle = idle.saturating_add(*iowait);
        Some((cpu, Ticks { busy, all: busy.saturating_add(idle) }))
    };
    // The first line is the sum of the others, and has no number.
    text.lines()
        .filter(|line| line.as_bytes().get(3).is_some_and(u8::is_ascii_digit))
        .filter_map(line)
        .collect()
}

/// L of each package between two samples. A processor that came or went in between counts as idle.
pub fn between(before: &Sample, after: &Sample, topology: &Topology) -> BTreeMap<PackageId, f64> {
    let used = |cpu: &u32| {
        let (before, after) = (before.get(cpu)?, after.get(cpu)?);
        let all = after.all.checked_sub(before.all).filter(|all| *all > 0)?;
        Some((after.busy.saturating_sub(before.busy) as f64 / all as f64).min(1.0))
    };
    let load = |cpus: &super::super::cpus::CpuSet| {
        cpus.iter().filter_map(used).sum::<f64>() / cpus.len().max(1) as f64
    };
    topology.packages.iter().map(|(id, package)| (*id, load(&package.cpus))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::placement::monitor::topology::Package;

    #[test]
    fn the_load_of_a_package_is_the_mean_over_its_processors() {
        let before =
            parse("cpu  9 9 9 9\ncpu0 10 0 10 80 0 0 0 0 0 0\ncpu1 0 0 0 100 0 0 0 0\nintr 5\ncpu9 x\n");
        let after = parse("cpu0 60 0 10 130 0 0 0 0 0 0\ncpu1 0 0 0 150 50 0 0 0\n");
        assert_eq!(before[&0], Ticks { busy: 20, all: 100 });
        let package = Package { cpus: [0, 1].into(), ..Package::default() };
        let topology = Topology { packages: [(PackageId(0), package)].into() };
        assert_eq!(between(&before, &after, &topology)[&PackageId(0)], 0.25);
        assert_eq!(between(&after, &before, &topology)[&PackageId(0)], 0.0, "time does not run back");
        assert!(parse("cpu0 1 2\ncpu").is_empty());
    }
}
