//! Every function, and every way to misuse it: what it returns, what it says, and that it did nothing.
//!
//! Called as C calls it, in this process, so that the agent can be taken away in the middle. `05-errors.c` shows the same to people.

use std::ffi::{CStr, CString, c_int, c_void};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut, without_provenance_mut};
use std::time::{Duration, Instant};

use pmemha::capi::pmemha_rc::*;
use pmemha::capi::*;
use pmemha::log::LinkState;
use pmemha::log::region::boottime;
use pmemha::types::Level;
use pmemha_testkit::dirs::in_memory;
use pmemha_testkit::test_agent::TestAgent;
use pmemha_testkit::wait;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

pub const SIZE: usize = 8192;
pub const LSN_NEVER: u64 = u64::MAX;

/// What the last failure of this thread said.
pub fn message() -> String {
    // SAFETY: the pointer is valid until the next failure on this thread.
    unsafe { CStr::from_ptr(pmemha_errormsg()) }.to_str().unwrap().to_owned()
}

/// The status, and a word of the message if it is a failure.
#[track_caller]
pub fn expect(got: pmemha_rc, want: pmemha_rc, word: &str, misuse: &str) {
    assert_eq!(got, want, "{misuse}: {}", message());
    assert!(want == PMEMHA_OK || message().contains(word), "{misuse}: {}", message());
}

/// A session, a mapped file that it protects, by address and by path.
pub struct Rig {
    _dir: tempfile::TempDir,
    path: PathBuf,
    pub memory: *mut c_void,
    pub session: *mut pmemha_session,
    pub mapped: *mut pmemha_region,
    by_path: *mut pmemha_region,
}

impl Rig {
    pub fn new(agent: &TestAgent) -> Rig {
        let dir = in_memory();
        let path = dir.path().join("file");
        let (memory, session) = (map(&path, MapFlags::SHARED), open(&agent.socket()));
        let (mut mapped, mut by_path) = (null_mut(), null_mut());
        // SAFETY: valid pointers; the range is mapped until the rig is dropped.
        unsafe {
            expect(pmemha_protect_range(session, memory, SIZE, &mut mapped), PMEMHA_OK, "", "protect_range");
            let rc = pmemha_protect_path(session, c(&path).as_ptr(), 0, &mut by_path);
            expect(rc, PMEMHA_OK, "", "protect_path");
        }
        Rig { _dir: dir, path, memory, session, mapped, by_path }
    }

    fn at(&self, offset: usize) -> *mut c_void {
        self.memory.wrapping_byte_add(offset)
    }

    pub fn persist(&self) -> u64 {
        let mut lsn = 0;
        // SAFETY: within the mapping.
        let rc = unsafe { pmemha_persist(self.mapped, self.memory, 8, &mut lsn) };
        expect(rc, PMEMHA_OK, "", "persist");
        lsn
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // SAFETY: ours, and used no more.
        unsafe {
            pmemha_close(&mut self.session);
            munmap(self.memory, SIZE).unwrap();
        }
    }
}

pub fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn map(path: &Path, how: MapFlags) -> *mut c_void {
    let file =
        std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    file.set_len(SIZE as u64).unwrap();
    // SAFETY: a new mapping, at an address of the kernel's choice.
    unsafe { mmap(null_mut(), SIZE, ProtFlags::READ | ProtFlags::WRITE, how, file.as_fd(), 0) }.unwrap()
}

fn open(socket: &Path) -> *mut pmemha_session {
    let mut session = null_mut();
    // SAFETY: valid pointers.
    expect(unsafe { pmemha_open(c(socket).as_ptr(), null(), &mut session) }, PMEMHA_OK, "", "open");
    session
}

pub fn close(mut session: *mut pmemha_session) -> pmemha_rc {
    // SAFETY: a valid pointer to a handle, of whatever worth.
    unsafe { pmemha_close(&mut session) }
}

