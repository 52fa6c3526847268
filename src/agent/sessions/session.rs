//! One session: a client asks, the agent answers, until one of them ends it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::{ANSWER_WITHIN, LAUNCHER, Shared, events};
use crate::agent::config;
use crate::agent::events::Kind;
use crate::agent::group::{Controller, Ending, Group, Indoors, Process, ProcessId, ProtectError, Reader};
use crate::agent::source::Wish;
use crate::log::mapped::lives;
use crate::log::stat_field;
use crate::session::peer::Peer;
use crate::session::socket::{Connection, SocketError};
use crate::session::wire::{MAX_MESSAGE, Reply, Request, VERSION};
use crate::types::RegionId;

/// A client that has not asked for anything by then has no business here.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of a status that an answer has room for.
const MAX_STATUS: usize = MAX_MESSAGE - 256;

/// How often a process that closed its socket without a word is looked for in a newer session.
const LOOK_FOR_SUCCESSOR: Duration = Duration::from_millis(500);

/// Serves a client until its end, then says how the process behind it ended.
pub(super) fn run(connection: &Connection, peer: &Peer, shared: &Arc<Shared>) {
    let mut session = Session { connection, peer, shared, part: Part::Stranger, goodbye: false, exec: false };
    let over = session.serve();
    session.settle(over);
}

struct Session<'a> {
    connection: &'a Connection,
    peer: &'a Peer,
    shared: &'a Arc<Shared>,
    part: Part,
    goodbye: bool,
    /// The last that it said was that it is about to become another program.
    exec: bool,
}

/// What the client is to the agent.
enum Part {
    /// It has not said Hello: an operator, or on its way to become one of the others.
    Stranger,
    /// A process of an application.
    Process { group: Arc<Group>, controller: Arc<dyn Controller>, id: ProcessId },
    /// It started one and will tell how it ended.
    Launcher { group: String, controller: Arc<dyn Controller> },
}

/// Why serving came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// The socket is closed, or the client broke the protocol.
    Closed,
    /// The process is dead.
    Dead,
    /// The agent stops: nothing is known of the process.
    Stopping,
}

/// What there is to do.
enum Ready {
    Request,
    Over(Over),
}

