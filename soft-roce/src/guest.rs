//! The machine's side of a port: takes commands from the host, one at a time. `pmemha-rig-guest` calls it for each port.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::frame::{Ended, Frame, Kind, Start};

/// Takes commands until the host is gone, which is an error.
pub fn serve(port: &File) -> io::Result<()> {
    let replies = Replies(Arc::new(Mutex::new(port.try_clone()?)));
    // Waits until the host is there; a read would end at once before that.
    replies.send(&Frame::new(Kind::Hello, 0, []))?;
    let mut job: Option<Job> = None;
    loop {
        let frame = Frame::read(&mut &*port)?;
        match frame.kind {
            Kind::Start => match Job::start(frame.command, &frame.parse()?, &replies) {
                Ok(started) => job = Some(started),
                Err(e) => replies.send(&Frame::new(Kind::NotStarted, frame.command, e.to_string()))?,
            },
            Kind::Kill => {
                if let Some(job) = job.as_ref().filter(|job| job.number == frame.command) {
                    job.kill();
                }
            }
            kind => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{kind:?} from the host")));
            }
        }
    }
}

/// The way to the host, for all threads of a port.
#[derive(Clone)]
struct Replies(Arc<Mutex<File>>);

impl Replies {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        frame.write(&mut *lock(&self.0))
    }
}

/// A command that was started.
struct Job {
    number: u32,
    /// Its process group, as long as its first process is not reaped.
    group: Arc<Mutex<Option<Pid>>>,
    over: mpsc::Sender<Over>,
}

/// What a job's end may depend on.
enum Over {
    /// One of its outputs.
    Output,
    /// The host's patience.
    Killed,
}

impl Job {
    fn start(number: u32, start: &Start, replies: &Replies) -> io::Result<Job> {
        let (program, arguments) = start.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(start.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&start.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (over, rest) = mpsc::channel();
        let group = Arc::new(Mutex::new(Some(Pid::from_child(&child))));
        pump(child.stdout.take(), Kind::Stdout, number, replies, &over);
        pump(child.stderr.take(), Kind::Stderr, number, replies, &over);
        let (waiters_group, replies) = (group.clone(), replies.clone());
        std::thread::spawn(move || -> io::Result<()> {
            let ended = reap(&mut child, &waiters_group)?;
            // Both outputs belong to the command, whoever holds them; but of what was killed they are not waited for.
            let mut open = OUTPUTS;
            while open > 0 && matches!(rest.recv(), Ok(Over::Output)) {
                open -= 1;
            }
            replies.send(&Frame::json(Kind::Ended, number, &ended)?)
        });
        Ok(Job { number, group, over })
    }

    fn kill(&self) {
        if let Some(group) = *lock(&self.group) {
            // Gone already is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
        // The waiter may be done.
        let _ = self.over.send(Over::Killed);
    }
}

/// Sends what comes from `output` to the host, until nobody writes there any more.
fn pump(
    output: Option<impl Read + Send + 'static>,
    kind: Kind,
    number: u32,
    replies: &Replies,
    over: &mpsc::Sender<Over>,
) {
    let (replies, over) = (replies.clone(), over.clone());
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        if let Some(mut output) = output {
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                if replies.send(&Frame::new(kind, number, &buffer[..length])).is_err() {
                    break;
                }
            }
        }
        // The waiter does not wait for outputs of a killed command.
        let _ = over.send(Over::Output);
    });
}

/// Waits for a job's first process. Its group is forgotten before its number may be another's.
fn reap(child: &mut Child, group: &Mutex<Option<Pid>>) -> io::Result<Ended> {
    let exited = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(Pid::from_child(child)), exited)?;
    let mut group = lock(group);
    *group = None;
    let status = child.wait()?;
    Ok(status.signal().map_or_else(|| Ended::Code(status.code().unwrap_or_default()), Ended::Signal))
}

/// What is locked here is whole whenever a thread can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// stdout and stderr.
const OUTPUTS: usize = 2;

/// The most that is read of an output at once: as much as a pipe holds.
const CHUNK: usize = 64 << 10;