/// Every call that takes a session, with otherwise good arguments.
fn with_session(rig: &Rig, session: *mut pmemha_session) -> Vec<(&'static str, pmemha_rc)> {
    let mut region = without_provenance_mut(1);
    let (mut info, mut lsn, mut needed, path) = (empty_info(), 7, 7, c(&rig.path));
    // SAFETY: valid pointers; the handle is the library's to judge.
    let all = unsafe {
        vec![
            ("status", pmemha_status(session, &mut info, size_of::<pmemha_info>())),
            ("status_json", pmemha_status_json(session, null_mut(), 0, &mut needed)),
            ("last_gasp", pmemha_last_gasp(session)),
            ("protect_range", pmemha_protect_range(session, rig.memory, SIZE, &mut region)),
            ("protect_path", pmemha_protect_path(session, path.as_ptr(), 0, &mut region)),
            ("drain", pmemha_drain(session, &mut lsn)),
            ("wait", pmemha_wait(session, 0, 0, 0)),
        ]
    };
    assert!((lsn, needed, info.generation) == (7, 7, 0) && region.is_null(), "nothing but the handle is set");
    all
}

fn empty_info() -> pmemha_info {
    // SAFETY: plain numbers.
    unsafe { std::mem::zeroed() }
}

/// Every call that takes a region, with otherwise good arguments.
fn with_region(rig: &Rig, region: *mut pmemha_region) -> Vec<(&'static str, pmemha_rc)> {
    let mut lsn = 7;
    // SAFETY: within the mapping; the handle is the library's to judge.
    let all = unsafe {
        vec![
            ("flush", pmemha_flush(region, rig.memory, 8)),
            ("persist", pmemha_persist(region, rig.memory, 8, &mut lsn)),
            ("append", pmemha_append(region, 0, rig.memory, 8)),
        ]
    };
    assert_eq!(lsn, 7);
    all
}

#[test]
fn what_is_no_handle_is_refused_by_every_function() {
    let agent = TestAgent::start();
    let rig = Rig::new(&agent);
    let (memory, published) = (rig.memory, agent.log().tail());
    for (what, rc) in with_session(&rig, null_mut()).into_iter().chain(with_region(&rig, null_mut())) {
        assert_eq!(rc, PMEMHA_E_INVAL, "{what} of NULL");
    }
    for made_up in [1, usize::MAX, memory.addr(), rig.mapped.addr()] {
        for (what, rc) in with_session(&rig, without_provenance_mut(made_up)) {
            assert_eq!(rc, PMEMHA_E_CLOSED, "{what} of {made_up:#x}");
        }
        assert_eq!(close(without_provenance_mut(made_up)), PMEMHA_E_CLOSED);
    }
    for made_up in [1, usize::MAX, memory.addr(), rig.session.addr()] {
        for (what, rc) in with_region(&rig, without_provenance_mut(made_up)) {
            assert_eq!(rc, PMEMHA_E_CLOSED, "{what} of {made_up:#x}");
        }
    }
    assert_eq!(agent.log().tail(), published, "nothing was recorded");
}

#[test]
fn a_closed_session_is_closed_for_every_thread_and_for_its_regions() {
    let agent = TestAgent::start();
    let (rig, other) = (Rig::new(&agent), Rig::new(&agent));
    let copies = (rig.session.addr(), rig.mapped.addr(), rig.by_path.addr());
    assert_eq!(close(rig.session), PMEMHA_OK);
    assert_eq!(close(rig.session), PMEMHA_E_CLOSED, "twice, by a copy");
    let address = &rig as *const Rig as usize;
    let elsewhere = move || {
        // SAFETY: the rig outlives the thread, which is joined.
        let rig = unsafe { &*(address as *const Rig) };
        let (session, mapped, by_path) = copies;
        let mut all = with_session(rig, without_provenance_mut(session));
        all.extend(with_region(rig, without_provenance_mut(mapped)));
        all.extend(with_region(rig, without_provenance_mut(by_path)));
        assert!(message().contains("closed"), "{}", message());
        all
    };
    for (what, rc) in std::thread::spawn(elsewhere).join().unwrap() {
        assert_eq!(rc, PMEMHA_E_CLOSED, "{what}");
    }
    other.persist();
}

