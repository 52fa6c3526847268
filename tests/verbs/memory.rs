//! Which memory an adapter takes, and which it refuses.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use pmemha::fabric::{FabricError, Registration, RemoteAccess};
use pmemha::region::memory::{Access, SharedMem};
use pmemha_rig::skipped;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::nodes::verbs;
use crate::rig::{Node, content, fill, pattern};

const BYTES: usize = 2 << 20;

fn mapped(file: &File) -> Arc<SharedMem> {
    Arc::new(SharedMem::map(file.as_fd(), 0, BYTES, Access::ReadWrite).unwrap())
}

fn file_in(dir: &str) -> (tempfile::TempDir, File) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(dir.path().join("m")).unwrap();
    file.set_len(BYTES as u64).unwrap();
    (dir, file)
}

/// Bytes go from memory of one kind into memory of the same kind.
fn serves(left: &Node, right: &Node, from: Arc<SharedMem>, to: Arc<SharedMem>) {
    let from = left.end.register(from, RemoteAccess::Local).unwrap();
    let to = right.end.register(to, RemoteAccess::Write).unwrap();
    fill(&from, 3);
    left.write((&from, 0, BYTES), (to.key(), 0), Some(1)).unwrap();
    assert_eq!(left.successes(1), [1]);
    assert!(content(&to) == pattern(BYTES, 3));
}

#[test]
fn memfds_are_registered_as_they_are() {
    let (left, right) = verbs().pair();
    let memfd = || {
        let fd = memfd_create("m", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, BYTES as u64).unwrap();
        mapped(&File::from(fd))
    };
    serves(&left, &right, memfd(), memfd());
}

/// Large pages that are reserved while it lives, besides those that were before.
struct Reserved(u64);

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

impl Reserved {
    fn new(pages: u64) -> Reserved {
        let before = fs::read_to_string(RESERVED).unwrap().trim().parse().unwrap();
        fs::write(RESERVED, format!("{}", before + pages)).unwrap();
        Reserved(before)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = fs::write(RESERVED, self.0.to_string());
    }
}

#[test]
fn large_pages_of_hugetlbfs_are_registered_as_they_are() {
    let _reserved = Reserved::new(2);
    let (left, right) = verbs().pair();
    let large = || {
        let fd = memfd_create("m", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB).unwrap();
        ftruncate(&fd, BYTES as u64).unwrap();
        mapped(&File::from(fd))
    };
    serves(&left, &right, large(), large());
}

#[test]
fn files_of_tmpfs_are_registered_as_they_are() {
    let (left, right) = verbs().pair();
    let ((_one, from), (_two, to)) = (file_in("/dev/shm"), file_in("/dev/shm"));
    serves(&left, &right, mapped(&from), mapped(&to));
}

/// The rig's devdax device, if there is one: `/dev/daxN.M`.
#[test]
fn a_devdax_device_is_registered_as_it_is() {
    if skipped("it writes to the first DAX device that it finds") {
        return;
    }
    let devices = fs::read_dir("/dev").unwrap().map(|e| e.unwrap().path());
    let device = devices.into_iter().find(|p| p.to_string_lossy().starts_with("/dev/dax"));
    let device = device.expect("a devdax device: soft-roce/run brings one");
    let (left, right) = verbs().pair();
    let file = OpenOptions::new().read(true).write(true).open(&device).unwrap();
    let anonymous = Arc::new(SharedMem::anonymous(BYTES).unwrap());
    serves(&left, &right, anonymous, mapped(&file));
}

/// `right` refuses the file at its registration, and the connection is none the worse.
fn is_refused(file: &File) {
    let (left, right) = verbs().pair();
    let refused = right.end.register(mapped(file), RemoteAccess::Write).unwrap_err();
    assert!(matches!(refused, FabricError::NotRegistrable { .. }), "{refused:?}");
    let anonymous = || Arc::new(SharedMem::anonymous(BYTES).unwrap());
    serves(&left, &right, anonymous(), anonymous());
}

#[test]
fn a_file_with_dax_is_refused_as_not_registrable() {
    if skipped("it needs a file system with DAX at /pmem") {
        return;
    }
    assert!(Path::new("/pmem").exists(), "a file system with DAX at /pmem: soft-roce/run brings one");
    is_refused(&file_in("/pmem").1);
}

/// Set for the process that registers under a limit.
const LIMITED: &str = "VERBS_MEMLOCK_LIMITED";

/// What the process under the limit does. Run by the harness like any test it has nothing to do.
#[test]
fn limited_process() {
    if std::env::var_os(LIMITED).is_none() {
        return;
    }
    let (left, _right) = verbs().pair();
    let anonymous = Arc::new(SharedMem::anonymous(BYTES).unwrap());
    println!("\nREFUSED {}", left.end.register(anonymous, RemoteAccess::Write).unwrap_err());
}

#[test]
fn a_limit_of_locked_memory_is_named_with_its_remedy() {
    let limited = Command::new("prlimit")
        .args(["--memlock=65536", "setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["memory::limited_process", "--exact", "--nocapture"])
        .env(LIMITED, "yes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&limited.stdout);
    let refusal = said
        .lines()
        .find_map(|line| line.strip_prefix("REFUSED "))
        .unwrap_or_else(|| panic!("it was not refused: {said}{}", String::from_utf8_lossy(&limited.stderr)));
    assert!(refusal.contains("RLIMIT_MEMLOCK is 65536 bytes"), "{refusal}");
    assert!(refusal.contains("LimitMEMLOCK=infinity"), "{refusal}");
}

#[test]
fn memory_of_a_request_may_be_let_go_of_before_it_ends() {
    let (left, right) = verbs().pair();
    let to = right.memory(BYTES, RemoteAccess::Write);
    let from: Arc<dyn Registration> = left.memory(BYTES, RemoteAccess::Local);
    fill(&from, 5);
    left.write((&from, 0, BYTES), (to.key(), 0), Some(1)).unwrap();
    drop(from);
    assert_eq!(left.successes(1), [1]);
    assert!(content(&to) == pattern(BYTES, 5));
}
