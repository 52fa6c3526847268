//! One machine: booted, used, switched off in several ways, booted again.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::cable::{Cable, End};
use crate::command::Command;
use crate::error::{Doing, RigError};
use crate::initramfs;
use crate::places::{self, Kernel};
use crate::ports::{COMMANDS, Ports};
use crate::qemu::{Hardware, NETWORK_DEVICE, Qemu};
use crate::qmp::Qmp;
use crate::rundir::RunDir;

/// Where a machine's file system with DAX is mounted: ext4 on fsdax, `MAP_SYNC` works.
pub const FSDAX: &str = "/pmem";

/// A machine's devdax device: a link to `/dev/daxN.0`, whose N is QEMU's affair.
pub const DEVDAX: &str = "/dev/devdax";

/// The address of a machine alone, and of the first of a pair.
pub const ALPHA: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The address of the second machine of a pair.
pub const BETA: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// What a machine is to be like.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// Its host name, and what errors call it.
    pub name: String,
    /// Virtual processors, which share the host's.
    pub cpus: u32,
    /// DRAM in MiB; half of it holds files that are written anywhere but on persistent memory.
    pub memory_mib: u32,
    /// Persistent memory of the file system with DAX, in MiB.
    pub fsdax_mib: u32,
    /// Persistent memory of the devdax device, in MiB.
    pub devdax_mib: u32,
    /// Its IPv4 address in the RDMA network, a /24.
    pub address: Ipv4Addr,
}

/// A machine that is ready, or was until it went away by itself. Dropped, it is switched off and its files are removed.
pub struct Machine {
    /// First, so that it ends before its files are removed.
    qemu: Qemu,
    monitor: Mutex<Qmp>,
    ports: Arc<Ports>,
    home: Home,
}

/// A machine that is switched off. Its NVDIMMs keep their content.
pub struct PoweredOff {
    home: Home,
}

impl MachineSpec {
    /// A machine that is to be the only one: both ends of its RDMA network are in it.
    pub fn alone(name: &str) -> MachineSpec {
        MachineSpec {
            name: name.to_owned(),
            cpus: 2,
            memory_mib: 2048,
            fsdax_mib: 512,
            devdax_mib: 256,
            address: ALPHA,
        }
    }

    /// A machine of a pair. One virtual processor each: two machines with two would let pollers starve each other on a
    /// host with two.
    pub fn of_pair(name: &str, address: Ipv4Addr) -> MachineSpec {
        MachineSpec { cpus: 1, address, ..MachineSpec::alone(name) }
    }
}

impl Machine {
    /// Boots a machine that has the RDMA network for itself.
    pub fn boot(spec: MachineSpec) -> Result<Machine, RigError> {
        Home::new(spec, None)?.boot(Nvdimms::New)
    }

    pub(crate) fn boot_at(spec: MachineSpec, cable: Cable, end: End) -> Result<Machine, RigError> {
        Home::new(spec, Some((cable, end)))?.boot(Nvdimms::New)
    }

    /// What it is like.
    pub fn spec(&self) -> &MachineSpec {
        &self.home.spec
    }

    /// A command to run in it; [`COMMANDS`] may run at once.
    pub fn command(&self, program: &str) -> Command<'_> {
        Command::new(&self.ports, program)
    }

    /// Its kernel's log, and what QEMU said. It stays when the machine is gone; the last ones are kept.
    pub fn log(&self) -> &Path {
        &self.home.log
    }

    /// The process that emulates it.
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Cuts its power, between two instructions. What it had in DRAM is lost, what it had stored to persistent memory
    /// is not. (All of it: QEMU emulates no caches whose content would be lost.)
    pub fn cut_power(self) -> PoweredOff {
        let Machine { home, qemu, .. } = self;
        drop(qemu);
        PoweredOff { home }
    }

    /// Makes its kernel panic, and switches it off when the panic was seen.
    pub fn crash(self) -> Result<PoweredOff, RigError> {
        let panic = self.command("sh").args(["-c", "echo c >/proc/sysrq-trigger"]).spawn()?;
        self.monitor("waiting for its panic", |qmp| qmp.wait_event("GUEST_PANICKED", PANIC_LIMIT))?;
        let off = self.cut_power();
        drop(panic);
        Ok(off)
    }

    /// Pulls the cable out of its network device: the device has no carrier, its RDMA port is down. For a machine of
    /// a pair.
    pub fn pull_cable(&self) -> Result<(), RigError> {
        self.carrier(false)
    }

    /// Puts the cable back.
    pub fn put_cable(&self) -> Result<(), RigError> {
        self.carrier(true)
    }

    fn carrier(&self, up: bool) -> Result<(), RigError> {
        let arguments = json!({ "name": NETWORK_DEVICE, "up": up });
        self.monitor("setting its carrier", |qmp| qmp.execute("set_link", arguments).map(drop))
    }

    fn monitor(&self, doing: &str, deed: impl FnOnce(&mut Qmp) -> io::Result<()>) -> Result<(), RigError> {
        // A thread that panicked in it left at most an answer that nobody read, which the next one would take for its
        // own; so it is not used again.
        let mut qmp = self.monitor.lock().map_err(|e| self.home.monitor_failed(doing, &e))?;
        deed(&mut qmp).map_err(|e| self.home.monitor_failed(doing, &e))
    }
}

