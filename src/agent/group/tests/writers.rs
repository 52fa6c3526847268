//! Writers that die, and what they leave in the log.

use super::*;

#[test]
fn the_application_has_ended_when_its_last_process_has() {
    let bench = Bench::new();
    let (group, notices) = bench.open(1);
    let (parent, worker) = (group.enters(process(10)), group.enters(process(11)));
    assert_ne!(parent, worker);
    group.ended(worker, Ending::Died("signal 9".into()));
    group.ended(parent, Ending::Exited);
    group.ended(parent, Ending::Died("again".into()));
    let told: Vec<_> = notices.try_iter().skip(2).collect();
    assert!(matches!(&told[0], Notice::ProcessEnded { pid: Some(11), ending: Ending::Died(_) }), "{told:?}");
    assert!(matches!(&told[1], Notice::ApplicationEnded(Ending::Exited)), "{told:?}");
    assert_eq!(told.len(), 2);
}

#[test]
fn what_a_killed_program_stored_and_did_not_record_is_copied_before_another_builds_on_it() {
    let bench = Bench::new();
    let killed = |group: &Group, kept_back| {
        let id = group.enters(process(10));
        let appender = writer(group, id);
        appender.keep_back(kept_back);
        group.log().forge_owner(id.0, None);
        id
    };
    let (group, _notices) = bench.open(1);
    let flushes = killed(&group, 0);
    group.ended(flushes, Ending::Died("signal 9".into()));
    group.enters(process(11));
    assert!(!group.log().is_ahead(), "what it did not flush is lost in a power cut as well");
    // The others may build on it at once.
    let syncs = killed(&group, 1);
    group.ended(syncs, Ending::Died("signal 9".into()));
    assert!(group.log().is_ahead() && !group.log().owes(Debt::Remains));

    let (bench, none) = (Bench::new(), Ending::Died("signal 9".into()));
    let (group, _notices) = bench.open(1);
    let syncs = killed(&group, 1);
    group.ended(syncs, none);
    assert!(!group.log().is_ahead(), "a handover waits for nothing");
    group.enters(process(11));
    assert!(group.log().is_ahead());

    // Nobody has seen its end: neither the agent that was there, nor the next one.
    for restarts in [false, true] {
        let bench = Bench::new();
        let (mut group, _notices) = bench.open(1);
        killed(&group, 1);
        if restarts {
            drop(group);
            group = bench.open(1).0;
        }
        group.enters(process(11));
        assert!(group.log().is_ahead(), "restarts: {restarts}");
    }
}

#[test]
fn the_half_made_record_of_a_program_in_a_container_is_given_up_when_its_session_ends() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let there = Indoors { number: std::process::id(), namespace: 7 };
    let id = group.enters(Process { indoors: Some(there), ..process(10) });
    let appender = writer(&group, id);
    group.log().forge_owner(id.0, Some(there.namespace));
    appender.leave_half_made();
    let tail = group.log().tail();
    assert!(group.log().publish_filled(&log::Owner::confirmed_dead) < tail);
    group.ended(id, Ending::Died("signal 9".into()));
    assert_eq!(group.log().publish_filled(&log::Owner::confirmed_dead), tail);
}

#[test]
fn the_half_made_record_of_a_killed_agent_is_given_up_by_the_next_one_wherever_that_runs() {
    for namespace in [None, Some(7)] {
        let bench = Bench::new();
        let (log, id) = {
            let (group, _notices) = bench.open(1);
            (group.log().clone(), group.enters(process(10)))
        };
        let program = Appender::attach(log.clone(), id.0).unwrap();
        let agent = std::mem::ManuallyDrop::new(Appender::for_agent(log.clone(), AGENT_SESSION).unwrap());
        log.forge_owner(AGENT_SESSION, namespace);
        agent.leave_half_made();
        let (_group, _notices) = bench.open(1);
        // What else would wait for it: the next program that drains, for ever where it is in a container.
        assert_eq!(log.publish_filled(&|_| false), log.tail(), "{namespace:?}");
        let _ = program.append(Kind::Data, RegionId(1), 0, &[1; 64]).unwrap();
        assert_eq!(program.drain(), log.tail());
        let cells = (0..log.spec().appenders as u16).filter_map(|cell| log.owner(cell));
        assert_eq!(cells.filter(|owner| owner.session == AGENT_SESSION).count(), 1, "{namespace:?}");
    }
}

/// Until a next agent comes, too.
#[test]
fn a_program_that_sees_the_death_of_an_agent_in_the_middle_of_a_record_goes_on_by_itself() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let (log, id) = (group.log().clone(), group.enters(process(10)));
    drop(group);
    let agent = std::mem::ManuallyDrop::new(Appender::for_agent(log.clone(), AGENT_SESSION).unwrap());
    agent.leave_half_made();
    log.forge_owner(AGENT_SESSION, None);
    let (tell, told) = channel();
    let program = Appender::attach(log.clone(), id.0).unwrap();
    std::thread::spawn(move || {
        program.append(Kind::Data, RegionId(1), 0, &[1; 64]).unwrap();
        tell.send(program.drain()).unwrap();
    });
    let drained =
        told.recv_timeout(std::time::Duration::from_secs(10)).expect("it does not wait for the dead");
    assert_eq!(log.published(), drained);
}

#[test]
fn a_writer_of_a_container_that_is_gone_is_buried_whether_or_not_it_ever_spoke() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let id = group.enters(process(10));
    let appender = writer(&group, id);
    appender.leave_half_made();
    // This very process, as a namespace that has ended had it: nobody else is that.
    group.log().forge_owner(id.0, Some(7));
    assert_eq!(group.appending()[0].pid, None, "its number is another process here");
    group.bury_dead_appenders();
    assert_eq!(group.log().publish_filled(&log::Owner::confirmed_dead), group.log().tail());
}

#[test]
fn a_writer_whose_container_is_unknown_is_not_taken_for_gone() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let id = group.enters(process(10));
    let appender = writer(&group, id);
    appender.leave_half_made();
    group.log().forge_owner(id.0, Some(0));
    group.bury_dead_appenders();
    assert!(group.log().publish_filled(&log::Owner::confirmed_dead) < group.log().tail(), "nobody can tell");
}

#[test]
fn a_log_whose_keeper_is_lost_goes_on_while_a_program_has_it() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    group.protect(bench.file("a.pool", 4096).as_fd(), 0, false).unwrap();
    let (id, tail) = (group.enters(process(10)), group.log().tail());
    let program = writer(&group, id);
    drop(group);
    bench.keeper.0.lock().unwrap().clear();
    let (group, _notices) = bench.open(1);
    assert!(group.resumed() && group.generation() == Generation(1) && group.log().tail() == tail);
    assert_eq!(bench.keeper.list().unwrap(), ["db.1"], "it is kept again");
    program.append(Kind::Filler, RegionId(0), 0, &[]).unwrap();
    assert!(group.log().tail() > tail, "one log");
}
