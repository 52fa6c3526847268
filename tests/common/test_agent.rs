//! A small agent inside the test: it speaks the session protocol, owns a log region and applies what is published to
//! images in memory, so that a test can look at what a destination would hold.
//!
//! It does nothing about destinations, failures or first syncs. Acknowledgements can be held back, the agent can be
//! stopped without its clients noticing beforehand, and started again on the same log or on a new one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pmemha::log::format::{Kind, RegionPayload};
use pmemha::log::region::boottime;
use pmemha::log::{Acks, Appender, Consumer, LinkState, LogRegion, LogSpec, Policy, SleepDepth};
use pmemha::session::patterns::Patterns;
use pmemha::session::socket::{Connection, Listener, SocketError};
use pmemha::session::wire::{Reply, Request};
use pmemha::types::{Generation, GroupId, Level, Lsn, RegionId};
use zerocopy::IntoBytes;

/// What the agent is to be like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Patterns of protected files.
    pub protect: Vec<String>,
    /// What appenders obey.
    pub policy: Policy,
    /// The log region.
    pub spec: LogSpec,
    /// How deeply it sleeps when there is nothing to do: programs wake it from a deep sleep, by a system call.
    pub sleep: SleepDepth,
}

impl Default for Setup {
    fn default() -> Self {
        let spec = LogSpec {
            group: GroupId(*b"group for tests!"),
            ring_bytes: 4 << 20,
            appenders: 64,
            ..LogSpec::default()
        };
        Setup { protect: Vec::new(), policy: Policy::default(), spec, sleep: SleepDepth::Deep }
    }
}

/// A running agent. Stops when dropped.
pub struct TestAgent {
    dir: Arc<tempfile::TempDir>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    setup: Setup,
    fd: OwnedFd,
    log: Arc<LogRegion>,
    appender: Appender,
    stop: AtomicBool,
    /// The level up to which records are acknowledged: 0 none, 3 all.
    acknowledge: AtomicU32,
    sessions: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    regions: BTreeMap<(u64, u64), RegionId>,
    /// The number that was given out last.
    last: u16,
    images: BTreeMap<RegionId, Vec<u8>>,
    names: BTreeMap<RegionId, String>,
    requests: Vec<Request>,
    applied: Lsn,
    refuse: Option<String>,
    /// Requests are not answered at present.
    holds: bool,
}

impl TestAgent {
    /// Starts one with the default setup, which protects only what is asked for explicitly.
    pub fn start() -> TestAgent {
        TestAgent::with(Setup::default())
    }

    /// Starts one at a socket of its own.
    pub fn with(setup: Setup) -> TestAgent {
        TestAgent::at(Arc::new(tempfile::tempdir().expect("a temporary directory")), setup, None)
    }

    fn at(dir: Arc<tempfile::TempDir>, setup: Setup, log: Option<(OwnedFd, State)>) -> TestAgent {
        let (fd, state) = log.unwrap_or_else(|| {
            let (fd, _) = LogRegion::create(&setup.spec).expect("a log region");
            (fd, State { applied: setup.spec.first_lsn, ..State::default() })
        });
        let log = LogRegion::attach(fd.as_fd()).expect("attach to the log region");
        log.set_policy(setup.policy);
        log.beat(boottime(), std::process::id(), LinkState::Counting);
        let shared = Arc::new(Shared {
            appender: Appender::attach(log.clone(), 0).expect("an appender cell"),
            setup,
            fd,
            log,
            stop: AtomicBool::new(false),
            acknowledge: AtomicU32::new(3),
            sessions: AtomicU32::new(1),
            state: Mutex::new(state),
        });
        let listener = Listener::bind(&dir.path().join(SOCKET), 0o600).expect("listen");
        let (server, applier) = (shared.clone(), shared.clone());
        let threads = vec![
            std::thread::spawn(move || server.serve(&listener)),
            std::thread::spawn(move || applier.apply()),
        ];
        TestAgent { dir, shared, threads }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    /// The log region.
    pub fn log(&self) -> &Arc<LogRegion> {
        &self.shared.log
    }

    /// Every request since it was started, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// The image of the region with this file name, once everything published by now has been applied.
    pub fn image(&self, file: &Path) -> Vec<u8> {
        self.caught_up();
        let state = self.shared.state();
        let name = file.to_string_lossy();
        let (region, _) = state.names.iter().find(|(_, n)| **n == name).expect("a region of that name");
        state.images[region].clone()
    }

    /// The names of all regions, once everything published by now has been applied.
    pub fn names(&self) -> Vec<String> {
        self.caught_up();
        self.shared.state().names.values().cloned().collect()
    }

    /// Acknowledges up to `level` from now on; [`Level::Local`] acknowledges nothing.
    pub fn acknowledge_up_to(&self, level: Level) {
        self.shared.acknowledge.store(level as u32, Ordering::Release);
    }

    /// Refuses every further request but Hello with this message.
    pub fn refuse(&self, message: &str) {
        self.shared.state().refuse = Some(message.to_owned());
    }

    /// Answers no request while `holds`; those that come meanwhile are answered afterwards.
    pub fn hold(&self, holds: bool) {
        self.shared.state().holds = holds;
    }

    /// Stops; clients notice at their next request. Its pulse stops with it.
    pub fn stop(mut self) -> Stopped {
        self.halt();
        let shared = &self.shared;
        let fd = shared.fd.try_clone().expect("a descriptor");
        let state = State { requests: Vec::new(), refuse: None, ..std::mem::take(&mut *shared.state()) };
        Stopped { dir: self.dir.clone(), setup: shared.setup.clone(), fd, state }
    }

    /// Waits until everything published by now has been applied.
    pub fn caught_up(&self) {
        let published = self.shared.log.published();
        let deadline = Instant::now() + PATIENCE;
        while self.shared.state().applied < published {
            assert!(Instant::now() < deadline, "the test agent does not get on");
            std::thread::yield_now();
        }
    }

    fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.log.wake_agent(SleepDepth::Nap);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a thread of the test agent panicked");
        }
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        self.halt();
    }
}

