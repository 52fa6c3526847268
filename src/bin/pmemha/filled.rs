//! A directory that a private run fills: new or empty, so that whatever is in it afterwards is of this run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::failure::{CANT_CREATE, Failure};

/// Its path, and whether it was there.
pub struct Filled {
    dir: PathBuf,
    existed: bool,
}

impl Filled {
    /// The directory that `option` names. Agents make it; one that holds anything is refused.
    pub fn new(option: &str, dir: PathBuf) -> Result<Filled, Failure> {
        let existed = match fs::read_dir(&dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Ok(false) => {
                return Err(Failure::new(
                    CANT_CREATE,
                    format!(
                        "{} is not empty, and a run does not go on with what another one left: name a new or empty \
                         directory with {option}, or empty this one",
                        dir.display()
                    ),
                ));
            }
            Err(e) => return Err(Failure::new(CANT_CREATE, format!("{option} {}: {e}", dir.display()))),
        };
        Ok(Filled { dir, existed })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}
