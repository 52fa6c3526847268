//! Unmodified programs under the preload library: what they made durable is in the image, nothing else is, and the library
//! stands before exactly the functions that it means to stand before.

mod killed;
mod programs;
mod rig;
mod symbols;

use std::io::{BufRead, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use pmemha::session::wire::Request;
use rig::Rig;

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
    the_functions_that_libpmem2_hands_out_are_recorded = "libpmem2";
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
        let last = rig.agent.requests().pop().expect("something is said");
        assert_eq!(last, Request::Exec {}, "{step}");
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