/// What an agent leaves behind: its log, held as the holder process would, and its regions.
pub struct Stopped {
    dir: Arc<tempfile::TempDir>,
    setup: Setup,
    fd: OwnedFd,
    state: State,
}

impl Stopped {
    /// Starts again on the same log.
    pub fn restart(self) -> TestAgent {
        TestAgent::at(self.dir, self.setup, Some((self.fd, self.state)))
    }

    /// Starts again with a new log, as after a promotion.
    pub fn restart_anew(mut self) -> TestAgent {
        self.setup.spec.generation = self.setup.spec.generation.next();
        TestAgent::at(self.dir, self.setup, None)
    }

    /// Where it listened.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn serve(self: Arc<Self>, listener: &Listener) {
        let mut sessions = Vec::new();
        while !self.stopping() {
            if let Ok(connection) = listener.accept(Some(Instant::now() + SLICE)) {
                let shared = self.clone();
                sessions.push(std::thread::spawn(move || shared.session(&connection)));
            }
        }
        for session in sessions {
            session.join().expect("a session's thread");
        }
    }

    fn session(&self, connection: &Connection) {
        while !self.stopping() {
            let (request, fd) = match connection.recv::<Request>(Some(Instant::now() + SLICE)) {
                Ok(message) => message,
                Err(SocketError::TimedOut) => continue,
                Err(_) => return,
            };
            self.state().requests.push(request.clone());
            while self.state().holds && !self.stopping() {
                std::thread::sleep(SLICE);
            }
            let (reply, log) = self.answer(request, fd);
            if connection.send(&reply, log.then(|| self.fd.as_fd()), None).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: Request, fd: Option<OwnedFd>) -> (Reply, bool) {
        let hello = matches!(request, Request::Hello { .. });
        if let Some(message) = self.state().refuse.clone().filter(|_| !hello) {
            return (Reply::Error { message }, false);
        }
        let reply = match request {
            Request::Hello { group, .. } => Reply::Welcome {
                agent: "test".into(),
                group: group.unwrap_or_else(|| "tests".into()),
                group_id: self.setup.spec.group,
                generation: self.setup.spec.generation,
                session: self.sessions.fetch_add(1, Ordering::Relaxed),
                protect: self.setup.protect.clone(),
                commit: self.setup.policy.commit,
            },
            Request::Protect { len, explicit } => match fd {
                Some(fd) => self.protect(fd, len, explicit),
                None => Reply::Error { message: "Protect without a descriptor".into() },
            },
            Request::Status {} => {
                Reply::Status { document: serde_json::json!({ "role": "source", "state": "protected" }) }
            }
            _ => Reply::Ok {},
        };
        (reply, hello)
    }

    fn protect(&self, fd: OwnedFd, len: u64, explicit: bool) -> Reply {
        let stat = rustix::fs::fstat(&fd).expect("fstat");
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let path = std::fs::read_link(link).expect("the path behind the descriptor");
        let patterns = Patterns::new(&self.setup.protect).expect("patterns");
        if !explicit && !patterns.matches(&path) {
            return Reply::NotProtected { reason: format!("no pattern names {}", path.display()) };
        }
        let len = if len == 0 { stat.st_size as u64 } else { len };
        let mut state = self.state();
        let next = RegionId(state.last + 1);
        let region = *state.regions.entry((stat.st_dev, stat.st_ino)).or_insert(next);
        if region == next {
            state.last = next.0;
        }
        drop(state);
        if region == next {
            let payload = RegionPayload { size: len, mode: 0o600, reserved: 0 };
            let mut bytes = payload.as_bytes().to_vec();
            bytes.extend_from_slice(path.to_string_lossy().as_bytes());
            let created = self.appender.append(Kind::RegionCreate, region, 0, &bytes);
            assert!(created.is_ok(), "the ring of a test is never full at this point");
            // The content that is there already, as a first sync would bring it.
            let mut content = vec![0u8; len as usize];
            // Anew, since the client's descriptor may be write-only.
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
            let file = std::fs::File::open(link).expect("open the file behind the descriptor");
            let read = rustix::io::pread(&file, &mut content, 0).expect("read the file");
            for (i, page) in
                content[..read].chunks(4096).enumerate().filter(|(_, p)| p.iter().any(|b| *b != 0))
            {
                self.appender
                    .append(Kind::Data, region, i as u64 * 4096, page)
                    .expect("room for the content");
            }
        }
        Reply::Protected { region, len, lsn: self.appender.drain() }
    }

    /// Applies what is published, acknowledges it and shows a pulse, until stopped.
    fn apply(&self) {
        let from = self.state().applied;
        let mut consumer = Consumer::new(self.log.clone(), from);
        while !self.stopping() {
            self.log.beat(boottime(), std::process::id(), LinkState::Counting);
            match consumer.next_batch(1 << 20).expect("a sound log") {
                Some(batch) => {
                    let mut state = self.state();
                    for header in &batch.headers {
                        state.apply(&self.log, header);
                    }
                    state.applied = batch.end;
                    drop(state);
                    self.log.set_free(batch.end);
                }
                None => self.log.sleep_until_work(consumer.position(), self.setup.sleep, SLICE),
            }
            let level = self.acknowledge.load(Ordering::Acquire);
            let at = |needed: Level| if level >= needed as u32 { consumer.position() } else { Lsn(0) };
            self.log.set_acks(Acks {
                received: at(Level::Received),
                durable: at(Level::Durable),
                applied: at(Level::Applied),
            });
        }
    }
}

