//! Two agents, each with an adapter of its own, and a cable between these.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pmemha::log::Appender;
use pmemha::session::client::{Options, Protection, Session};
use pmemha::types::{Level, Lsn};
use pmemha_testkit::node::{Binaries, Node, Pair, PairOptions};
use pmemha_testkit::wait::eventually;

use crate::cable::{Cable, ENDS, Removed};
use crate::rig::PATIENCE;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// Bytes of the protected file.
const BYTES: u64 = 64 << 10;

/// Bytes of one change.
const LINE: u64 = 64;

/// Agents at both ends of the cable. The destination declares `durability`.
fn pair(durability: &str) -> Pair {
    let [left, right] = ENDS.map(|(_, adapter)| format!("\n[rdma]\ndevice = \"{adapter}\"\ngid_index = 0\n"));
    let mut pair = Pair::prepare(
        BINARIES,
        &PairOptions {
            group: format!("log_size = \"256KiB\"\non_death = \"none\"{left}"),
            replica: format!("fabric = \"verbs\"\n{right}"),
            ..PairOptions::default()
        },
    );
    let config = pair.beta.config();
    let text = fs::read_to_string(&config).unwrap();
    let declared = text.replace("durability = \"battery\"", &format!("durability = \"{durability}\""));
    fs::write(config, declared.replace("encrypt = false\n", "")).unwrap();
    pair.beta.start();
    pair.alpha.start();
    pair
}

/// Between two changes of an application that goes on.
const BREATH: Duration = Duration::from_millis(1);

/// Stops what goes on, also where a test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An application of this process, attached to a node.
struct App {
    session: Arc<Session>,
    file: File,
    region: Protection,
    written: u64,
}

impl App {
    fn start(node: &Node) -> App {
        let path = node.files().join("data");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(BYTES).unwrap();
        let options =
            Options { socket: Some(node.socket()), group: Some("app".into()), ..Options::default() };
        let session = Session::connect(options).unwrap();
        let region = session.protect(file.as_fd(), BYTES, false).unwrap();
        App { session, file, region, written: 0 }
    }

    fn appender(&self) -> &Appender {
        self.session.appender()
    }

    /// Changes a line, and publishes that.
    fn write(&mut self) -> Lsn {
        let at = self.written * LINE % BYTES;
        self.written += 1;
        let line = [self.written as u8; LINE as usize];
        self.file.write_all_at(&line, at).unwrap();
        let appender = self.appender();
        // While the application is ahead, only the place is noted.
        let _ = appender.append_from_file(self.region.region, at, line.len(), self.file.as_fd(), true);
        appender.drain()
    }

    fn reaches(&self, level: Level, lsn: Lsn, within: Duration) -> bool {
        self.appender().wait(lsn, level, Some(within)).is_ok()
    }
}

/// The destination in the source's eyes.
fn destination(pair: &Pair) -> serde_json::Value {
    pair.alpha.status().unwrap()["groups"][0]["destinations"][0].clone()
}

#[test]
fn a_source_finds_its_destination_again_once_the_cable_is_mended() {
    let Some(cable) = Cable::lay() else { return };
    let pair = pair("battery");
    let mut app = App::start(&pair.alpha);
    pair.alpha.await_streaming();
    let row = destination(&pair);
    assert_eq!((row["fabric"].as_str(), row["encrypted"].as_bool()), (Some("verbs"), Some(false)), "{row:#}");

    cable.cut();
    app.write();
    pair.alpha.await_group("the link to end", |group| {
        let error = group["destinations"][0]["last_error"].as_str()?;
        error.contains("does not answer").then_some(())
    });
    // Several times the ring: nothing blocks, whatever the adapter does.
    for _ in 0..10_000 {
        app.write();
    }
    cable.heal();
    pair.alpha.await_streaming();
    let lsn = app.write();
    assert!(app.reaches(Level::Applied, lsn, PATIENCE), "{:#}", destination(&pair));
}

