//! The program `ranges` of `tests/programs`: a process whose memory is used as a plan says.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use crate::programs;

/// Bytes of a range.
pub const RANGE: u64 = 2 << 20;

/// The running program. Killed on drop.
pub struct Ranges {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    base: u64,
}

impl Ranges {
    /// Starts it with memory of a kind (`anon`, `memfd`, or a directory) and a plan; see the program.
    pub fn start(kind: &str, plan: &str) -> Ranges {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| programs::compile("ranges", &["ranges.c"], &[]));
        Ranges::start_by(program, kind, plan)
    }

    /// As [`Ranges::start`], by a program that was compiled before.
    pub fn start_by(program: &Path, kind: &str, plan: &str) -> Ranges {
        let mut command = Command::new(program);
        let mut child = command
            .args([kind, plan])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut ranges = Ranges { child, input, output, base: 0 };
        let said = ranges.answer();
        let base = said.strip_prefix("base ").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        ranges.base = base.unwrap_or_else(|| panic!("it said `{said}`"));
        ranges
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Address of its first range.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Goes on by another plan.
    pub fn plan(&mut self, plan: &str) {
        self.does(&format!("plan {plan}"), "ok");
    }

    /// Touches what the plan uses, once.
    pub fn once(&mut self) {
        self.does("once", "ok");
    }

    /// Reads a second of a processor's time that it does in `ms` milliseconds of that.
    pub fn run(&mut self, ms: u64) -> f64 {
        self.does(&format!("run {ms}"), "ops ") * 1e3 / ms as f64
    }

    /// Microseconds of one pass over what the plan uses.
    pub fn pass(&mut self) -> f64 {
        self.does("pass", "pass ")
    }

    /// Tells it something that it answers later, or not at all.
    pub fn tell(&mut self, what: &str) {
        writeln!(self.input, "{what}").expect("the program reads");
    }

    fn does(&mut self, what: &str, answer: &str) -> f64 {
        self.tell(what);
        let said = self.answer();
        let rest = said.strip_prefix(answer).unwrap_or_else(|| panic!("asked to {what}, it said `{said}`"));
        rest.parse().unwrap_or(0.0)
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the program answers");
        line.trim_end().to_owned()
    }
}

impl Drop for Ranges {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
