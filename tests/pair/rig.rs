//! Two agents' shared groups in this process, and an application whose every state is known.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pmemha::agent::access::Access;
use pmemha::agent::config::Config;
use pmemha::agent::context::Context;
use pmemha::agent::events::{self, Events};
use pmemha::agent::group::{Controller, Group, Process, Reader, Region};
use pmemha::agent::holder::{FdKeeper, KeeperError};
use pmemha::agent::roles::Roles;
use pmemha::agent::state::StateDir;
use pmemha::agent::status::{DestinationState, GroupStatus};
use pmemha::fabric::tls::{TlsIdentity, make_authority, make_node_certificate};
use pmemha::log::Appender;
use pmemha::log::format::Kind;
use pmemha::types::{Level, Lsn};
use pmemha_testkit::dirs::for_a_node;
use pmemha_testkit::net::free_port;
use pmemha_testkit::node::fabric_line;
use pmemha_testkit::wait;

/// Long enough for a busy machine; a test that needs it all has failed.
pub const SOON: Duration = Duration::from_secs(30);

/// Bytes of the protected file.
pub const FILE_BYTES: u64 = 1 << 20;

const SLOT: u64 = 64;
const SLOTS: u64 = FILE_BYTES / SLOT;

/// Bytes around a number.
const MUCH: u64 = 8192;

/// Keeps descriptors beyond the life of an agent in this process.
#[derive(Clone, Default)]
pub struct MemoryKeeper(Arc<Mutex<BTreeMap<String, OwnedFd>>>);

impl FdKeeper for MemoryKeeper {
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), KeeperError> {
        self.0.lock().unwrap().insert(name.to_owned(), fd.try_clone_to_owned()?);
        Ok(())
    }

    fn get(&self, name: &str) -> Result<Option<OwnedFd>, KeeperError> {
        Ok(self.0.lock().unwrap().get(name).map(OwnedFd::try_clone).transpose()?)
    }

    fn list(&self) -> Result<Vec<String>, KeeperError> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }

    fn forget(&self, name: &str) -> Result<(), KeeperError> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
}

/// One node of a pair.
pub struct Node {
    dir: tempfile::TempDir,
    config: String,
    identity: TlsIdentity,
    keeper: MemoryKeeper,
    pub context: Option<Arc<Context>>,
    pub roles: Option<Roles>,
}

/// `alpha` runs the group `app`, `beta` follows.
pub struct Pair {
    pub alpha: Node,
    pub beta: Node,
}

impl Pair {
    /// Both nodes, not started. `group` and `replica` are further lines of their configuration.
    pub fn new(log_size: &str, group: &str, replica: &str) -> Pair {
        let authority = make_authority().unwrap();
        let ports = [free_port(), free_port()];
        let node = |name: &str| {
            let dir = for_a_node();
            let [ca, ca_key, cert, key] = ["ca.pem", "ca.key", "c.pem", "k.pem"].map(|f| dir.path().join(f));
            authority.write(&ca, &ca_key).unwrap();
            make_node_certificate(&authority, name).unwrap().write(&cert, &key).unwrap();
            for sub in ["files", "replica", "state", "run"] {
                fs::create_dir(dir.path().join(sub)).unwrap();
            }
            let identity = TlsIdentity::load(&ca, &cert, &key).unwrap();
            // What a real agent's program does for its application, without the watchdog.
            let helper = dir.path().join("helper");
            fs::write(&helper, HELPER).unwrap();
            fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
            (dir, identity)
        };
        let ((a, a_identity), (b, b_identity)) = (node("alpha"), node("beta"));
        let common = |name: &str, dir: &Path, port: u16, peer: &str, peer_port: u16| {
            let d = dir.display();
            format!(
                "[node]\nname = \"{name}\"\nstate_dir = \"{d}/state\"\nruntime_dir = \"{d}/run\"\n\
                 listen = \"127.0.0.1:{port}\"\n\
                 [tls]\nca = \"{d}/ca.pem\"\ncert = \"{d}/c.pem\"\nkey = \"{d}/k.pem\"\n\
                 [[peer]]\nname = \"{peer}\"\naddress = \"127.0.0.1:{peer_port}\"\n"
            )
        };
        let alpha = format!(
            "{}[[group]]\nname = \"app\"\nprotect = [\"{}/files/*\"]\ndestinations = [\"beta\"]\n\
             log_size = \"{log_size}\"\n{group}\n",
            common("alpha", a.path(), ports[0], "beta", ports[1]),
            a.path().display(),
        );
        let beta = format!(
            "{}[[replica]]\ngroup = \"app\"\nfrom = [\"alpha\"]\ndir = \"{b}/replica\"\n\
             durability = \"battery\"\npaths = {{ \"{}/files\" = \"{b}/files\" }}\n{}{replica}\n",
            common("beta", b.path(), ports[1], "alpha", ports[0]),
            a.path().display(),
            fabric_line(),
            b = b.path().display(),
        );
        let node = |dir, config, identity| Node {
            dir,
            config,
            identity,
            keeper: MemoryKeeper::default(),
            context: None,
            roles: None,
        };
        Pair { alpha: node(a, alpha, a_identity), beta: node(b, beta, b_identity) }
    }

