//! The threads of a process: its first one may have exited, and the process shows as a zombie without memory while the others run.

use std::fs;

use crate::log::stat_field;

/// Numbers of the threads of process `pid`, the first one's among them also when that has exited; none if there is no such process.
pub fn of(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Whether the process exists and any of its threads has not exited.
pub fn any_lives(pid: u32) -> bool {
    any(pid, |state| !matches!(state, 'Z' | 'X'))
}

/// Whether any of its threads may execute: is neither stopped nor has exited.
pub fn any_runs(pid: u32) -> bool {
    any(pid, |state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

fn any(pid: u32, is: impl Fn(char) -> bool) -> bool {
    let mut before: Option<Vec<u32>> = None;
    loop {
        let mut threads = of(pid);
        // The first one last: another that executes a program goes on under its number (execve(2)).
        threads.sort_unstable_by_key(|thread| *thread == pid);
        if threads.iter().filter_map(|thread| stat_field(*thread, 3)).any(&is) {
            return true;
        }
        match before {
            // One that was listed may have started another before it exited.
            None => before = Some(threads),
            // Which it has: somebody ran.
            Some(before) if threads.iter().any(|thread| !before.contains(thread)) => return true,
            Some(before) if before.len() == threads.len() => return false,
            Some(_) => before = Some(threads),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_lives_while_a_thread_of_it_becomes_another_program() {
        // Every round is a new thread, which becomes the process and starts the next.
        let script = "import os, sys, threading\nleft = int(sys.argv[1])\n\
                      again = [sys.executable, '-S', '-E', '-c', sys.argv[2], str(left - 1), sys.argv[2]]\n\
                      left and threading.Thread(target=os.execv, args=(sys.executable, again)).start()\n\
                      left and threading.Event().wait()";
        let mut child = Command::new("python3")
            .args(["-c", script, "50", script])
            .stdout(Stdio::null())
            .spawn()
            .expect("python3 runs");
        let mut looks = 0u64;
        loop {
            let (lives, runs) = (any_lives(child.id()), any_runs(child.id()));
            // Nobody else reaps it, so its number is its own until here.
            if child.try_wait().expect("our own child").is_some() {
                break;
            }
            assert!(lives && runs, "not seen at look {looks}");
            looks += 1;
        }
        assert!(looks > 100, "{looks}");
    }
}
