//! What a preload library cannot see is found by comparing: raw system calls, io_uring, programs linked statically.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pmemha_testkit::node::{Pair, PairOptions};
use pmemha_testkit::{programs, wait};

use super::{BINARIES, Program, SOON, await_quiet, row};

/// A protected file of 1 MiB whose content is at the destination, and the program that made it.
fn recorded_file(pair: &Pair) -> (Program, PathBuf) {
    let file = pair.alpha.files().join("data");
    let mut program = Program::start(&pair.alpha);
    program.does(&format!("f = open({file:?}, 'w+b', 0); f.truncate(1 << 20); f.write(b'recorded')"));
    // What a program has not synced may differ by right, and pages wait for it.
    program.does("os.fsync(f.fileno())");
    // The copy of what the file grew by would hold what is written before it.
    await_quiet(pair);
    (program, file)
}

fn await_found(pair: &Pair, pages: u64) {
    wait::until("the writes to be found", SOON, || {
        let found = row(&pair.alpha)?["unprotected_writes"].as_u64()?;
        assert!(found <= pages, "{found} pages found: {}", pair.alpha.log());
        (found == pages).then_some(())
    });
}

/// Runs a program under the preload library, which can do nothing for it.
fn run_preloaded(pair: &Pair, program: &Path, args: &[&str]) {
    let out = pair.alpha.preloaded(program).args(args).output().expect("it is installed");
    assert!(out.status.success(), "{out:?}");
}

#[test]
fn what_io_uring_writes_is_found() {
    let pair = Pair::start(BINARIES, &PairOptions::default());
    let (_program, file) = recorded_file(&pair);
    let file = format!("--filename={}", file.display());
    let job =
        ["--name=unseen", "--ioengine=io_uring", "--rw=write", "--bs=4k", "--offset=256k", "--size=64k"];
    // The file's size and blocks stay as they are: what fio does about those is seen.
    let as_it_is = ["--fallocate=none", "--overwrite=1", "--output-format=terse", &file];
    run_preloaded(&pair, Path::new("/usr/bin/fio"), &[&job[..], &as_it_is].concat());
    await_found(&pair, 16);
}

#[test]
fn what_a_static_program_writes_is_found() {
    let pair = Pair::start(BINARIES, &PairOptions::default());
    let (_program, file) = recorded_file(&pair);
    let program = programs::compile("static", &["static.c"], &["-static"]);
    run_preloaded(&pair, &program, &[file.to_str().expect("a path of ours"), "65536", "9000"]);
    await_found(&pair, 3);
}

#[test]
fn what_is_done_to_a_pool_after_its_program_has_ended_is_found_and_copied() {
    let pair = Pair::start(BINARIES, &PairOptions::default());
    let pool = pair.alpha.files().join("pool");
    let mut pmdk = pair.alpha.preloaded(programs::workload());
    pmdk.args(["run", "tx"]).args([&pool, &pair.alpha.files().join("acks")]).arg("100");
    assert!(pmdk.stdout(Stdio::null()).status().expect("the workload starts").success());
    let (_, status) = await_quiet(&pair);
    let regions = status["groups"][0]["regions"].as_array().expect("a list").clone();
    let mapped = regions.iter().find(|region| region["path"] == pool.to_str().unwrap()).expect("the pool");
    assert_eq!(mapped["mapped"], true);
    assert_eq!(row(&pair.alpha).unwrap()["unprotected_writes"], 0, "nobody has touched it");

    let file = File::options().write(true).open(&pool).expect("the pool");
    let (place, stranger) = (5_000_000, b"written by nobody we know");
    file.write_all_at(stranger, place).expect("it is larger");
    let has_it = |copy: Vec<u8>| copy.get(place as usize..).is_some_and(|rest| rest.starts_with(stranger));
    wait::until("the write to be found and copied", SOON, || {
        let row = row(&pair.alpha)?;
        let fields = ["unprotected_writes", "unprotected_writes_recorded"];
        let [found, recorded] = fields.map(|field| row[field].as_u64());
        let images = fs::read_dir(pair.beta.replica()).expect("its own directory").flatten();
        let files = images.filter_map(|dir| fs::read_dir(dir.path()).ok()).flatten().flatten();
        let copied = files.filter_map(|file| fs::read(file.path()).ok()).any(has_it);
        (copied && found? > 0 && found == recorded).then_some(())
    });
    let events = pair.alpha.await_event("unprotected_writes");
    assert_eq!(events["path"], pool.to_str().unwrap());
}

#[test]
fn writes_that_pass_the_log_by_are_found_and_no_other() {
    let pair = Pair::start(BINARIES, &PairOptions::default());
    let files = pair.alpha.files();
    // A PMDK program beside it stores what it never flushes, and must not be blamed.
    let mut pmdk = pair.alpha.preloaded(programs::workload());
    pmdk.args(["run", "tx"]).args([files.join("pool"), files.join("acks")]).arg("1000000");
    let mut pmdk = pmdk.stdout(Stdio::null()).spawn().expect("the workload starts");
    let (mut program, _) = recorded_file(&pair);
    // pwrite64, by its number: no library sees it.
    program.does("raw = ctypes.CDLL(None).syscall; size, at = ctypes.c_size_t(9000), ctypes.c_size_t(65536)");
    wait::until("the writes to be found", SOON, || {
        // The program beside it fills the ring now and then, and the copy that follows holds these, too: so once more.
        program.does("assert raw(18, f.fileno(), os.urandom(9000), size, at) == 9000");
        (row(&pair.alpha)?["unprotected_writes"] == 3).then_some(())
    });
    program.does("f.seek(1 << 19); f.write(b'y' * 9000); os.fsync(f.fileno())");
    let told = Command::new(env!("CARGO_BIN_EXE_pmemha"))
        .env("PMEMHA_SOCKET", pair.alpha.socket())
        .args(["status"])
        .output()
        .expect("pmemha runs");
    assert!(String::from_utf8_lossy(&told.stdout).contains("3 pages changed without a record"), "{told:?}");
    pmdk.kill().expect("our own child");
    pmdk.wait().expect("our own child");
    assert_eq!(row(&pair.alpha).unwrap()["unprotected_writes"], 3, "{}", pair.alpha.log());
}
