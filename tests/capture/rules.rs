//! The capture rules under real threads and processes.

use std::arch::asm;
use std::sync::Mutex;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pmemha::log::format::Kind;
use pmemha::log::region::boottime;
use pmemha::log::{Appender, LinkState, LogRegion, LogSpec, OnFull, Policy, WaitError};
use pmemha::types::{Level, RegionId};

use crate::rig::{Rig, payload};

const REGION: RegionId = RegionId(1);

fn word(memory: &[u8], index: usize) -> &AtomicU64 {
    // SAFETY: in range by the slice's bounds, aligned, and only accessed atomically from here on.
    unsafe { AtomicU64::from_ptr(memory[index * 8..][..8].as_ptr().cast_mut().cast()) }
}

fn capture(app: &Appender, memory: &[u8], offset: usize, len: usize) {
    // SAFETY: the range lies in `memory`, whose start is page-aligned.
    unsafe { app.capture(REGION, offset as u64, memory[offset..][..len].as_ptr(), len) };
}

fn number(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[index * 8..][..8].try_into().unwrap())
}

#[test]
fn stores_within_a_line_are_never_seen_out_of_order() {
    let rig = Rig::with(LogSpec { ring_bytes: 16 << 20, ..LogSpec::default() });
    let memory: &[u8] = rig.memory(4096);
    let stop = AtomicBool::new(false);
    let illegal_by_words = std::thread::scope(|s| {
        s.spawn(|| {
            for n in 1.. {
                word(memory, 0).store(n, Ordering::Release);
                word(memory, 7).store(n, Ordering::Release);
                if stop.load(Relaxed) {
                    break;
                }
            }
        });
        let app = rig.appender();
        for _ in 0..100_000 {
            capture(&app, memory, 0, 64);
        }
        app.drain();
        // The control: the same line by single words, as a copy that cares for nothing might. Last word newer than first.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let mut illegal = 0;
        while illegal == 0 && std::time::Instant::now() < deadline {
            let first = word(memory, 0).load(Relaxed);
            illegal += u64::from(word(memory, 7).load(Relaxed) > first);
        }
        stop.store(true, Relaxed);
        illegal
    });
    assert!(illegal_by_words > 0, "the writer did not race: this run shows nothing");
    for record in rig.consume() {
        let line = payload(&rig.log, &record);
        let (first, last) = (number(&line, 0), number(&line, 7));
        assert!(first == last || first == last + 1, "illegal line: {first} then {last}");
    }
}

#[test]
fn a_cas_orders_what_was_flushed_before_it() {
    // node = v, flush; CAS(head -> node), no drain; others flush head. Every prefix of the log has head's node. Head is the last
    // of several lines that are flushed at once, so that it often changes while a flush copies those before it.
    const ROUNDS: u64 = 5_000;
    const HEAD: usize = 4096 - 64;
    let rig = Rig::with(LogSpec { ring_bytes: 128 << 20, ..LogSpec::default() });
    let memory: &[u8] = rig.memory(8192);
    let app = rig.appender();
    std::thread::scope(|s| {
        for me in 1..=3usize {
            let app = &app;
            s.spawn(move || {
                for round in 1..=ROUNDS {
                    word(memory, HEAD / 8 + me * 8).store(round, Ordering::Release);
                    capture(app, memory, HEAD + me * 64, 8);
                    word(memory, HEAD / 8).swap((me as u64) << 32 | round, SeqCst);
                    capture(app, memory, 0, HEAD + 8);
                    if round % 4 == 0 {
                        app.drain();
                    }
                }
                app.drain();
            });
        }
    });
    let mut image = [0u64; 4];
    for record in rig.consume() {
        let line = payload(&rig.log, &record);
        let last = line.len() - 64;
        image[(record.place().1 as usize + last - HEAD) / 64] = number(&line[last..], 0);
        let (node, version) = ((image[0] >> 32) as usize, image[0] & 0xffff_ffff);
        assert!(
            image[0] == 0 || image[node] >= version,
            "at {}: head without its node: {image:x?}",
            record.lsn
        );
    }
    assert_eq!(image[1..], [ROUNDS; 3]);
}

/// Adds one to both words of the pair at `at`, with `lock cmpxchg16b`.
unsafe fn bump(at: *mut u8) {
    let (mut low, mut high, mut done) = (0u64, 0u64, 0u8);
    while done == 0 {
        let next = low + 1;
        // SAFETY: the caller vouches for an aligned live pair; rbx, which the compiler keeps, is put back.
        unsafe {
            asm!(
                "xchg {next}, rbx",
                "lock cmpxchg16b [{at}]",
                "sete {done}",
                "mov rbx, {next}",
                at = in(reg) at,
                next = inout(reg) next => _,
                done = out(reg_byte) done,
                inout("rax") low,
                inout("rdx") high,
                in("rcx") next,
            );
        }
    }
    let _ = high;
}

