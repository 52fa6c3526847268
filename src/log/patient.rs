//! Questions about processes whose answer may never come.
//!
//! What the kernel says of a process's memory it says under a lock of that process, which is held for ever where the memory is of a
//! file system that does not answer. So a question is asked on a thread that may be left behind with it, one a process.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::locks::lock;

/// What is asked about a process; may block.
pub type Question<T> = Arc<dyn Fn(u32) -> T + Send + Sync>;

/// Asks `question` about each of `pids`; nothing for one that does not answer. Returns by `deadline`.
pub fn ask_each<T: Send + 'static>(
    pids: &[u32],
    deadline: Instant,
    question: &Question<T>,
) -> Vec<(u32, Option<T>)> {
    let (silent, mut open): (Vec<u32>, Vec<u32>) = pids.iter().partition(|pid| is_silent(**pid));
    let mut answers: Vec<_> = silent.into_iter().map(|pid| (pid, None)).collect();
    // From its end on.
    open.reverse();
    while let Some(next) = open.last() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left < SHORTEST {
            answers.extend(open.drain(..).map(|pid| (pid, None)));
            break;
        }
        let Some((told, at_work)) = ask_beside(open.iter().rev().copied().collect(), question.clone()) else {
            tracing::warn!(pid = next, "no thread to look at processes with");
            answers.extend(open.drain(..).map(|pid| (pid, None)));
            break;
        };
        // One that is silent leaves most of the time to the others.
        while let Ok(answer) = told.recv_timeout(deadline.saturating_duration_since(Instant::now()) / 4) {
            open.pop();
            answers.push((answer.0, Some(answer.1)));
        }
        if let Some(pid) = open.pop() {
            tracing::warn!(pid, "the kernel does not say what this process has mapped");
            lock(&SILENT).insert(pid, at_work);
            answers.push((pid, None));
        }
    }
    answers
}

type Told<T> = Receiver<(u32, T)>;

/// Asks on a thread of its own, until nobody listens any more; and whether that is still at work.
fn ask_beside<T: Send + 'static>(pids: Vec<u32>, question: Question<T>) -> Option<(Told<T>, Weak<()>)> {
    let (tell, told) = mpsc::channel();
    let at_work = Arc::new(());
    let seen = Arc::downgrade(&at_work);
    let body = move || {
        let _at_work = at_work;
        for pid in pids {
            if tell.send((pid, question(pid))).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("look".into()).spawn(body).ok().map(|_| (told, seen))
}

/// Whether a thread still waits for an answer about this process.
fn is_silent(pid: u32) -> bool {
    let mut silent = lock(&SILENT);
    silent.retain(|_, at_work| at_work.strong_count() > 0);
    silent.contains_key(&pid)
}

/// The processes that a thread still waits for. They are not asked about anew, so there are no more threads than such processes.
static SILENT: Mutex<BTreeMap<u32, Weak<()>>> = Mutex::new(BTreeMap::new());

/// With less time left nobody is asked: a thread may take as long to get going.
const SHORTEST: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Numbers that no process has.
    const BASE: u32 = 1 << 30;

    #[test]
    fn one_that_is_silent_costs_neither_the_others_answers_nor_a_second_thread() {
        let (release, held) = mpsc::channel::<()>();
        let (held, asked) = (Mutex::new(held), Arc::new(AtomicUsize::new(0)));
        let counted = asked.clone();
        let question: Question<u32> = Arc::new(move |pid| {
            if pid == BASE + 1 {
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = lock(&held).recv();
            }
            pid - BASE
        });
        let ask = || {
            let pids = [BASE, BASE + 1, BASE + 2];
            let mut answers = ask_each(&pids, Instant::now() + Duration::from_secs(4), &question);
            answers.sort();
            answers
        };
        for _ in 0..2 {
            assert_eq!(ask(), [(BASE, Some(0)), (BASE + 1, None), (BASE + 2, Some(2))]);
            assert_eq!(asked.load(Ordering::Relaxed), 1);
        }
        drop(release);
        let end = Instant::now() + Duration::from_secs(20);
        while is_silent(BASE + 1) && Instant::now() < end {
            thread::yield_now();
        }
        assert_eq!(ask()[1], (BASE + 1, Some(1)), "once it speaks it is heard again");
    }

    #[test]
    fn without_time_nobody_is_asked() {
        let question: Question<()> = Arc::new(|_| panic!("asked"));
        assert_eq!(ask_each(&[BASE + 9], Instant::now(), &question), [(BASE + 9, None)]);
    }
}
