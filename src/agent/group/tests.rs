use super::*;
use crate::agent::config::Config;
use crate::agent::holder::{FdKeeper, KeeperError};
use crate::agent::state::PlacedFile;
use crate::file_id::FileId;
use crate::log::format::{Kind, MAX_REGION_BYTES};
use crate::log::{self, Consumer, Debt};
use crate::session::peer::Peer;
use rustix::fs::{Mode, OFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

mod rest;
mod unopened;
mod writers;

/// A keeper within the test: what survives the agent, and nothing else.
#[derive(Default)]
struct Kept(Mutex<BTreeMap<String, OwnedFd>>);

impl FdKeeper for Kept {
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), KeeperError> {
        self.0.lock().unwrap().insert(name.into(), fd.try_clone_to_owned()?);
        Ok(())
    }
    fn get(&self, name: &str) -> Result<Option<OwnedFd>, KeeperError> {
        Ok(self.0.lock().unwrap().get(name).map(|fd| fd.try_clone()).transpose()?)
    }
    fn list(&self) -> Result<Vec<String>, KeeperError> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }
    fn forget(&self, name: &str) -> Result<(), KeeperError> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
}

pub(in crate::agent) struct Bench {
    dir: tempfile::TempDir,
    config: config::Group,
    keeper: Kept,
    access: Arc<Access>,
    given: Option<GroupId>,
    placed: Vec<PlacedFile>,
}

impl Bench {
    pub(in crate::agent) fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[node]\nname = \"a\"\n[[group]]\nname = \"db\"\nlog_size = \"64KiB\"\nprotect = [\"{}/pm/*.pool\"]\n",
            dir.path().display()
        );
        std::fs::create_dir(dir.path().join("pm")).unwrap();
        let config = Config::parse(&text, Path::new("t")).unwrap().groups.remove(0);
        Bench {
            dir,
            config,
            keeper: Kept::default(),
            access: Arc::default(),
            given: None,
            placed: Vec::new(),
        }
    }

    /// An agent's life begins. The one before must have ended, as its lock on the directory would show.
    pub(in crate::agent) fn open(&self, lowest: u32) -> (Arc<Group>, Receiver<Notice>) {
        self.opened(lowest, Group::open)
    }

    fn opened<T>(
        &self,
        lowest: u32,
        by: impl FnOnce(OpenGroup<'_>) -> Result<T, GroupError>,
    ) -> (T, Receiver<Notice>) {
        let (tell, notices) = channel();
        let states = Arc::new(StateDir::open(&self.dir.path().join("state")).unwrap());
        let group = by(OpenGroup {
            config: &self.config,
            states: &states,
            access: &self.access,
            keeper: &self.keeper,
            generation: Generation(lowest),
            id: self.given,
            placed: &self.placed,
            apart: Vec::new(),
            notify: Box::new(move |n| tell.send(n).unwrap_or(())),
        });
        (group.unwrap(), notices)
    }

    pub(in crate::agent) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("pm").join(name)
    }

    fn placed(&self, name: &str) -> PlacedFile {
        let path = self.path(name);
        PlacedFile { file: FileId::at(&path).unwrap(), path }
    }

    pub(in crate::agent) fn file(&self, name: &str, len: u64) -> File {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(self.path(name));
        let file = file.unwrap();
        file.set_len(len).unwrap();
        file
    }
}

/// Kinds and regions of what a consumer reads from the log's start.
fn records(group: &Group) -> Vec<(Kind, RegionId)> {
    let log = group.log().clone();
    let mut consumer = Consumer::new(log, group.log().spec().first_lsn);
    let batch = consumer.next_batch(u64::MAX).unwrap().expect("something is published");
    batch.headers.iter().map(|h| (Kind::from_byte(h.kind).unwrap(), h.place().0)).collect()
}

impl Group {
    /// A process attaches for the first time, while the group is open.
    pub(in crate::agent) fn enters(&self, process: Process) -> ProcessId {
        self.attach(process, None).expect("the group is open")
    }

    /// For a client that may read everything.
    pub(in crate::agent) fn protect(
        &self,
        fd: BorrowedFd<'_>,
        len: u64,
        explicit: bool,
    ) -> Result<(Arc<Region>, Lsn), ProtectError> {
        self.protect_for(&Reader::root(), fd, len, explicit)
    }
}

