//! Commands in a machine: started, watched, waited for, killed.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::error::{Doing, RigError};
use crate::frame::{Ended, Frame, Kind, Start};
use crate::ports::{Port, Ports};

/// What to run in a machine, as `std::process::Command` is for the host. It gets an empty stdin, no more environment
/// than PATH and HOME and what is added, and a process group of its own.
pub struct Command<'a> {
    ports: &'a Arc<Ports>,
    start: Start,
    limit: Duration,
    inherit: bool,
}

/// A command that was started. Its output is read as it comes, so that the command never waits for us; it is killed
/// when this is dropped before it has ended.
pub struct Running {
    shared: Arc<Shared>,
    end: Instant,
}

/// How a command ended, and what it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// What it wrote to stdout, unless that was inherited.
    pub stdout: Vec<u8>,
    /// As `stdout`.
    pub stderr: Vec<u8>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By exiting with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl<'a> Command<'a> {
    pub(crate) fn new(ports: &'a Arc<Ports>, program: &str) -> Command<'a> {
        let start = Start {
            argv: vec![program.to_owned()],
            env: vec![("PATH".into(), PATH.into()), ("HOME".into(), "/root".into())],
            dir: "/".into(),
        };
        Command { ports, start, limit: LIMIT, inherit: false }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.start.argv.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.start.argv.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.start.env.push((name.into(), value.into()));
        self
    }

    /// Where it starts; `/` unless set.
    pub fn dir(mut self, dir: impl Into<String>) -> Self {
        self.start.dir = dir.into();
        self
    }

    /// How long it may take before it is killed; two minutes unless set.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Passes what it writes on to our stdout and stderr as it comes, and keeps none of it.
    pub fn inherit_output(mut self) -> Self {
        self.inherit = true;
        self
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Running, RigError> {
        let text = self.start.argv.join(" ");
        let mut port = self.ports.take()?;
        port.command += 1;
        let shared = Arc::new(Shared {
            ports: self.ports.clone(),
            text,
            limit: self.limit,
            inherit: self.inherit,
            kill: Frame::new(Kind::Kill, port.command, []),
            killer: port.stream.try_clone().doing(|| "duplicating a port".into())?,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let sent =
            Frame::json(Kind::Start, port.command, &self.start).and_then(|f| f.write(&mut port.stream));
        match sent {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                self.ports.put(port);
                return Err(shared.failure(&End::NotStarted(e.to_string())));
            }
            Err(_) => return Err(shared.failure(&End::Gone)),
        }
        let reader = shared.clone();
        let thread = std::thread::Builder::new().name("command".into()).spawn(move || reader.read(port));
        thread.doing(|| "starting a thread".into())?;
        Ok(Running { shared, end: Instant::now() + self.limit })
    }

    /// Runs it to its end, however that is.
    pub fn output(self) -> Result<Output, RigError> {
        self.spawn()?.wait()
    }

    /// Runs it to its end, which must be exit status 0, and gives its stdout.
    pub fn text(self) -> Result<String, RigError> {
        self.spawn()?.text()
    }
}

impl Running {
    /// Waits for its end, however that is; kills it when its time is over.
    pub fn wait(self) -> Result<Output, RigError> {
        let state = self.shared.wait_until(self.end, |state| state.end.is_some());
        self.ended(state)
    }

    /// Waits for its end, which must be exit status 0, and gives its stdout.
    pub fn text(self) -> Result<String, RigError> {
        let shared = self.shared.clone();
        let output = self.wait()?;
        if output.status == Status::Exited(0) {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(RigError::Failed { command: shared.text.clone(), machine: shared.machine(), output })
    }

    /// Waits until it has written `pattern` to stdout or stderr; kills it when its time is over.
    pub fn until(&self, pattern: &str) -> Result<(), RigError> {
        let said = |state: &State| state.said(pattern);
        let state = self.shared.wait_until(self.end, |state| state.end.is_some() || said(state));
        if said(&state) {
            return Ok(());
        }
        let status = self.ended(state)?.status;
        let (command, machine) = (self.shared.text.clone(), self.shared.machine());
        Err(RigError::NotSaid { command, machine, status, pattern: pattern.to_owned() })
    }

    /// Kills its process group. Its end is still to be waited for.
    pub fn kill(&self) {
        self.shared.kill(&self.shared.lock());
    }

    /// What became of it; it has ended, or its time is over.
    fn ended(&self, state: MutexGuard<'_, State>) -> Result<Output, RigError> {
        match &state.end {
            Some(End::Status(status)) => Ok(state.output(*status)),
            Some(end) => Err(self.shared.failure(end)),
            None => {
                self.shared.kill(&state);
                drop(state);
                let state = self.shared.wait_until(Instant::now() + KILL_LIMIT, |state| state.end.is_some());
                Err(RigError::TimedOut {
                    command: self.shared.text.clone(),
                    machine: self.shared.machine(),
                    limit: self.shared.limit,
                    output: state.output(Status::Killed(SIGKILL)),
                })
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let state = self.shared.lock();
        if state.end.is_none() {
            self.shared.kill(&state);
            drop(state);
            // So that its port, its files and its sockets are free for what comes next.
            drop(self.shared.wait_until(Instant::now() + KILL_LIMIT, |state| state.end.is_some()));
        }
    }
}

impl Output {
    /// Both outputs, for a person.
    pub(crate) fn shown(&self) -> String {
        let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
        format!("{}\n{}", text(&self.stdout), text(&self.stderr)).trim().to_owned()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Exited(code) => write!(f, "exited with status {code}"),
            Status::Killed(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// What a [`Running`] and the thread that reads its port have in common.
struct Shared {
    ports: Arc<Ports>,
    text: String,
    limit: Duration,
    inherit: bool,
    kill: Frame,
    /// Written to under the lock of `state`, and only before its end is known there: the port is another command's then.
    killer: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: Option<End>,
}

enum End {
    Status(Status),
    NotStarted(String),
    TooMuchOutput,
    Gone,
}

impl Shared {
    /// Reads the port until the command has ended, and gives the port back.
    fn read(&self, mut port: Port) {
        let mut too_much = false;
        let end = loop {
            let Ok(frame) = Frame::read(&mut port.stream) else {
                self.finish(End::Gone, None);
                return;
            };
            if frame.command != port.command {
                continue;
            }
            match frame.kind {
                Kind::Stdout | Kind::Stderr if self.inherit => pass_on(&frame),
                Kind::Stdout | Kind::Stderr => {
                    let mut state = self.lock();
                    if !too_much
                        && state.stdout.len() + state.stderr.len() + frame.payload.len() > OUTPUT_LIMIT
                    {
                        too_much = true;
                        self.kill(&state);
                    }
                    if !too_much {
                        let kept =
                            if frame.kind == Kind::Stdout { &mut state.stdout } else { &mut state.stderr };
                        kept.extend(&frame.payload);
                        self.changed.notify_all();
                    }
                }
                Kind::Ended if too_much => break End::TooMuchOutput,
                Kind::Ended => match frame.parse() {
                    Ok(Ended::Code(code)) => break End::Status(Status::Exited(code)),
                    Ok(Ended::Signal(signal)) => break End::Status(Status::Killed(signal)),
                    Err(_) => break End::Gone,
                },
                Kind::NotStarted => {
                    break End::NotStarted(String::from_utf8_lossy(&frame.payload).into_owned());
                }
                Kind::Hello | Kind::Start | Kind::Kill => break End::Gone,
            }
        };
        self.finish(end, Some(port));
    }

    /// The port goes back before the end is known, so that whoever has waited finds it free.
    fn finish(&self, end: End, port: Option<Port>) {
        let mut state = self.lock();
        if let Some(port) = port {
            self.ports.put(port);
        }
        state.end = Some(end);
        self.changed.notify_all();
    }

    /// `state`: of a command whose end is not known.
    fn kill(&self, state: &MutexGuard<'_, State>) {
        if state.end.is_none() {
            // A machine that is gone has killed it.
            let _ = self.kill.write(&mut &self.killer);
        }
    }

    fn wait_until(&self, end: Instant, reached: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let left = end.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), left, |state| !reached(state));
        waited.unwrap_or_else(|e| e.into_inner()).0
    }

    fn failure(&self, end: &End) -> RigError {
        let (command, machine) = (self.text.clone(), self.machine());
        match end {
            End::NotStarted(why) => RigError::NotStarted { command, machine, why: why.clone() },
            End::TooMuchOutput => RigError::TooMuchOutput { command, machine, limit: OUTPUT_LIMIT },
            End::Status(_) | End::Gone => RigError::Gone { command, machine },
        }
    }

    fn machine(&self) -> String {
        self.ports.machine().to_owned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is in it is whole between any two statements that change it.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    fn said(&self, pattern: &str) -> bool {
        let within = |bytes: &[u8]| bytes.windows(pattern.len()).any(|part| part == pattern.as_bytes());
        within(&self.stdout) || within(&self.stderr)
    }

    fn output(&self, status: Status) -> Output {
        Output { status, stdout: self.stdout.clone(), stderr: self.stderr.clone() }
    }
}

/// A reader that went away, as of `soft-roce/run … | head`, is no reason to stop the command.
fn pass_on(frame: &Frame) {
    let _ = match frame.kind {
        Kind::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&frame.payload).and_then(|()| stdout.flush())
        }
        _ => io::stderr().lock().write_all(&frame.payload),
    };
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command's time, unless set: emulation is slow, and a command that hangs is to be told from a slow one at all.
const LIMIT: Duration = Duration::from_secs(120);

/// For the end of what was killed. A machine whose processors are all busy takes a while.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// The most that is kept of what one command writes: a test that needs more has lost its way.
const OUTPUT_LIMIT: usize = 64 << 20;

const SIGKILL: i32 = 9;

#[cfg(test)]
mod tests;