impl PoweredOff {
    /// Switches the machine on again.
    pub fn boot(self) -> Result<Machine, RigError> {
        self.home.boot(Nvdimms::Used)
    }
}

/// What a machine keeps while it is off.
struct Home {
    spec: MachineSpec,
    cable: Option<(Cable, End)>,
    dir: RunDir,
    log: PathBuf,
}

#[derive(Clone, Copy, PartialEq)]
enum Nvdimms {
    New,
    Used,
}

impl Home {
    fn new(spec: MachineSpec, cable: Option<(Cable, End)>) -> Result<Home, RigError> {
        let log = new_log(&spec.name)?;
        let home = Home { spec, cable, dir: RunDir::new()?, log };
        for (file, mib) in home.nvdimms() {
            let made = File::create(&file).and_then(|f| f.set_len(u64::from(mib) << 20));
            made.doing(|| format!("making {}", file.display()))?;
        }
        Ok(home)
    }

    fn boot(self, nvdimms: Nvdimms) -> Result<Machine, RigError> {
        let mut boots = 1;
        loop {
            let said = fs::metadata(&self.log).map_or(0, |log| log.len());
            let started = self.start(nvdimms)?;
            let connected = self.connect(&started, Instant::now() + BOOT_LIMIT);
            let qemu = started.qemu;
            match connected {
                Ok((qmp, ports)) => {
                    return Ok(Machine {
                        qemu,
                        monitor: Mutex::new(qmp),
                        ports: Arc::new(ports),
                        home: self,
                    });
                }
                Err(e) => {
                    drop(qemu);
                    // An emulated kernel hangs now and then before anything of the rig has run in it.
                    if boots == BOOTS || self.init_ran(said) {
                        return Err(self.not_ready(&e));
                    }
                    boots += 1;
                    eprintln!(
                        "soft-roce: the kernel of machine {} did not get as far as its first program, {}: \
                         booting it again",
                        self.spec.name,
                        why_not_ready(&e)
                    );
                }
            }
        }
    }

    /// Whether the kernel has come to the rig's first program, by what was logged behind `said` bytes.
    fn init_ran(&self, said: u64) -> bool {
        let log = fs::read(&self.log).unwrap_or_default();
        let of_this_boot = log.get(said as usize..).unwrap_or_default();
        of_this_boot.windows(RUNS_INIT.len()).any(|part| part == RUNS_INIT)
    }

    /// Waits until everything is connected, and the machine ready.
    fn connect(&self, started: &Started, end: Instant) -> io::Result<(Qmp, Ports)> {
        let Started { qemu, monitor, ports, network } = started;
        let qmp = Qmp::greet(monitor.accept(qemu, end)?)?;
        let streams = ports.iter().map(|port| port.accept(qemu, end)).collect::<io::Result<Vec<_>>>()?;
        if let (Some(network), Some((cable, side))) = (network, &self.cable) {
            cable.plug(*side, network.accept(qemu, end)?)?;
        }
        Ok((qmp, Ports::greeted(&self.spec.name, streams, end)?))
    }

    fn start(&self, nvdimms: Nvdimms) -> Result<Started, RigError> {
        let kernel = Kernel::find()?;
        let initramfs = self.dir.path().join("initramfs");
        let archive = initramfs::build(&kernel)?;
        fs::write(&initramfs, archive).doing(|| format!("writing {}", initramfs.display()))?;
        let monitor = self.listen("monitor")?;
        let ports =
            (1..=COMMANDS).map(|i| self.listen(&format!("port{i}"))).collect::<Result<Vec<_>, _>>()?;
        let network = self.cable.is_some().then(|| self.listen("network")).transpose()?;
        let qemu = Qemu::start(&Hardware {
            cpus: self.spec.cpus,
            memory_mib: self.spec.memory_mib,
            nvdimms: &self.nvdimms(),
            kernel: &kernel.image,
            initramfs: &initramfs,
            settings: &self.settings(&kernel, nvdimms)?,
            log: &self.log,
            monitor: &monitor.path,
            ports: &ports.iter().map(|port| port.path.clone()).collect::<Vec<_>>(),
            network: network.as_ref().map(|socket| (socket.path.as_path(), self.spec.address)),
            mtu: MTU,
        })?;
        Ok(Started { qemu, monitor, ports, network })
    }