fn why(result: Result<(Arc<Region>, Lsn), ProtectError>) -> String {
    result.map(|(r, _)| r.path()).unwrap_err().to_string()
}

/// A writer of `group` whose session is `id`; its cell stays behind as that of a process that was killed.
fn writer(group: &Group, id: ProcessId) -> std::mem::ManuallyDrop<Appender> {
    std::mem::ManuallyDrop::new(Appender::attach(group.log().clone(), id.0).unwrap())
}

fn process(pid: u32) -> Process {
    Process { pid: Some(pid), uid: 0, program: "db".into(), tracks: None, indoors: None, pidfd: None }
}

#[test]
fn a_region_is_in_the_log_before_its_number_is_given_out_and_keeps_it() {
    let bench = Bench::new();
    let (group, notices) = bench.open(1);
    let file = bench.file("a.pool", 8192);
    let (region, lsn) = group.protect(file.as_fd(), 0, false).unwrap();
    assert_eq!((region.id(), region.len()), (RegionId(1), 8192));
    assert!(group.log().published() >= lsn && lsn > group.log().spec().first_lsn);
    assert!(matches!(notices.try_recv().unwrap(), Notice::RegionAdded { whole: true, .. }));

    let again = File::options().write(true).open(bench.path("a.pool")).unwrap();
    assert_eq!(group.protect(again.as_fd(), 0, false).unwrap().0.id(), RegionId(1));
    assert!(notices.try_recv().is_err());
    assert_eq!(records(&group), [(Kind::RegionCreate, RegionId(1))]);
    assert_eq!(group.log().region(RegionId(1)).unwrap().size, 8192);
}

#[test]
fn a_file_with_more_content_than_the_log_takes_at_once_is_not_called_whole() {
    let bench = Bench::new();
    let (group, notices) = bench.open(1);
    let file = bench.file("a.pool", 16384);
    rustix::io::pwrite(&file, b"x", 5000).unwrap();
    group.protect(file.as_fd(), 0, false).unwrap();
    assert_eq!(records(&group), [(Kind::RegionCreate, RegionId(1))]);
    assert!(matches!(notices.try_recv().unwrap(), Notice::RegionAdded { whole: false, .. }));
}

#[test]
fn the_copy_that_a_file_needs_is_owed_by_whoever_opens_the_log_next() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let small = bench.file("small.pool", 8192);
    rustix::io::pwrite(&small, b"x", 5000).unwrap();
    group.protect(small.as_fd(), 0, false).unwrap();
    group.protect(bench.file("empty.pool", 1 << 20).as_fd(), 0, false).unwrap();
    drop(group);
    let (group, _notices) = bench.open(1);
    assert!(!group.log().owes(Debt::Copy), "all of it is in the log");
    let large = bench.file("large.pool", 16384);
    rustix::io::pwrite(&large, b"x", 5000).unwrap();
    group.protect(large.as_fd(), 0, false).unwrap();
    drop(group);
    let (group, _notices) = bench.open(1);
    assert!(group.log().owes(Debt::Copy) && !group.log().owes(Debt::Entry));
}

#[test]
fn a_file_that_an_agent_was_entering_when_it_ended_is_owed_as_a_copy() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    // The table cannot be stored where a directory stands: the agent gets so far and no further.
    let beside = bench.dir.path().join("state/groups/db/group.new");
    std::fs::create_dir(&beside).unwrap();
    group.protect(bench.file("a.pool", 8192).as_fd(), 0, false).unwrap_err();
    drop(group);
    std::fs::remove_dir(&beside).unwrap();
    let (group, _notices) = bench.open(1);
    assert!(group.log().owes(Debt::Copy) && !group.log().owes(Debt::Entry));
}