#[test]
fn a_pair_changed_by_a_sixteen_byte_cas_is_never_seen_half() {
    let rig = Rig::with(LogSpec { ring_bytes: 32 << 20, ..LogSpec::default() });
    let memory: &[u8] = rig.memory(4096);
    let app = rig.appender();
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                for _ in 0..150_000 {
                    // SAFETY: `memory` starts on a page, is live, and is only accessed atomically here.
                    unsafe { bump(memory.as_ptr().cast_mut()) };
                    capture(&app, memory, 0, 16);
                }
                app.drain();
            });
        }
    });
    let mut last = 0;
    for record in rig.consume() {
        let line = payload(&rig.log, &record);
        assert_eq!(number(&line, 0), number(&line, 1), "half of a pair at {}", record.lsn);
        last = number(&line, 0);
    }
    assert_eq!(last, 300_000);
}

#[test]
fn overlapping_flushes_end_with_the_newest_content() {
    for _ in 0..30 {
        overlapping_flushes();
    }
}

/// Each round, two threads store to one line and flush ranges that share it, at once. When both have, nothing older stands last
/// in the log, whoever came first.
fn overlapping_flushes() {
    const THREADS: u64 = 2;
    const ROUNDS: u64 = 4_000;
    let rig = Rig::with(LogSpec { ring_bytes: 32 << 20, ..LogSpec::default() });
    let memory: &[u8] = rig.memory(4096);
    let app = rig.appender();
    let (arrived, ends) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let all_arrive = |times: u64| {
        let last = arrived.fetch_add(1, SeqCst) + 1 == times * THREADS;
        let mut looks = 0;
        while arrived.load(SeqCst) < times * THREADS {
            looks += 1;
            // Both are to leave at the same time, which only those do that look without pause.
            if looks % 1000 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        last
    };
    std::thread::scope(|s| {
        for me in 0..THREADS as usize {
            let (app, ends, all_arrive) = (&app, &ends, &all_arrive);
            s.spawn(move || {
                for round in 0..ROUNDS {
                    all_arrive(2 * round + 1);
                    word(memory, 16).fetch_add(1, SeqCst);
                    capture(app, memory, 64 * me, 192);
                    if all_arrive(2 * round + 2) {
                        ends.lock().unwrap().push(app.drain());
                    }
                }
            });
        }
    });
    let mut image = vec![0; 4096];
    let mut ends = ends.into_inner().unwrap().into_iter();
    let (mut end, mut round) = (ends.next(), 0);
    for record in rig.consume() {
        let bytes = payload(&rig.log, &record);
        image[record.place().1 as usize..][..bytes.len()].copy_from_slice(&bytes);
        if Some(record.next()) == end {
            round += 1;
            assert_eq!(number(&image, 16), round * THREADS, "after round {round}");
            end = ends.next();
        }
    }
    assert_eq!(round, ROUNDS);
    assert!(image == memory, "the image differs");
}

#[test]
fn memory_may_be_unmapped_between_flush_and_drain() {
    let rig = Rig::new();
    let app = rig.appender();
    let mut page = memmap2::MmapMut::map_anon(4096).unwrap();
    page.fill(7);
    // SAFETY: the page is mapped until after the call.
    unsafe { app.capture(REGION, 0, page.as_ptr(), 4096) };
    drop(page);
    app.drain();
    assert_eq!(payload(&rig.log, &rig.consume()[0]), vec![7; 4096]);
}

#[test]
fn a_capture_larger_than_the_ring_waits_for_a_slow_agent_and_never_for_itself() {
    let rig = Rig::with(LogSpec { ring_bytes: 1 << 16, ..LogSpec::default() });
    rig.log.set_policy(Policy {
        on_full: OnFull::Block,
        block_limit: Duration::from_secs(60),
        ..Policy::default()
    });
    let memory = rig.memory(300_000 / 64 * 64);
    for (i, chunk) in memory.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&(i as u64).to_le_bytes());
    }
    let memory: &[u8] = memory;
    let app = rig.appender();
    let mut image = vec![0; memory.len()];
    let done = AtomicBool::new(false);
    // The agent takes what is there and shows no pulse: it is slow, and nobody can tell that from dead.
    rig.log.beat(Duration::from_nanos(1), 1, LinkState::Counting);
    std::thread::scope(|s| {
        let (app, done) = (&app, &done);
        s.spawn(move || {
            capture(app, memory, 0, memory.len());
            app.drain();
            done.store(true, SeqCst);
        });
        loop {
            let finished = done.load(SeqCst);
            for record in rig.consume() {
                let bytes = payload(&rig.log, &record);
                assert!(bytes.len() as u64 <= (1 << 16) / 4);
                image[record.place().1 as usize..][..bytes.len()].copy_from_slice(&bytes);
                rig.log.set_free(record.next());
            }
            if finished {
                break;
            }
        }
    });
    assert!(image == memory, "the image differs");
    assert_eq!(rig.log.counters().ahead, 0);
}

