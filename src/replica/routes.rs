//! Which region of an image goes where in a promotion: to its configured place, beside the image, or nowhere.
//!
//! Pure: nothing is made or looked at on disk. Called by `promote`, before the group changes hands and when it has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::image::set::RegionFilePath;
use super::paths::{self, PathError, Place};
use super::promote::PromoteError;
use crate::log::format::ARRIVING;
use crate::types::Generation;

/// A region and its place.
#[derive(Debug)]
pub(super) struct Route {
    pub region: RegionFilePath,
    pub place: Place,
}

/// Where all of an image's regions go.
#[derive(Debug)]
pub(super) struct Routes {
    /// To where the application opens them.
    pub placed: Vec<Route>,
    /// Into the replica's directory, since nothing is configured for them: a program that makes its files under other names and
    /// renames them dies with such a one, too.
    pub unplaced: Vec<Route>,
}

/// Finds a place for each of `regions` by `paths`. What had not arrived whole when the stream ended is left out: no program has
/// ever seen it under its name. `dir`: the replica's; `generation`: the one that is promoted.
///
/// An error if two would be one file, a name is none, or not one of them has a configured place.
pub(super) fn routes(
    regions: Vec<RegionFilePath>,
    paths: &BTreeMap<PathBuf, PathBuf>,
    dir: &Path,
    generation: Generation,
) -> Result<Routes, PromoteError> {
    let mut taken: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut routes = Routes { placed: Vec::new(), unplaced: Vec::new() };
    let mut nowhere = None;
    for region in regions.into_iter().filter(|region| !region.entry.name.ends_with(ARRIVING)) {
        let name = &region.entry.name;
        match paths::place(paths, name) {
            Ok(place) => {
                if let Some(first) = taken.insert(place.path.clone(), name.clone()) {
                    return Err(PromoteError::Clash { first, second: name.clone(), path: place.path });
                }
                routes.placed.push(Route { region, place });
            }
            Err(error @ PathError::Unmapped { .. }) => {
                nowhere.get_or_insert(error);
                let place = beside(&region, dir, generation);
                routes.unplaced.push(Route { region, place });
            }
            Err(error) => return Err(error.into()),
        }
    }
    match nowhere {
        Some(error) if routes.placed.is_empty() => Err(error.into()),
        _ => Ok(routes),
    }
}

/// `<dir>/unplaced-<generation>/<region>-<last part of its name>`.
fn beside(region: &RegionFilePath, dir: &Path, generation: Generation) -> Place {
    let name = Path::new(&region.entry.name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    // The number and a suffix of this module's making must fit as well.
    let name: String = name.chars().take(MAX_NAME_CHARS).collect();
    let path = dir.join(format!("unplaced-{generation}")).join(format!("{}-{name}", region.entry.id));
    Place { path, root: dir.to_owned() }
}

/// Characters of a name that are kept: four bytes each at most, of the 255 that a file system allows.
const MAX_NAME_CHARS: usize = 50;