#[test]
fn arguments_out_of_range_are_refused_and_nothing_is_recorded() {
    let agent = TestAgent::start();
    let rig = Rig::new(&agent);
    let (m, bytes) = (rig.mapped, SIZE as u64);
    let before = agent.log().tail();
    // SAFETY: what is wrong with the arguments is what the library is to find before it touches anything.
    unsafe {
        for (what, flush) in [
            (
                "flush",
                &(|r, at, n| pmemha_flush(r, at, n))
                    as &dyn Fn(*mut pmemha_region, *const c_void, usize) -> _,
            ),
            ("persist", &|r, at, n| pmemha_persist(r, at, n, null_mut())),
        ] {
            expect(flush(m, null(), 8), PMEMHA_E_INVAL, "addr is NULL", what);
            expect(flush(m, rig.memory, usize::MAX), PMEMHA_E_INVAL, "wrap around", what);
            expect(flush(m, rig.memory.wrapping_byte_sub(1), 8), PMEMHA_E_RANGE, "mapped at", what);
            expect(flush(m, rig.at(SIZE - 7), 8), PMEMHA_E_RANGE, "8 bytes at", what);
            expect(flush(m, rig.at(SIZE), 1), PMEMHA_E_RANGE, "mapped at", what);
            expect(flush(m, rig.at(SIZE), 0), PMEMHA_OK, "", what);
            expect(flush(rig.by_path, rig.memory, 8), PMEMHA_E_INVAL, "pmemha_append()", what);
        }
        for (misuse, offset, at, n, want, word) in [
            ("NULL", 0, null_mut(), 8, PMEMHA_E_INVAL, "addr is NULL"),
            ("misaligned", 8, rig.memory, 8, PMEMHA_E_INVAL, "modulo 64"),
            ("wrapping address", 0, rig.memory, usize::MAX, PMEMHA_E_INVAL, "wrap around"),
            ("wrapping offset", u64::MAX - 63, rig.memory, 128, PMEMHA_E_RANGE, "the region has 8192 bytes"),
            ("far offset", 1 << 63, rig.memory, 8, PMEMHA_E_RANGE, "the region has 8192 bytes"),
            ("past the end", bytes, rig.memory, 1, PMEMHA_E_RANGE, "the region has 8192 bytes"),
            ("over the end", bytes - 64, rig.memory, 65, PMEMHA_E_RANGE, "65 bytes at offset 8128"),
            ("nothing", bytes, rig.memory, 0, PMEMHA_OK, ""),
        ] {
            for region in [m, rig.by_path] {
                expect(pmemha_append(region, offset, at, n), want, word, misuse);
            }
        }
    }
    assert_eq!(agent.log().tail(), before, "nothing was recorded");
    let mut lsn = 0;
    // SAFETY: a valid pointer.
    expect(unsafe { pmemha_drain(rig.session, null_mut()) }, PMEMHA_OK, "", "a drain without a place");
    // SAFETY: likewise.
    expect(unsafe { pmemha_drain(rig.session, &mut lsn) }, PMEMHA_OK, "", "a drain");
    assert_eq!(lsn, before.0);
}

#[test]
fn what_cannot_be_protected_is_refused_and_yields_no_handle() {
    let agent = TestAgent::start();
    let rig = Rig::new(&agent);
    let (private, gone) = (map(&rig.path, MapFlags::PRIVATE), rig.path.with_extension("gone"));
    let removed = map(&gone, MapFlags::SHARED);
    std::fs::remove_file(&gone).unwrap();
    let mut region = without_provenance_mut(1);
    // SAFETY: valid pointers; the ranges are judged, not touched.
    unsafe {
        for (misuse, at, n, want, word) in [
            ("NULL", null_mut(), SIZE, PMEMHA_E_INVAL, "addr is NULL"),
            ("empty", rig.memory, 0, PMEMHA_E_INVAL, "len is 0"),
            ("wrapping", rig.memory, usize::MAX, PMEMHA_E_INVAL, "wrap around"),
            ("private", private, SIZE, PMEMHA_E_NOT_A_FILE, ""),
            ("removed", removed, SIZE, PMEMHA_E_NOT_A_FILE, ""),
            ("unmapped", without_provenance_mut(4096), 64, PMEMHA_E_RANGE, ""),
        ] {
            expect(pmemha_protect_range(rig.session, at, n, &mut region), want, word, misuse);
            assert!(region.is_null(), "{misuse}");
            region = without_provenance_mut(1);
        }
        let path = c(&rig.path);
        for (misuse, path, want, word) in [
            ("NULL", null(), PMEMHA_E_INVAL, "path is NULL"),
            ("empty", c"".as_ptr(), PMEMHA_E_SYSTEM, "cannot open"),
            ("absent", c"/nonexistent/file".as_ptr(), PMEMHA_E_SYSTEM, "cannot open /nonexistent/file"),
        ] {
            expect(pmemha_protect_path(rig.session, path, 0, &mut region), want, word, misuse);
            assert!(region.is_null(), "{misuse}");
        }
        let nowhere = pmemha_protect_path(rig.session, path.as_ptr(), 0, null_mut());
        expect(nowhere, PMEMHA_E_INVAL, "region is NULL", "no place for the handle");
        let nowhere = pmemha_protect_range(rig.session, rig.memory, SIZE, null_mut());
        expect(nowhere, PMEMHA_E_INVAL, "region is NULL", "no place for the handle");
        agent.refuse("not today");
        let refused = pmemha_protect_path(rig.session, path.as_ptr(), 64, &mut region);
        expect(refused, PMEMHA_E_REFUSED, "not today", "a refusal");
        expect(pmemha_last_gasp(rig.session), PMEMHA_E_REFUSED, "not today", "a refusal");
        let refused = pmemha_status_json(rig.session, null_mut(), 0, null_mut());
        expect(refused, PMEMHA_E_REFUSED, "not today", "a refusal");
        munmap(private, SIZE).unwrap();
        munmap(removed, SIZE).unwrap();
    }
}