#[test]
fn a_file_that_is_protected_further_has_all_of_that_in_the_log_or_copied() {
    let bench = Bench::new();
    let (group, notices) = bench.open(1);
    let grown = |name, len: u64| {
        let file = bench.file(name, len);
        rustix::io::pwrite(&file, b"x", len - 1).unwrap();
        let (region, _) = group.protect(file.as_fd(), 4096, false).unwrap();
        group.log().settle(Debt::Copy);
        notices.try_recv().unwrap();
        group.protect(file.as_fd(), 0, false).unwrap();
        assert_eq!(group.log().region(region.id()).unwrap().size, len);
        matches!(notices.try_recv().unwrap(), Notice::RegionAdded { whole: true, .. })
    };
    assert!(grown("a.pool", 8192) && !group.log().owes(Debt::Copy));
    let kinds = [Kind::RegionCreate, Kind::Data, Kind::RegionRename, Kind::RegionResize, Kind::Data];
    assert_eq!(records(&group), kinds.map(|kind| (kind, RegionId(1))));
    assert!(!grown("b.pool", 32768) && group.log().owes(Debt::Copy), "more than the log takes at once");
}

#[test]
fn a_moved_file_is_renamed_in_the_log_before_another_takes_its_name() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    group.protect(bench.file("a.pool", 4096).as_fd(), 0, false).unwrap();
    // By a process that records it late, or never.
    std::fs::rename(bench.path("a.pool"), bench.path("b.pool")).unwrap();
    group.protect(bench.file("a.pool", 4096).as_fd(), 0, false).unwrap();
    let (first, second) = (RegionId(1), RegionId(2));
    let kinds = [(Kind::RegionCreate, first), (Kind::RegionRename, first), (Kind::RegionCreate, second)];
    assert_eq!(records(&group), kinds);
}

#[test]
fn a_small_file_s_content_is_in_the_log_before_its_name() {
    let bench = Bench::new();
    let (group, notices) = bench.open(1);
    let file = bench.file("a.pool", 8192);
    rustix::io::pwrite(&file, b"x", 5000).unwrap();
    let (region, _) = group.protect(file.as_fd(), 0, false).unwrap();
    let kinds = [Kind::RegionCreate, Kind::Data, Kind::RegionRename];
    assert_eq!(records(&group), kinds.map(|kind| (kind, RegionId(1))));
    assert!(matches!(notices.try_recv().unwrap(), Notice::RegionAdded { whole: true, .. }));
    assert_eq!(region.path(), bench.path("a.pool"));
}

#[test]
fn what_gone_files_had_is_used_again_once_everyone_let_go() {
    let bench = Bench::new();
    let (group, notices) = bench.open(1);
    let (me, other) = (group.enters(process(10)), group.enters(process(11)));
    let mut bits = std::collections::BTreeSet::new();
    let mut journals = |holder: ProcessId, count| {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..count {
            let (region, _) = group.protect(bench.file("journal.pool", 0).as_fd(), 0, false).unwrap();
            let id = region.id();
            group.told(id, holder);
            bits.insert(group.log().region(id).unwrap().first_bit);
            seen.insert(id);
            std::fs::remove_file(bench.path("journal.pool")).unwrap();
            group.region_unlinked(id).unwrap();
            group.released(id, me);
            drop(region);
            notices.try_iter().for_each(drop);
            group.log().set_free(group.log().published());
        }
        seen
    };
    let held = journals(other, 1);
    let seen = journals(me, 300);
    assert!(seen.len() < 300, "no number was used again");
    assert!(seen.is_disjoint(&held), "a number was used again that a process may still append under");
    group.ended(other, Ending::Exited);
    assert!(journals(me, 300).is_superset(&held), "a dead process holds its number");
    assert_eq!(bits.len(), 1, "each journal took bits of its own");
}

#[test]
fn who_may_not_write_a_file_cannot_protect_it() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    drop(bench.file("a.pool", 4096));
    let path = bench.path("a.pool");
    let read_only = File::open(&path).unwrap();
    assert!(why(group.protect(read_only.as_fd(), 0, true)).contains("not open for writing"));
    let path_only = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert!(why(group.protect(path_only.as_fd(), 0, true)).contains("not open for writing"));
}

#[test]
fn who_may_only_write_a_file_does_not_get_its_content_into_a_log_that_it_reads() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let readable = bench.file("a.pool", 4096);
    let write_only = File::options().write(true).open(bench.path("a.pool")).unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let client = Peer { uid: 4711, gid: 4711, groups: vec![], ..Peer::of(&socket).unwrap() };
    let client = Reader::from(&client);
    let mode = |bits| readable.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(bits)).unwrap();
    mode(0o622);
    let refused = why(group.protect_for(&client, write_only.as_fd(), 0, true));
    assert!(refused.contains("user 4711 may write it, but not read it"), "{refused}");
    assert!(group.regions().is_empty());
    group.protect_for(&client, readable.as_fd(), 0, true).expect("it was given the right to read");
    mode(0o626);
    group.protect_for(&client, write_only.as_fd(), 0, true).expect("it may read");
}

