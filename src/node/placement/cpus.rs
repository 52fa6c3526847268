//! Sets of processors as the kernel writes them: `0-3,8`.

use std::collections::BTreeSet;

/// Numbers of processors, or of memory nodes.
pub type CpuSet = BTreeSet<u32>;

/// The largest number that is believed; the kernel's own limit is 8192.
const LARGEST: u32 = 65_535;

/// The set that `text` names; none if it is no such list. Nothing but blanks is the empty set.
pub fn parse(text: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > LARGEST {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

/// As the kernel writes it.
pub fn format(set: &CpuSet) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let written = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    written.collect::<Vec<_>>().join(",")
}

/// Whether two lists name the same processors, of those `online`: the kernel leaves others out of what it tells. Where nobody knows which
/// are online, or a text is no list, the texts must be the same.
pub fn same(a: &str, b: &str, online: &CpuSet) -> bool {
    let present = |text: &str| Some(&parse(text)? & online);
    a == b || (!online.is_empty() && present(a).is_some_and(|a| !a.is_empty() && present(b) == Some(a)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_list_is_none() {
        for text in ["a", "1-", "-1", "3-1", "1,,2", "0-4294967295", "1;2"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!((parse(""), parse(" \n")), (Some(CpuSet::new()), Some(CpuSet::new())));
    }

    #[test]
    fn lists_are_compared_by_the_processors_that_are_online() {
        let online = [0, 1, 2].into();
        assert!(same("0-3", "0-2", &online) && same("x", "x", &online) && same("3", "3", &online));
        assert!(!same("0-3", "0-1", &online) && !same("3", "4", &online) && !same("x", "", &online));
        assert!(!same("0-3", "0-2", &CpuSet::new()));
    }

    proptest! {
        #[test]
        fn a_set_is_read_as_it_was_written(set in prop::collection::btree_set(0u32..300, 0..60)) {
            prop_assert_eq!(parse(&format(&set)), Some(set));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9,\\- a]{0,20}") {
            let _ = parse(&text);
        }
    }
}
