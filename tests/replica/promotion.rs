//! Promotion on a real file system, cut at every step; nothing that was there is written over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pmemha::replica::applier::{Applier, ApplierConfig, ApplyError};
use pmemha::replica::paths::PathError;
use pmemha::replica::place::How;
use pmemha::replica::promote::{PromoteError, Promoted, Request, SavedMark, check_places, promote, verify};
use pmemha::replica::recover;
use pmemha::replica::store::disk::DiskStore;
use pmemha::types::{Durability, Generation, Lsn};
use tempfile::TempDir;

use super::stream::{Builder, GENERATION, GROUP, fresh, land};
use pmemha::replica::StreamStart;

const RING: u64 = 64 << 10;

struct Setup {
    /// On tmpfs: the replica, and where its files go when that is the same file system.
    memory: TempDir,
    /// On another file system.
    disk: TempDir,
    paths: BTreeMap<PathBuf, PathBuf>,
}

impl Setup {
    fn new() -> Setup {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        let rules = [("/src", memory.path().join("files")), ("/src/far", disk.path().join("files"))];
        let paths = rules.into_iter().map(|(from, to)| (from.into(), to)).collect();
        Setup { memory, disk, paths }
    }

    fn config(&self) -> ApplierConfig {
        let durability = Durability::Battery;
        ApplierConfig {
            store: Arc::new(DiskStore::new(durability)),
            dir: self.memory.path().join("replica"),
            group: GROUP,
            durability,
        }
    }

    fn open(&self) -> Applier {
        recover::open(self.config()).unwrap().0
    }

    fn receive(&self, stream: &Builder) -> Applier {
        let mut applier = self.open();
        let ring = applier.take_stream(fresh(RING, super::stream::FIRST)).unwrap();
        for (header, payload) in &stream.records {
            land(&ring, header, payload);
        }
        applier
    }

    fn files(&self) -> PathBuf {
        self.memory.path().join("files")
    }

    fn near(&self, name: &str) -> PathBuf {
        self.files().join(name)
    }

    fn far(&self, name: &str) -> PathBuf {
        self.disk.path().join("files").join(name)
    }

    fn request(&self) -> Request<'_> {
        Request { paths: &self.paths, owner: None }
    }
}

fn stream() -> Builder {
    let mut stream = Builder::new();
    stream.begin().create(1, "/src/one", 8192).create(2, "/src/deep/er/two", 100).create(
        3,
        "/src/far/three",
        1 << 20,
    );
    stream.data(1, 0, &[1; 8192]).data(2, 0, &[2; 100]).data(3, 1 << 19, &[3; 64]).end();
    stream
}

fn mark(stream: &Builder) -> SavedMark {
    let digest = stream.records.iter().fold(0, |d, (h, _)| pmemha::log::digest::chain(d, h));
    SavedMark { generation: GENERATION, lsn: stream.at, digest }
}

fn run(applier: &mut Applier, request: &Request<'_>) -> Result<Promoted, PromoteError> {
    promote(applier, request, &mut |_| Ok(()))
}

fn check_files(setup: &Setup) {
    assert!(fs::read(setup.near("one")).unwrap() == [1; 8192]);
    assert!(fs::read(setup.near("deep/er/two")).unwrap() == [2; 100]);
    let three = fs::read(setup.far("three")).unwrap();
    assert_eq!(three.len(), 1 << 20);
    assert!(three[1 << 19..][..64] == [3; 64] && three.iter().filter(|b| **b != 0).count() == 64);
}

#[test]
fn the_saved_image_becomes_the_files() {
    let setup = Setup::new();
    let stream = stream();
    let mut applier = setup.receive(&stream);
    assert_eq!(verify(&mut applier, Some(mark(&stream))).unwrap().lsn, stream.at);
    let done = run(&mut applier, &setup.request()).unwrap();
    check_files(&setup);
    assert_eq!(done.image.lsn, stream.at);
    let how: Vec<How> = done.files.iter().map(|f| f.how).collect();
    assert_eq!(how, [How::Linked, How::Linked, How::Copied]);
    let mode =
        |p: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(p).unwrap().permissions()) & 0o7777;
    assert_eq!(mode(&setup.near("one")), 0o640);
    // The image is gone, the files are not; asked again, it says the same.
    assert!(setup.open().images().promotable().is_none());
    let again = run(&mut setup.open(), &setup.request()).unwrap();
    assert_eq!(again.files, done.files);
    check_files(&setup);
}

