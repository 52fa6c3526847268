//! What a capture costs in instructions, and what posting it: counted one by one, so the figure is the same on every machine and
//! run.
//!
//! A program that knows how is run under ptrace. Between two breakpoint instructions (`int3`), the first of which opens an interval and the
//! second of which closes it, every instruction is stepped over and looked at: how many there were, and which of
//! them lock the bus, fence, flush a line or enter the kernel, and how many were libibverbs' and its provider's. Without a program
//! it is this one, at the appender or (`--verbs`) at an endpoint over RDMA; with one, a program under the preload library, for
//! instance:
//!
//! ```text
//! pmemha-perf instructions -- env LD_PRELOAD=… PMEMHA_SOCKET=… target/test-programs/preload-marks FILE
//! ```

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use pmemha::fabric::Completion;
use pmemha::log::digest::chain;
use pmemha::log::{Appender, Consumer, LogRegion, LogSpec};
use pmemha::types::{LINE, PAGE, RegionId};
use serde_json::json;

use crate::Outcome;
use crate::fabric::{Kind, Lane, Port, open};

/// Options of `pmemha-perf instructions`.
#[derive(Args)]
pub struct Options {
    /// Program with marks, and its arguments
    #[arg(last = true)]
    program: Vec<OsString>,
    /// Count what posting and polling take over RDMA instead, which needs an adapter
    #[arg(long, conflicts_with = "program")]
    verbs: bool,
    /// Run the marked operations
    #[arg(long, hide = true)]
    marked: bool,
}

/// An interval between two marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// Instructions, all of them.
    pub instructions: u64,
    /// Those with a LOCK prefix, and XCHG with memory, which locks without one.
    pub locked: u64,
    /// SFENCE, LFENCE, MFENCE.
    pub fences: u64,
    /// CLWB, CLFLUSHOPT, CLFLUSH.
    pub flushes: u64,
    /// Entries to the kernel.
    pub system_calls: u64,
    /// Of the instructions, those of libibverbs and the adapter's provider, with what they call.
    pub provider: u64,
}

/// What the marked operations of the appender are called, in their order.
const OPERATIONS: [&str; 8] = [
    "nothing",
    "append 64 B",
    "append 128 B",
    "append 4 KiB",
    "drain after one append",
    "drain after nothing",
    "take one epoch of 64 B for shipping",
    "take 16 epochs of 64 B for shipping",
];

/// Writes that are posted at once, and the bytes of each.
const POSTS: [(usize, usize); 4] = [(1, 64), (1, PAGE), (2, PAGE), (16, PAGE)];

/// Prints a JSON line for each interval.
pub fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    match options {
        Options { marked: true, verbs: true, .. } => return marked_over_verbs(),
        Options { marked: true, .. } => return marked(),
        _ => {}
    }
    let mut program = options.program.clone();
    let mut names = Vec::new();
    if program.is_empty() {
        program = vec![std::env::current_exe()?.into(), "instructions".into(), "--marked".into()];
        names = OPERATIONS.map(str::to_owned).to_vec();
    }
    if options.verbs {
        // Without an adapter the marked program would end in silence.
        Port::find()?;
        program.push("--verbs".into());
        let both =
            POSTS.map(|(n, len)| [format!("post {n} of {len} B"), format!("poll after {n} of {len} B")]);
        names = both.into_iter().flatten().chain(["poll nothing".to_owned()]).collect();
    }
    for (i, interval) in trace(&program)?.into_iter().enumerate() {
        let what = names.get(i).cloned().unwrap_or_else(|| (i + 1).to_string());
        let line = json!({
            "bench": "instructions", "what": what, "instructions": interval.instructions, "locked": interval.locked,
            "fences": interval.fences, "flushes": interval.flushes, "system_calls": interval.system_calls,
            "provider": interval.provider,
        });
        println!("{line}");
    }
    Ok(())
}

/// Runs `program` and counts what it does between its marks.
pub fn trace(program: &[OsString]) -> io::Result<Vec<Interval>> {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]);
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
    let mut child = command.spawn()?;
    let tracee = Tracee(child.id() as i32);
    let mut intervals = Vec::new();
    tracee.wait()?;
    tracee.ask(libc::PTRACE_SETOPTIONS, libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL)?;
    tracee.resume(libc::PTRACE_CONT, 0)?;
    while let Some(signal) = tracee.wait()? {
        let at_mark = signal == libc::SIGTRAP && tracee.code(tracee.registers()?.rip - 1)?[0] == INT3;
        if at_mark {
            intervals.push(tracee.interval()?);
        }
        let passed_on = if signal == libc::SIGTRAP || signal == libc::SIGSTOP { 0 } else { signal };
        tracee.resume(libc::PTRACE_CONT, passed_on)?;
    }
    // Reaped already: this only lets go of the handle.
    let _ = child.try_wait();
    Ok(intervals)
}

/// A process that is traced.
struct Tracee(i32);

