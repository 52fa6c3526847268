//! The holder keeps what it was given, whoever dies, and hears nobody else.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use pmemha::agent::holder::{FdKeeper, Holder, KeeperError};
use pmemha::session::socket::Connection;
use rustix::fs::{MemfdFlags, memfd_create};

const PMEMHAD: &str = env!("CARGO_BIN_EXE_pmemhad");

fn memfd_with(content: &[u8]) -> std::os::fd::OwnedFd {
    let fd = memfd_create("kept", MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&fd, content, 0).unwrap();
    fd
}

fn content_of(keeper: &dyn FdKeeper, name: &str) -> Vec<u8> {
    let fd = keeper.get(name).unwrap().unwrap_or_else(|| panic!("{name} is not kept"));
    let mut content = vec![0; 64];
    let n = rustix::io::pread(&fd, &mut content, 0).unwrap();
    content.truncate(n);
    content
}

#[test]
fn what_is_kept_is_found_again_by_the_next_agent_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("holder.sock");
    let first = Holder::find_or_start(&socket, Path::new(PMEMHAD)).unwrap();
    first.put("db.7", memfd_with(b"log of db").as_fd()).unwrap();
    first.put("web.1", memfd_with(b"log of web").as_fd()).unwrap();
    first.put("web.1", memfd_with(b"newer log of web").as_fd()).unwrap();
    drop(first);

    // No program is needed: the holder runs, and another would be refused to start from this path.
    let second = Holder::find_or_start(&socket, Path::new("/nonexistent")).unwrap();
    assert_eq!(second.list().unwrap(), ["db.7", "web.1"]);
    assert_eq!(content_of(&second, "db.7"), b"log of db");
    assert_eq!(content_of(&second, "web.1"), b"newer log of web");
    second.forget("db.7").unwrap();
    assert!(second.get("db.7").unwrap().is_none());
    second.finish().unwrap();
    assert!(matches!(second.list(), Err(KeeperError::Unreachable(_))));
}

#[test]
fn garbage_half_requests_and_too_much_leave_it_serving() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("holder.sock");
    let holder = Holder::find_or_start(&socket, Path::new(PMEMHAD)).unwrap();
    let fd = memfd_with(b"x");
    holder.put("kept", fd.as_fd()).unwrap();

    let soon = || Instant::now() + Duration::from_secs(10);
    for garbage in [serde_json::json!({"ask": "format"}), serde_json::json!("x".repeat(60_000))] {
        let client = Connection::connect(&socket, soon()).unwrap();
        client.send(&garbage, Some(fd.as_fd()), Some(soon())).unwrap();
    }
    drop(Connection::connect(&socket, soon()).unwrap());
    let refused = |result: Result<(), KeeperError>| assert!(matches!(result, Err(KeeperError::Refused(_))));
    refused(holder.put(&"n".repeat(101), fd.as_fd()));
    refused(holder.put("", fd.as_fd()));
    for i in 0..511 {
        holder.put(&format!("{i}{}", "n".repeat(96)), fd.as_fd()).unwrap();
    }
    refused(holder.put("one too many", fd.as_fd()));

    assert_eq!(holder.list().unwrap().len(), 512);
    assert_eq!(content_of(&holder, "kept"), b"x");
    holder.finish().unwrap();
}

#[test]
fn a_program_that_cannot_hold_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Holder::find_or_start(&dir.path().join("s"), Path::new("/bin/false")).unwrap_err();
    assert!(error.to_string().contains("/bin/false hold"), "{error}");
}
