//! Finding a log that nobody keeps any more in the memory of the programs that still write to it.
//!
//! The keeper of a log's descriptor may be lost together with the agent, while the programs live on: they have the log mapped. A
//! new agent must not take it for lost: it would copy files that are being written to unseen, and might start a second
//! writer. Called by `agent::group` when the keeper has no log.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::mapped::{directory, maps_of, processes};
use super::region::{LogRegion, MEMFD_NAME};
use crate::types::{Generation, GroupId};

/// Why the log of living programs cannot be gone on with.
#[derive(Debug, thiserror::Error)]
#[error(
    "process {pid} still writes to the group's log, which nobody keeps any more and this agent cannot open ({source}): end the \
     program and start pmemhad again, or run pmemhad as root"
)]
pub struct Unreachable {
    /// The program.
    pub pid: u32,
    /// Why not.
    pub source: io::Error,
}

/// The log of `group` in `generation` that a living process has mapped whose user `may` write to it; `None` if there is none that
/// can be seen from here.
pub fn from_writers(
    group: GroupId,
    generation: Generation,
    may: &dyn Fn(u32) -> bool,
) -> Result<Option<(OwnedFd, Arc<LogRegion>)>, Unreachable> {
    for pid in processes() {
        let Some((thread, maps)) = maps_of(pid, may) else { continue };
        let mappings =
            maps.lines().filter(|line| line.contains(&*mapped_name())).filter_map(|l| l.split(' ').next());
        for range in mappings {
            let mapping = directory(thread).join("map_files").join(range);
            match File::options().read(true).write(true).open(mapping) {
                Ok(file) => {
                    let fd = OwnedFd::from(file);
                    // Another group's, or something that only bears the name.
                    let Ok(log) = LogRegion::attach(fd.as_fd()) else { continue };
                    if (log.spec().group, log.spec().generation) == (group, generation) {
                        return Ok(Some((fd, log)));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Unreachable { pid, source }),
            }
        }
    }
    Ok(None)
}

/// How the kernel shows a mapped log.
fn mapped_name() -> String {
    format!("/memfd:{MEMFD_NAME} (deleted)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogSpec;

    #[test]
    fn a_log_is_found_as_long_as_a_process_of_a_permitted_user_has_it_mapped() {
        let spec = LogSpec { group: GroupId([77; 16]), generation: Generation(5), ..LogSpec::default() };
        let (fd, log) = LogRegion::create(&spec).unwrap();
        drop(fd);
        let find = |generation, may| from_writers(spec.group, generation, &|_| may).unwrap();
        let (_, found) = find(Generation(5), true).expect("this process has it mapped");
        assert_eq!((found.tail(), found.spec()), (log.tail(), log.spec()));
        assert!(find(Generation(6), true).is_none() && find(Generation(5), false).is_none());
        drop((found, log));
        assert!(find(Generation(5), true).is_none());
    }
}
