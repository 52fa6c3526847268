//! Power as a file says it: for scripts, drills and tests.
//!
//! One word or `key=value` a line: `online`, `offline`, `1`, `0`, `online=1`, `online=0`, `battery_runtime_s=900`,
//! `battery_charge=0.8`. Empty lines and lines that begin with `#` are skipped. A file that is missing, too long or
//! says anything else is unknown, with the reason: never online.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

use super::{PowerSource, PowerState};

/// Longest file that is read; a meaningful one has three lines.
const MAX_BYTES: u64 = 4096;

/// How often the file is read where inotify cannot be had or its directory is not there yet.
const FALLBACK_POLL: Duration = Duration::from_millis(100);

/// A watched file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    name: String,
    /// Watches the directory, so that a file replaced by rename is seen, too.
    watch: Option<OwnedFd>,
}

impl FileSource {
    /// Watches `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: format!("file {}", path.display()), watch: watch(&path).ok(), path }
    }

    fn drain(&self) {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 1024];
        if let Some(watch) = &self.watch {
            let mut events = Reader::new(watch.as_fd(), &mut buffer);
            while events.next().is_ok() {}
        }
    }
}

impl PowerSource for FileSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&mut self) -> PowerState {
        if self.watch.is_none() {
            self.watch = watch(&self.path).ok();
        }
        // Emptied before reading: a change during the reading wakes the next wait.
        self.drain();
        let now = Instant::now();
        let about = |e: &dyn std::fmt::Display| format!("power source {}: {e}", self.path.display());
        match read(&self.path) {
            Ok(text) => parse(&text, now).unwrap_or_else(|e| PowerState::unknown(about(&e), now)),
            Err(e) => PowerState::unknown(about(&e), now),
        }
    }

    fn wait(&mut self, timeout: Duration) -> PowerState {
        let seconds = |t: Duration| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() };
        match &self.watch {
            // Interrupted or failed: reading once too often is harmless.
            Some(watch) => {
                _ = poll(
                    &mut [PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN)],
                    Some(&seconds(timeout)),
                )
            }
            None => std::thread::sleep(timeout.min(FALLBACK_POLL)),
        }
        self.poll()
    }
}

fn watch(path: &Path) -> io::Result<OwnedFd> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let changes = WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM;
    add_watch(&inotify, directory, changes)?;
    Ok(inotify)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("longer than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// Why a file is not understood.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(super) enum Garbage {
    #[error("line {0}: expected online=1, online=0, battery_runtime_s=SECONDS or battery_charge=0..1")]
    Line(usize),
    #[error("does not say whether power is online")]
    Silent,
    #[error("says both online and offline")]
    Contradiction,
}

pub(super) fn parse(text: &str, now: Instant) -> Result<PowerState, Garbage> {
    let mut state = PowerState::silent(now);
    for (number, line) in text.lines().enumerate() {
        let garbage = || Garbage::Line(number + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').map_or(("online", line), |(k, v)| (k.trim(), v.trim()));
        match (key, value) {
            ("online", "1" | "online") => say(&mut state, true)?,
            ("online", "0" | "offline") => say(&mut state, false)?,
            ("battery_runtime_s", seconds) => {
                let seconds = seconds.parse().map_err(|_| garbage())?;
                state.runtime = Some(Duration::try_from_secs_f64(seconds).map_err(|_| garbage())?);
            }
            ("battery_charge", charge) => {
                let charge: f32 = charge.parse().map_err(|_| garbage())?;
                state.charge = Some(charge).filter(|c| (0.0..=1.0).contains(c));
                state.charge.ok_or_else(garbage)?;
            }
            _ => return Err(garbage()),
        }
    }
    if state.online.is_none() { Err(Garbage::Silent) } else { Ok(state) }
}

fn say(state: &mut PowerState, online: bool) -> Result<(), Garbage> {
    match state.online.replace(online) {
        Some(before) if before != online => Err(Garbage::Contradiction),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_and_keys_are_understood() {
        let now = Instant::now();
        for (text, online) in [
            ("online\n", true),
            ("1", true),
            ("offline", false),
            ("0\n", false),
            ("# lab\nonline = 1\n", true),
        ] {
            assert_eq!(parse(text, now).unwrap().online, Some(online), "{text:?}");
        }
        let full = parse("online=0\nbattery_runtime_s=12.5\nbattery_charge=0.25\n", now).unwrap();
        assert_eq!(
            (full.online, full.runtime, full.charge),
            (Some(false), Some(Duration::from_millis(12_500)), Some(0.25))
        );
    }

    #[test]
    fn what_is_missing_or_garbage_is_unknown_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("power");
        let mut source = FileSource::new(&path);
        assert_eq!(source.poll().online, None);
        assert!(source.poll().fault.unwrap().contains("power"));
        for text in [
            "",
            "yes",
            "online=2",
            "online=1\nonline=0",
            "online=1\nbattery_runtime_s=-1",
            "battery_charge=0.5",
        ] {
            fs::write(&path, text).unwrap();
            let state = source.poll();
            assert!(state.online.is_none() && state.fault.is_some(), "{text:?} gave {state:?}");
        }
        fs::write(&path, "online\n".repeat(1000)).unwrap();
        assert_eq!(source.poll().online, None);
    }

    #[test]
    fn a_change_wakes_the_waiter_whether_written_or_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("power");
        fs::write(&path, "online=1").unwrap();
        let mut source = FileSource::new(&path);
        assert_eq!(source.poll().online, Some(true));
        let (tell, told) = mpsc::channel();
        let waiter = std::thread::spawn(move || {
            for wanted in [false, true] {
                while source.wait(Duration::from_secs(10)).online != Some(wanted) {}
                tell.send(Instant::now()).unwrap();
            }
        });
        let changed = Instant::now();
        fs::write(&path, "online=0").unwrap();
        let first = told.recv_timeout(Duration::from_secs(9)).unwrap() - changed;
        fs::write(dir.path().join("new"), "online=1").unwrap();
        let changed = Instant::now();
        fs::rename(dir.path().join("new"), &path).unwrap();
        let second = told.recv_timeout(Duration::from_secs(9)).unwrap() - changed;
        waiter.join().unwrap();
        println!("detected after {first:?} (written), {second:?} (renamed)");
    }

    proptest! {
        #[test]
        fn no_garbage_is_ever_taken_for_power(text in "[^#]{0,40}") {
            let says = text.lines().any(|l| matches!(l.rsplit('=').next().unwrap_or(l).trim(), "1" | "online"));
            let state = parse(&text, Instant::now());
            let online = state.is_ok_and(|s| s.online == Some(true));
            prop_assert!(says || !online);
        }
    }
}