#[test]
fn a_wait_that_cannot_succeed_says_why_at_once() {
    let agent = TestAgent::start();
    let rig = Rig::new(&agent);
    let wait = |lsn, level, ms| pmemha_wait(rig.session, lsn, level, ms);
    let lsn = rig.persist();
    for level in [-1, 4, c_int::MIN, c_int::MAX] {
        expect(wait(lsn, level, 0), PMEMHA_E_INVAL, &format!("level {level}"), "a level that is none");
    }
    for level in 0..4 {
        for ms in [0, 1, -1, c_int::MIN] {
            expect(wait(LSN_NEVER, level, ms), PMEMHA_E_UNPUBLISHED, "drain first", "an LSN never drained");
        }
        for ms in [-1, c_int::MIN, c_int::MAX] {
            expect(wait(lsn, level, ms), PMEMHA_OK, "", "what is acknowledged");
        }
    }
    agent.acknowledge_up_to(Level::Received);
    let lsn = rig.persist();
    expect(wait(lsn, 1, -1), PMEMHA_OK, "", "received");
    for ms in [0, 1] {
        expect(wait(lsn, 2, ms), PMEMHA_E_TIMEOUT, "in time", "not durable");
    }
    expect(wait(0, 3, 0), PMEMHA_OK, "", "LSN 0 asks for nothing");
    std::thread::scope(|s| {
        s.spawn(|| agent.acknowledge_up_to(Level::Durable));
        expect(wait(lsn, 2, -1), PMEMHA_OK, "", "without a limit");
    });

    let log = agent.log().clone();
    let _stopped = agent.stop();
    log.beat(boottime(), 1, LinkState::None);
    expect(wait(lsn, 3, -1), PMEMHA_E_NO_DESTINATION, "no destination", "no destination");
}