/// Either end's, in turn, while records are on their way.
#[test]
fn an_adapter_that_is_removed_under_a_source_or_a_destination_costs_nothing_once_there_is_one_again() {
    let Some(cable) = Cable::lay() else { return };
    let mut pair = pair("battery");
    let agents = [&pair.alpha, &pair.beta].map(Node::pid);
    let mut app = App::start(&pair.alpha);
    pair.alpha.await_streaming();
    for (end, node) in ENDS.into_iter().zip([&pair.alpha, &pair.beta]) {
        let stop = AtomicBool::new(false);
        let removed = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    app.write();
                    thread::sleep(BREATH);
                }
            });
            let _stopped = Stops(&stop);
            let removed = Removed::from(&cable, end);
            let why = pair.alpha.await_group("attempts without the adapter", |group| {
                let why = group["destinations"][0]["last_error"].as_str()?;
                why.contains("[rdma]").then(|| why.to_owned())
            });
            println!("{} without {}: {why}", node.name, end.1);
            let off = node.status().unwrap()["node"]["rdma"]["off"].clone();
            assert!(off.as_str().is_some_and(|off| off.contains("is not there")), "{off}");
            removed
        });
        drop(removed);
        pair.alpha.await_streaming();
        let lsn = app.write();
        assert!(app.reaches(Level::Applied, lsn, PATIENCE), "{}: {:#}", node.name, destination(&pair));
        assert_eq!([&pair.alpha, &pair.beta].map(Node::pid), agents, "the same agents");
    }
    let here = fs::read(pair.alpha.files().join("data")).unwrap();
    assert!(image(&pair.beta) == here, "the image differs from the file after everything was applied");
    // A source that is gone for good leaves nothing open at its destination.
    pair.alpha.kill();
    drop(Removed::from(&cable, ENDS[1]));
}

/// The only file of a node's newest image that is as large as the application's.
fn image(node: &Node) -> Vec<u8> {
    let below = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let images = below(node.replica()).filter(|dir| dir.join("manifest.json").exists());
    let newest = images.max_by_key(|dir| dir.metadata().unwrap().modified().unwrap()).expect("an image");
    let mut files = below(newest).filter(|file| file.metadata().unwrap().len() == BYTES);
    let file = files.next().expect("the application's file");
    assert!(files.next().is_none(), "more than one file of its size");
    fs::read(file).unwrap()
}

#[test]
fn idle_agents_take_next_to_no_processor_time() {
    let Some(_cable) = Cable::lay() else { return };
    let pair = pair("battery");
    let mut app = App::start(&pair.alpha);
    pair.alpha.await_streaming();
    let lsn = app.write();
    assert!(app.reaches(Level::Applied, lsn, PATIENCE));
    // A thread that polls would take all of it.
    let (rest, most) = (Duration::from_secs(1), Duration::from_millis(200));
    eventually("both agents rest for a second", PATIENCE, || {
        let before = [&pair.alpha, &pair.beta].map(Node::processor_time);
        std::thread::park_timeout(rest);
        let taken = [&pair.alpha, &pair.beta].map(Node::processor_time);
        let taken = [taken[0] - before[0], taken[1] - before[1]];
        println!("processor time of a second at rest: source {:?}, destination {:?}", taken[0], taken[1]);
        taken.iter().all(|t| *t < most)
    });
}

/// While the destination's agent stands still, its adapter goes on.
#[test]
fn durable_is_what_the_destination_declares() {
    let Some(_cable) = Cable::lay() else { return };
    for (declared, by_adapter) in [("battery", true), ("eadr", true), ("pmem", false), ("disk", false)] {
        let pair = pair(declared);
        let mut app = App::start(&pair.alpha);
        pair.alpha.await_streaming();
        assert_eq!(destination(&pair)["durability"], declared);
        let beta = pair.beta.status().unwrap()["groups"][0]["destinations"][0].clone();
        assert_eq!(beta["durability"].as_str(), Some(declared));
        for row in [&beta, &destination(&pair)] {
            let lands = (row["memory"].as_str(), row["staged"].as_bool());
            assert_eq!(lands, (Some("tmpfs"), Some(false)), "at either end: {row:#}");
        }

        pair.beta.stand_still();
        let lsn = app.write();
        assert!(app.reaches(Level::Received, lsn, PATIENCE), "{declared}: the adapter takes bytes by itself");
        if by_adapter {
            assert!(app.reaches(Level::Durable, lsn, PATIENCE), "{declared}: {:#}", destination(&pair));
        } else {
            assert!(!app.reaches(Level::Durable, lsn, Duration::from_millis(500)), "{declared}");
        }
        assert!(!app.reaches(Level::Applied, lsn, Duration::ZERO), "{declared}: nobody can have applied it");
        pair.beta.go_on();
        assert!(app.reaches(Level::Applied, lsn, PATIENCE), "{declared}: {:#}", destination(&pair));
    }
}
