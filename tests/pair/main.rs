//! Two agents and one application: what is written at the source is at the destination, whatever happens between.

mod faster;
mod rig;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pmemha::agent::group::Reader;
use pmemha::agent::status::{DestinationState, Role};
use pmemha::types::{Generation, Level};
use pmemha_testkit::wait::eventually;
use rig::{App, FILE_BYTES, Node, Pair, SOON, check_prefix, image_file, image_files};

#[test]
fn what_is_written_during_and_after_the_first_sync_is_in_the_image() {
    let mut pair = Pair::start("1MiB", "", "");
    let mut app = App::start(&pair.alpha, 0);
    let mut lsn = app.write();
    let end = Instant::now() + SOON;
    while pair.alpha.status().destinations[0].state != DestinationState::Streaming {
        lsn = app.write();
        assert!(Instant::now() < end, "{:#?}", pair.alpha.status());
    }
    for _ in 0..20_000 {
        lsn = app.write();
    }
    pair.alpha.await_status("the last write is applied", |s| s.destinations[0].lsn_applied >= lsn);
    for level in [Level::Received, Level::Durable, Level::Applied] {
        app.wait(lsn, level);
    }
    pair.beta.stop();
    assert_eq!(check_prefix(&image_file(&pair.beta)), app.next);
}

#[test]
fn content_from_before_the_protection_is_in_the_image() {
    let mut pair = Pair::start("1MiB", "", "");
    let old = {
        let mut app = App::start(&pair.alpha, 0);
        for _ in 0..1000 {
            app.write();
        }
        app.next
    };
    pair.alpha.stop();
    // A fresh source that knows nothing: the file's bytes are in no log.
    fs::remove_dir_all(pair.alpha.path("state")).unwrap();
    fs::create_dir(pair.alpha.path("state")).unwrap();
    pair.beta.stop();
    for dir in ["state", "replica"] {
        fs::remove_dir_all(pair.beta.path(dir)).unwrap();
        fs::create_dir(pair.beta.path(dir)).unwrap();
    }
    pair.beta.start();
    pair.alpha.start();
    let mut app = App::start(&pair.alpha, old);
    pair.await_streaming();
    let lsn = app.write();
    app.wait(lsn, Level::Applied);
    pair.beta.stop();
    assert_eq!(check_prefix(&image_file(&pair.beta)), old + 1);
}

#[test]
fn an_agent_that_ends_waits_for_its_link_and_not_for_a_destination_that_is_away() {
    let mut pair = Pair::start("1MiB", "", "");
    let mut app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    pair.beta.stop();
    pair.alpha.await_status("the link is down", |s| {
        s.destinations[0].state == DestinationState::Connecting && s.destinations[0].last_error.is_some()
    });
    app.write();
    pair.beta.start();
    // The next attempt is still to come, as a rule.
    assert_eq!(pair.alpha.controller().finish(Instant::now() + SOON), None);
    pair.beta.stop();
    assert_eq!(check_prefix(&image_file(&pair.beta)), app.next);

    let mut pair = Pair::start("1MiB", "", "");
    let _app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    pair.beta.stop();
    // Until then all that was published is known to be there.
    pair.alpha.await_status("the link is down", |s| s.destinations[0].state == DestinationState::Connecting);
    let left = pair.alpha.controller().finish(Instant::now() + SOON * 10);
    assert!(left.as_ref().is_some_and(|why| why.contains("no destination is connected")), "{left:?}");
}

#[test]
fn files_that_no_program_opens_are_in_the_image_and_at_the_heir() {
    let mut pair = Pair::new("256KiB", "", "");
    let contents = |name: &str| format!("content of {name}").into_bytes();
    let put = |name: &str| fs::write(pair.alpha.files().join(name), contents(name)).unwrap();
    put("untouched");
    fs::write(pair.alpha.files().join("large"), vec![7; 300 << 10]).unwrap();
    pair.beta.start();
    pair.alpha.start();
    pair.await_streaming();
    // It comes later, as an operator's copy does, which no library sees.
    fs::write(pair.alpha.path("new"), contents("later")).unwrap();
    fs::rename(pair.alpha.path("new"), pair.alpha.files().join("later")).unwrap();
    eventually("all of them are in the image", SOON, || {
        let have = image_files(&pair.beta);
        ["untouched", "later"].iter().all(|name| have.contains(&contents(name)))
            && have.contains(&vec![7; 300 << 10])
    });
    assert!(pair.alpha.status().unprotected_files.is_empty());
    pair.alpha.controller().last_gasp().unwrap();
    pair.beta.await_status("beta owns the group", |s| s.generation.0 == 2 && pair.beta.attach().is_ok());
    for name in ["untouched", "later"] {
        assert_eq!(fs::read(pair.beta.files().join(name)).unwrap(), contents(name));
    }
}