#[test]
fn what_was_put_in_the_place_of_an_unopened_file_is_not_read() {
    let mut bench = Bench::new();
    let (group, _notices) = bench.open(1);
    for name in ["a.pool", "b.pool", "c.pool"] {
        group.protect(bench.file(name, 4096).as_fd(), 0, false).unwrap();
    }
    bench.placed = ["a.pool", "b.pool", "c.pool"].map(|name| bench.placed(name)).into();
    drop(group);
    let secret = bench.dir.path().join("secret");
    std::fs::write(&secret, b"secret").unwrap();
    // A link even to the file itself could be turned to another one.
    std::fs::rename(bench.path("b.pool"), bench.path("moved")).unwrap();
    std::fs::remove_file(bench.path("c.pool")).unwrap();
    symlink(bench.path("moved"), bench.path("b.pool")).unwrap();
    symlink(&secret, bench.path("c.pool")).unwrap();
    bench.keeper.0.lock().unwrap().clear();
    // The log was lost; another node owned the group in between.
    for generation in [2, 4] {
        let (group, _notices) = bench.open(generation);
        let paths: Vec<_> = group.regions().iter().map(|r| r.path()).collect();
        assert_eq!(paths, [bench.path("a.pool")], "generation {generation}");
    }
}

#[test]
fn only_files_with_a_name_and_devices_of_persistent_memory_are_protected() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let gone = bench.file("gone.pool", 4096);
    std::fs::remove_file(bench.path("gone.pool")).unwrap();
    assert!(why(group.protect(gone.as_fd(), 0, true)).contains("no name"));
    let (_, pipe) = rustix::pipe::pipe().unwrap();
    assert!(why(group.protect(pipe.as_fd(), 0, true)).contains("no name"));
    let zero = File::options().write(true).open("/dev/zero").unwrap();
    assert!(why(group.protect(zero.as_fd(), 4096, true)).contains("no DAX device"));
    assert!(group.regions().is_empty());
}

#[test]
fn what_no_destination_takes_is_not_protected() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let file = bench.file("a.pool", 4096);
    assert!(why(group.protect(file.as_fd(), MAX_REGION_BYTES + 1, true)).contains("the limit is 16 TiB"));
    let odd = bench.path("").join(OsStr::from_bytes(b"\xff.pool"));
    std::fs::rename(bench.path("a.pool"), &odd).unwrap();
    assert!(why(group.protect(file.as_fd(), 0, true)).contains("not UTF-8"));
    assert!(group.regions().is_empty());
}

#[test]
fn a_copy_leaves_out_what_no_destination_takes_and_keeps_a_name_that_one_does() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    group.protect(bench.file("a.pool", 4096).as_fd(), 0, true).unwrap();
    let large = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    group.protect(large.as_file().as_fd(), 0, true).unwrap();
    // By means that no record tells of.
    std::fs::rename(bench.path("a.pool"), bench.path("").join(OsStr::from_bytes(b"\xff.pool"))).unwrap();
    large.as_file().set_len(MAX_REGION_BYTES + 1).unwrap();
    group.follow_files(|_, _| ()).unwrap();
    let named: Vec<_> = group.regions().iter().map(|r| r.path()).collect();
    assert_eq!(named, [bench.path("a.pool")]);
}

#[test]
fn patterns_are_matched_against_the_real_path_of_the_descriptor() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let secret = bench.dir.path().join("secret");
    std::fs::write(&secret, b"x").unwrap();
    symlink(&secret, bench.path("alias.pool")).unwrap();
    let alias = File::options().write(true).open(bench.path("alias.pool")).unwrap();
    let refused = group.protect(alias.as_fd(), 0, false);
    assert!(matches!(refused, Err(ProtectError::NotNamed(path)) if path == secret));
    assert_eq!(group.protect(alias.as_fd(), 0, true).unwrap().0.path(), secret);
}