#[test]
fn without_an_agent_a_full_ring_sends_the_application_ahead() {
    let rig = Rig::with(LogSpec { ring_bytes: 1 << 16, ..LogSpec::default() });
    let entry = pmemha::log::RegionEntry { size: 1 << 20, first_bit: 0, page_shift: 12 };
    rig.log.set_region(REGION, Some(entry)).unwrap();
    let memory: &[u8] = rig.memory(1 << 20);
    let app = rig.appender();
    capture(&app, memory, 0, 1 << 20);
    let lsn = app.drain();
    let gap = rig.log.gap().expect("a gap");
    assert_eq!((lsn, gap.end), (gap.start.advance(1), None));
    assert_eq!(app.wait(lsn, Level::Local, None), Err(WaitError::Gap));
    let logged: u64 = rig.consume().iter().map(|r| u64::from(r.len)).sum();
    let noted: u64 = rig.log.take_dirty(REGION).map(|r| r.len).sum();
    assert!(logged + noted >= 1 << 20, "{logged} in the log, {noted} noted");

    // The agent closes the gap. Nothing is acknowledged before the copy is, and the log goes on.
    rig.log.publish_filled(&|_| false);
    rig.log.set_free(rig.log.tail());
    assert!(rig.log.close_gap());
    capture(&app, memory, 0, 64);
    let after = app.drain();
    assert_eq!(rig.consume()[0].kind, Kind::SyncBegin as u8);
    let all = pmemha::log::Acks { received: after, durable: after, applied: after };
    rig.log.set_acks(all);
    assert_eq!(rig.log.acks().applied, gap.start, "held back by the open gap");
    rig.log.end_gap(after);
    rig.log.set_acks(all);
    for lsn in [lsn, after] {
        assert_eq!(app.wait(lsn, Level::Applied, Some(Duration::ZERO)), Ok(()));
    }
}

#[test]
fn a_commit_that_was_given_up_is_not_waited_for_again_until_it_arrives() {
    let rig = Rig::new();
    let commit_timeout = Duration::from_millis(30);
    rig.log.set_policy(Policy { commit: Level::Received, commit_timeout, ..Policy::default() });
    rig.log.beat(boottime(), 1, LinkState::Counting);
    let memory: &[u8] = rig.memory(4096);
    let app = rig.appender();
    let persist = || {
        capture(&app, memory, 0, 64);
        let lsn = app.drain();
        (lsn, app.commit(lsn))
    };
    let (given_up, reached) = persist();
    assert!(!reached);
    let before = std::time::Instant::now();
    assert!(!persist().1 && before.elapsed() < commit_timeout, "the second commit waited");
    assert_eq!(rig.log.counters().commits_given_up, 2);
    rig.log.set_acks(pmemha::log::Acks { received: given_up, ..Default::default() });
    let before = std::time::Instant::now();
    assert!(!persist().1 && before.elapsed() >= commit_timeout, "the destination caught up: wait again");
}

/// A drain's commit under `trouble` is still waiting when somebody looks, and reaches its level once `mended`.
fn a_commit_waits_through(trouble: impl Fn(&Rig), mended: impl Fn(&Rig)) {
    let rig = Rig::with(LogSpec { ring_bytes: 1 << 16, ..LogSpec::default() });
    let commit_timeout = Duration::from_secs(60);
    rig.log.set_policy(Policy { commit: Level::Received, commit_timeout, ..Policy::default() });
    rig.log.beat(boottime(), 1, LinkState::Counting);
    trouble(&rig);
    let memory: &[u8] = rig.memory(4096);
    let app = rig.appender();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let program = s.spawn(|| {
            capture(&app, memory, 0, 64);
            let reached = app.commit(app.drain());
            done.store(true, SeqCst);
            reached
        });
        while rig.waiters() == 0 && !done.load(SeqCst) {
            std::thread::yield_now();
        }
        mended(&rig);
        assert!(program.join().unwrap(), "the commit returned without its level");
    });
    assert_eq!(rig.log.counters().commits_given_up, 0);
}

fn acknowledge_all(rig: &Rig) {
    let all = rig.log.published();
    rig.log.set_acks(pmemha::log::Acks { received: all, durable: all, applied: all });
}

