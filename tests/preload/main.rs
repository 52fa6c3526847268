//! Unmodified programs under the preload library: what they made durable is in the image, nothing else is, and the library
//! stands before exactly the functions that it means to stand before.

mod killed;
mod programs;
mod rig;
mod symbols;

use std::io::{BufRead, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use pmemha::log::format::Kind;
use pmemha::log::{Consumer, Owner};
use pmemha::session::wire::Request;
use pmemha_testkit::programs::{compile, preload};
use pmemha_testkit::wait;
use rig::{RING, Rig};

/// Runs one of `tests/programs/preload/steps.c` and compares the image with the file.
fn image_equals_file(way: &str) {
    let rig = Rig::new();
    rig.run_step(way);
    rig.assert_same("file");
}

macro_rules! ways {
    ($($(#[$doc:meta])* $name:ident = $way:literal;)*) => { $($(#[$doc])* #[test] fn $name() { image_equals_file($way) })* };
}

ways! {
    flushed_lines_are_in_the_image = "flush";
    every_form_of_copying_is_recorded = "copies";
    pages_stored_through_any_mapping_are_recorded_at_msync_and_fsync = "msync";
    a_fixed_overlay_is_recorded_at_its_own_offset = "overlay";
    growth_holes_and_truncation_are_followed = "growth";
    writes_of_every_kind_are_read_back = "writes";
    streams_are_recorded_up_to_what_exit_flushes = "stdio";
    forked_children_record_and_vfork_does_no_harm = "fork";
    a_signal_handler_may_persist_in_the_middle_of_anything = "signals";
    threads_record_at_once = "threads";
    what_was_stored_and_not_synced_is_recorded_at_a_clean_exit = "exit";
    what_was_stored_is_recorded_before_exec = "exec";
    what_was_stored_is_recorded_before_execl = "execl";
    what_was_stored_is_recorded_before_execlp = "execlp";
    what_was_stored_is_recorded_before_execle = "execle";
    what_was_stored_is_recorded_at_a_quick_exit = "quick_exit";
    a_private_page_over_a_shared_one_is_not_replicated = "covered";
    copies_that_begin_or_end_outside_are_recorded = "straddle";
    functions_found_by_hand_are_recorded = "lookup";
    a_reopened_stream_is_recorded_at_fsync_and_exit = "freopen";
    a_lock_outlives_protection = "locked";
    what_is_written_after_another_process_cut_the_file_is_recorded = "ftruncated";
    what_is_written_after_another_process_cut_it_by_name_is_recorded = "truncated";
    what_is_written_after_another_process_opened_it_empty_is_recorded = "opened";
    what_is_written_after_another_process_streamed_over_it_is_recorded = "fopened";
    two_processes_append_to_one_file = "appenders";
    a_file_may_be_cut_while_another_process_writes = "cut";
}

#[test]
fn bytes_that_nobody_flushed_are_not_in_the_image() {
    let rig = Rig::new();
    rig.run_step("noflush");
    let image = rig.agent.image(&rig.path("file"));
    assert_eq!(image[..64], [1; 64]);
    assert!(image[4096..4160].iter().all(|b| *b == 0));
}

/// How many flushes of the program reach libpmem.
fn flushes(rig: &Rig, local_flush: &str) -> u64 {
    let mut libraries = preload().as_os_str().to_owned();
    libraries.push(":");
    libraries.push(compile("count_flushes.so", &["preload/count_flushes.c"], &["-shared", "-fPIC"]));
    let mut command = rig.command(rig::steps());
    command.env("LD_PRELOAD", libraries).env("PMEMHA_LOCAL_FLUSH", local_flush);
    let told = rig.finish(command.arg("flush").arg(rig.path("file")));
    rig.assert_same("file");
    told.parse().expect("a count")
}

#[test]
fn lines_on_tmpfs_are_recorded_and_flushed_only_on_request() {
    let in_memory = Rig::new();
    assert_eq!(flushes(&in_memory, "auto"), 0);
    let always = flushes(&in_memory, "always");
    assert!(always > 0);
    let elsewhere = Rig::in_dir(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    assert_eq!(flushes(&elsewhere, "auto"), always);
}

#[test]
fn flushes_and_drains_make_no_system_call() {
    let program = compile("no-calls", &["no_calls.c"], &["-lpmem"]);
    for local_flush in ["auto", "always"] {
        let rig = Rig::with_a_light_sleeper();
        let mut command = rig.command(&program);
        command.env("PMEMHA_LOCAL_FLUSH", local_flush).arg(rig.path("file"));
        assert_eq!(rig.finish(&mut command), "no system call\n");
        rig.assert_same("file");
    }
}

#[test]
fn what_was_written_around_the_page_cache_is_recorded() {
    // No file system in memory asks for aligned reads.
    let rig = Rig::in_dir(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    rig.run_step("direct");
    rig.assert_same("file");
}

#[test]
fn shared_memory_is_a_file_like_any_other() {
    let rig = Rig::new();
    rig.finish(rig.command(rig::steps()).arg("shm").arg(rig.shared_memory()));
    let (image, file) = (rig.agent.image(rig.shared_memory()), std::fs::read(rig.shared_memory()).unwrap());
    assert!(image == file, "{} bytes of {} are as in the file", same(&image, &file), file.len());
    assert_eq!(rig.agent.names(), [rig.shared_memory().to_string_lossy()]);
}

#[test]
fn a_handler_may_change_files_while_another_thread_does() {
    let rig = Rig::new();
    let mut within_reason = rig.command("timeout");
    let steps = within_reason.args(["--signal=KILL", "60"]).arg(rig::steps());
    rig.finish(steps.arg("interrupted").arg(rig.path("file")));
}

#[test]
fn fork_handlers_of_the_program_may_write_and_sync() {
    let rig = Rig::new();
    // A program that waits for itself has its signals blocked.
    let mut within_reason = rig.command("timeout");
    rig.finish(
        within_reason.args(["--signal=KILL", "60"]).arg(rig::steps()).arg("atfork").arg(rig.path("file")),
    );
    rig.assert_same("file");
}

#[test]
fn programs_under_valgrind_are_replicated() {
    for way in ["flush", "copies", "msync", "writes", "stdio"] {
        let rig = Rig::new();
        let mut valgrind = rig.command("valgrind");
        rig.finish(valgrind.arg("--quiet").arg(rig::steps()).arg(way).arg(rig.path("file")));
        rig.assert_same("file");
    }
}

fn same(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a == b).count()
}

/// Runs a step that ends well; what was written is in no record, so the application must be ahead.
fn only_a_copy_can_acknowledge(rig: &Rig, way: &str) -> String {
    let output = rig.command(rig::steps()).arg(way).arg(rig.path("file")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(rig.agent.log().is_ahead(), "{said}");
    said
}

#[test]
fn what_cannot_be_read_back_is_never_acknowledged() {
    let said = only_a_copy_can_acknowledge(&Rig::new(), "unreadable");
    assert!(said.contains("cannot be read back"), "{said}");
}

#[test]
fn what_the_agent_fails_to_protect_is_never_acknowledged() {
    let rig = Rig::new();
    rig.agent.refuse("the disk is full");
    let said = only_a_copy_can_acknowledge(&rig, "writes");
    assert!(said.contains("is not replicated for now") && said.contains("the disk is full"), "{said}");
}

#[test]
fn what_went_through_a_synchronous_descriptor_is_published_when_the_call_returns() {
    let rig = Rig::new();
    let ended = rig.command(rig::steps()).arg("dsync").arg(rig.path("file")).status().unwrap();
    assert_eq!(ended.signal(), Some(9), "it kills itself after the write");
    assert_eq!(rig.agent.image(&rig.path("file")), [8; 300]);
}

/// A program does `way` and kills itself. Only `drained`, with which its file begins, was published; all is in the log, for whoever
/// drains next.
fn recorded_and_not_published(way: &str, drained: &[u8]) {
    let rig = Rig::new();
    let ended = rig.command(rig::steps()).arg(way).arg(rig.path("file")).status().unwrap();
    assert_eq!(ended.signal(), Some(9), "it kills itself");
    let image = rig.agent.image(&rig.path("file"));
    let early = image.strip_prefix(drained).expect("what was drained").iter().filter(|b| **b != 0).count();
    assert_eq!(early, 0, "bytes are published that nobody drained");
    rig.agent.log().publish_filled(&Owner::confirmed_dead);
    rig.assert_same("file");
}

#[test]
fn what_was_flushed_and_not_drained_is_recorded_and_not_published() {
    recorded_and_not_published("undrained", &[1; 64]);
}

#[test]
fn what_was_written_and_not_synced_is_recorded_and_not_published() {
    recorded_and_not_published("unsynced", &[]);
}

/// Runs a step twice, with rigs of their own: where libpmem2 flushes lines, and where it syncs pages.
fn at_either_granularity(way: &str, ended: impl Fn(ExitStatus) -> bool) {
    for granularity in ["CACHE_LINE", "PAGE"] {
        let rig = Rig::new();
        let mut steps = rig.command(rig::steps());
        steps.env("PMEM2_FORCE_GRANULARITY", granularity).arg(way).arg(rig.path("file"));
        let output = steps.output().unwrap();
        assert!(ended(output.status) && output.stderr.is_empty(), "{granularity}: {output:?}");
        rig.assert_same("file");
    }
}

#[test]
fn the_functions_that_libpmem2_hands_out_are_recorded() {
    at_either_granularity("libpmem2", |status| status.success());
}

#[test]
fn what_libpmem2_copies_in_steps_is_published_at_the_last_one() {
    // It kills itself.
    at_either_granularity("async", |status| status.signal() == Some(9));
}

#[test]
fn flushes_are_recorded_in_the_order_of_their_calls_and_as_of_then() {
    let rig = Rig::new();
    rig.run_step("in_order");
    let flushed = (1..=500_u64).flat_map(|i| (0..=i % 5).map(move |line| ((i * 7 % 16 + line) * 64, i)));
    let log = rig.agent.log();
    let mut records = Consumer::new(log.clone(), log.spec().first_lsn);
    let mut recorded = Vec::new();
    while let Some(batch) = records.next_batch(u64::MAX).unwrap() {
        for record in batch.headers.iter().filter(|record| record.kind == Kind::Data as u8) {
            let mut lines = vec![0; record.len as usize];
            log.ring().read(record.lsn as usize % RING as usize + size_of_val(record), &mut lines);
            let first = |line: &[u8]| u64::from_le_bytes(line[..8].try_into().unwrap());
            recorded.extend((record.place().1..).step_by(64).zip(lines.chunks(64).map(first)));
        }
    }
    let differs = flushed.clone().zip(&recorded).find(|(flush, record)| flush != *record);
    assert_eq!(differs, None, "a line's place and what stood in it, as flushed and as recorded");
    assert_eq!(recorded.len(), flushed.count());
}

#[test]
fn private_mappings_are_not_replicated() {
    let rig = Rig::new();
    rig.run_step("private");
    assert!(rig.agent.image(&rig.path("file")).iter().all(|b| *b == 0));
}

#[test]
fn a_file_replaced_by_rename_keeps_its_name_and_leaves_no_other() {
    let rig = Rig::new();
    rig.run_step("replace");
    rig.assert_same("file");
    assert_eq!(rig.agent.image(&rig.path("file")), [b'c'; 300]);
    assert_eq!(rig.agent.names(), [rig.path("file").to_string_lossy()]);
}

#[test]
fn what_cannot_be_replicated_is_refused_with_a_word() {
    let rig = Rig::new();
    let output = rig.command(rig::steps()).arg("refused").arg(rig.path("file")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.lines().filter(|line| line.contains("refused")).count(), 9, "{said}");
    rig.assert_same("file");
}

#[test]
fn a_file_that_outgrows_every_destination_ceases_to_be_a_region() {
    let rig = Rig::new();
    let output = rig.command(rig::steps()).arg("outgrown").arg(rig.path("file")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("not replicated any more"), "{said}");
    assert!(rig.agent.names().is_empty() && !rig.agent.log().is_ahead(), "{said}");
}

#[test]
fn a_mapping_from_before_the_agent_came_is_protected_and_keeps_its_lock() {
    let rig = Rig::new();
    let socket = rig.path("later");
    let mut program = rig
        .command(rig::steps())
        .env("PMEMHA_SOCKET", &socket)
        .env("PMEMHA_LOG_LEVEL", "error")
        .arg("adopted")
        .arg(rig.path("file"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "mapped\n");
    std::os::unix::fs::symlink(rig.agent.socket(), socket).unwrap();
    program.stdin.take().unwrap().write_all(b"x").unwrap();
    assert!(program.wait().unwrap().success());
    rig.assert_same("file");
}

#[test]
fn a_child_that_outlives_its_parent_has_a_session_of_its_own() {
    let rig = Rig::new();
    rig.run_step("daemon");
    rig.assert_same("file");
    let hellos = rig.agent.requests().into_iter().filter(|r| matches!(r, Request::Hello { .. }));
    assert_eq!(hellos.count(), 2);
}

#[test]
fn a_program_says_goodbye_for_itself_and_nobody_else_does() {
    let rig = Rig::new();
    rig.run_step("fork");
    let goodbye = |request: Request| match request {
        Request::Goodbye { status } => Some(status),
        _ => None,
    };
    // The children that recorded something, and their parent; the one that borrowed its memory ends with 3.
    let said: Vec<_> = rig.agent.requests().into_iter().filter_map(goodbye).collect();
    assert_eq!(said, [Some(0); 5]);
}

#[test]
fn a_program_that_becomes_another_one_says_so_last() {
    for step in ["exec", "execl"] {
        let rig = Rig::new();
        rig.run_step(step);
        // It does not wait for an answer, so that the agent may hear of it later.
        wait::eventually("the last word", Duration::from_secs(10), || {
            rig.agent.requests().contains(&Request::Exec {})
        });
        assert_eq!(rig.agent.requests().pop(), Some(Request::Exec {}), "{step}");
    }
}

#[test]
fn what_begins_in_borrowed_memory_is_not_the_end_of_its_owner() {
    let rig = Rig::new();
    let ended = rig.command(rig::steps()).arg("vforked").arg(rig.path("file")).status().unwrap();
    assert_eq!(ended.signal(), Some(9), "it kills itself afterwards");
    assert!(rig.agent.image(&rig.path("file")).iter().all(|b| *b == 0), "nobody has synced anything");
}

#[test]
fn without_a_place_among_the_writers_a_program_runs_on_and_says_so() {
    // The agent's own place, and perhaps the parent's.
    for (places, word) in [(1, "running unprotected"), (2, "this forked process is not replicated")] {
        let rig = Rig::with_places(places);
        let output = rig.command(rig::steps()).arg("fork").arg(rig.path("file")).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.contains(word), "{said}");
        assert!(rig.agent.log().counters().unrecorded > 0);
    }
}

#[test]
fn an_inherited_descriptor_is_recognised() {
    let rig = Rig::new();
    let file = std::fs::File::create(rig.path("file")).unwrap();
    let status = rig.command(rig::steps()).args(["inherited", "x"]).stdout(file).status().unwrap();
    assert!(status.success());
    assert_eq!(rig.agent.image(&rig.path("file")), b"inherited");
}

#[test]
fn without_an_agent_programs_run_unprotected_and_are_told_once() {
    let rig = Rig::new();
    let run = |level: &str| {
        let mut command = rig.command(rig::steps());
        command.env("PMEMHA_SOCKET", rig.path("nobody")).env("PMEMHA_LOG_LEVEL", level);
        let output = command.arg("writes").arg(rig.path("file")).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run("warn");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("running unprotected"), "{said}");
    assert_eq!(run("off"), "");
}
