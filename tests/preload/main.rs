//! Unmodified programs under the preload library: what they made durable is in the image, nothing else is, and the library
//! stands before exactly the functions that it means to stand before.

mod programs;
mod rig;
mod symbols;

use std::os::unix::process::ExitStatusExt;

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