    /// Both nodes, started.
    pub fn start(log_size: &str, group: &str, replica: &str) -> Pair {
        let mut pair = Pair::new(log_size, group, replica);
        pair.beta.start();
        pair.alpha.start();
        pair
    }

    /// Waits until records count at beta.
    pub fn await_streaming(&self) {
        self.alpha.await_status("beta counts", |s| {
            s.destinations.first().is_some_and(|d| d.state == DestinationState::Streaming)
        });
    }
}

impl Node {
    pub fn start(&mut self) {
        let config = Config::parse(&self.config, Path::new("test.toml")).unwrap();
        let context = Arc::new(Context {
            access: Arc::new(Access::new(&config, 0).unwrap()),
            states: Arc::new(StateDir::open(&config.node.state_dir).unwrap()),
            keeper: Box::new(self.keeper.clone()),
            events: Events::new(),
            tls: Some(self.identity.clone()),
            program: self.dir.path().join("helper"),
            started: Instant::now(),
            config,
        });
        self.roles = Some(Roles::start(&context).unwrap());
        self.context = Some(context);
    }

    /// Ends the agent; what it kept outside of its memory is all that is left.
    pub fn stop(&mut self) {
        self.roles = None;
        let context = self.context.take().expect("running");
        wait::eventually("the agent's threads let go of the state", SOON, || {
            Arc::strong_count(&context) == 1
        });
    }

    /// The log is lost although the machine was not rebooted.
    pub fn lose_log(&mut self) {
        self.keeper = MemoryKeeper::default();
    }

    /// Replaces a placeholder of the configuration.
    pub fn substitute(&mut self, what: &str, by: &str) {
        self.config = self.config.replace(what, by);
    }

    pub fn controller(&self) -> Arc<dyn Controller> {
        self.roles.as_ref().unwrap().controllers().remove(0)
    }

    pub fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn status(&self) -> GroupStatus {
        self.controller().report()
    }