#[test]
fn cut_at_any_step_it_goes_on_and_keeps_what_was_there() {
    let stream = stream();
    for k in 0.. {
        let setup = Setup::new();
        fs::create_dir_all(setup.near("")).unwrap();
        fs::create_dir_all(setup.far("")).unwrap();
        fs::write(setup.near("one"), "precious").unwrap();
        std::os::unix::fs::symlink("/dev/null", setup.far("three")).unwrap();
        let mut steps = 0;
        let mut cut = |_: &'static str| {
            steps += 1;
            if steps > k { Err(io::Error::other("cut")) } else { Ok(()) }
        };
        let request = setup.request();
        let first = promote(&mut setup.receive(&stream), &request, &mut cut);
        let done = match first {
            Ok(done) => done,
            Err(PromoteError::Io { .. }) => {
                run(&mut setup.open(), &request).unwrap_or_else(|e| panic!("cut at {k}: {e}"))
            }
            Err(e) => panic!("cut at {k}: {e}"),
        };
        check_files(&setup);
        let aside: Vec<PathBuf> = done.files.iter().filter_map(|f| f.aside.clone()).collect();
        let [one, three] = aside.as_slice() else { panic!("cut at {k}: set aside {aside:?}") };
        assert_eq!(fs::read_to_string(one).unwrap(), "precious", "cut at {k}");
        assert_eq!(fs::read_link(three).unwrap(), Path::new("/dev/null"), "cut at {k}");
        let left: Vec<_> = fs::read_dir(setup.near("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|n| !n.to_string_lossy().ends_with(".part")), "cut at {k}: {left:?}");
        if steps <= k {
            assert!(k > 10, "only {k} steps");
            break;
        }
    }
}

#[test]
fn only_exactly_what_was_saved_passes_for_it() {
    let setup = Setup::new();
    let stream = stream();
    let mut applier = setup.receive(&stream);
    let saved = mark(&stream);
    for other in [
        SavedMark { lsn: stream.at.advance(32), ..saved },
        SavedMark { lsn: Lsn(stream.at.0 - 32), ..saved },
        SavedMark { generation: GENERATION.next(), ..saved },
    ] {
        let refused = verify(&mut applier, Some(other));
        assert!(matches!(refused, Err(PromoteError::Incomplete { .. })), "{other:?}: {refused:?}");
    }
    let bytes = SavedMark { digest: saved.digest ^ 1, ..saved };
    assert!(matches!(verify(&mut applier, Some(bytes)), Err(PromoteError::Digest { .. })));
    // It is there to be forced, or saved after all.
    assert_eq!(verify(&mut applier, None).unwrap(), verify(&mut applier, Some(saved)).unwrap());
}

#[test]
fn nothing_is_touched_when_two_regions_have_one_place() {
    let mut clash = super::stream::Builder::new();
    clash.begin().create(1, "/src/one", 1).create(2, "/twin/one", 1).end();
    let mut other = Setup::new();
    other.paths.insert("/twin".into(), other.memory.path().join("files"));
    let refused = run(&mut other.receive(&clash), &other.request());
    assert!(matches!(refused, Err(PromoteError::Clash { .. })));
    assert!(!other.near("").exists());
}

#[test]
fn after_a_promotion_only_a_later_generation_is_taken() {
    let setup = Setup::new();
    let stream = stream();
    let mut applier = setup.receive(&stream);
    run(&mut applier, &setup.request()).unwrap();
    let stale = applier.take_stream(fresh(RING, stream.at.advance(32)));
    assert!(matches!(stale, Err(ApplyError::Stale { .. })));
    applier.take_stream(StreamStart { generation: GENERATION.next(), ..fresh(RING, Lsn(0)) }).unwrap();
    assert_eq!(applier.generation(), Generation(4));
    check_files(&setup);
}

#[test]
fn a_file_without_a_place_holds_up_nothing_and_is_kept() {
    let setup = Setup::new();
    let mut stream = Builder::new();
    // A program replaces its file by renaming another one, and has died before the record of that.
    stream.begin().create(1, "/src/one", 4096).create(2, "/data/one.tmp", 4096).data(2, 0, &[2; 4096]).end();
    stream.create(3, "/src/three.pmemha-arriving", 4096).data(3, 0, &[3; 64]);
    let mut applier = setup.receive(&stream);
    verify(&mut applier, None).unwrap();
    check_places(&applier, &setup.paths).unwrap();
    let done = run(&mut applier, &setup.request()).unwrap();
    assert_eq!(done.files.iter().map(|f| &f.path).collect::<Vec<_>>(), [&setup.near("one")]);
    let kept = setup.memory.path().join("replica/unplaced-3/2-one.tmp");
    assert_eq!(done.unplaced.iter().map(|f| &f.path).collect::<Vec<_>>(), [&kept]);
    assert_eq!(fs::read(kept).unwrap(), [2; 4096]);
    assert_eq!(fs::read_dir(setup.near("")).unwrap().count(), 1, "what has not arrived is no file");
    assert_eq!(run(&mut setup.open(), &setup.request()).unwrap().unplaced, done.unplaced);
}

#[test]
fn files_that_have_no_place_at_all_are_refused_before_anything_is_decided() {
    let setup = Setup::new();
    let mut stream = Builder::new();
    stream.begin().create(1, "/data/one", 4096).create(2, "/data/two", 4096).end();
    let mut applier = setup.receive(&stream);
    verify(&mut applier, Some(mark(&stream))).unwrap();
    assert!(matches!(check_places(&applier, &setup.paths), Err(PromoteError::Path(_))));
    let same = [("/data/one", "/x/a"), ("/data/two", "/x/a")].map(|(from, to)| (from.into(), to.into()));
    assert!(matches!(check_places(&applier, &same.into()), Err(PromoteError::Clash { .. })));
}

#[test]
fn a_real_pool_of_a_machine_that_died_opens_after_its_state_was_cleared() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let pool = dir.path().join("pool");
    let made = std::process::Command::new("pmempool")
        .args(["create", "obj", "--layout=x", "-s", "8M"])
        .arg(&pool)
        .output();
    assert!(made.expect("pmempool is installed by the set-up").status.success());
    let mut bytes = fs::read(&pool).unwrap();
    // As a crash on another machine leaves it: dirty, with that machine's DIMM and count, checksum right.
    bytes[4024] = 0x55;
    bytes[4032] = 0x66;
    bytes[4040] = 1;
    let words: Vec<u32> =
        bytes[4024..4080].chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
    let (mut low, mut high) = (0u32, 0u32);
    for word in words.into_iter().chain([0, 0]) {
        low = low.wrapping_add(word);
        high = high.wrapping_add(low);
    }
    bytes[4080..4084].copy_from_slice(&low.to_le_bytes());
    bytes[4084..4088].copy_from_slice(&high.to_le_bytes());
    let mut stream = Builder::new();
    stream.begin().create(1, "/src/pool", bytes.len() as u64);
    for (i, page) in bytes.chunks(4096).enumerate().filter(|(_, p)| p.iter().any(|b| *b != 0)) {
        stream.data(1, i as u64 * 4096, page);
    }
    stream.end();
    let setup = Setup::new();
    let mut applier = setup.open();
    let ring = applier.take_stream(fresh(16 << 20, super::stream::FIRST)).unwrap();
    stream.records.iter().for_each(|(h, p)| land(&ring, h, p));
    let done = run(&mut applier, &setup.request()).unwrap();
    let says = done.files[0].pmdk.as_ref().unwrap();
    let has_state = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) & 4 != 0;
    assert_eq!(says.contains("shutdown state cleared"), has_state, "{says}");
    let checked =
        std::process::Command::new("pmempool").arg("check").arg(&done.files[0].path).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// The application's user.
