//! The five classes.

use super::model::{Class, PackageView};
use super::settings::Settings;

/// The class of a package. `has_groups`: whether any group may run there. First match wins; `docs/placement.md` has the table.
pub fn classify(package: &PackageView, has_groups: bool, settings: &Settings) -> Class {
    let asleep = package.residency.unwrap_or(0.0);
    if !has_groups && package.load < settings.parked {
        Class::Parked
    } else if package.load >= settings.high {
        Class::High
    } else if asleep >= settings.efficient {
        Class::Efficient
    } else if package.load < settings.low {
        Class::Inefficient
    } else {
        Class::Medium
    }
}