#[test]
fn a_destination_that_is_away_never_blocks_and_catches_up() {
    let mut pair = Pair::start("64KiB", "", "");
    let mut app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    for round in 0..3 {
        pair.beta.stop();
        let mut slowest = Duration::ZERO;
        // Several times the ring: the application goes ahead.
        for _ in 0..5_000 {
            let began = Instant::now();
            app.write();
            slowest = slowest.max(began.elapsed());
        }
        assert!(slowest < Duration::from_secs(1), "a write took {slowest:?} without a destination");
        assert!(app.appender().log().is_ahead());
        pair.beta.start();
        eventually("the application is back on the log", SOON, || !app.appender().log().is_ahead());
        let lsn = app.write();
        app.wait(lsn, Level::Applied);
        pair.beta.stop();
        assert_eq!(check_prefix(&image_file(&pair.beta)), app.next, "round {round}");
        pair.beta.start();
        pair.await_streaming();
    }
}

#[test]
fn what_a_process_stored_that_could_record_nothing_is_copied() {
    let mut pair = Pair::start("256KiB", "", "");
    let mut app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    let others = app.take_all_places();
    app.write_in_a_child_without_a_place();
    drop(others);
    let lsn = app.appender().drain();
    app.wait(lsn, Level::Applied);
    let lsn = app.write();
    app.wait(lsn, Level::Applied);
    pair.beta.stop();
    assert_eq!(check_prefix(&image_file(&pair.beta)), app.next);
}

#[test]
fn a_source_agent_that_restarts_resumes_from_the_ring() {
    let mut pair = Pair::start("1MiB", "", "");
    let mut app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    // A destination may count before it has the file, which is then a record like any other.
    let lsn = app.write();
    app.wait(lsn, Level::Applied);
    let before = image_file(&pair.beta);
    for _ in 0..5 {
        for _ in 0..1000 {
            app.write();
        }
        pair.alpha.stop();
        let mut lsn = app.write();
        for _ in 0..1000 {
            lsn = app.write();
        }
        pair.alpha.start();
        pair.await_streaming();
        app.wait(lsn, Level::Applied);
    }
    assert_eq!(image_file(&pair.beta), before, "no copy was made anew");
    pair.beta.stop();
    assert_eq!(check_prefix(&before), app.next);
}

#[test]
fn a_copy_that_was_asked_for_is_made_by_the_next_agent() {
    let mut pair = Pair::start("256KiB", "", "");
    let mut app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    pair.beta.stop();
    // With more than half of the ring in use the copy cannot begin.
    let log = app.appender().log().clone();
    while log.tail().since(log.free()) <= log.spec().ring_bytes / 2 {
        app.write();
    }
    let (path, content) = (pair.alpha.files().join("old"), vec![7; FILE_BYTES as usize / 2]);
    fs::write(&path, &content).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    pair.alpha.attach().unwrap().protect_for(&Reader::root(), file.as_fd(), 0, false).unwrap();
    pair.alpha.stop();

    pair.alpha.start();
    pair.beta.start();
    pair.await_streaming();
    let lsn = app.write();
    app.wait(lsn, Level::Applied);
    eventually("the file's content is in the image", SOON, || image_files(&pair.beta).contains(&content));
    pair.alpha.await_status("no copy is under way", |s| s.destinations[0].sync.is_none());
    let copied = image_file(&pair.beta);
    for _ in 0..2 {
        pair.alpha.stop();
        pair.alpha.start();
        pair.await_streaming();
        let lsn = app.write();
        app.wait(lsn, Level::Applied);
    }
    assert_eq!(image_file(&pair.beta), copied, "a copy that was made is made again");
}

#[test]
fn a_log_that_cannot_be_gone_on_with_moves_the_state_machine_to_the_next_generation_too() {
    let mut pair = Pair::start("1MiB", "", "");
    let lose: [fn(&mut Node); 2] =
        [|alpha| alpha.substitute("log_size = \"1MiB\"", "log_size = \"2MiB\""), Node::lose_log];
    for (before, lose) in (1..).zip(lose) {
        pair.await_streaming();
        assert_eq!(pair.alpha.status().generation, Generation(before));
        pair.alpha.stop();
        lose(&mut pair.alpha);
        pair.alpha.start();
        pair.alpha.await_status("the stream is up", |s| s.destinations.len() == 1);
        let status = pair.alpha.status();
        let next = Generation(before + 1);
        assert_eq!((status.generation, status.destinations[0].generation), (next, next));
    }
}

#[test]
fn two_first_owners_of_one_name_refuse_each_other_and_say_so() {
    let replica = "[[replica]]\ngroup = \"app\"\nfrom = [\"beta\"]\ndir = \"/dev/shm/none\"\n";
    let group = "[[group]]\nname = \"app\"\ndestinations = [\"alpha\"]\n";
    let mut pair = Pair::new("1MiB", replica, group);
    let own = pair.alpha.path("replica").display().to_string();
    pair.alpha.substitute("/dev/shm/none", &own);
    pair.beta.start();
    pair.alpha.start();
    for node in [&pair.alpha, &pair.beta] {
        node.await_status("it is refused", |s| {
            s.destinations.iter().any(|d| d.role == Role::Source && d.state == DestinationState::Refused)
        });
        assert!(node.attach().is_ok(), "its own application goes on");
        eventually("the alarm", SOON, || !node.alarms().is_empty());
        assert_eq!(node.alarms(), ["another_group"], "told once");
    }
    // A generation that were higher, if they were one group, costs beta nothing; and alpha waits for a word that counts.
    pair.alpha.stop();
    pair.alpha.lose_log();
    pair.alpha.start();
    eventually("the alarm", SOON, || pair.alpha.alarms() == ["another_group"]);
    assert!(pair.alpha.attach().is_err() && pair.beta.attach().is_ok());
}

