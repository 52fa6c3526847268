//! Who owns a group: the thread that drives the group's state machine on this node.
//!
//! It hands events to the machine one at a time, stores what must be stored before anything that rests on it is
//! done, counts the machine's time limits, and answers the other node's requests. What the machine wants done goes to
//! [`Deeds`], whose results come back as events. Made by the group's controller; any thread may tell or ask.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::failover::{
    Action, Answer, DURABLE_VERSION, Durable, Event, Hands, Machine, Phase, Request, State,
};

/// Pause before an event is handed in again after its state could not be stored.
const STORE_AGAIN: Duration = Duration::from_millis(500);

/// What the machine wants done, except storing and answering. Called on the machine's thread, so it only begins
/// things; results come back through [`Teller`].
pub trait Deeds: Send {
    /// Begins `action`.
    fn act(&mut self, action: Action);
}

/// Tells the machine what happened. Cheap to clone; telling never blocks.
#[derive(Clone)]
pub struct Teller(Sender<Input>);

impl Teller {
    /// Hands in an event, in order with others of the same thread. Nothing happens if the group has been closed.
    pub fn tell(&self, event: Event) {
        let _ = self.0.send(Input::Event(event));
    }

    /// Hands in a request of the other node and waits for the answer, whose promises are then durable. `None`: no
    /// answer within `within`, or the group has been closed.
    pub fn ask(&self, request: Request, within: Duration) -> Option<Answer> {
        let (reply, answer) = mpsc::channel();
        self.0.send(Input::Request(request, reply)).ok()?;
        answer.recv_timeout(within).ok()
    }

    /// The state once everything that this thread told before has been handled. `None`: not within `within`, or the
    /// group has been closed.
    pub fn state(&self, within: Duration) -> Option<State> {
        let (reply, state) = mpsc::channel();
        self.0.send(Input::Look(reply)).ok()?;
        state.recv_timeout(within).ok()
    }
}

/// A group's machine with its thread; stopped on drop.
pub struct Ownership {
    teller: Teller,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Why storing fails at present.
    fault: Mutex<Option<String>>,
}

enum Input {
    Event(Event),
    Request(Request, Sender<Answer>),
    Look(Sender<State>),
    Stop,
}

/// Events for a machine whose deeds are still being made: a teller is needed to make them.
pub struct Inbox {
    teller: Teller,
    input: Receiver<Input>,
}

impl Inbox {
    /// An empty one.
    pub fn new() -> Inbox {
        let (sender, input) = mpsc::channel();
        Inbox { teller: Teller(sender), input }
    }

    /// Tells whoever will drive.
    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }
}

