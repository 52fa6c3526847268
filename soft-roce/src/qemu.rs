//! QEMU: its command line, and a process that never outlives ours.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, mpsc};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Doing, RigError};
use crate::places::program;

/// A running machine's process. Killed when dropped, which is a power cut for the machine.
pub struct Qemu {
    child: Child,
}

/// What the command line is made of. Paths are the host's.
pub struct Hardware<'a> {
    /// Virtual CPUs.
    pub cpus: u32,
    /// DRAM in MiB.
    pub memory_mib: u32,
    /// Files of the NVDIMMs and their sizes in MiB. They exist, with these sizes.
    pub nvdimms: &'a [(PathBuf, u32)],
    /// The kernel, its first archive, and its settings.
    pub kernel: &'a Path,
    /// See `kernel`.
    pub initramfs: &'a Path,
    /// See `kernel`.
    pub settings: &'a str,
    /// Takes the kernel's console.
    pub log: &'a Path,
    /// The socket of the monitor; somebody listens there, as at the others.
    pub monitor: &'a Path,
    /// The sockets of the ports `/dev/vport0p1` and on.
    pub ports: &'a [PathBuf],
    /// The socket of the network device `eth0`, if it is to have one, and the machine's address, which its link-layer
    /// address is made of: no two may have the same.
    pub network: Option<(&'a Path, Ipv4Addr)>,
    /// The largest packet of that device.
    pub mtu: u32,
}

/// The name of `eth0` in the monitor.
pub const NETWORK_DEVICE: &str = "eth0";

impl Qemu {
    /// Starts a machine. What QEMU itself has to say goes to the log.
    pub fn start(hardware: &Hardware) -> Result<Qemu, RigError> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(RigError::Architecture(std::env::consts::ARCH));
        }
        let log = || OpenOptions::new().create(true).append(true).open(hardware.log);
        let log = || log().doing(|| format!("opening {}", hardware.log.display()));
        let mut command = Command::new(program("setpriv")?);
        // The shell sees whether we died before the kernel was told to watch us.
        command
            .args([
                "--pdeathsig",
                "KILL",
                "sh",
                "-c",
                "[ $PPID = \"$1\" ] || exit 1; shift; exec \"$@\"",
                "sh",
            ])
            .arg(std::process::id().to_string())
            .arg(program("qemu-system-x86_64")?)
            .args(hardware.arguments())
            .stdin(Stdio::null())
            .stdout(log()?)
            .stderr(log()?);
        let child = spawn_lastingly(command).doing(|| "starting QEMU".into())?;
        Ok(Qemu { child })
    }

    /// Readable when the process has ended.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        Ok(pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Neither fails for a child that was not waited for yet.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hardware<'_> {
    fn arguments(&self) -> Vec<OsString> {
        let mut line = Line(Vec::new());
        let nvdimms: u32 = self.nvdimms.iter().map(|(_, mib)| mib).sum();
        let (memory, most) = (self.memory_mib, self.memory_mib + nvdimms);
        // The host's KVM hangs on stock kernels in the places where the rig has to work, and is not there in most.
        line.add("-accel", "tcg,thread=multi".into());
        line.add("-machine", "q35,nvdimm=on".into());
        // An emulator runs string instructions an element at a time. Without ERMS kernel and libc move bytes otherwise: five
        // times as fast for pieces of 64 KiB, which is nearer to what a processor does.
        line.add("-cpu", "max,erms=off".into());
        line.add("-smp", self.cpus.to_string());
        line.add("-m", format!("{memory}M,slots={},maxmem={most}M", self.nvdimms.len()));
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            line.0.push(flag.into());
        }
        line.add("-display", "none".into());
        line.0.extend(["-kernel".into(), self.kernel.into(), "-initrd".into(), self.initramfs.into()]);
        line.add("-append", self.settings.into());
        line.add("-chardev", format!("file,id=console,append=on,path={}", quoted(self.log)));
        line.add("-serial", "chardev:console".into());
        line.add(
            "-virtfs",
            "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap".into(),
        );
        for (i, (file, mib)) in self.nvdimms.iter().enumerate() {
            let file = quoted(file);
            line.add(
                "-object",
                format!("memory-backend-file,id=nvdimm{i},share=on,size={mib}M,mem-path={file}"),
            );
            line.add("-device", format!("nvdimm,memdev=nvdimm{i}"));
        }
        line.add("-chardev", format!("socket,id=monitor,path={}", quoted(self.monitor)));
        line.add("-mon", "chardev=monitor,mode=control".into());
        line.add("-device", "pvpanic".into());
        // Port 0 is kept for a console.
        line.add("-device", format!("virtio-serial-pci,max_ports={}", self.ports.len() + 1));
        for (i, port) in (1..).zip(self.ports) {
            line.add("-chardev", format!("socket,id=port{i},path={}", quoted(port)));
            line.add("-device", format!("virtserialport,nr={i},chardev=port{i}"));
        }
        if let Some((network, address)) = self.network {
            let (path, mtu) = (quoted(network), self.mtu);
            let mac = [2, 0].into_iter().chain(address.octets()).map(|byte| format!("{byte:02x}"));
            let mac = mac.collect::<Vec<_>>().join(":");
            line.add("-netdev", format!("stream,id=cable,server=off,addr.type=unix,addr.path={path}"));
            let device = format!("virtio-net-pci,id={NETWORK_DEVICE},netdev=cable,mac={mac}");
            line.add("-device", format!("{device},host_mtu={mtu},romfile="));
        }
        line.0
    }
}

struct Line(Vec<OsString>);

impl Line {
    fn add(&mut self, option: &str, value: String) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

/// A path as an option's value: a comma would end it. The rig makes these paths itself or has them from the build.
fn quoted(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Spawns from a thread that lives as long as this process: the kernel kills such a child when the *thread* that forked
/// it ends, and a test's thread ends before a machine that tests share.
fn spawn_lastingly(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in requests {
                // Whoever asked waits for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, answered) = mpsc::channel();
    let gone = |_| io::Error::other("the thread that starts machines is gone");
    SPAWNER.send((command, answer)).map_err(|_| gone(mpsc::RecvError))?;
    answered.recv().map_err(gone)?
}
