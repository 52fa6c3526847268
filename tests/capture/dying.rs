//! A writer that is killed after any instruction of an append leaves a log that others go on with.

use std::sync::Arc;

use pmemha::log::format::Kind;
use pmemha::log::{Appender, LogRegion, LogSpec};
use pmemha::types::RegionId;

use crate::rig::{Rig, payload};

/// Steps that an append and a drain may take before something is plainly wrong.
const MOST_STEPS: u32 = 100_000;

#[test]
fn killed_after_any_instruction_of_append_the_log_goes_on() {
    let memory = Rig::new().memory(4096);
    memory.fill(0x77);
    let mut k = 0;
    let mut fillers = 0;
    let mut complete = 0;
    loop {
        let rig = Rig::with(LogSpec { ring_bytes: 1 << 16, appenders: 2, ..LogSpec::default() });
        let finished = die_after(k, rig.log.clone(), memory);
        let survivor = rig.appender();
        // SAFETY: within `memory`.
        unsafe { survivor.capture(RegionId(2), 64, memory.as_ptr().wrapping_add(64), 64) };
        let end = survivor.drain();
        let records = rig.consume();
        let (last, before) = records.split_last().expect("the survivor's record at least");
        assert_eq!((last.place().0, last.next()), (RegionId(2), end), "killed after step {k}");
        assert!(before.len() <= 1, "killed after step {k}");
        for record in before {
            if record.kind == Kind::Filler as u8 {
                fillers += 1;
            } else {
                assert_eq!(payload(&rig.log, record), [0x77; 64], "killed after step {k}");
                complete += 1;
            }
        }
        if finished {
            break;
        }
        k += 1;
    }
    println!("{k} steps: {fillers} left a filler, {complete} a complete record");
    assert!(fillers > 10 && complete > 0, "{k} steps: {fillers} fillers, {complete} complete");
}

/// Forks a writer, lets it take `steps` instructions of an append and drain, and kills it. Whether it got to the end.
fn die_after(steps: u32, log: Arc<LogRegion>, memory: &'static [u8]) -> bool {
    // SAFETY: the child makes system calls and appends, and never returns to the test harness.
    match unsafe { libc::fork() } {
        0 => child(log, memory),
        pid => {
            wait_stopped(pid);
            let mut finished = false;
            for _ in 0..steps {
                // SAFETY: the child is stopped and ours.
                assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0) }, 0);
                if !wait_stopped(pid) {
                    finished = true;
                    break;
                }
            }
            assert!(steps < MOST_STEPS, "the writer never ends");
            if !finished {
                // SAFETY: the child is ours and not reaped yet.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                while wait_stopped(pid) {}
            }
            finished
        }
    }
}

fn child(log: Arc<LogRegion>, memory: &'static [u8]) -> ! {
    let app = Appender::attach(log, 9).unwrap();
    // SAFETY: asks to be traced, stops, and ends; nothing of the harness runs.
    unsafe {
        libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
        libc::raise(libc::SIGSTOP);
        app.capture(RegionId(1), 0, memory.as_ptr(), 64);
        app.drain();
        libc::_exit(0)
    }
}

/// Waits for the child to stop; `false` if it ended instead.
fn wait_stopped(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: `status` is ours.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    libc::WIFSTOPPED(status)
}