#[test]
fn an_agent_that_was_killed_finds_log_and_regions_again() {
    let bench = Bench::new();
    let (first, _notices) = bench.open(1);
    let (a, b) = (bench.file("a.pool", 4096), bench.file("b.pool", 4096));
    first.protect(a.as_fd(), 0, false).unwrap();
    first.protect(b.as_fd(), 0, false).unwrap();
    let (id, tail) = (first.id(), first.log().tail());
    drop(first);
    std::fs::remove_file(bench.path("a.pool")).unwrap();

    let (second, _notices) = bench.open(1);
    assert!(second.resumed());
    assert_eq!((second.id(), second.generation(), second.log().tail()), (id, Generation(1), tail));
    let paths: Vec<_> = second.regions().iter().map(|r| (r.id(), r.path())).collect();
    assert_eq!(paths, [(RegionId(2), bench.path("b.pool"))], "a's file is gone");
    let c = bench.file("c.pool", 4096);
    assert_eq!(second.protect(c.as_fd(), 0, false).unwrap().0.id(), RegionId(3), "no number is used twice");
    let bits: Vec<_> = second.regions().iter().map(|r| second.log().region(r.id()).unwrap()).collect();
    assert!(bits[0].first_bit + bits[0].bits() <= bits[1].first_bit, "{bits:?} overlap");
}

#[test]
fn a_log_that_was_lost_or_is_too_old_starts_a_new_generation() {
    let bench = Bench::new();
    let (first, _n) = bench.open(1);
    let id = first.id();
    drop(first);
    bench.keeper.0.lock().unwrap().clear();
    let (second, _n) = bench.open(1);
    assert_eq!((second.id(), second.generation(), second.resumed()), (id, Generation(2), false));
    drop(second);
    let (promoted, _n) = bench.open(7);
    assert_eq!((promoted.generation(), promoted.resumed()), (Generation(7), false));
    assert_eq!(bench.keeper.list().unwrap(), ["db.7"], "old logs are forgotten");
}

#[test]
fn a_log_that_was_given_up_is_found_to_see_its_processes_and_nothing_else() {
    let mut bench = Bench::new();
    let find = |bench: &Bench| bench.opened(0, Group::find_stale).0;
    assert!(find(&bench).is_none(), "there was none");
    let (group, _notices) = bench.open(5);
    group.protect(bench.file("a.pool", 4096).as_fd(), 0, false).unwrap();
    let (id, tail) = (group.id(), group.log().tail());
    drop(group);
    let state = || std::fs::read(bench.dir.path().join("state/groups/db").join(STATE_FILE)).unwrap();
    let before = state();

    let stale = find(&bench).expect("it is kept");
    assert_eq!((stale.generation(), stale.resumed()), (Generation(5), false));
    let process =
        Process { pid: Some(1), uid: 0, program: "db".into(), tracks: None, indoors: None, pidfd: None };
    assert!(stale.attach(process, None).is_none());
    bench.file("b.pool", 4096);
    stale.go_on();
    (0..2).for_each(|_| stale.look_at_first());
    assert_eq!((stale.log().tail(), state()), (tail, before.clone()), "something was recorded");
    drop(stale);
    // A child that another test has forked has it mapped until it becomes another program.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let is_found = || {
        bench.keeper.0.lock().unwrap().clear();
        find(&bench).is_some()
    };
    while is_found() {
        assert!(std::time::Instant::now() < end, "it is neither kept nor mapped");
    }
    assert!(bench.keeper.list().unwrap().is_empty(), "one was made");
    assert_eq!(state(), before);

    let (_, _notices) = bench.open(5);
    bench.given = Some(GroupId([7; 16]));
    assert!(id != GroupId([7; 16]) && find(&bench).is_none(), "it is of another group of this name");
}

#[test]
fn a_file_that_takes_anothers_place_gets_a_number_of_its_own() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let old = bench.file("a.pool", 4096);
    group.protect(old.as_fd(), 0, false).unwrap();
    std::fs::remove_file(bench.path("a.pool")).unwrap();
    let new = bench.file("a.pool", 4096);
    assert_eq!(group.protect(new.as_fd(), 0, false).unwrap().0.id(), RegionId(2));
    assert_eq!(group.regions().iter().map(|r| r.id()).collect::<Vec<_>>(), [RegionId(2)]);
}

