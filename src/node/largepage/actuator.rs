//! Mapping a range of another process large, and taking it apart again.
//!
//! `process_madvise(MADV_COLLAPSE)` (Linux 6.1) copies a range's pages into a large one and maps that, whatever
//! `transparent_hugepage` says, for anonymous memory, memfds and tmpfs. Taking apart is a side effect that the kernel documents for nobody:
//! `MADV_COLD` of a single page splits the large one that it lies in. Both are told from what they answer only as far as the answer
//! goes: whoever acts looks at the page tables afterwards.
//!
//! Collapse before registering memory with an adapter: pages that are pinned are refused, and stay small for as long as they are
//! registered.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use super::policy::{Action, Range};
use crate::node::kernel::advice::{Hint, advise};
use crate::types::PAGE;

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The system says that it did it.
    Done,
    /// Not now: somebody holds a page, or there is no large page free. Worth another try.
    Busy(String),
    /// Never, as long as the range is what it is.
    Refused(String),
}

/// Maps ranges of one process.
pub trait Actuator {
    /// Does it. An error means that the process is not there any more.
    fn act(&mut self, action: Action) -> io::Result<Outcome>;
}

/// The kernel's advice on another process.
pub struct Advice {
    process: OwnedFd,
}

impl Advice {
    /// On process `pid`, which this process may trace, with CAP_SYS_NICE.
    pub fn on(pid: u32) -> io::Result<Advice> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Advice { process: pidfd_open(pid, PidfdFlags::empty())? })
    }

    fn advise(&self, start: u64, len: usize, hint: Hint) -> io::Result<()> {
        advise(self.process.as_fd(), &[(start, len)], hint).map(|_| ())
    }
}

impl Actuator for Advice {
    fn act(&mut self, action: Action) -> io::Result<Outcome> {
        let advise = || match action {
            Action::Map(range) => self.advise(range.start(), Range::BYTES as usize, Hint::Collapse),
            Action::Demote(range) => self.advise(range.start(), PAGE, Hint::Cold),
        };
        let mut answer = advise();
        for _ in 1..ATTEMPTS {
            match &answer {
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => answer = advise(),
                _ => break,
            }
        }
        outcome(answer)
    }
}

/// What an answer means.
fn outcome(answer: io::Result<()>) -> io::Result<Outcome> {
    let Err(error) = answer else { return Ok(Outcome::Done) };
    Ok(match error.raw_os_error() {
        Some(libc::ESRCH) => return Err(error),
        Some(libc::EINVAL) => Outcome::Refused("the kernel does not map this kind of memory large".into()),
        Some(libc::EPERM | libc::EACCES) => Outcome::Refused(
            "advice on other processes needs CAP_SYS_NICE and the right to trace them".into(),
        ),
        Some(libc::ENOSYS) => {
            Outcome::Refused("this kernel takes no advice on other processes (Linux 6.1)".into())
        }
        Some(libc::ENOMEM) => {
            Outcome::Busy("no large page is free, or the range is not mapped any more".into())
        }
        _ => Outcome::Busy(error.to_string()),
    })
}

/// A page that somebody holds for a moment is let go within a few tries; longer is for the next period.
const ATTEMPTS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_by_whether_trying_again_helps() {
        let of = |errno| outcome(Err(io::Error::from_raw_os_error(errno)));
        assert!(matches!(of(libc::EINVAL), Ok(Outcome::Refused(_))));
        assert!(matches!(of(libc::EAGAIN), Ok(Outcome::Busy(_))));
        assert!(matches!(of(libc::ENOMEM), Ok(Outcome::Busy(_))));
        assert!(of(libc::ESRCH).is_err());
        assert_eq!(outcome(Ok(())).unwrap(), Outcome::Done);
    }

    #[test]
    fn a_process_that_is_not_there_cannot_be_advised() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(Advice::on(child.id()).is_err());
        assert!(Advice::on(0).is_err());
    }
}
