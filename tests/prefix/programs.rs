//! The programs, and how each is run and checked.

use std::path::Path;
use std::process::Command;

use pmemha_testkit::dirs::repo;
use pmemha_testkit::programs::workload;

/// A program with invariants of its own, and a mode in which it checks them in states named to it.
pub struct Program {
    pub name: &'static str,
    kind: Kind,
    /// Operations a thread: enough for a few thousand records.
    pub operations: u64,
    pub threads: usize,
    /// Its files, in the order in which the checker wants to be told of them.
    pub files: &'static [&'static str],
}

enum Kind {
    /// A mode of `tests/programs/workload.c`, with a pool of this many MiB: small, since it is copied for each LSN.
    Workload { mode: &'static str, pool_mib: u32 },
    /// An engine of `tests/programs/prefix/kv.py`.
    KeyValue { engine: &'static str },
}

pub const TX: Program = of_workload("tx", 300, 1, 10);
pub const ATOMIC: Program = of_workload("atomic", 1200, 1, 8);
pub const MEMCPY: Program = of_workload("memcpy", 200, 1, 8);
pub const HUGE: Program = of_workload("huge", 40, 1, 48);
pub const RAW: Program = of_workload("raw", 800, 1, 8);
pub const THREADS: Program = of_workload("threads", 100, 4, 12);
/// To be killed: a pool with room for many more operations than there will be.
pub const ENDLESS: Program = of_workload("tx", 1 << 40, 1, 256);
pub const PMEM2: Program = of_workload("pmem2", 500, 1, 8);
pub const LMDB: Program = key_value("lmdb", &["db"]);
pub const LMDB_WRITEMAP: Program = key_value("lmdb-writemap", &["db"]);
pub const SQLITE: Program = key_value("sqlite", &["db"]);
/// Two processes on one log.
pub const SQLITE_CUT: Program = key_value("sqlite-cut", &["db"]);

const fn of_workload(mode: &'static str, operations: u64, threads: usize, pool_mib: u32) -> Program {
    let kind = Kind::Workload { mode, pool_mib };
    Program { name: mode, kind, operations, threads, files: &["pool", "acks"] }
}

const fn key_value(engine: &'static str, files: &'static [&'static str]) -> Program {
    Program { name: engine, kind: Kind::KeyValue { engine }, operations: 300, threads: 1, files }
}

impl Program {
    /// The executable file.
    pub fn executable(&self) -> &'static Path {
        match self.kind {
            Kind::Workload { .. } => workload(),
            Kind::KeyValue { .. } => Path::new("/usr/bin/python3"),
        }
    }

    /// Completes `command`, of the executable, to one that does the operations on the files in `dir`.
    pub fn run(&self, command: &mut Command, dir: &Path, seed: u64) {
        self.prepare(command);
        match self.kind {
            Kind::Workload { mode, .. } => command.args(["run", mode]),
            Kind::KeyValue { engine } => command.arg(script()).args(["run", engine]),
        };
        command.args(self.files.iter().map(|name| dir.join(name)));
        command.arg(self.operations.to_string()).arg(seed.to_string());
    }

    /// A command that checks states named on its standard input: a line of paths, to be answered with a line.
    pub fn check_many(&self, seed: u64) -> Command {
        let mut command = Command::new(self.executable());
        self.prepare(&mut command);
        match self.kind {
            Kind::Workload { mode, .. } => command.args(["check-many", mode]),
            Kind::KeyValue { engine } => {
                command.arg(script()).args(["check-many", engine]).arg(seed.to_string())
            }
        };
        command
    }

    fn prepare(&self, command: &mut Command) {
        command
            .env("PMEM_IS_PMEM_FORCE", "1")
            .env("PMEM2_FORCE_GRANULARITY", "CACHE_LINE")
            .env("PMEMOBJ_CONF", "sds.at_create=0");
        if let Kind::Workload { pool_mib, .. } = self.kind {
            command.env("WORKLOAD_POOL_MIB", pool_mib.to_string());
        }
    }
}

fn script() -> std::path::PathBuf {
    repo().join("tests/programs/prefix/kv.py")
}
