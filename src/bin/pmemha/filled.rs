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

    /// Removes what the run has put there, which is nothing that anybody needs.
    pub fn clear(&self) {
        // What cannot be removed is named by the next run that is to use it.
        if self.existed {
            for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
                let path = entry.path();
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}
