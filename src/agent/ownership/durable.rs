//! Where a group's [`Durable`] is kept: what this node has promised of the group's ownership.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failover::{DURABLE_VERSION, Durable};
use crate::remedy;

/// The file that holds a group's [`Durable`]: replaced as a whole, checked by a checksum when read.
#[derive(Debug)]
pub struct DurableFile {
    path: PathBuf,
}

impl DurableFile {
    /// The file at `path`, which need not exist; its directory must.
    pub fn new(path: PathBuf) -> DurableFile {
        DurableFile { path }
    }

    /// What was stored last; `None` if nothing ever was.
    pub fn load(&self) -> Result<Option<Durable>, StoreError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.io("read", source)),
        };
        let damaged = |reason: String| StoreError::Damaged { path: self.path.clone(), reason };
        let (sum, body) = text.split_once('\n').ok_or_else(|| damaged("it has no checksum".into()))?;
        if sum != checksum(body) {
            return Err(damaged("its checksum is wrong".into()));
        }
        // The version first: of another one's fields nothing is known.
        let Versioned { version } = serde_json::from_str(body).map_err(|e| damaged(e.to_string()))?;
        if version != DURABLE_VERSION {
            return Err(StoreError::Version { path: self.path.clone(), version });
        }
        serde_json::from_str(body).map(Some).map_err(|e| damaged(e.to_string()))
    }

    /// Stores `durable`: it survives a power cut the moment this returns.
    pub fn save(&self, durable: &Durable) -> Result<(), StoreError> {
        let body = serde_json::to_string(durable).expect("plain data");
        let temp = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&temp)?;
            write!(file, "{}\n{body}", checksum(&body))?;
            file.sync_all()?;
            fs::rename(&temp, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| self.io("store the group's state in", source))
    }

    fn io(&self, what: &'static str, source: io::Error) -> StoreError {
        StoreError::Io { what, path: self.path.clone(), source }
    }
}

/// Why a group's durable state could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {what} {}: {source}{}", path.display(), remedy::of(source))]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file was written by another version of pmemha.
    #[error(
        "{} is of version {version}, and this pmemha reads {DURABLE_VERSION}: install the version that wrote it", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file is there and does not hold a state.
    #[error(
        "{} is damaged: {reason}; who owns the group is not known here, so nothing is started: \
         restore the file, or remove it where the other node is known to own the group", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What every version of [`Durable`] has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32c::crc32c(body.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::policy;
    use super::*;
    use crate::failover::{Stage, Standing};
    use crate::types::Generation;

    #[test]
    fn a_damaged_state_is_refused_and_an_absent_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = DurableFile::new(dir.path().join("ownership"));
        assert_eq!(file.load().unwrap(), None);
        let mut durable = Durable::first_owner(&policy(), Generation(9));
        durable.standing = Standing::Owner { attempt: 2, stage: Stage::Begun };
        file.save(&durable).unwrap();
        assert_eq!(file.load().unwrap(), Some(durable));
        let path = dir.path().join("ownership");
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - 3;
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(file.load(), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_state_of_another_version_is_refused_by_its_number_whatever_else_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let file = DurableFile::new(dir.path().join("ownership"));
        let body = r#"{"version":2,"quorum":["alpha"]}"#;
        fs::write(dir.path().join("ownership"), format!("{}\n{body}", checksum(body))).unwrap();
        let error = file.load().unwrap_err();
        assert!(matches!(error, StoreError::Version { version: 2, .. }), "{error}");
        assert!(error.to_string().contains("install the version"), "{error}");
    }
}
