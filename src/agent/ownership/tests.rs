use std::fs;
use std::path::PathBuf;

use super::*;
use crate::failover::{BootId, Life, NodeName, OnDeath, Patience, Policy, Round, Saved, Standing, Trigger};
use crate::types::{Generation, Lsn};

const SOON: Duration = Duration::from_secs(5);

pub(super) fn policy() -> Policy {
    Policy {
        node: NodeName("beta".into()),
        heirs: Vec::new(),
        on_death: OnDeath::Failover,
        trigger: Trigger::Saved,
        has_command: true,
        start_limit: 3,
        patience: Patience::default(),
        boot: BootId([1; 16]),
    }
}

struct Log(Sender<(Action, Option<Durable>)>, PathBuf);

impl Deeds for Log {
    fn act(&mut self, action: Action) {
        let stored = DurableFile::new(self.1.clone()).load().unwrap();
        let _ = self.0.send((action, stored));
    }
}

struct Rig {
    dir: tempfile::TempDir,
    own: Ownership,
    done: Receiver<(Action, Option<Durable>)>,
}

fn standby() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ownership");
    let (log, done) = mpsc::channel();
    let mut durable = Durable::first_standby(&policy(), Generation(4));
    durable.standing = Standing::Standby { cancelled: None };
    let machine = Machine::new(policy(), durable);
    let deeds = Box::new(Log(log, path.clone()));
    let own = Ownership::start("g", machine, DurableFile::new(path), deeds, Inbox::new()).unwrap();
    own.teller().tell(Event::Recovered { application: Life::Gone, life: 1 });
    Rig { dir, own, done }
}

fn saved() -> Request {
    let round = Round { generation: Generation(4), attempt: 1 };
    Request::Saved { round, heir: NodeName("beta".into()), saved: Saved { lsn: Lsn(64), digest: 1 } }
}

#[test]
fn an_answer_leaves_and_a_deed_begins_only_after_the_state_is_stored() {
    let rig = standby();
    let round = Round { generation: Generation(4), attempt: 1 };
    assert_eq!(rig.own.teller().ask(saved(), SOON), Some(Answer::Accepted { round }));
    let stored = DurableFile::new(rig.dir.path().join("ownership")).load().unwrap().unwrap();
    assert!(matches!(stored.standing, Standing::Triggered { .. }));
    let (action, at_that_time) = rig.done.recv_timeout(SOON).unwrap();
    assert_eq!(action, Action::Revoke { round });
    assert_eq!(at_that_time, Some(stored));
}

#[test]
fn a_repeated_request_gets_the_same_answer_and_repeats_no_deed() {
    let rig = standby();
    let first = rig.own.teller().ask(saved(), SOON);
    assert_eq!(rig.own.teller().ask(saved(), SOON), first);
    assert!(matches!(rig.done.recv_timeout(SOON).unwrap().0, Action::Revoke { .. }));
    assert!(rig.done.try_recv().is_err());
}

#[test]
fn what_cannot_be_stored_is_not_promised() {
    let rig = standby();
    let path = rig.dir.path().join("ownership");
    // A directory in the file's place: renaming over it fails.
    fs::create_dir(&path).unwrap();
    fs::write(path.join("x"), "x").unwrap();
    assert_eq!(rig.own.teller().ask(saved(), Duration::from_millis(300)), None);
    assert!(rig.own.fault().is_some());
    assert!(matches!(rig.own.state().durable.standing, Standing::Standby { .. }));
    assert!(rig.done.try_recv().is_err());
    fs::remove_dir_all(&path).unwrap();
    assert!(rig.own.teller().ask(saved(), SOON).is_some());
    assert_eq!(rig.own.fault(), None);
}

#[test]
fn a_group_whose_state_cannot_be_stored_can_still_be_closed() {
    let Rig { dir, own, done } = standby();
    let teller = own.teller();
    assert!(teller.state(SOON).is_some(), "what came before is stored");
    drop(dir);
    teller.tell(Event::OperatorPromote { force: true });
    eventually("the event meets the missing directory", || own.fault().is_some());
    drop(own);
    assert!(done.try_recv().is_err(), "nothing rests on what was not stored");
}

fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !look() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::yield_now();
    }
}