impl Tracee {
    /// Waits for a stop; the signal, or `None` at the end.
    fn wait(&self) -> io::Result<Option<i32>> {
        let mut status = 0;
        // SAFETY: `status` is ours.
        if unsafe { libc::waitpid(self.0, &mut status, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status)))
    }

    /// Steps from behind one mark to behind the next.
    fn interval(&self) -> io::Result<Interval> {
        let (mut seen, objects) = (Interval::default(), self.objects()?);
        let mut of_provider = false;
        loop {
            let mut registers = self.registers()?;
            let code = self.code(registers.rip)?;
            if code[0] == INT3 {
                registers.rip += 1;
                return self.set_registers(&registers).map(|()| seen);
            }
            seen.add(&code);
            match objects
                .iter()
                .find(|object| object.range.contains(&registers.rip))
                .map(|object| object.whose)
            {
                Some(Whose::Program) => of_provider = false,
                Some(Whose::Provider) => of_provider = true,
                Some(Whose::Callers) | None => {}
            }
            seen.provider += u64::from(of_provider);
            self.resume(libc::PTRACE_SINGLESTEP, 0)?;
            if self.wait()? != Some(libc::SIGTRAP) {
                return Err(io::Error::other("the program was interrupted or ended between two marks"));
            }
        }
    }

    /// The code that is mapped.
    fn objects(&self) -> io::Result<Vec<Object>> {
        let program = std::fs::read_link(format!("/proc/{}/exe", self.0))?;
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.0))?;
        Ok(maps.lines().filter_map(|line| Object::parse(line, &program)).collect())
    }

    fn ask(&self, request: libc::c_uint, data: i32) -> io::Result<()> {
        // SAFETY: the tracee is stopped and ours; these requests write to no memory of this process.
        match unsafe { libc::ptrace(request, self.0, 0, data as libc::c_long) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn resume(&self, how: libc::c_uint, signal: i32) -> io::Result<()> {
        self.ask(how, signal)
    }

    fn registers(&self) -> io::Result<libc::user_regs_struct> {
        let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
        // SAFETY: the kernel fills in the structure.
        match unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.0, 0, registers.as_mut_ptr()) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: all of it is initialised, and any bits are a value.
            _ => Ok(unsafe { registers.assume_init() }),
        }
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) -> io::Result<()> {
        // SAFETY: the kernel reads the structure.
        match unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.0, 0, registers) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Eight bytes of code at `at`.
    fn code(&self, at: u64) -> io::Result<[u8; 8]> {
        // SAFETY: clears the thread's own errno, by which an error is told from a word of ones.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: reads from the tracee only.
        let word = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, self.0, at, 0) };
        let error = io::Error::last_os_error();
        if word == -1 && error.raw_os_error() != Some(0) { Err(error) } else { Ok(word.to_le_bytes()) }
    }
}

/// Code of one file.
struct Object {
    range: Range<u64>,
    whose: Whose,
}

/// To whom an instruction is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The program itself.
    Program,
    /// libibverbs and the adapter's driver in user space.
    Provider,
    /// Either: the C library is whoever's calls it.
    Callers,
}

impl Object {
    /// Of a line of `/proc/PID/maps`, if it is one of code in a file.
    fn parse(line: &str, program: &Path) -> Option<Object> {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        fields.next().filter(|rights| rights.contains('x'))?;
        let path = fields.nth(3)?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let whose = match path {
            _ if Path::new(path) == program => Whose::Program,
            _ if path.contains("/libibverbs") => Whose::Provider,
            _ => Whose::Callers,
        };
        Some(Object { range: number(start)?..number(end)?, whose })
    }
}

impl Interval {
    /// Counts the instruction that begins with `code`.
    fn add(&mut self, code: &[u8; 8]) {
        self.instructions += 1;
        let prefixes =
            code.iter().take_while(|b| matches!(b, 0xf0 | 0x66 | 0xf2 | 0xf3 | 0x40..=0x4f)).count();
        let (before, rest) = code.split_at(prefixes);
        let memory = |modrm: u8| modrm >> 6 != 3;
        match *rest {
            _ if before.contains(&0xf0) => self.locked += 1,
            [0x86 | 0x87, modrm, ..] if memory(modrm) => self.locked += 1,
            [0x0f, 0x05, ..] => self.system_calls += 1,
            [0x0f, 0xae, modrm, ..] if memory(modrm) && matches!(modrm >> 3 & 7, 6 | 7) => self.flushes += 1,
            [0x0f, 0xae, modrm, ..] if !memory(modrm) && matches!(modrm >> 3 & 7, 5..=7) => self.fences += 1,
            _ => {}
        }
    }
}

/// Runs each of [`OPERATIONS`] between two marks.
fn marked() -> Result<(), Box<dyn std::error::Error>> {
    let (_fd, log) = LogRegion::create(&LogSpec { ring_bytes: 1 << 20, ..LogSpec::default() })?;
    let app = Appender::attach(log.clone(), 1)?;
    let mut shipping = Shipping { consumer: Consumer::new(log.clone(), log.free()), digest: 0 };
    let memory = vec![0x5au8; 2 * PAGE];
    let start = memory.as_ptr().align_offset(LINE);
    let capture = |len: usize| {
        // SAFETY: a line boundary with a page's bytes behind it.
        unsafe { app.capture(RegionId(1), 0, memory.as_ptr().wrapping_add(start), len) };
    };
    // Everything was done once: nothing is resolved, detected or faulted in between marks.
    capture(PAGE);
    app.drain();
    shipping.take();
    between_marks(|| {});
    between_marks(|| capture(64));
    between_marks(|| capture(128));
    between_marks(|| capture(PAGE));
    app.drain();
    capture(64);
    between_marks(|| _ = app.drain());
    between_marks(|| _ = app.drain());
    shipping.take();
    for epochs in [1, 16] {
        (0..epochs).for_each(|_| capture(64));
        app.drain();
        between_marks(|| shipping.take());
    }
    Ok(())
}

