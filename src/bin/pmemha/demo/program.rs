//! The demo's application: PMDK's own map example with a small driver, compiled here, and the lines that it writes.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Failure, NOT_FOUND, SOFTWARE, UNAVAILABLE};
use crate::local_agent::write;

/// Where Debian puts PMDK's examples.
const EXAMPLES: &str = "/usr/share/doc/libpmemobj-dev/examples";

/// What of them the application needs.
const MAP_SOURCES: [&str; 3] = ["map/map.c", "map/map_hashmap_tx.c", "hashmap/hashmap_tx.c"];

/// The compiled application.
pub struct Program {
    path: PathBuf,
}

impl Program {
    /// Compiles it in the new directory `dir`.
    pub fn compile(dir: &Path) -> Result<Program, Failure> {
        let examples = Path::new(EXAMPLES);
        for source in MAP_SOURCES.map(|s| examples.join(s)) {
            if !source.exists() {
                let what = format!("no {}: install the package libpmemobj-dev", source.display());
                return Err(Failure::new(UNAVAILABLE, what));
            }
        }
        write(&dir.join("kv.c"), include_str!("../../../../demo/kv.c"))?;
        write(&dir.join("ex_common.h"), include_str!("../../../../demo/ex_common.h"))?;
        let path = dir.join("kv");
        let compiled = Command::new("cc")
            .args(["-std=gnu11", "-O2", "-I."])
            .args(["map", "hashmap"].map(|sub| format!("-I{EXAMPLES}/{sub}")))
            .args(["-o", "kv", "kv.c"])
            .args(MAP_SOURCES.map(|s| examples.join(s)))
            .args(["-lpmemobj", "-lpmem"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| {
                Failure::new(NOT_FOUND, format!("cc: {e}: install the packages gcc and libc6-dev"))
            })?;
        if !compiled.status.success() {
            let said = String::from_utf8_lossy(&compiled.stderr);
            return Err(Failure::new(SOFTWARE, format!("the demo's application does not compile:\n{said}")));
        }
        Ok(Program { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills the processes that run it with `argument`. It was started by an agent, and outlives that by design.
    pub fn kill(&self, argument: &Path) {
        self.kill_where(|command| command.split(|b| *b == 0).any(|a| a == argument.as_os_str().as_bytes()));
    }

    /// Kills all processes that run it.
    pub fn kill_everywhere(&self) {
        self.kill_where(|_| true);
    }

    fn kill_where(&self, meant: impl Fn(&[u8]) -> bool) {
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = process.file_name().to_str().and_then(|n| n.parse().ok()).and_then(Pid::from_raw);
            let ours = || fs::read_link(process.path().join("exe")).is_ok_and(|exe| exe == self.path);
            let command = || fs::read(process.path().join("cmdline")).unwrap_or_default();
            if let Some(pid) = pid.filter(|_| ours() && meant(&command())) {
                // It may have ended since.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill_everywhere();
    }
}

/// What the application found when it opened its pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Keys in the pool.
    pub keys: u64,
    /// The highest of them.
    pub highest: u64,
    /// Keys whose value is not theirs.
    pub damaged: u64,
}

/// The application's lines as far as they are complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// The first line, once there.
    pub found: Option<Found>,
    /// Lines after it, a key each.
    pub acknowledged: u64,
    /// The last key.
    pub last: u64,
}

impl Lines {
    /// Reads the file; one that is not there yet has no lines.
    pub fn read(file: &Path) -> Lines {
        Lines::parse(&fs::read_to_string(file).unwrap_or_default())
    }

    fn parse(text: &str) -> Lines {
        // The last line may be half written.
        let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let mut lines = Lines::default();
        for line in complete.lines() {
            if let Some(numbers) = line.strip_prefix("open ") {
                let mut numbers = numbers.split(' ').map_while(|n| n.parse().ok());
                if let (Some(keys), Some(highest), Some(damaged)) =
                    (numbers.next(), numbers.next(), numbers.next())
                {
                    lines.found = Some(Found { keys, highest, damaged });
                }
            } else if let Ok(key) = line.parse() {
                lines.acknowledged += 1;
                lines.last = key;
            }
        }
        lines
    }

    /// Keys of these lines that are not among `found`. The application inserts 1, 2, 3, …, so every key that is missing
    /// below the highest one is counted as an acknowledged one.
    pub fn lost(&self, found: Found) -> u64 {
        let holes = found.highest.saturating_sub(found.keys);
        (self.last.saturating_sub(found.highest) + holes).min(self.acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_lines_count() {
        let lines = Lines::parse("open 2 2 0\n3\n4\n5");
        assert_eq!(lines.found, Some(Found { keys: 2, highest: 2, damaged: 0 }));
        assert_eq!((lines.acknowledged, lines.last), (2, 4));
        assert_eq!(Lines::parse("open 0 0"), Lines::default());
    }

    #[test]
    fn a_key_beyond_the_highest_and_a_hole_below_it_are_lost() {
        let lines = Lines::parse("open 0 0 0\n1\n2\n3\n4\n");
        let found = |keys, highest| Found { keys, highest, damaged: 0 };
        assert_eq!(lines.lost(found(4, 4)), 0);
        assert_eq!(lines.lost(found(5, 5)), 0);
        assert_eq!(lines.lost(found(3, 3)), 1);
        assert_eq!(lines.lost(found(3, 4)), 1);
        assert_eq!(lines.lost(found(0, 0)), 4);
    }
}