impl Session<'_> {
    fn serve(&mut self) -> Over {
        loop {
            match self.wait() {
                Ready::Request => {}
                Ready::Over(over) => return over,
            }
            let (request, fd) = match self.connection.recv::<Request>(Some(Instant::now())) {
                Ok(received) => received,
                Err(SocketError::TimedOut) => continue,
                Err(SocketError::Closed) => return Over::Closed,
                Err(error) => {
                    tracing::info!(uid = self.peer.uid, error = brief(&error), "session ended by nonsense");
                    let _ = self.reply(&Reply::Error { message: brief(&error) });
                    return Over::Closed;
                }
            };
            self.exec = matches!(request, Request::Exec {});
            let answered = match request {
                Request::Hello { version, group, program, after } => {
                    self.hello(version, group.as_deref(), program, after)
                }
                Request::Events { since } => return self.events(since),
                other => {
                    let reply = self.answer(other, fd);
                    self.reply(&reply)
                }
            };
            if answered.is_err() {
                return Over::Closed;
            }
        }
    }

    /// Waits for a request, the end of the process, or the end of the agent.
    fn wait(&self) -> Ready {
        let patience = matches!(self.part, Part::Stranger).then(|| timespec(FIRST_REQUEST_WITHIN));
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.connection.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.shared.stop.as_fd(), PollFlags::IN),
        ];
        if let (Part::Process { .. }, Some(pidfd)) = (&self.part, &self.peer.pidfd) {
            fds.push(PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN));
        }
        let polled = poll(&mut fds, patience.as_ref());
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        match polled {
            _ if self.shared.stopping() => Ready::Over(Over::Stopping),
            Ok(0) => Ready::Over(Over::Closed),
            // What a process still said before its death is heard first: a goodbye among it.
            Ok(_) if ready[0] => Ready::Request,
            Ok(_) if ready.get(2) == Some(&true) => Ready::Over(Over::Dead),
            Ok(_) | Err(_) => Ready::Request,
        }
    }

    fn hello(
        &mut self,
        version: u32,
        group: Option<&str>,
        program: String,
        after: Option<u32>,
    ) -> Result<(), SocketError> {
        let refuse = |message: String| self.reply(&Reply::Error { message }).and(Err(SocketError::Closed));
        if version != VERSION {
            return refuse(format!(
                "session protocol {version}; this agent (pmemha {}) speaks {VERSION}: install the same version of both",
                env!("CARGO_PKG_VERSION")
            ));
        }
        if !matches!(self.part, Part::Stranger) {
            return refuse("Hello comes once, and first".into());
        }
        let Some(controller) = self.find_group(group) else {
            let what = match group {
                Some(name) if self.is_operator() => return refuse(no_such(name)),
                Some(name) => format!("group `{name}`"),
                None if self.is_operator() => return refuse(NO_GROUP.into()),
                None => "any group".into(),
            };
            return refuse(format!(
                "user {} may not attach to {what}: add it to `users` of the [[group]]",
                self.peer.uid
            ));
        };
        let group = match controller.attach() {
            Ok(group) => group,
            Err(why) => return refuse(why),
        };
        if program != LAUNCHER
            && let Some(why) = out_of_reach(self.peer, group.config())
        {
            return refuse(why);
        }
        let program: String = program.chars().filter(|c| !c.is_control()).take(MAX_PROGRAM).collect();
        let session = if program == LAUNCHER {
            self.shared.launchers.attached(group.name());
            self.part = Part::Launcher { group: group.name().into(), controller };
            0
        } else {
            // Without a pidfd the end of the session is not for certain that of the process.
            let indoors = self.peer.pidfd.as_ref().and(self.peer.pid).and_then(Indoors::of);
            let (pid, uid) = (self.peer.pid, self.peer.uid);
            let process =
                Process { pid, uid, program, tracks: None, indoors, pidfd: self.peer.pidfd.clone() };
            let Some(id) = group.attach(process, after) else {
                return refuse(format!("group `{}` has just been given up by this node", group.name()));
            };
            self.part = Part::Process { group: group.clone(), controller, id };
            id.0
        };
        let welcome = Reply::Welcome {
            agent: env!("CARGO_PKG_VERSION").into(),
            group: group.name().into(),
            group_id: group.id(),
            generation: group.generation(),
            session,
            protect: group.config().protect.clone(),
            commit: group.config().commit,
        };
        self.connection.send(&welcome, Some(group.log_fd()), Some(Instant::now() + ANSWER_WITHIN))
    }

    /// The group by name, else the first that has an application here and admits the client.
    fn find_group(&self, name: Option<&str>) -> Option<Arc<dyn Controller>> {
        let access = self.shared.node.access();
        let admitted = |c: &&Arc<dyn Controller>| {
            name.is_none_or(|n| n == c.name()) && access.may_attach(self.peer.uid, c.name())
        };
        self.shared.node.controllers().iter().find(admitted).cloned()
    }

    fn answer(&mut self, request: Request, fd: Option<OwnedFd>) -> Reply {
        match request {
            Request::Protect { len, explicit } => self.protect(fd, len, explicit),
            Request::Maps { region, by } => {
                if let Part::Process { group, id, .. } = &self.part {
                    group.maps(*id, region, by);
                }
                Reply::Ok {}
            }
            Request::Release { region } => self.release(region),
            Request::Exec {} => Reply::Ok {},
            Request::Goodbye { .. } => {
                self.goodbye = true;
                Reply::Ok {}
            }
            Request::Ended { pid, code, signal } => self.launched_ended(pid, code, signal),
            Request::LastGasp { group } => done(self.last_gasp(group.as_deref())),
            Request::Status {} => self.operator(|s| {
                let document = s.shared.node.status(s.shared.count()).shortened(MAX_STATUS);
                match serde_json::to_value(document) {
                    Ok(document) => Reply::Status { document },
                    Err(e) => error(format!("the status cannot be written as JSON: {e}")),
                }
            }),
            Request::Promote { group, force } => self.operate(&group, |c| c.promote(force)),
            Request::Cancel { group } => self.operate(&group, |c| c.cancel()),
            Request::Pause { group, node, paused } => self.operate(&group, |c| c.set_paused(&node, paused)),
            Request::Verify { group, node, rate, repair } => {
                let wish = Wish { node, rate, repair };
                self.ask_controller(&group, |c| {
                    c.verify(&wish).map_or_else(error, |(node, run)| Reply::Verifying { node, run })
                })
            }
            Request::Shutdown {} => self.operator(|s| {
                s.shared.node.shutdown();
                Reply::Ok {}
            }),
            Request::Hello { .. } | Request::Events { .. } => error("out of order".into()),
        }
    }

    fn protect(&self, fd: Option<OwnedFd>, len: u64, explicit: bool) -> Reply {
        let Part::Process { group, id, .. } = &self.part else {
            return error("Protect comes after Hello".into());
        };
        let Some(fd) = fd else {
            return error("Protect needs the file's descriptor beside it".into());
        };
        match group.protect_for(&Reader::from(self.peer), fd.as_fd(), len, explicit) {
            Ok((region, lsn)) => {
                group.told(region.id(), *id);
                Reply::Protected { region: region.id(), len: region.len(), lsn }
            }
            Err(refused @ ProtectError::NotNamed(_)) => Reply::NotProtected { reason: refused.to_string() },
            Err(refused @ ProtectError::Unfit { .. }) => {
                self.not_protected(group, &refused);
                Reply::NotProtected { reason: refused.to_string() }
            }
            Err(failed) => {
                tracing::warn!(group = group.name(), error = %failed, "a file could not be protected");
                self.not_protected(group, &failed);
                error(failed.to_string())
            }
        }
    }

    fn not_protected(&self, group: &Group, why: &ProtectError) {
        self.shared.node.events().emit(
            Some(group.name()),
            Kind::NotProtected,
            serde_json::json!({ "pid": self.peer.pid, "reason": why.to_string() }),
        );
    }

    fn release(&self, region: RegionId) -> Reply {
        let Part::Process { group, id, .. } = &self.part else {
            return error("Release comes after Hello".into());
        };
        group.released(region, *id);
        Reply::Ok {}
    }

    fn launched_ended(&self, pid: u32, code: Option<i32>, signal: Option<i32>) -> Reply {
        let Part::Launcher { group, controller } = &self.part else {
            return error("only a launcher tells how another process ended".into());
        };
        let ending = match (code, signal) {
            (Some(0), _) => Ending::Exited,
            (Some(code), _) => Ending::Died(format!("exit code {code}")),
            (None, Some(signal)) => Ending::Died(format!("signal {signal}")),
            (None, None) => return error("Ended needs a code or a signal".into()),
        };
        self.shared.launchers.tell(group, pid, ending);
        let killed = signal == Some(Signal::KILL.as_raw());
        match controller.handed_over().filter(|_| killed) {
            Some(to) => Reply::HandedOver { to },
            None => Reply::Ok {},
        }
    }

    /// An operator may for any group, an application for its own.
    fn last_gasp(&self, group: Option<&str>) -> Result<(), String> {
        let own = match &self.part {
            Part::Process { controller, .. } | Part::Launcher { controller, .. } => Some(controller),
            Part::Stranger => None,
        };
        let name = match (group, own) {
            (Some(name), _) => name,
            (None, Some(own)) => own.name(),
            (None, None) => return Err("name the group: last-gasp GROUP".into()),
        };
        let permitted = self.is_operator() || own.is_some_and(|c| c.name() == name);
        let found = self.shared.node.controllers().iter().find(|c| c.name() == name && permitted);
        found.ok_or_else(|| no_such(name))?.last_gasp()
    }

    /// What an operator wants done with a group.
    fn operate(&self, group: &str, act: impl FnOnce(&dyn Controller) -> Result<(), String>) -> Reply {
        self.ask_controller(group, |c| done(act(c)))
    }

    fn ask_controller(&self, group: &str, ask: impl FnOnce(&dyn Controller) -> Reply) -> Reply {
        self.operator(|s| {
            let found = s.shared.node.controllers().iter().find(|c| c.name() == group);
            found.map_or_else(|| error(no_such(group)), |c| ask(&**c))
        })
    }

    fn operator(&self, act: impl FnOnce(&Self) -> Reply) -> Reply {
        if self.is_operator() {
            return act(self);
        }
        error("only root and the user that pmemhad runs as may do this".into())
    }

    fn events(&self, since: Option<u64>) -> Over {
        if !self.is_operator() {
            let _ = self.reply(&error("only root and the user that pmemhad runs as may see events".into()));
            return Over::Closed;
        }
        let node_events = self.shared.node.events();
        events::follow(self.connection, node_events, since, &|| self.shared.stopping());
        if self.shared.stopping() { Over::Stopping } else { Over::Closed }
    }

    fn is_operator(&self) -> bool {
        self.shared.node.access().is_operator(self.peer.uid)
    }

    fn reply(&self, reply: &Reply) -> Result<(), SocketError> {
        self.connection.send(reply, None, Some(Instant::now() + ANSWER_WITHIN))
    }

    /// Says how the process ended, once that is certain.
    fn settle(self, over: Over) {
        let other_program = self.exec && over == Over::Closed && self.goes_on();
        match &self.part {
            Part::Stranger => {}
            Part::Launcher { group, .. } => self.shared.launchers.left(group),
            Part::Process { .. } if over == Over::Stopping => {}
            Part::Process { group, id, .. } if self.goodbye => {
                group.detached(*id);
                self.await_exit();
                group.come_to_rest();
            }
            Part::Process { group, id, .. } => match self.await_death(group, *id, over) {
                Over::Stopping => {}
                // It lives on in a newer session.
                Over::Closed => group.superseded(*id),
                Over::Dead => group.ended(*id, self.cause_of_death(group.name(), other_program)),
            },
        }
    }

    /// A process that closed its socket without a word may live on, unprotected or in a newer session. A client
    /// whose life cannot be watched is taken for dead.
    fn await_death(&self, group: &Group, id: ProcessId, over: Over) -> Over {
        let Some(pidfd) = self.peer.pidfd.as_ref().filter(|_| over == Over::Closed) else {
            return Over::Dead;
        };
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.shared.stop.as_fd(), PollFlags::IN),
            ];
            let polled = poll(&mut fds, Some(&timespec(LOOK_FOR_SUCCESSOR)));
            if self.shared.stopping() {
                return Over::Stopping;
            }
            if group.has_newer_session(id) {
                return Over::Closed;
            }
            if polled.is_ok_and(|n| n > 0) {
                return Over::Dead;
            }
        }
    }

    /// A process that said goodbye still empties its streams: its files are not at rest before it has ended. One that lives on is
    /// not waited for.
    fn await_exit(&self) {
        if let Some(pidfd) = &self.peer.pidfd {
            let mut fds = [
                PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.shared.stop.as_fd(), PollFlags::IN),
            ];
            // Interrupted, the wait is over a little early, which costs a copy at worst.
            let _ = poll(&mut fds, Some(&timespec(EXIT_WITHIN)));
        }
    }

    /// Whether the process lives and is not about to end: one that is killed closes its socket first.
    fn goes_on(&self) -> bool {
        let flags: Option<u64> = self.peer.pid.and_then(|pid| stat_field(pid, 9));
        flags.is_some_and(|flags| flags & EXITING == 0)
            && self.peer.pidfd.as_ref().is_some_and(|pidfd| lives(pidfd.as_fd()))
    }

    /// `other_program`: the one that was attached had become another before.
    fn cause_of_death(&self, group: &str, other_program: bool) -> Ending {
        let word = self.peer.pid.and_then(|pid| self.shared.launchers.word_on(group, pid));
        word.unwrap_or_else(|| match other_program {
            true => Ending::Exited,
            false => Ending::Died("it vanished without a goodbye".into()),
        })
    }
}