#[test]
fn without_an_agent_what_asks_it_says_so_and_the_rest_goes_on() {
    let agent = TestAgent::start();
    let (rig, ended) = (Rig::new(&agent), Rig::new(&agent));
    agent.acknowledge_up_to(Level::Local);
    let log = agent.log().clone();
    let stopped = agent.stop();
    let begun = Instant::now();
    let lsn = rig.persist();
    // SAFETY: valid pointers.
    unsafe {
        expect(pmemha_flush(rig.mapped, rig.memory, 8), PMEMHA_OK, "", "flush");
        expect(pmemha_append(rig.by_path, 0, rig.memory, 8), PMEMHA_OK, "", "append");
        expect(pmemha_drain(rig.session, null_mut()), PMEMHA_OK, "", "drain");
        let (mut info, mut region, path) = (empty_info(), null_mut(), c(&rig.path));
        expect(pmemha_status(rig.session, &mut info, size_of::<pmemha_info>()), PMEMHA_OK, "", "status");
        assert_eq!((info.published, info.durable < lsn), (log.published().0, true));
        let (no, start) = (PMEMHA_E_NO_AGENT, "start pmemhad");
        expect(pmemha_status_json(rig.session, null_mut(), 0, null_mut()), no, start, "status_json");
        expect(pmemha_last_gasp(rig.session), no, start, "last_gasp");
        expect(pmemha_protect_path(rig.session, path.as_ptr(), 64, &mut region), no, start, "protect_path");
        expect(pmemha_protect_range(rig.session, rig.memory, 64, &mut region), no, start, "protect_range");
        assert!(region.is_null());
    }
    expect(pmemha_wait(rig.session, lsn, 0, -1), PMEMHA_OK, "", "what is published is so without an agent");
    expect(pmemha_wait(rig.session, lsn, 2, -1), PMEMHA_E_NO_AGENT, "not running", "not for ever");
    expect(close(ended.session), PMEMHA_E_NO_AGENT, "", "close");
    expect(close(ended.session), PMEMHA_E_CLOSED, "", "closed all the same");
    // The pulse of an agent may be a second old.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());

    let _other = stopped.restart_anew();
    wait::eventually("the session to see the new log", Duration::from_secs(30), || {
        pmemha_last_gasp(rig.session) == PMEMHA_E_REPLACED
    });
    assert!(message().contains("restart the program"), "{}", message());
}

#[test]
fn an_open_that_fails_yields_no_handle_and_leaves_no_session() {
    let agent = TestAgent::start();
    let socket = c(&agent.socket());
    let long = CString::new("/x".repeat(100)).unwrap();
    let mut session = without_provenance_mut(1);
    // SAFETY: valid pointers.
    unsafe {
        expect(pmemha_open(null(), null(), null_mut()), PMEMHA_E_INVAL, "session is NULL", "no place");
        for (misuse, socket, group, want, word) in [
            ("not UTF-8", c"\xff".as_ptr(), null(), PMEMHA_E_INVAL, "socket is not UTF-8"),
            ("not UTF-8", socket.as_ptr(), c"\xff".as_ptr(), PMEMHA_E_INVAL, "group is not UTF-8"),
            ("absent", c"/nonexistent/s".as_ptr(), null(), PMEMHA_E_NO_AGENT, "/nonexistent/s"),
            ("too long", long.as_ptr(), null(), PMEMHA_E_NO_AGENT, "start pmemhad"),
        ] {
            expect(pmemha_open(socket, group, &mut session), want, word, misuse);
            assert!(session.is_null(), "{misuse}");
            session = without_provenance_mut(1);
        }
        assert_eq!(pmemha_check_version(PMEMHA_MAJOR_VERSION, PMEMHA_MINOR_VERSION + 1), PMEMHA_E_VERSION);
        for status in [-1, 16, c_int::MAX] {
            assert!(!CStr::from_ptr(pmemha_strstatus(status)).is_empty());
        }
    }
    std::thread::spawn(|| assert_eq!(message(), "", "a thread without a failure")).join().unwrap();
}

#[test]
fn a_status_is_no_longer_than_the_place_for_it() {
    let agent = TestAgent::start();
    let rig = Rig::new(&agent);
    rig.persist();
    let mut info = empty_info();
    info.received = 7;
    let mut text = [1_i8; 4];
    let mut needed = 0;
    // SAFETY: valid pointers, no shorter than the sizes say.
    unsafe {
        expect(pmemha_status(rig.session, null_mut(), 8), PMEMHA_E_INVAL, "info is NULL", "no place");
        expect(pmemha_status(rig.session, &mut info, 0), PMEMHA_E_INVAL, "sizeof", "no size");
        expect(pmemha_status(rig.session, &mut info, 8), PMEMHA_OK, "", "the first member");
        assert!(info.published > 0 && info.received == 7);
        let json = |at, size, needed| pmemha_status_json(rig.session, at, size, needed);
        expect(json(null_mut(), 8, &mut needed), PMEMHA_E_INVAL, "buffer is NULL", "no buffer");
        expect(json(null_mut(), 0, &mut needed), PMEMHA_E_RANGE, "the buffer has 0", "only the length");
        expect(json(text.as_mut_ptr(), 3, null_mut()), PMEMHA_E_RANGE, "the buffer has 3", "too small");
    }
    assert!(needed > 1 && text[2..] == [0, 1], "terminated within its size: {text:?}");
}
