//! An agent that runs as an ordinary user, and directories and files that this user may not use: each is named with what to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use pmemha_testkit::load::Load;
use pmemha_testkit::node::{Pair, PairOptions, archiving};
use pmemha_testkit::programs;

use crate::BINARIES;
use crate::trouble::{await_not_protected, await_promotable, await_told, pour, tells};

/// Nobody's: what the agent runs as.
const NOBODY: u32 = 65534;

const DENIED: &str = "Permission denied (os error 13); give it to the user that this program runs as";

fn pair() -> Pair {
    let group = "log_size = \"1MiB\"".to_owned();
    Pair::prepare(BINARIES, &PairOptions { group, ..PairOptions::default() })
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn an_agent_refuses_to_start_where_it_may_not_use_what_it_needs_and_says_what_to_do() {
    let mut unclear = Vec::new();
    for (name, mode, remedy) in [
        ("state", 0o755, DENIED),
        ("run", 0o755, DENIED),
        ("replica", 0o755, DENIED),
        ("tls/node.key", 0o600, "give it to the user that this program runs as, and let nobody else read it"),
    ] {
        let mut node = pair().beta;
        node.run_as(NOBODY);
        let path = node.dir().join(name);
        node.give_to(&path, 0);
        set_mode(&path, mode);
        let said = node.refused();
        let told = |line: &str| line.contains(path.to_str().unwrap()) && line.contains(remedy);
        if !said.lines().any(told) {
            unclear.push((name, said));
        }
        // That was all.
        node.give_to(&path, NOBODY);
        node.start();
    }
    assert!(unclear.is_empty(), "{unclear:#?}");
}

#[test]
fn an_archive_that_may_not_be_written_is_left_out_and_named_until_it_may() {
    let mut node = archiving(BINARIES, "log_size = \"1MiB\"");
    fs::create_dir(node.archive()).unwrap();
    node.run_as(NOBODY);
    node.give_to(&node.archive(), 0);
    node.start();
    let archive = node.archive();
    node.await_group("the archive to be named", |group| {
        tells(&group["archive"]["last_error"], &archive, DENIED).then_some(())
    });
    node.give_to(&archive, NOBODY);
    node.await_group("the archive to be written", |group| group["archive"]["lsn_durable"].as_u64());
}

#[test]
fn a_replica_that_may_be_written_no_more_is_named_at_both_nodes_and_goes_on_once_it_may() {
    let mut pair = pair();
    pair.beta.run_as(NOBODY);
    pair.beta.start();
    pair.alpha.start();
    let mut load = Load::paced(&pair.alpha, "raw", 2000);
    pair.alpha.await_streaming();
    let names = fs::read_dir(pair.beta.replica()).unwrap().map(|entry| entry.unwrap().path());
    let image = names.into_iter().find(|path| path.join("manifest.json").exists()).expect("an image");
    set_mode(&image, 0o500);
    pour(&pair.alpha, "new", 1 << 16);
    await_told(&pair, &image, DENIED);
    load.files.await_progress("while the replica cannot be written", 20);
    set_mode(&image, 0o700);
    load.assert_alive();
    await_promotable(&pair, &load, "new");
}

#[test]
fn a_state_directory_that_may_be_written_no_more_is_named_and_the_file_is_protected_once_it_may() {
    let mut pair = pair();
    pair.alpha.run_as(NOBODY);
    pair.beta.start();
    pair.alpha.start();
    let state = pair.alpha.dir().join("state/groups/app");
    set_mode(&state, 0o500);
    let file = pair.alpha.files().join("new");
    // Where nobody may read it, whoever may enter the directories above the one that it was built in.
    let library = pair.alpha.dir().join("preload.so");
    fs::copy(programs::preload(), &library).unwrap();
    let mut program = pair.alpha.preloaded(Path::new("/usr/bin/touch"));
    program.env("LD_PRELOAD", library);
    assert!(program.uid(NOBODY).gid(NOBODY).arg(&file).status().unwrap().success());
    await_not_protected(&pair.alpha, &state, DENIED);
    set_mode(&state, 0o700);
    pair.alpha.await_group("the file to be protected", |group| {
        group["regions"].as_array()?.iter().any(|r| r["path"] == file.to_str().unwrap()).then_some(())
    });
    pair.alpha.await_streaming();
}
