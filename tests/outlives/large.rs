//! A region larger than the machine's memory: sparse, stored to through a mapping, made durable by msync.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use pmemha_testkit::node::{Pair, PairOptions};

use super::BINARIES;

/// Twice the memory of this machine, in bytes.
fn size() -> u64 {
    let known = std::fs::read_to_string("/proc/meminfo").expect("every Linux has it");
    let total = known.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    2 * 1024 * total.expect("MemTotal stands first")
}

/// At each offset that it is told, writes eight bytes, its number, and syncs the page that holds them.
const PROGRAM: &str = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(fd, int(sys.argv[2]))
memory = mmap.mmap(fd, int(sys.argv[2]))
for line in sys.stdin:
    at = int(line)
    memory[at:at + 8] = at.to_bytes(8, 'little')
    page = at & ~4095
    memory.flush(page, 8192 if at + 8 > page + 4096 else 4096)
    print(at, flush=True)
";

#[test]
fn a_region_larger_than_memory_is_copied_and_followed_where_it_holds_something() {
    let size = size();
    // Both ends of the region are among them.
    let before = [8, (size / 3) & !4095, size - 4096];
    let after = [100, size / 5 * 4 + 123, size - 8];
    let mut pair = Pair::prepare(BINARIES, &PairOptions::default());
    pair.alpha.start();
    let pool = pair.alpha.files().join("pool");
    let mut command = pair.alpha.preloaded(Path::new("/usr/bin/python3"));
    command.args(["-c", PROGRAM]).arg(&pool).arg(size.to_string());
    let mut program = Program::start(command);
    before.into_iter().for_each(|at| program.write(at));
    pair.beta.start();
    pair.alpha.await_streaming();
    after.into_iter().for_each(|at| program.write(at));
    pair.alpha.set_power(false);
    pair.beta.await_group("the heir to take over", |g| {
        let placed = ["starting", "running", "stopped"].iter().any(|s| g["state"] == **s);
        (g["role"] == "source" && placed).then_some(())
    });

    let image = File::open(pair.beta.files().join("pool")).expect("the heir has placed it");
    let there = image.metadata().expect("an open file");
    assert_eq!(there.len(), size);
    assert!(there.blocks() * 512 <= 1 << 20, "{} blocks are allocated", there.blocks());
    for at in before.into_iter().chain(after) {
        let mut found = [0; 8];
        image.read_exact_at(&mut found, at).expect("within the file");
        assert_eq!(u64::from_le_bytes(found), at, "eight bytes at {at}");
    }
}

struct Program {
    child: Child,
    tell: ChildStdin,
    said: BufReader<std::process::ChildStdout>,
}

impl Program {
    fn start(mut command: Command) -> Program {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 is installed");
        let tell = child.stdin.take().expect("piped");
        let said = BufReader::new(child.stdout.take().expect("piped"));
        Program { child, tell, said }
    }

    /// Returns once the program has synced it.
    fn write(&mut self, at: u64) {
        writeln!(self.tell, "{at}").expect("the program reads");
        let mut line = String::new();
        self.said.read_line(&mut line).expect("the program answers");
        assert_eq!(line.trim(), at.to_string());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }
}
