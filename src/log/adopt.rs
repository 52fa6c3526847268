//! Finding a log that nobody keeps any more in the memory of the programs that still write to it.
//!
//! The keeper of a log's descriptor may be lost together with the agent, while the programs live on: they have the log mapped. A
//! new agent must not take it for lost: it would copy files that are being written to unseen, and might start a second
//! writer. Called by `agent::group` when the keeper has no log.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mapped::{LogFile, directory, maps_of, processes, user_of};
use super::patient::{Question, ask_each};
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
    let pids: Vec<u32> = processes().filter(|pid| user_of(*pid).is_some_and(may)).collect();
    let question: Question<_> = Arc::new(mapped_logs);
    for (pid, mapped) in ask_each(&pids, Instant::now() + SAID_WITHIN, &question) {
        // One that does not answer is not taken for a writer: on a machine with a stuck one no agent would start.
        for file in mapped.into_iter().flatten() {
            match file {
                Ok(fd) => {
                    // Another group's, or something that only bears the name.
                    let Ok(log) = LogRegion::attach(fd.as_fd()) else { continue };
                    if (log.spec().group, log.spec().generation) == (group, generation) {
                        return Ok(Some((fd, log)));
                    }
                }
                Err(source) => return Err(Unreachable { pid, source }),
            }
        }
    }
    Ok(None)
}

/// A process that has this log mapped so that it may write to it, of those that can be seen from here and say so in time.
pub fn writer_of(log: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let file = LogFile::of(log)?;
    let others: Vec<u32> = processes().filter(|pid| *pid != std::process::id()).collect();
    let question: Question<_> = Arc::new(move |pid| file.stored_to_by(pid).is_some());
    let mut answers = ask_each(&others, Instant::now() + SAID_WITHIN, &question).into_iter();
    Ok(answers.find(|(_, writes)| *writes == Some(true)).map(|(pid, _)| pid))
}

/// What process `pid` has mapped that is called as a log.
fn mapped_logs(pid: u32) -> Vec<io::Result<OwnedFd>> {
    let Some((thread, maps)) = maps_of(pid) else { return Vec::new() };
    let named = |line: &&str| line.contains(&*mapped_name());
    let ranges = maps.lines().filter(named).filter_map(|line| line.split(' ').next());
    let open =
        |range| File::options().read(true).write(true).open(directory(thread).join("map_files").join(range));
    let opened =
        ranges.map(open).filter(|file| !matches!(file, Err(e) if e.kind() == io::ErrorKind::NotFound));
    opened.map(|file| file.map(OwnedFd::from)).collect()
}

/// How the kernel shows a mapped log.
fn mapped_name() -> String {
    format!("/memfd:{MEMFD_NAME} (deleted)")
}

/// How long all processes may take to say what they have mapped: tens of milliseconds, unless one does not answer.
const SAID_WITHIN: Duration = Duration::from_secs(5);

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