#[cfg(test)]
impl Inbox {
    /// The next event, for a test that plays the machine.
    pub fn next(&self, within: Duration) -> Option<Event> {
        match self.input.recv_timeout(within).ok()? {
            Input::Event(event) => Some(event),
            Input::Request(..) | Input::Look(_) | Input::Stop => None,
        }
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Ownership {
    /// Drives `machine`, whose durable part is stored in `store`. The first event must be [`Event::Recovered`].
    pub fn start(
        name: &str,
        machine: Machine,
        store: DurableFile,
        deeds: Box<dyn Deeds>,
        inbox: Inbox,
    ) -> io::Result<Ownership> {
        let shared = Arc::new(Shared { state: Mutex::new(machine.state().clone()), fault: Mutex::default() });
        let driver = Driver {
            machine,
            hands: OwnHands { store, deeds, reply: None, shared: shared.clone() },
            shared: shared.clone(),
        };
        let Inbox { teller, input } = inbox;
        let thread = thread::Builder::new().name(format!("own-{name}")).spawn(move || driver.run(&input))?;
        Ok(Ownership { teller, shared, thread: Some(thread) })
    }

    /// For whoever has events.
    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// The present state.
    pub fn state(&self) -> State {
        lock(&self.shared.state).clone()
    }

    /// Why the state cannot be stored at present, if so.
    pub fn fault(&self) -> Option<String> {
        lock(&self.shared.fault).clone()
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        let _ = self.teller.0.send(Input::Stop);
        // The last to let go may be the thread itself, which then simply ends.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

struct Driver {
    machine: Machine,
    hands: OwnHands,
    shared: Arc<Shared>,
}

impl Driver {
    fn run(mut self, input: &Receiver<Input>) {
        let mut since = (self.machine.state().phase, Instant::now());
        loop {
            let next = match self.due(since) {
                Some(due) => input.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => input.recv().map_err(RecvTimeoutError::from),
            };
            match next {
                Ok(Input::Event(event)) => self.handle(&event),
                Ok(Input::Request(request, reply)) => {
                    self.hands.reply = Some(reply);
                    self.handle(&Event::Request(request));
                    self.hands.reply = None;
                }
                Ok(Input::Look(reply)) => {
                    // One that no longer waits has no use for it.
                    let _ = reply.send(self.machine.state().clone());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.handle(&Event::Timeout);
                    since.1 = Instant::now();
                }
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let phase = self.machine.state().phase;
            if phase != since.0 {
                since = (phase, Instant::now());
            }
        }
    }

    fn due(&self, (phase, since): (Phase, Instant)) -> Option<Instant> {
        self.machine.policy().patience(phase).map(|patience| since + patience)
    }

    /// Hands the event in until its state is stored: going on without would break what was promised.
    fn handle(&mut self, event: &Event) {
        while let Err(error) = self.machine.handle(event, &mut self.hands) {
            tracing::error!(%error, "the group's state cannot be stored: nothing is done until it can");
            if matches!(event, Event::Request(_)) {
                return; // The asker gets no answer, and asks again.
            }
            thread::sleep(STORE_AGAIN);
        }
        *lock(&self.shared.state) = self.machine.state().clone();
    }
}

struct OwnHands {
    store: DurableFile,
    deeds: Box<dyn Deeds>,
    reply: Option<Sender<Answer>>,
    shared: Arc<Shared>,
}

impl Hands for OwnHands {
    type Error = StoreError;

    fn persist(&mut self, durable: &Durable) -> Result<(), StoreError> {
        let saved = self.store.save(durable);
        *lock(&self.shared.fault) = saved.as_ref().err().map(ToString::to_string);
        saved
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Reply(answer) => {
                if let Some(reply) = self.reply.take() {
                    // An asker that no longer waits asks again.
                    let _ = reply.send(answer);
                }
            }
            other => self.deeds.act(other),
        }
    }
}

/// Why a group's durable state could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("{what} {}: {source}; mend the cause (space, permissions)", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file was written by another version of pmemha.
    #[error(
        "{} is of version {version}, and this pmemha reads {DURABLE_VERSION}: install the version that wrote it", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file is there and does not hold a state.
    #[error(
        "{} is damaged: {reason}; who owns the group is not known here, so nothing is started: \
         restore the file, or remove it where the other node is known to own the group", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The file that holds a group's [`Durable`]: replaced as a whole, checked by a checksum when read.
#[derive(Debug)]
pub struct DurableFile {
    path: PathBuf,
}

impl DurableFile {
    /// The file at `path`, which need not exist; its directory must.
    pub fn new(path: PathBuf) -> DurableFile {
        DurableFile { path }
    }

    /// What was stored last; `None` if nothing ever was.
    pub fn load(&self) -> Result<Option<Durable>, StoreError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.io("read", source)),
        };
        let damaged = |reason: String| StoreError::Damaged { path: self.path.clone(), reason };
        let (sum, body) = text.split_once('\n').ok_or_else(|| damaged("it has no checksum".into()))?;
        if sum != checksum(body) {
            return Err(damaged("its checksum is wrong".into()));
        }
        // The version first: of another one's fields nothing is known.
        let Versioned { version } = serde_json::from_str(body).map_err(|e| damaged(e.to_string()))?;
        if version != DURABLE_VERSION {
            return Err(StoreError::Version { path: self.path.clone(), version });
        }
        serde_json::from_str(body).map(Some).map_err(|e| damaged(e.to_string()))
    }

    /// Stores `durable`: it survives a power cut the moment this returns.
    pub fn save(&self, durable: &Durable) -> Result<(), StoreError> {
        let body = serde_json::to_string(durable).expect("plain data");
        let temp = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&temp)?;
            write!(file, "{}\n{body}", checksum(&body))?;
            file.sync_all()?;
            fs::rename(&temp, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| self.io("store the group's state in", source))
    }

    fn io(&self, what: &'static str, source: io::Error) -> StoreError {
        StoreError::Io { what, path: self.path.clone(), source }
    }
}