const USER: u32 = 4242;

/// Makes a link the application's user's.
fn give(link: &Path) {
    std::os::unix::fs::lchown(link, Some(USER), Some(USER)).expect("run as root");
}

/// What a user who owns a place's directory does to the agent that works there with the rights of root: `swap` runs before each
/// step called `at`. Nothing outside is touched, the refusal says why, and without `swap` the next attempt ends well.
///
/// Whether it was refused.
fn swapped(at: &'static str, swap: impl Fn(&Setup, &Path)) -> bool {
    let setup = Setup::new();
    let outside = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(outside.path().join("one"), "not to be touched").unwrap();
    let stream = stream();
    let request = Request { owner: Some((USER, USER)), ..setup.request() };
    let mut step = |name: &'static str| {
        if name == at {
            swap(&setup, outside.path());
        }
        Ok(())
    };
    let swapped = promote(&mut setup.receive(&stream), &request, &mut step);
    let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(left.len(), 1, "{at}: {left:?}");
    let meta = fs::symlink_metadata(left[0].path()).unwrap();
    assert_ne!(std::os::unix::fs::MetadataExt::uid(&meta), USER, "{at}");
    assert_eq!(fs::read_to_string(left[0].path()).unwrap(), "not to be touched", "{at}");
    let refused = swapped.is_err();
    if let Err(error) = swapped {
        let said = error.to_string();
        assert!(said.contains("link") && said.contains("files"), "{at}: {said}");
        for there in [setup.files(), setup.near("deep")] {
            if there.is_symlink() {
                fs::remove_file(there).unwrap();
            }
        }
        run(&mut setup.open(), &request).unwrap();
        check_files(&setup);
    }
    refused
}