#[test]
fn what_the_log_says_of_regions_is_kept_across_agents() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    for name in ["a.pool", "b.pool", "c.pool"] {
        group.protect(bench.file(name, 4096).as_fd(), 0, false).unwrap();
    }
    group.region_unlinked(RegionId(3)).unwrap();
    std::fs::rename(bench.path("a.pool"), bench.path("b.pool")).unwrap();
    group.region_renamed(RegionId(1), bench.path("b.pool").to_str().unwrap()).unwrap();
    group.region_resized(RegionId(1), 12288).unwrap();
    drop(group);
    let (group, _notices) = bench.open(1);
    let regions: Vec<_> = group.regions().iter().map(|r| (r.id(), r.path(), r.len())).collect();
    assert_eq!(regions, [(RegionId(1), bench.path("b.pool"), 12288)]);
}

#[test]
fn a_region_is_found_again_by_no_name_that_is_another_file_s() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let (region, _) = group.protect(bench.file("a.pool", 4096).as_fd(), 0, false).unwrap();
    let [a, b, secret] = ["a.pool", "b.pool", "secret"].map(|name| bench.path(name));
    std::fs::write(&secret, "the agent may read it").unwrap();
    std::fs::rename(&a, &b).unwrap();
    for forged in [&secret, &bench.path("not-there-yet")] {
        group.region_renamed(region.id(), forged.to_str().unwrap()).unwrap();
        assert_eq!(region.path(), b, "the application says {forged:?}");
    }
    let state = group.states.group_dir(group.name()).unwrap().join(STATE_FILE);
    drop((region, group));
    // The file is gone, and the next one that got its number has its name.
    let mut known: GroupState = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    let born = known.regions[0].file.born.as_mut().expect("this file system knows it");
    born.0 -= 1;
    std::fs::write(&state, serde_json::to_vec(&known).unwrap()).unwrap();
    assert!(bench.open(1).0.regions().is_empty());
}

#[test]
fn the_beginning_of_a_file_stays_that_until_all_of_it_is_asked_for() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let file = bench.file("a.pool", 12288);
    let (region, _) = group.protect(file.as_fd(), 4096, true).unwrap();
    group.follow_files(|_, _| ()).unwrap();
    assert_eq!(region.len(), 4096);
    drop((region, group));
    let (group, _notices) = bench.open(1);
    group.follow_files(|_, _| ()).unwrap();
    assert_eq!(group.regions()[0].len(), 4096);
    group.protect(file.as_fd(), 0, true).unwrap();
    file.set_len(16384).unwrap();
    group.follow_files(|_, _| ()).unwrap();
    assert_eq!(group.regions()[0].len(), 16384);
}

#[test]
fn an_heir_goes_on_under_the_identity_that_the_source_gave() {
    let mut bench = Bench::new();
    bench.given = Some(GroupId([7; 16]));
    let (group, _notices) = bench.open(2);
    assert_eq!(group.id(), GroupId([7; 16]));
}

#[test]
fn the_memory_of_a_log_is_stated_and_bounded() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let before = group.log_status();
    group.protect(bench.file("a.pool", 4096).as_fd(), 0, false).unwrap();
    let bytes = vec![1; before.ring_bytes as usize / 8];
    group.appender().append(Kind::Data, RegionId(1), 0, &bytes).unwrap();
    let after = group.log_status();
    assert!(after.memory_bytes >= before.memory_bytes + bytes.len() as u64, "{before:?} {after:?}");
    assert!(after.memory_bytes <= after.memory_limit_bytes, "{after:?}");
    // As docs/architecture.md, section 10, has it.
    let stated = before.ring_bytes * 5 / 4 + (1 << 20) + (256 << 10);
    assert!((stated..stated + (1 << 20)).contains(&after.memory_limit_bytes), "{after:?}, not {stated}");
}

#[test]
fn a_program_is_not_held_by_what_an_earlier_agent_was_doing() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    group.log().set_pace(log::Pace::Room);
    drop(group);
    let (group, _notices) = bench.open(1);
    assert!(group.resumed());
    assert_eq!(group.log().pace(), log::Pace::Free);
}
