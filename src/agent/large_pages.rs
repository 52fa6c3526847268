//! Large pages for the processes of this node's groups, where `[largepages]` asks for it: a thread that has a
//! [`Governor`] for each process that is attached, and gives each its turn.
//!
//! Counting costs a hundredth of a processor at most for all of them together: the more there are, the longer their periods.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::config;
use crate::node::largepage::actuator::{Advice, Outcome};
use crate::node::largepage::governor::Governor;
use crate::node::largepage::policy::{Asked, Settings};
use crate::node::largepage::source;

/// Processes that are looked after at a time: each has a few hundred kilobytes here.
const MOST_PROCESSES: usize = 64;

/// How often it is looked who is attached.
const LOOK: Duration = Duration::from_secs(1);

/// The thread. It ends when this is dropped, which waits for the one process that it may be at.
pub struct LargePages {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LargePages {
    /// Starts it. `attached` says which processes there are, or nothing once the agent is finishing.
    pub fn start(
        wanted: &config::LargePages,
        attached: impl Fn() -> Option<Vec<u32>> + Send + 'static,
    ) -> io::Result<LargePages> {
        let wanted = wanted.clone();
        LargePages::start_with(attached, move |pid| governor(&wanted, pid))
    }

    /// Has it end soon. Waits for nothing.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    fn start_with(
        attached: impl Fn() -> Option<Vec<u32>> + Send + 'static,
        make: impl Fn(u32) -> io::Result<Governor> + Send + 'static,
    ) -> io::Result<LargePages> {
        let (stop, stopped) = channel();
        let run = move || run(&stopped, &attached, &make);
        let thread = thread::Builder::new().name("large pages".into()).spawn(run)?;
        Ok(LargePages { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for LargePages {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // It has told what there was to tell.
            let _ = thread.join();
        }
    }
}

fn governor(wanted: &config::LargePages, pid: u32) -> io::Result<Governor> {
    let (bits, reason) = source::best(pid);
    if let Some(reason) = reason {
        tracing::debug!(pid, %reason, "access bits are told by whole mappings only");
    }
    let settings =
        Settings { threshold: wanted.threshold.into(), budget: wanted.budget.into(), ..Settings::default() };
    Ok(Governor::new(Path::new("/proc"), pid, bits, Box::new(Advice::on(pid)?), settings, wanted.period))
}

fn run(
    stopped: &Receiver<()>,
    attached: &impl Fn() -> Option<Vec<u32>>,
    make: &impl Fn(u32) -> io::Result<Governor>,
) {
    let mut watched: HashMap<u32, (Governor, Instant)> = HashMap::new();
    let mut given_up = HashSet::new();
    let mut wait = Duration::ZERO;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
        let Some(mut pids) = attached() else { return };
        pids.sort_unstable();
        pids.dedup();
        watched.retain(|pid, _| pids.contains(pid));
        given_up.retain(|pid| pids.contains(pid));
        for pid in pids {
            if watched.len() >= MOST_PROCESSES || watched.contains_key(&pid) || given_up.contains(&pid) {
                continue;
            }
            if stopped.try_recv() != Err(TryRecvError::Empty) {
                return;
            }
            match make(pid) {
                Ok(governor) => _ = watched.insert(pid, (governor, Instant::now())),
                Err(error) => give_up(&mut given_up, pid, &error),
            }
        }
        let many = watched.len().max(1) as u32;
        watched.retain(|pid, (governor, due)| {
            // A process takes up to some seconds: whoever stops this does not wait for all of them.
            if *due > Instant::now() || stopped.try_recv() != Err(TryRecvError::Empty) {
                return true;
            }
            let going_on = step(governor);
            *due = Instant::now() + governor.pause() * many;
            going_on.inspect_err(|error| give_up(&mut given_up, *pid, error)).is_ok()
        });
        let next = watched.values().map(|(_, due)| due.saturating_duration_since(Instant::now())).min();
        wait = next.unwrap_or(LOOK).min(LOOK);
    }
}

fn step(governor: &mut Governor) -> io::Result<()> {
    let step = governor.step(true, Asked::default())?;
    let done = step.actions.iter().filter(|(_, outcome)| outcome == &Some(Outcome::Done)).count();
    if done > 0 {
        let (before, after) = step.large_bytes;
        tracing::info!(
            pid = governor.pid(),
            ranges = done,
            before,
            after,
            "memory was mapped by large pages"
        );
    }
    Ok(())
}

fn give_up(given_up: &mut HashSet<u32>, pid: u32, error: &io::Error) {
    given_up.insert(pid);
    tracing::warn!(pid, %error, "the process gets no large pages; this needs root, or CAP_SYS_PTRACE and CAP_SYS_NICE");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::largepage::actuator::Actuator;
    use crate::node::largepage::policy::{Action, Bits, Range};
    use crate::node::largepage::source::{AccessBits, Kind};
    use std::sync::mpsc;
    use std::sync::{Arc, Mutex};

    /// Sees all of every range used; tells what it was asked to do.
    struct Fake(mpsc::Sender<Action>);

    impl AccessBits for Fake {
        fn kind(&self) -> Kind {
            Kind::PageTables
        }

        fn count(&mut self, ranges: &[Range]) -> io::Result<Vec<Bits>> {
            Ok(ranges.iter().map(|_| Bits::Small(512)).collect())
        }

        fn clear(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Actuator for Fake {
        fn act(&mut self, action: Action) -> io::Result<Outcome> {
            // Nobody listens any more at the end of the test.
            let _ = self.0.send(action);
            Ok(Outcome::Done)
        }
    }

    #[test]
    fn attached_processes_are_governed_and_one_that_cannot_be_is_asked_about_once() {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc.path().join("7")).unwrap();
        std::fs::write(proc.path().join("7/smaps"), "200000-400000 rw-p 00000000 00:00 0\n").unwrap();
        let (acted, actions) = mpsc::channel();
        let (made, makes) = mpsc::channel();
        let (made, at) = (Mutex::new(made), proc.path().to_owned());
        let settings = Settings { settle: 1, steady: 1, ..Settings::default() };
        let make = move |pid| {
            made.lock().unwrap().send(pid).unwrap();
            if pid == 8 {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let (bits, actuator) = (Box::new(Fake(acted.clone())), Box::new(Fake(acted.clone())));
            Ok(Governor::new(&at, pid, bits, actuator, settings, Duration::ZERO))
        };
        let large = LargePages::start_with(|| Some(vec![7, 8, 7]), make).unwrap();
        let soon = Duration::from_secs(60);
        // Two actions: what is still reported as small is mapped again, so more than one period went by.
        for _ in 0..2 {
            assert_eq!(actions.recv_timeout(soon).unwrap(), Action::Map(Range(1)));
        }
        drop(large);
        assert_eq!(makes.try_iter().collect::<Vec<_>>(), [7, 8]);
    }

    /// Takes its time over each process, until it is told to go on.
    struct Slow(mpsc::Sender<()>, Arc<Mutex<Receiver<()>>>);

    impl AccessBits for Slow {
        fn kind(&self) -> Kind {
            Kind::PageTables
        }

        fn count(&mut self, ranges: &[Range]) -> io::Result<Vec<Bits>> {
            Ok(vec![Bits::Small(0); ranges.len()])
        }

        fn clear(&mut self) -> io::Result<()> {
            self.0.send(()).expect("the test listens");
            self.1.lock().unwrap().recv().map_err(io::Error::other)
        }
    }

    #[test]
    fn a_stop_waits_for_one_process_and_not_for_all_of_them() {
        let (began, begins) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let gone = Arc::new(Mutex::new(gone));
        let make = move |pid| {
            let bits = Box::new(Slow(began.clone(), gone.clone()));
            let actuator = Box::new(Fake(mpsc::channel().0));
            Ok(Governor::new(Path::new("/none"), pid, bits, actuator, Settings::default(), Duration::ZERO))
        };
        let mut large = LargePages::start_with(|| Some((1..9).collect()), make).unwrap();
        begins.recv_timeout(Duration::from_secs(60)).unwrap();
        large.stop();
        (0..8).for_each(|_| go.send(()).unwrap());
        drop(large);
        assert_eq!(begins.try_iter().count(), 0, "it began with another one");
    }
}