    pub fn await_status(&self, what: &str, fits: impl Fn(&GroupStatus) -> bool) {
        let end = Instant::now() + SOON;
        while !fits(&self.status()) {
            if Instant::now() > end {
                let events = self.context.as_ref().unwrap().events.after(0, Instant::now());
                let told: Vec<_> = events.events.iter().map(|e| format!("{} {}", e.kind, e.detail)).collect();
                panic!("waited in vain for: {what}\n{:#?}\n{told:#?}", self.status());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Words of the alarms so far.
    pub fn alarms(&self) -> Vec<String> {
        let events = self.context.as_ref().unwrap().events.after(0, Instant::now());
        let alarms = events.events.iter().filter(|e| e.kind == events::Kind::Alarm);
        alarms.map(|e| e.detail["what"].as_str().expect("a word").to_owned()).collect()
    }

    /// The group as an application that attaches gets it.
    pub fn attach(&self) -> Result<Arc<Group>, String> {
        self.controller().attach()
    }

    pub fn await_attach(&self) -> Arc<Group> {
        self.await_status("the application may attach", |_| self.attach().is_ok());
        self.attach().unwrap()
    }
}

/// Writes numbers round and round a protected file: at every record prefix, slot `s` holds the last number that is
/// `s` modulo the slots, up to some number.
pub struct App {
    file: File,
    appender: Appender,
    region: Arc<Region>,
    pub next: u64,
}

impl App {
    /// Opens (or makes) `files/data` of `node` and protects it.
    pub fn start(node: &Node, next: u64) -> App {
        let group = node.await_attach();
        let path = node.files().join("data");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(FILE_BYTES).unwrap();
        let process =
            Process { pid: None, uid: 0, program: "test".into(), tracks: None, indoors: None, pidfd: None };
        let id = group.attach(process, None).expect("the group is open");
        let (region, _) = group.protect_for(&Reader::root(), file.as_fd(), 0, false).unwrap();
        let appender = Appender::attach(group.log().clone(), id.0).unwrap();
        App { file, appender, region, next }
    }

    /// Makes one number persistent. Returns what a drain returns.
    pub fn write(&mut self) -> Lsn {
        let (slot, bytes) = (self.next % SLOTS * SLOT, line(self.next));
        self.file.write_all_at(&bytes, slot).unwrap();
        // While ahead the record is missing, and only the copy that closes the gap has the bytes.
        if self.appender.append(Kind::Data, self.region.id(), slot, &bytes).is_err() {
            self.note_dirty(slot);
        }
        self.next += 1;
        self.appender.drain()
    }

    /// As [`App::write`], but records all around the number once more, and waits as the drains of a program do: recording
    /// is then much faster than shipping what was recorded.
    pub fn write_much(&mut self) {
        self.write();
        let around = (self.next - 1) % SLOTS * SLOT / MUCH * MUCH;
        // While ahead it is noted.
        let noted =
            self.appender.append_from_file(self.region.id(), around, MUCH as usize, self.file.as_fd(), false);
        drop(noted);
        let lsn = self.appender.drain();
        self.appender.commit(lsn);
    }

    /// Takes the places of all further writers.
    pub fn take_all_places(&self) -> Vec<Appender> {
        let log = self.appender.log();
        std::iter::from_fn(|| Appender::attach(log.clone(), 9).ok()).collect()
    }

    /// As [`App::write`], in a forked process.
    pub fn write_in_a_child_without_a_place(&mut self) {
        let (slot, bytes) = (self.next % SLOTS * SLOT, line(self.next));
        // SAFETY: the child makes system calls and appends, and never returns to the test harness.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = self.appender.after_fork_child().is_err();
            let written = self.file.write_all_at(&bytes, slot).is_ok();
            let recorded = self.appender.append(Kind::Data, self.region.id(), slot, &bytes).is_ok();
            // SAFETY: ends the child; nothing of the harness runs.
            unsafe { libc::_exit(i32::from(!refused || !written || recorded)) };
        }
        let mut status = 0;
        // SAFETY: `status` is ours, the child too.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "the child found a place, or recorded without one");
        self.next += 1;
    }

    fn note_dirty(&self, slot: u64) {
        let all =
            self.appender.append_from_file(self.region.id(), slot, SLOT as usize, self.file.as_fd(), true);
        drop(all);
    }

    pub fn wait(&self, lsn: Lsn, level: Level) {
        self.appender.wait(lsn, level, Some(SOON)).unwrap_or_else(|e| panic!("{level:?} of {lsn}: {e}"));
    }

    pub fn appender(&self) -> &Appender {
        &self.appender
    }
}

fn line(number: u64) -> [u8; SLOT as usize] {
    let mut line = [0; SLOT as usize];
    line.chunks_mut(8).for_each(|word| word.copy_from_slice(&(number + 1).to_le_bytes()));
    line
}

/// Checks that the file is what the application's writes up to some number made of it; the next number.
pub fn check_prefix(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut found = Vec::new();
    for (slot, line) in bytes.chunks(SLOT as usize).enumerate() {
        let words: Vec<u64> = line.chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).collect();
        assert!(words.windows(2).all(|w| w[0] == w[1]), "slot {slot} is torn: {words:?}");
        found.push(words[0]);
    }
    let next = found.iter().copied().max().unwrap_or(0);
    for (slot, &have) in found.iter().enumerate() {
        let slot = slot as u64;
        // The last of 0..next that falls on the slot, plus one; 0 if none did.
        let want = if next > slot { (next - 1 - slot) / SLOTS * SLOTS + slot + 1 } else { 0 };
        assert_eq!(have, want, "slot {slot} of a file written up to {next}");
    }
    next
}

/// The image's data file at `node`.
pub fn image_file(node: &Node) -> PathBuf {
    let mut images: Vec<PathBuf> = fs::read_dir(node.path("replica"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("image-"))
        .collect();
    images.sort();
    let image = images.pop().expect("an image");
    let mut files: Vec<PathBuf> = fs::read_dir(&image).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| fs::metadata(p).unwrap().len() == FILE_BYTES);
    assert_eq!(files.len(), 1, "one region of {FILE_BYTES} bytes in {}", image.display());
    files.remove(0)
}

/// Contents of all files of all images at `node`.
pub fn image_files(node: &Node) -> Vec<Vec<u8>> {
    let below = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let images = below(node.path("replica")).filter(|p| p.is_dir());
    // A copy that is under way takes its files with it when it is put aside.
    images.flat_map(below).filter_map(|file| fs::read(file).ok()).collect()
}

const HELPER: &str = "#!/bin/sh\n\
    if [ \"$1\" = exec-in ]; then echo $$ > \"$2\"; shift 4; exec \"$@\"; fi\n\
    exec cat > /dev/null\n";