/// `PF_EXITING` of the kernel, in field 9 of `/proc/PID/stat`.
const EXITING: u64 = 4;

/// A process that says goodbye exits within this time, or lives on.
const EXIT_WITHIN: Duration = Duration::from_secs(1);

/// Why a process could not be frozen before an heir takes its group over, if it could not.
fn out_of_reach(peer: &Peer, group: &config::Group) -> Option<String> {
    (peer.pid.is_none() && !group.destinations.is_empty()).then(|| {
        format!(
            "group `{}` is handed over to `{}`, and pmemhad cannot see this process's pid, so it could not freeze it before: \
             start pmemhad in the machine's own pid namespace, not in another container than the program",
            group.name, group.destinations[0]
        )
    })
}

fn done(result: Result<(), String>) -> Reply {
    result.map_or_else(error, |()| Reply::Ok {})
}

fn error(message: String) -> Reply {
    Reply::Error { message }
}

/// For whoever may attach to every group.
const NO_GROUP: &str = "this node has no group yet: name one in [[group]] of its configuration";

fn no_such(group: &str) -> String {
    let name: String = group.chars().filter(|c| !c.is_control()).take(MAX_PROGRAM).collect();
    format!("this node has no group `{name}` that you may act on; `pmemha status` lists them")
}

/// An error about a client without all of what the client sent.
fn brief(error: &SocketError) -> String {
    error.to_string().chars().filter(|c| !c.is_control()).take(MAX_BRIEF).collect()
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

/// Longest name of a program that is shown.
const MAX_PROGRAM: usize = 64;

/// Longest message about what a client did wrong.
const MAX_BRIEF: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_cannot_be_seen_is_refused_by_a_group_with_an_heir() {
        let peer = |pid| Peer { pid, uid: 0, gid: 0, groups: Vec::new(), pidfd: None };
        let alone = config::Group::named("db");
        let shipped = config::Group { destinations: vec!["beta".into()], ..alone.clone() };
        assert_eq!(out_of_reach(&peer(None), &alone), None);
        assert_eq!(out_of_reach(&peer(Some(7)), &shipped), None);
        let why = out_of_reach(&peer(None), &shipped).unwrap();
        assert!(why.contains("db") && why.contains("beta") && why.contains("pid namespace"), "{why}");
    }
}