#[test]
fn a_link_in_the_place_of_a_directory_leads_the_agent_nowhere() {
    let swap_directory = |setup: &Setup, outside: &Path, there: &Path| {
        let moved = setup.memory.path().join("moved");
        if there.is_dir() && !moved.exists() {
            fs::rename(there, moved).unwrap();
            std::os::unix::fs::symlink(outside, there).unwrap();
            give(there);
        }
    };
    for at in ["part", "dress", "journal", "aside", "rename", "sync"] {
        swapped(at, |setup, outside| swap_directory(setup, outside, &setup.files()));
        swapped(at, |setup, outside| swap_directory(setup, outside, &setup.near("deep")));
    }
}

#[test]
fn a_link_in_the_place_of_a_file_is_refused_and_the_copy_is_kept() {
    let swap_part = |setup: &Setup, outside: &Path| {
        let part = setup.near(".pmemha-3-1.part");
        if part.exists() {
            fs::remove_file(&part).unwrap();
            std::os::unix::fs::symlink(outside.join("one"), &part).unwrap();
        }
    };
    for at in ["dress", "rename"] {
        assert!(swapped(at, swap_part), "{at}");
    }
}

#[test]
fn a_link_of_the_applications_user_to_the_configured_directory_is_refused_before_anything_is_decided() {
    let setup = Setup::new();
    let outside = tempfile::tempdir_in("/dev/shm").unwrap();
    let link = &setup.files();
    std::os::unix::fs::symlink(outside.path(), link).unwrap();
    let mut applier = setup.receive(&stream());
    verify(&mut applier, None).unwrap();
    check_places(&applier, &setup.paths).expect("the operator's link is followed");
    give(link);
    let refused = check_places(&applier, &setup.paths).unwrap_err().to_string();
    assert!(refused.contains("symbolic link of user 4242"), "{refused}");
}

#[test]
fn a_link_below_the_configured_directory_that_leads_out_is_refused_before_anything_is_decided() {
    let setup = Setup::new();
    let link = &setup.near("deep");
    let mut applier = setup.receive(&stream());
    verify(&mut applier, None).unwrap();
    check_places(&applier, &setup.paths).expect("what is not there is made");
    fs::create_dir_all(setup.near("other")).unwrap();
    let points = |to: &Path| {
        let _ = fs::remove_file(link);
        std::os::unix::fs::symlink(to, link).unwrap();
        check_places(&applier, &setup.paths)
    };
    points(Path::new("other")).expect("a relative one stays below");
    // Also where it leads to a directory below, for a rename of what is above would have it lead out.
    for to in [&setup.near("other"), Path::new("../.."), Path::new("/dev/shm")] {
        assert!(matches!(points(to), Err(PromoteError::Path(PathError::Outside { .. }))), "{to:?}");
    }
    assert!(points(Path::new("nowhere")).is_err(), "no directory can be made in its place");
    fs::remove_file(link).unwrap();
    check_places(&applier, &setup.paths).unwrap();
    run(&mut applier, &setup.request()).unwrap();
    check_files(&setup);
}

#[test]
fn what_keeps_files_without_a_place_from_being_kept_is_refused_before_anything_is_decided() {
    let setup = Setup::new();
    let mut stream = Builder::new();
    stream.begin().create(1, "/src/one", 4096).create(2, "/data/two", 4096).end();
    let mut applier = setup.receive(&stream);
    verify(&mut applier, None).unwrap();
    check_places(&applier, &setup.paths).unwrap();
    std::os::unix::fs::symlink("/dev/shm", setup.memory.path().join("replica/unplaced-3")).unwrap();
    assert!(matches!(
        check_places(&applier, &setup.paths),
        Err(PromoteError::Path(PathError::Outside { .. }))
    ));
}
