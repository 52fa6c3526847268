//! Appender cells: which process owns the slots that name the cell, and whether it is confirmed dead.
//!
//! A process has one cell for each of its [`super::Appender`]s. Threads share it: they live and die together.
//!
//! A cell's words: 0 identity (pid, session; 0 = unused), 1 start time of the process, 2 inode of its pid namespace,
//! 3 its program image (a number that changes at exec), 4 in-flight marks, 5 how many files it keeps stores to back. The start time is cleared *before* the identity
//! changes hands and set after, so that no living process is ever judged by another's.

use std::str::FromStr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::debt::Debt;
use super::layout::ENTRY;
use super::protocol;
use super::region::LogRegion;

const ID: usize = 0;
const START: usize = 8;
const NAMESPACE: usize = 16;
const IMAGE: usize = 24;
/// Offset of the in-flight word in a cell.
pub(crate) const INFLIGHT: usize = 32;
const KEPT_BACK: usize = 40;

/// Who owns a cell, as the cell says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Process, in its own pid namespace.
    pub pid: u32,
    /// Number of its session with the agent.
    pub session: u32,
    /// Its start time in clock ticks since boot; 0 while unknown.
    pub start: u64,
    /// Inode of its pid namespace; 0 while unknown.
    pub namespace: u64,
}

/// This process, as it signs a cell.
#[derive(Clone, Copy, Debug)]
struct Identity {
    pid: u32,
    start: u64,
    namespace: u64,
    image: u64,
}

impl Owner {
    /// Whether its number means the same process here.
    pub fn is_of_our_namespace(&self) -> bool {
        self.namespace != 0 && self.namespace == pid_namespace()
    }

    /// Whether the process is dead beyond doubt: never true of one that is only slow, stopped, or not visible from here.
    pub fn confirmed_dead(&self) -> bool {
        if !self.is_of_our_namespace() {
            return false;
        }
        let Some(pid) = Pid::from_raw(self.pid as i32) else { return false };
        // The descriptor holds on to whatever process has the number now; only then look whose it is.
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return true,
            Err(_) => return false,
        };
        if self.start != 0 && start_time(self.pid).is_some_and(|now| now != self.start) {
            return true;
        }
        // Readable once every thread has exited, reaped or not.
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
    }
}

impl LogRegion {
    /// Who owns appender cell `index`, if anyone does.
    pub fn owner(&self, index: u16) -> Option<Owner> {
        if u32::from(index) >= self.spec().appenders {
            return None;
        }
        // Pairs with the swap in `take_cell`: what is read next was written for this identity or cleared.
        let id = self.owner_word(index, ID).load(Acquire);
        (id != 0).then(|| Owner {
            pid: (id >> 32) as u32,
            session: id as u32,
            start: self.owner_word(index, START).load(Acquire),
            namespace: self.owner_word(index, NAMESPACE).load(Acquire),
        })
    }

    /// Whether an appender may still be setting bits of the dirty bitmap; owners that `is_dead` confirms do not count.
    pub fn bits_in_flight(&self, is_dead: &dyn Fn(&Owner) -> bool) -> bool {
        (0..self.spec().appenders as u16).any(|index| {
            self.owner_word(index, INFLIGHT).load(Acquire) != 0
                && self.owner(index).is_some_and(|owner| !is_dead(&owner))
        })
    }

    /// Agent: whether a process of the application, `is_dead` ones excepted, is in the middle of a record or of noting one in
    /// the dirty bitmap. If it is frozen there, nothing behind that record can be published and no copy completed.
    pub fn halfway(&self, is_dead: &dyn Fn(&Owner) -> bool) -> bool {
        let me = std::process::id();
        let living = |index| self.owner(index).is_some_and(|owner| owner.pid != me && !is_dead(&owner));
        protocol::any_incomplete(self, living)
            || (0..self.spec().appenders as u16)
                .any(|index| self.owner_word(index, INFLIGHT).load(Acquire) != 0 && living(index))
    }

    /// Takes a cell for this process.
    pub(crate) fn acquire_cell(&self, session: u32) -> Option<u16> {
        let me = Identity::own();
        for index in 0..self.spec().appenders as u16 {
            match self.owner(index) {
                None => {
                    if self.take_cell(index, 0, session, &me) {
                        return Some(index);
                    }
                }
                // What an image of this very process left behind at exec.
                Some(owner) if self.left_at_exec(index, &owner, &me) => self.reclaim_cell(index, &owner),
                Some(_) => {}
            }
        }
        // All taken: look for the dead.
        for index in 0..self.spec().appenders as u16 {
            let Some(owner) = self.owner(index) else { continue };
            if owner.confirmed_dead() {
                self.reclaim_cell(index, &owner);
                if self.take_cell(index, 0, session, &me) {
                    return Some(index);
                }
            }
        }
        None
    }

    /// How many files the process of cell `index` may have stored to without a record.
    pub fn kept_back(&self, index: u16) -> u64 {
        self.owner_word(index, KEPT_BACK).load(Acquire)
    }

    pub(crate) fn set_kept_back(&self, index: u16, files: u64) {
        // Before the owner looks whether that is still right.
        self.owner_word(index, KEPT_BACK).store(files, SeqCst);
    }

    /// Gives up the cell of a process that appends no more.
    pub(crate) fn release_cell(&self, index: u16) {
        self.note_remains(index);
        self.owner_word(index, START).store(0, Release);
        self.owner_word(index, INFLIGHT).store(0, Release);
        self.owner_word(index, ID).store(0, Release);
    }