    fn nvdimms(&self) -> [(PathBuf, u32); 2] {
        let file = |name| self.dir.path().join(name);
        [(file("fsdax"), self.spec.fsdax_mib), (file("devdax"), self.spec.devdax_mib)]
    }

    /// The kernel's command line. `guest/start` says what the settings mean.
    fn settings(&self, kernel: &Kernel, nvdimms: Nvdimms) -> Result<String, RigError> {
        let settings = [
            ("name", self.spec.name.clone()),
            ("dir", shown(places::sources())),
            ("modules", shown(&kernel.modules)),
            ("guest", shown(&places::guest_program()?)),
            ("ports", COMMANDS.to_string()),
            ("network", if self.cable.is_some() { "eth" } else { "veth" }.to_owned()),
            ("address", format!("{}/24", self.spec.address)),
            ("mtu", MTU.to_string()),
            ("format", if nvdimms == Nvdimms::New { "yes" } else { "no" }.to_owned()),
            ("mount", FSDAX.to_owned()),
            ("devdax", DEVDAX.to_owned()),
        ];
        let settings: String =
            settings.iter().map(|(name, value)| format!(" \"rig_{name}={value}\"")).collect();
        // A panic ends QEMU, which may not reboot; the emulated processor needs no cure for what real ones suffer from.
        Ok(format!("console=ttyS0 panic=-1 mitigations=off tsc=reliable clocksource=tsc{settings}"))
    }

    fn listen(&self, name: &str) -> Result<Socket, RigError> {
        let path = self.dir.path().join(name);
        // One of an earlier boot.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).doing(|| format!("listening at {}", path.display()))?;
        Ok(Socket { path, listener })
    }

    fn not_ready(&self, e: &io::Error) -> RigError {
        let why = why_not_ready(e);
        let tail = tail(&self.log).unwrap_or_else(|e| e.to_string());
        RigError::Boot { machine: self.spec.name.clone(), why, log: self.log.clone(), tail }
    }

    fn monitor_failed(&self, doing: &str, why: &dyn std::fmt::Display) -> RigError {
        RigError::Monitor { machine: self.spec.name.clone(), doing: doing.to_owned(), why: why.to_string() }
    }
}

/// A machine whose kernel has not said anything yet.
struct Started {
    qemu: Qemu,
    monitor: Socket,
    ports: Vec<Socket>,
    network: Option<Socket>,
}

/// A socket that QEMU connects to.
struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Waits for the connection, or for QEMU's end.
    fn accept(&self, qemu: &Qemu, end: Instant) -> io::Result<UnixStream> {
        let pidfd = qemu.pidfd()?;
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        if poll(&mut fds, Some(&left))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if fds[0].revents().is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.listener.accept()?.0)
    }
}

fn why_not_ready(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => "it switched itself off".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!("it took longer than {BOOT_LIMIT:?}"),
        _ => e.to_string(),
    }
}

/// A name for a log of its own, and room for it among those that are kept.
fn new_log(machine: &str) -> Result<PathBuf, RigError> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let dir = places::logs()?;
    let age =
        |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let entries = fs::read_dir(&dir).doing(|| format!("reading {}", dir.display()))?;
    let mut old: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    old.sort_by_cached_key(age);
    for path in old.iter().rev().skip(KEPT_LOGS - 1) {
        // Another process may have been faster.
        let _ = fs::remove_file(path);
    }
    // Relaxed: only the numbers must differ.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Ok(dir.join(format!("{machine}-{}-{number}.log", std::process::id())))
}

/// The end of a log.
fn tail(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The network's largest packet: an RDMA message of 4096 bytes with its headers fits.
const MTU: u32 = 9000;

/// A boot takes 10 seconds on two idle processors. This is for very busy ones, and tells a hang.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// A machine whose kernel hangs is switched on once more.
const BOOTS: u32 = 2;

/// What the kernel logs right before it starts `guest/init`.
const RUNS_INIT: &[u8] = b"Run /init as init process";

/// From the request to the panic.
const PANIC_LIMIT: Duration = Duration::from_secs(60);

/// The kernel logs of as many machines are kept.
const KEPT_LOGS: usize = 24;

/// Bytes of a log that an error shows.
const TAIL: u64 = 4 << 10;