/// What every version of [`Durable`] has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32c::crc32c(body.as_bytes()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::{
        Application, BootId, NodeName, OnDeath, Patience, Policy, Round, Saved, Stage, Standing, Trigger,
    };
    use crate::types::{Generation, Lsn};

    const SOON: Duration = Duration::from_secs(5);

    fn policy() -> Policy {
        Policy {
            node: NodeName("beta".into()),
            heir: None,
            on_death: OnDeath::Failover,
            trigger: Trigger::Saved,
            start_limit: 3,
            patience: Patience::default(),
            boot: BootId([1; 16]),
        }
    }

    struct Log(Sender<(Action, Option<Durable>)>, PathBuf);

    impl Deeds for Log {
        fn act(&mut self, action: Action) {
            let stored = DurableFile::new(self.1.clone()).load().unwrap();
            let _ = self.0.send((action, stored));
        }
    }

    struct Rig {
        dir: tempfile::TempDir,
        own: Ownership,
        done: Receiver<(Action, Option<Durable>)>,
    }

    fn standby() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ownership");
        let (log, done) = mpsc::channel();
        let mut durable = Durable::first_standby(&policy(), Generation(4));
        durable.standing = Standing::Standby { cancelled: None };
        let machine = Machine::new(policy(), durable);
        let deeds = Box::new(Log(log, path.clone()));
        let own = Ownership::start("g", machine, DurableFile::new(path), deeds, Inbox::new()).unwrap();
        own.teller().tell(Event::Recovered { application: Application::Gone, life: 1 });
        Rig { dir, own, done }
    }

    fn saved() -> Request {
        let round = Round { generation: Generation(4), attempt: 1 };
        Request::Saved { round, heir: NodeName("beta".into()), saved: Saved { lsn: Lsn(64), digest: 1 } }
    }

    #[test]
    fn an_answer_leaves_and_a_deed_begins_only_after_the_state_is_stored() {
        let rig = standby();
        let round = Round { generation: Generation(4), attempt: 1 };
        assert_eq!(rig.own.teller().ask(saved(), SOON), Some(Answer::Accepted { round }));
        let stored = DurableFile::new(rig.dir.path().join("ownership")).load().unwrap().unwrap();
        assert!(matches!(stored.standing, Standing::Triggered { .. }));
        let (action, at_that_time) = rig.done.recv_timeout(SOON).unwrap();
        assert_eq!(action, Action::Revoke { round });
        assert_eq!(at_that_time, Some(stored));
    }

    #[test]
    fn a_repeated_request_gets_the_same_answer_and_repeats_no_deed() {
        let rig = standby();
        let first = rig.own.teller().ask(saved(), SOON);
        assert_eq!(rig.own.teller().ask(saved(), SOON), first);
        assert!(matches!(rig.done.recv_timeout(SOON).unwrap().0, Action::Revoke { .. }));
        assert!(rig.done.try_recv().is_err());
    }

    #[test]
    fn what_cannot_be_stored_is_not_promised() {
        let rig = standby();
        let path = rig.dir.path().join("ownership");
        // A directory in the file's place: renaming over it fails.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), "x").unwrap();
        assert_eq!(rig.own.teller().ask(saved(), Duration::from_millis(300)), None);
        assert!(rig.own.fault().is_some());
        assert!(matches!(rig.own.state().durable.standing, Standing::Standby { .. }));
        assert!(rig.done.try_recv().is_err());
        fs::remove_dir_all(&path).unwrap();
        assert!(rig.own.teller().ask(saved(), SOON).is_some());
        assert_eq!(rig.own.fault(), None);
    }

    #[test]
    fn a_damaged_state_is_refused_and_an_absent_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = DurableFile::new(dir.path().join("ownership"));
        assert_eq!(file.load().unwrap(), None);
        let mut durable = Durable::first_owner(&policy(), Generation(9));
        durable.standing = Standing::Owner { attempt: 2, stage: Stage::Begun };
        file.save(&durable).unwrap();
        assert_eq!(file.load().unwrap(), Some(durable));
        let path = dir.path().join("ownership");
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - 3;
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(file.load(), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_state_of_another_version_is_refused_by_its_number_whatever_else_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let file = DurableFile::new(dir.path().join("ownership"));
        let body = r#"{"version":2,"quorum":["alpha"]}"#;
        fs::write(dir.path().join("ownership"), format!("{}\n{body}", checksum(body))).unwrap();
        let error = file.load().unwrap_err();
        assert!(matches!(error, StoreError::Version { version: 2, .. }), "{error}");
        assert!(error.to_string().contains("install the version"), "{error}");
    }
}