#[test]
fn a_commit_waits_through_an_agent_without_a_pulse() {
    a_commit_waits_through(
        |rig| rig.log.beat(Duration::from_nanos(1), 1, LinkState::Counting),
        acknowledge_all,
    );
}

#[test]
fn a_commit_waits_through_a_destination_that_is_away_or_copied_to() {
    for link in [LinkState::Down, LinkState::Syncing] {
        a_commit_waits_through(|rig| rig.log.beat(boottime(), 1, link), acknowledge_all);
    }
}

#[test]
fn a_commit_waits_through_a_gap() {
    let overflow = |rig: &Rig| {
        let (memory, app): (&[u8], _) = (rig.memory(1 << 17), rig.appender());
        capture(&app, memory, 0, 1 << 17);
        assert!(rig.log.is_ahead());
    };
    a_commit_waits_through(overflow, |rig| {
        rig.log.publish_filled(&|_| false);
        rig.log.set_free(rig.log.tail());
        assert!(rig.log.close_gap());
        rig.log.publish_filled(&|_| false);
        rig.log.end_gap(rig.log.published());
        acknowledge_all(rig);
    });
}

#[test]
fn without_a_destination_a_commit_is_given_up_at_once() {
    let rig = Rig::new();
    let commit_timeout = Duration::MAX;
    rig.log.set_policy(Policy { commit: Level::Received, commit_timeout, ..Policy::default() });
    rig.log.beat(boottime(), 1, LinkState::None);
    let app = rig.appender();
    assert!(!app.commit(app.drain().advance(1)));
    assert!(!rig.log.commits_wait());
    assert_eq!(rig.log.counters().commits_given_up, 1);
}

#[test]
fn a_process_without_a_place_among_the_writers_never_believes_in_a_commit() {
    let rig = Rig::with(LogSpec { appenders: 1, ..LogSpec::default() });
    rig.log.set_policy(Policy { commit: Level::Received, ..Policy::default() });
    rig.log.beat(boottime(), 1, LinkState::Counting);
    let memory: &[u8] = rig.memory(4096);
    let app = rig.appender();
    // SAFETY: the child makes system calls and appends, and never returns to the test harness.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = app.after_fork_child().is_err();
        capture(&app, memory, 0, 64);
        let reached = app.commit(app.drain());
        // SAFETY: ends the child; nothing of the harness runs.
        unsafe { libc::_exit(i32::from(!refused || reached)) };
    }
    let mut status = 0;
    // SAFETY: `status` is ours, the child too.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child was not refused, or took its commit for reached");
    let counters = rig.log.counters();
    assert_eq!((counters.unrecorded, counters.commits_given_up), (1, 1));
    assert!(rig.consume().is_empty());
    assert!(rig.log.is_ahead(), "nothing brings what it stored");
    assert!(app.append(Kind::Filler, REGION, 0, &[]).is_err(), "others' records may rest on it");
}

#[test]
fn two_processes_write_one_log() {
    let rig = Rig::with(LogSpec { ring_bytes: 32 << 20, ..LogSpec::default() });
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), rig.fd.as_raw_fd());
    let children: Vec<_> = (0..2)
        .map(|_| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "rules::writer_process", "--nocapture"])
                .env("PMEMHA_TEST_LOG", &path)
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    rig.log.publish_filled(&|_| false);
    let mut last = std::collections::HashMap::new();
    for record in rig.consume() {
        let n = number(&payload(&rig.log, &record), 0);
        let before = last.insert(record.place().0, n).unwrap_or(0);
        assert_eq!(n, before + 1, "a process's records are in its order, and all there");
    }
    assert_eq!(last.into_values().collect::<Vec<_>>(), [WRITES, WRITES]);
}

const WRITES: u64 = 150_000;

/// The other process of `two_processes_write_one_log`; by itself it has nothing to do.
#[test]
fn writer_process() {
    let Ok(path) = std::env::var("PMEMHA_TEST_LOG") else { return };
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let log = LogRegion::attach(std::os::fd::AsFd::as_fd(&file)).unwrap();
    let app = Appender::attach(log.clone(), std::process::id()).unwrap();
    let page = Rig::new().memory(4096);
    // Both write at the same time, however long one of them took to start.
    let writers = || (0..log.spec().appenders as u16).filter(|cell| log.owner(*cell).is_some()).count();
    while writers() < 2 && log.tail() == log.spec().first_lsn {
        std::thread::yield_now();
    }
    for n in 1..=WRITES {
        page[..8].copy_from_slice(&n.to_le_bytes());
        // SAFETY: within `page`.
        unsafe { app.capture(RegionId(std::process::id() as u16), 0, page.as_ptr(), 8) };
        if n % 8 == 0 {
            app.drain();
        }
    }
    app.drain();
}
