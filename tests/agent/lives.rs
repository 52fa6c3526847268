//! The agent's own lives: start, SIGTERM, SIGKILL, refusals to start.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use pmemha::agent::holder::{FdKeeper, Holder};
use pmemha::session::wire::{Reply, Request};
use pmemha_testkit::wait;

use crate::bench::Bench;

/// What an agent that does not start says, and its exit code.
fn refusal(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

#[test]
fn log_regions_and_applications_outlive_an_agent_that_is_killed() {
    let bench = Bench::new();
    let first = bench.start();
    let client = bench.connect();
    let Reply::Welcome { generation, group_id, session, .. } = client.hello("db") else { panic!() };
    let pool = bench.pool("a.pool", 1 << 20);
    let protect = Request::Protect { len: 0, explicit: false };
    let Reply::Protected { region, .. } = client.ask_with(&protect, Some(&pool)) else { panic!() };
    first.kill();

    let _second = bench.start();
    let client = bench.connect();
    let Reply::Welcome { generation: g, group_id: id, session: s, .. } = client.hello("db") else { panic!() };
    assert_eq!((g, id), (generation, group_id), "the same log");
    assert!(s > session, "session numbers are not used twice");
    let Reply::Protected { region: r, .. } = client.ask_with(&protect, Some(&pool)) else { panic!() };
    assert_eq!(r, region);
    assert_eq!(bench.connect().status()["groups"][0]["generation"], generation.0);
}

#[test]
fn sigterm_finishes_and_leaves_neither_socket_nor_failure() {
    let bench = Bench::new();
    let agent = bench.start();
    assert!(matches!(bench.connect().hello("db"), Reply::Welcome { .. }));
    let (code, said) = agent.terminate();
    assert_eq!(code, Some(0), "{said}");
    assert!(!bench.socket().exists());
}

#[test]
fn an_operators_shutdown_does_what_sigterm_does() {
    let bench = Bench::new();
    let mut agent = bench.start();
    assert_eq!(bench.connect().ask(&Request::Shutdown {}), Reply::Ok {});
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_agent_on_the_same_state_is_told_of_the_first() {
    let bench = Bench::new();
    let first = bench.start();
    let (code, said) = refusal(bench.spawn());
    assert_eq!(code, Some(70));
    assert!(said.contains(&format!("pid {}", first.child.id())) && said.contains("state_dir"), "{said}");
    assert!(matches!(bench.connect().hello("db"), Reply::Welcome { .. }), "the first serves on");
}

#[test]
fn a_configuration_that_cannot_be_used_is_explained() {
    let bench = Bench::with("log_sise = \"1MiB\"");
    let (code, said) = refusal(bench.spawn());
    assert_eq!(code, Some(78));
    assert!(said.contains("conf:9: group[0].log_sise") && said.contains("`log_size`"), "{said}");
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let bench = Bench::new();
    std::fs::write(bench.path("state"), b"a file stands here").unwrap();
    let (code, said) = refusal(bench.spawn());
    assert_eq!(code, Some(70));
    assert!(said.contains(bench.path("state").to_str().unwrap()), "{said}");
}

#[test]
fn anyone_may_connect_and_nobody_else_can_read_state() {
    let bench = Bench::new();
    let _agent = bench.start();
    let mode = |name: &str| std::fs::metadata(bench.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("run/pmemhad.sock"), mode("state"), mode("run/holder.sock")), (0o666, 0o700, 0o600));
}

#[test]
fn a_group_that_cannot_be_opened_costs_the_others_nothing_and_says_why() {
    let bench =
        Bench::with("[[group]]\nname = \"web\"\nlog_size = \"1MiB\"\nprotect = [\"/nowhere/*.pool\"]");
    bench.start().kill();
    std::fs::write(bench.path("state/groups/web/group.json"), "garbage").unwrap();
    let agent = bench.start();
    assert!(matches!(bench.connect().hello_to(Some("db"), "db"), Reply::Welcome { .. }));
    let Reply::Error { message, .. } = bench.connect().hello_to(Some("web"), "web") else {
        panic!("it was opened")
    };
    assert!(
        message.contains("group `web` could not be opened") && message.contains("state/groups/web"),
        "{message}"
    );
    let status = bench.connect().status();
    let web = status["groups"].as_array().unwrap().iter().find(|g| g["name"] == "web").unwrap();
    assert_eq!(web["state"], "unusable");
    assert!(web["error"].as_str().unwrap().contains("state/groups/web"), "{web}");
    let (code, said) = agent.terminate();
    assert!(code == Some(0) && said.contains("left undone: group `web`"), "{said}");
}

#[test]
fn an_agent_that_finds_no_libibverbs_serves_and_says_why_verbs_is_off() {
    let bench = Bench::new();
    // Found before that of the system, if there is one.
    let libraries = bench.path("libraries");
    std::fs::create_dir(&libraries).unwrap();
    std::fs::write(libraries.join("libibverbs.so.1"), "no library").unwrap();
    let agent = bench.start_as(bench.agent().env("LD_LIBRARY_PATH", &libraries));
    assert!(matches!(bench.connect().hello("db"), Reply::Welcome { .. }));
    let rdma = bench.connect().status()["node"]["rdma"].take();
    let off = rdma["off"].as_str().unwrap_or_default();
    let told = off.contains("libibverbs.so.1") && off.contains("install the packages libibverbs1");
    assert!(told && rdma["device"].is_null(), "{rdma}");
    assert_eq!(agent.terminate().0, Some(0));
}

#[test]
fn an_archive_that_cannot_be_written_is_said_at_the_end() {
    let dir = Path::new("/dev/null/archive");
    let bench = Bench::with(&format!("archive = {{ dir = \"{}\" }}", dir.display()));
    let agent = bench.start();
    assert!(matches!(bench.connect().hello("db"), Reply::Welcome { .. }));
    wait::eventually("the archive to fail", Duration::from_secs(10), || {
        bench.connect().status()["groups"][0]["archive"]["last_error"].is_string()
    });
    let (code, said) = agent.terminate();
    let told = said.contains("left undone: group `db`: nothing is archived:")
        && said.contains(dir.to_str().unwrap());
    assert!(code == Some(0) && told, "{said}");
}

#[test]
fn a_log_of_another_version_is_given_up_once_no_program_writes_to_it() {
    let bench = Bench::new();
    let first = bench.start();
    let Reply::Welcome { generation, .. } = bench.connect().hello("db") else { panic!() };
    first.kill();
    let holder = Holder::find_or_start(&bench.path("run/holder.sock"), Path::new("/bin/false")).unwrap();
    let log = holder.get(&format!("db.{generation}")).unwrap().expect("the log is kept");
    // Behind the magic number.
    rustix::io::pwrite(&log, &99u32.to_le_bytes(), 8).unwrap();
    let script =
        "import mmap, sys\nm = mmap.mmap(0, 0)\nprint(flush=True)\nsys.stdin = open(1)\nsys.stdin.read()";
    let mut python = std::process::Command::new("python3");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    python.args(["-c", script]).stdin(log).stdout(std::os::fd::OwnedFd::from(theirs));
    let mut program = python.spawn().unwrap();
    drop(python);
    (&ours).read_exact(&mut [0]).unwrap();
    let (code, said) = refusal(bench.spawn());
    assert_eq!(code, Some(70), "{said}");
    let pid = program.id();
    assert!(said.contains(&format!("process {pid} writes")) && said.contains("layout version 99"), "{said}");
    drop(ours);
    program.wait().unwrap();
    let _second = bench.start();
    let Reply::Welcome { generation: next, .. } = bench.connect().hello("db") else { panic!() };
    assert_eq!(next, generation.next(), "a new log, whose copy brings what the old one held");
}