#[test]
fn at_any_instant_the_image_is_a_prefix() {
    let mut pair = Pair::start("256KiB", "", "");
    let mut app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    let mut known = 0;
    for round in 0..10 {
        for n in 0..500 * (round % 3 + 1) {
            let lsn = app.write();
            if n == 100 {
                app.wait(lsn, Level::Durable);
                known = app.next;
            }
        }

        pair.beta.stop();
        let have = check_prefix(&image_file(&pair.beta));
        assert!(have >= known, "acknowledged {known}, the image ends at {have}");
        pair.beta.start();
        pair.await_streaming();
    }
}

#[test]
fn a_last_gasp_moves_the_application_with_all_its_bytes() {
    let mut pair = Pair::new(
        "1MiB",
        "",
        "start = [\"/bin/sh\", \"-c\", \"touch @/started; while [ -e @/started ] && [ ! -e @/end ]; do sleep 0.1; done\"]",
    );
    let started = pair.beta.path("started");
    pair.beta.substitute("@", &pair.beta.path("").display().to_string());
    pair.beta.start();
    pair.alpha.start();
    let mut app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    for _ in 0..5000 {
        app.write();
    }
    pair.alpha.controller().last_gasp().unwrap();
    pair.alpha.await_status("alpha has handed over", |s| s.state == "handed_over" || s.state == "demoted");
    pair.beta.await_status("beta owns the group", |s| s.state == "running");
    eventually("the application runs at beta", SOON, || started.exists());
    assert_eq!(check_prefix(&pair.beta.files().join("data")), app.next);
    assert_eq!(pair.beta.status().generation.0, 2);
    pair.alpha.await_status("alpha has stepped down", |s| s.state == "demoted");
    assert!(pair.alpha.attach().is_err());
    assert!(pair.beta.attach().is_ok());

    // The old source comes back, and asks before it runs anything.
    pair.alpha.stop();
    pair.alpha.start();
    assert!(pair.alpha.attach().is_err());
    assert_eq!(pair.alpha.status().state, "demoted");
    fs::write(pair.beta.path("end"), "").unwrap();
}

#[test]
fn an_operators_word_promotes_and_the_old_source_steps_down() {
    let mut pair = Pair::start("1MiB", "", "");
    let mut app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    let mut lsn = app.write();
    for _ in 0..1000 {
        lsn = app.write();
    }
    app.wait(lsn, Level::Durable);
    let acknowledged = app.next;
    let refused = pair.beta.controller().promote(false).unwrap_err();
    assert!(refused.contains("promote --force"), "{refused}");
    pair.alpha.stop();
    assert!(pair.beta.attach().is_err(), "promoted without anyone's word");
    pair.beta.controller().promote(true).unwrap();
    pair.beta.await_status("beta owns the group", |s| s.generation.0 == 2 && pair.beta.attach().is_ok());
    assert_eq!(check_prefix(&pair.beta.files().join("data")), acknowledged);
    pair.alpha.start();
    pair.alpha.await_status("alpha has stepped down", |s| s.state == "demoted");
    assert!(pair.alpha.attach().is_err());
}

#[test]
fn an_operator_calls_a_last_gasp_off() {
    let mut pair = Pair::start("1MiB", "", "");
    let mut app = App::start(&pair.alpha, 0);
    pair.await_streaming();
    assert!(pair.alpha.controller().cancel().unwrap_err().contains("nothing to cancel"));
    pair.beta.stop();
    app.write();
    pair.alpha.controller().last_gasp().unwrap();
    pair.alpha.await_status("the tail waits for its way out", |s| s.state == "saving");
    assert!(pair.alpha.attach().is_err());
    pair.alpha.controller().cancel().unwrap();
    pair.alpha.await_status("the application may run on", |_| pair.alpha.attach().is_ok());
    assert_eq!(pair.alpha.status().generation.0, 1);
}

#[test]
fn a_program_is_not_kept_waiting_for_a_group_that_could_not_be_opened() {
    let mut pair = Pair::new("64KiB", "", "");
    // What is written beside the state of the group's log cannot be made, as on a full disk.
    fs::create_dir_all(pair.alpha.path("state/groups/app/group.new")).unwrap();
    pair.alpha.start();
    let began = Instant::now();
    let mut refused = pair.alpha.attach().err().expect("there is no log");
    while !refused.contains("could not be opened") {
        assert!(began.elapsed() < SOON, "{refused}");
        refused = pair.alpha.attach().err().expect("there is no log");
    }
    let again = Instant::now();
    pair.alpha.attach().err().expect("there is no log");
    assert!(again.elapsed() < Duration::from_secs(2), "it waited for {:?}", again.elapsed());
}