    /// Frees the cell of an owner that is confirmed dead, its unfinished slots becoming fillers first: afterwards the
    /// cell's number may name a living process. What it kept back is noted as [`Debt::Remains`].
    pub fn reclaim_cell(&self, index: u16, dead: &Owner) {
        let id = identity_word(dead.pid, dead.session);
        protocol::retire(self, index, || self.owner_word(index, ID).load(Acquire) == id);
        // Another may have reclaimed it meanwhile and its new owner may have set these: then they lose precision,
        // an unknown start time, no more. The in-flight word is not touched for that reason: `take_cell` clears it.
        if self.owner_word(index, ID).load(Acquire) == id {
            self.note_remains(index);
            self.owner_word(index, START).store(0, Release);
            let _ = self.owner_word(index, ID).compare_exchange(id, 0, AcqRel, Acquire);
        }
    }

    /// Agent: as [`LogRegion::reclaim_cell`] of every cell of `session` that is not this process's. For the session of agents, of
    /// which there is one at a time: the others are dead even where that cannot be seen, because they lived in another pid
    /// namespace.
    pub fn reclaim_others(&self, session: u32) {
        let me = Identity::own();
        for index in 0..self.spec().appenders as u16 {
            if let Some(owner) = self.owner(index).filter(|o| o.session == session && !me.is(o)) {
                self.reclaim_cell(index, &owner);
            }
        }
    }

    fn note_remains(&self, index: u16) {
        if self.kept_back(index) != 0 {
            self.owe(Debt::Remains);
        }
    }

    fn take_cell(&self, index: u16, from: u64, session: u32, me: &Identity) -> bool {
        let id = identity_word(me.pid, session);
        if self.owner_word(index, ID).compare_exchange(from, id, AcqRel, Acquire).is_err() {
            return false;
        }
        self.owner_word(index, INFLIGHT).store(0, Release);
        self.set_kept_back(index, 0);
        self.owner_word(index, IMAGE).store(me.image, Release);
        self.owner_word(index, NAMESPACE).store(me.namespace, Release);
        self.owner_word(index, START).store(me.start, Release);
        true
    }

    fn left_at_exec(&self, index: u16, owner: &Owner, me: &Identity) -> bool {
        me.is(owner) && me.start != 0 && self.owner_word(index, IMAGE).load(Acquire) != me.image
    }

    pub(crate) fn owner_word(&self, index: u16, word: usize) -> &std::sync::atomic::AtomicU64 {
        self.control().u64(self.appenders_off() + usize::from(index) * ENTRY + word)
    }
}

#[cfg(test)]
impl LogRegion {
    /// Writes into a free cell that process `pid` of our namespace has it, as anyone can who has the log mapped.
    pub(crate) fn forge_cell(&self, pid: u32, session: u32) {
        let index =
            (0..self.spec().appenders as u16).find(|i| self.owner(*i).is_none()).expect("a free cell");
        self.owner_word(index, NAMESPACE).store(pid_namespace(), Release);
        self.owner_word(index, ID).store(identity_word(pid, session), Release);
    }

    /// Makes the owner of session `session` one that has died since, or that lives in another pid namespace.
    pub(crate) fn forge_owner(&self, session: u32, namespace: Option<u64>) {
        let cells = 0..self.spec().appenders as u16;
        let index = cells.into_iter().find(|i| self.owner(*i).is_some_and(|o| o.session == session));
        let index = index.expect("the session has a cell");
        match namespace {
            Some(namespace) => self.owner_word(index, NAMESPACE).store(namespace, Release),
            None => self.owner_word(index, START).store(1, Release),
        }
    }
}

impl Identity {
    fn is(&self, owner: &Owner) -> bool {
        (owner.pid, owner.start, owner.namespace) == (self.pid, self.start, self.namespace)
    }

    fn own() -> Identity {
        let pid = std::process::id();
        Identity {
            pid,
            start: start_time(pid).unwrap_or(0),
            namespace: pid_namespace(),
            image: image_number(),
        }
    }
}

fn identity_word(pid: u32, session: u32) -> u64 {
    (u64::from(pid) << 32) | u64::from(session)
}

/// Start time of a process in clock ticks since boot; `None` if it cannot be read.
fn start_time(pid: u32) -> Option<u64> {
    stat_field(pid, 22)
}

/// Field `number` of `/proc/PID/stat`, 3 or higher, counted as proc(5) does.
pub(crate) fn stat_field<T: FromStr>(pid: u32, number: usize) -> Option<T> {
    // Through rustix, which makes the system calls itself: libc's functions may be interposed, by us.
    let file = rustix::fs::open(format!("/proc/{pid}/stat"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut buf = [0u8; 1024];
    let n = rustix::io::read(file.ok()?, &mut buf).ok()?;
    let text = std::str::from_utf8(buf.get(..n)?).ok()?;
    // The command's name may hold anything but ends at the last parenthesis; field 3 follows it.
    text.rsplit_once(')')?.1.split_whitespace().nth(number - 3)?.parse().ok()
}

/// Inode of this process's pid namespace; 0 if it cannot be read.
pub fn pid_namespace() -> u64 {
    rustix::fs::stat("/proc/self/ns/pid").map_or(0, |s| s.st_ino)
}

/// A number that is another one after every exec: the kernel gives each image sixteen random bytes.
fn image_number() -> u64 {
    // SAFETY: getauxval only looks up a value.
    let at = unsafe { libc::getauxval(libc::AT_RANDOM) } as *const [u8; 8];
    if at.is_null() {
        return 0;
    }
    // SAFETY: AT_RANDOM points to sixteen readable bytes for the life of the image.
    u64::from_ne_bytes(unsafe { at.read() })
}
