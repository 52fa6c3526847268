//! What the rig leaves on the host: nothing. And `soft-roce/run`, as a person uses it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A running child of some process.
struct Descendant {
    arguments: Vec<String>,
    pidfd: OwnedFd,
}

impl Descendant {
    /// The children of a process.
    fn all(parent: u32) -> Vec<Descendant> {
        let entries =
            fs::read_dir("/proc").expect("processes").map(|entry| entry.expect("an entry").file_name());
        let pids = entries.filter_map(|name| name.to_str()?.parse().ok());
        pids.filter(|pid| parent_of(*pid) == Some(parent)).map(Descendant::open).collect()
    }

    fn open(pid: i32) -> Descendant {
        let pidfd = pidfd_open(Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty()).expect("a pidfd");
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("its command line");
        Descendant { arguments: line.split('\0').map(str::to_owned).collect(), pidfd }
    }

    fn ends_soon(&self) -> bool {
        let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&limit)).expect("poll") == 1
    }
}

/// `None` of a process that is gone.
fn parent_of(pid: i32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything: state, parent.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_killed_parent_leaves_no_machine_and_no_files() {
    let mut parent = Command::new(env!("CARGO_BIN_EXE_pmemha-rig"))
        .args(["sh", "-c", "echo begun; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("pmemha-rig");
    let mut line = String::new();
    BufReader::new(parent.stdout.take().expect("its stdout")).read_line(&mut line).expect("read");
    assert_eq!(line, "begun\n");

    let children = Descendant::all(parent.id());
    let qemu = children.iter().find(|child| child.arguments[0].contains("qemu")).expect("QEMU");
    let monitor =
        qemu.arguments.iter().find_map(|a| a.strip_prefix("socket,id=monitor,path=")).expect("a socket");
    let dir: PathBuf = Path::new(monitor).parent().expect("its folder").to_owned();
    assert!(dir.join("fsdax").exists());

    parent.kill().expect("kill it");
    parent.wait().expect("its end");
    assert_eq!(children.len(), 2, "QEMU, and the shell that removes the folder");
    assert!(children.iter().all(Descendant::ends_soon));
    assert!(!dir.exists());
}

#[test]
fn run_passes_environment_folder_outputs_and_status_through() {
    let output = Command::new(env!("CARGO_BIN_EXE_pmemha-rig"))
        .args(["sh", "-c", "echo $WORD $PWD; echo err >&2; exit 42"])
        .env("WORD", "passed")
        .current_dir("/usr")
        .output()
        .expect("pmemha-rig");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "passed /usr\n");
    assert!(String::from_utf8_lossy(&output.stderr).ends_with("err\n"));
    assert_eq!(output.status.code(), Some(42));
}

#[test]
fn run_uses_a_real_device_where_there_is_one_and_says_so() {
    let devices = tempfile::tempdir().expect("a folder");
    let port = devices.path().join("mlx5_0/ports/1");
    fs::create_dir_all(&port).expect("a device");
    fs::write(port.join("state"), "4: ACTIVE\n").expect("its state");
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("run"))
        .args(["--cpus", "1", "sh", "-c", "echo here; exit 3"])
        .env("SOFT_ROCE_DEVICES", devices.path())
        .output()
        .expect("soft-roce/run");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"here\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("the RDMA device mlx5_0"));
}