impl State {
    fn apply(&mut self, log: &LogRegion, header: &pmemha::log::format::RecordHeader) {
        let (region, offset) = header.place();
        let at = (header.lsn % log.spec().ring_bytes) as usize + size_of_val(header);
        let mut payload = vec![0u8; header.len as usize];
        log.ring().read(at, &mut payload);
        match Kind::from_byte(header.kind).expect("checked by the consumer") {
            Kind::RegionCreate => {
                let (head, name) = payload.split_at(size_of::<RegionPayload>());
                let size = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
                self.images.insert(region, vec![0; size as usize]);
                self.names.insert(region, String::from_utf8(name.to_vec()).expect("a name in UTF-8"));
            }
            Kind::Zero => {
                let count = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes")) as usize;
                let image = self.images.get_mut(&region).expect("a region that exists");
                let start = image.len().min(offset as usize);
                let end = image.len().min(start + count);
                image[start..end].fill(0);
            }
            Kind::RegionResize => {
                self.images.get_mut(&region).expect("a region that exists").resize(offset as usize, 0);
            }
            Kind::RegionRename => {
                let name = String::from_utf8(payload).expect("a name in UTF-8");
                let replaced = self.names.iter().find(|(r, n)| **n == name && **r != region).map(|(r, _)| *r);
                replaced.into_iter().for_each(|r| self.forget(r));
                self.names.insert(region, name);
            }
            Kind::RegionUnlink => self.forget(region),
            Kind::Data => {
                let Some(image) = self.images.get_mut(&region) else {
                    // Written through a descriptor of a file that has lost its name.
                    return;
                };
                let start = image.len().min(offset as usize);
                // A line may reach past the region's end.
                let end = image.len().min(start + payload.len());
                image[start..end].copy_from_slice(&payload[..end - start]);
            }
            _ => {}
        }
    }
}

impl State {
    fn forget(&mut self, region: RegionId) {
        self.images.remove(&region);
        self.names.remove(&region);
        self.regions.retain(|_, r| *r != region);
    }
}

/// Generation of the first log.
pub const FIRST_GENERATION: Generation = Generation(1);

const SOCKET: &str = "agent.sock";

/// How often threads look whether they are to stop.
const SLICE: Duration = Duration::from_millis(20);

/// Longest wait for the agent to catch up, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(30);
