//! Ending an application, and seeing that nothing of it is left.

use std::time::Instant;

use super::freeze::SEEN_WITHIN;
use super::{Keeper, Rest};
use crate::agent::group::Crowd;
use crate::failover::supervise::{ExitWatch, SuperviseError};

impl Keeper {
    /// Ends whatever is left. The end is told when nothing is, unless a start is due.
    pub(super) fn kill(&mut self) -> Result<(), SuperviseError> {
        self.unheld = false;
        let mut own = self.outside(Instant::now() + SEEN_WITHIN)?.own;
        let mut round = 1;
        let (killed, strangers) = loop {
            // A process that is a stranger to the means, such as an orphan of a tree, may have been forked into writing.
            for pid in own {
                if let Err(error) = self.take_in(pid) {
                    tracing::error!(group = self.name, pid, %error, "a process of the application is not killed");
                }
            }
            let killed = self.means.kill();
            let survivors = self.survivors()?;
            own = survivors.own;
            if own.is_empty() || round == KILL_ROUNDS {
                break (killed, survivors.strangers);
            }
            // Forked while its parent was being killed, for one.
            round += 1;
        };
        let mut left = if killed.is_err() { self.left(Rest::All { clean: false })? } else { Vec::new() };
        left.extend(own.iter().chain(&strangers));
        if killed.is_ok() && left.is_empty() {
            self.tell_end(false);
            return Ok(());
        }
        self.await_end(left, Rest::All { clean: false })?;
        killed?;
        let name = self.name.clone();
        Err(match strangers[..] {
            [] => SuperviseError::Escaped { name, pids: own },
            _ => SuperviseError::Strangers { name, pids: [strangers, own].concat() },
        })
    }

    /// Who may still write although the means hold nobody. One that is silent counts if the log names it.
    fn survivors(&self) -> Result<Survivors, SuperviseError> {
        let Crowd { mut own, mut strangers, mut silent } = self.outside(Instant::now() + SEEN_WITHIN)?;
        // What has just been killed may still count as attached.
        own.retain(|pid| !has_ended(*pid) && self.look.owns(*pid));
        if !silent.is_empty() {
            let doubtful = self.look.present().doubtful;
            silent.retain(|pid| doubtful.contains(pid));
            strangers.append(&mut silent);
        }
        Ok(Survivors { own, strangers })
    }
}

/// See [`Keeper::survivors`].
struct Survivors {
    /// The application's, which the means could not take in.
    own: Vec<u32>,
    /// Nothing may be done to them.
    strangers: Vec<u32>,
}

/// How often a kill takes in what it has missed: what is forked meanwhile, by processes that are being killed themselves.
const KILL_ROUNDS: u32 = 8;

/// Whether the process is gone or a zombie; not if that cannot be found out.
fn has_ended(pid: u32) -> bool {
    let watch = ExitWatch::open(pid);
    watch.and_then(|watch| watch.map_or(Ok(true), |watch| watch.wait(Instant::now()))).unwrap_or(false)
}