/// Posts each of [`POSTS`] between two marks, and polls between two more.
fn marked_over_verbs() -> Outcome<()> {
    let lane = Lane::open(&*open(Kind::Verbs, false)?, LANE)?;
    let _held = lane.hold_engine()?;
    let mut completions = Vec::with_capacity(16);
    for (count, len) in POSTS {
        let writes = lane.writes(count, len);
        // Everything was done once, as above.
        lane.post_all(&writes)?;
        completed(&lane, &mut completions)?;
        let mut posted = Ok(());
        between_marks(|| posted = lane.post_all(&writes));
        posted?;
        std::thread::sleep(SETTLES);
        let mut polled = 0;
        between_marks(|| polled = lane.poll(&mut completions));
        if polled != 1 {
            return Err(format!("{polled} completions of one signalled batch").into());
        }
        completions.clear();
    }
    between_marks(|| _ = lane.poll(&mut completions));
    Ok(())
}

/// Polls until a batch has completed.
fn completed(lane: &Lane, completions: &mut Vec<Completion>) -> Outcome<()> {
    while lane.poll(completions) == 0 {
        std::thread::yield_now();
    }
    Ok(completions.drain(..).try_for_each(|completion| completion.result)?)
}

/// Ring at either end of the endpoint's lane.
const LANE: usize = 1 << 20;

/// Long enough for a batch to complete while nobody looks.
const SETTLES: Duration = Duration::from_millis(200);

/// What the agent does to records before it posts them: checks, seals and chains them.
struct Shipping {
    consumer: Consumer,
    digest: u64,
}

impl Shipping {
    fn take(&mut self) {
        let batch = self.consumer.next_batch(BATCH).expect("our own log is sound");
        let headers = batch.iter().flat_map(|batch| &batch.headers);
        self.digest = headers.fold(self.digest, chain);
    }
}

/// Most bytes of a batch: what the agent takes.
const BATCH: u64 = 1 << 20;

#[inline(always)]
fn between_marks(work: impl FnOnce()) {
    mark();
    work();
    mark();
}

#[inline(always)]
fn mark() {
    // SAFETY: under the tracer it does nothing; without one it ends the program.
    unsafe { std::arch::asm!("int3") };
}

const INT3: u8 = 0xcc;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_apart_by_the_file_that_it_is_mapped_from() {
        let whose = |line: &str| Object::parse(line, Path::new("/bin/us")).map(|object| object.whose);
        let line = |rights: &str, path: &str| format!("7f00-7f80 {rights} 00001000 fe:00 1234   {path}");
        assert_eq!(whose(&line("r-xp", "/bin/us")), Some(Whose::Program));
        assert_eq!(whose(&line("r-xp", "/usr/lib/libibverbs.so.1.14")), Some(Whose::Provider));
        assert_eq!(whose(&line("r-xp", "/usr/lib/libibverbs/librxe-rdmav34.so")), Some(Whose::Provider));
        assert_eq!(whose(&line("r-xp", "/usr/lib/libc.so.6")), Some(Whose::Callers));
        assert_eq!(whose(&line("r--p", "/bin/us")), None);
        assert_eq!(whose("7f00-7f80 r-xp 00000000 00:00 0 "), None);
    }

    #[test]
    fn instructions_are_told_apart_by_their_bytes() {
        let kind = |bytes: &[u8]| {
            let mut code = [0x90; 8];
            code[..bytes.len()].copy_from_slice(bytes);
            let mut seen = Interval::default();
            seen.add(&code);
            (seen.locked, seen.fences, seen.flushes, seen.system_calls)
        };
        assert_eq!(kind(&[0xf0, 0x48, 0x0f, 0xb1, 0x0a]), (1, 0, 0, 0), "lock cmpxchg");
        assert_eq!(kind(&[0x48, 0x87, 0x06]), (1, 0, 0, 0), "xchg with memory");
        assert_eq!(kind(&[0x48, 0x87, 0xc3]), (0, 0, 0, 0), "xchg of registers");
        assert_eq!(kind(&[0x0f, 0xae, 0xf8]), (0, 1, 0, 0), "sfence");
        assert_eq!(kind(&[0x66, 0x0f, 0xae, 0x30]), (0, 0, 1, 0), "clwb");
        assert_eq!(kind(&[0x0f, 0x05]), (0, 0, 0, 1), "syscall");
        assert_eq!(kind(&[0x48, 0x89, 0xc3]), (0, 0, 0, 0), "mov");
    }
}
