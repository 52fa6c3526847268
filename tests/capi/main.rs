//! A C program can protect its memory with what `make install` installs, and nothing that it does wrong crashes it.
//!
//! The numbered examples are compiled with every warning an error, against an installed tree, and run against an
//! agent inside the test: by themselves, then under valgrind. What the destination would hold is compared with the file.

mod children;
mod errors;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use pmemha::log::SleepDepth;
use pmemha::session::wire::Request;
use pmemha_testkit::dirs::{in_memory, repo};
use pmemha_testkit::install::Installed;
use pmemha_testkit::programs::compile;
use pmemha_testkit::test_agent::{Setup, TestAgent};

/// One installation for all tests of this binary.
fn examples() -> &'static (Installed, std::path::PathBuf) {
    static TREE: OnceLock<(Installed, std::path::PathBuf)> = OnceLock::new();
    TREE.get_or_init(|| {
        let tree = Installed::new();
        let built = tree.build_examples();
        (tree, built)
    })
}

/// How a program is run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Under {
    Nothing,
    Valgrind,
}

/// Runs an example on a file in `dir` and returns what it printed; panics unless it succeeded.
fn run(example: &str, agent: &TestAgent, dir: &Path, under: Under) -> String {
    let (tree, built) = examples();
    let mut command = match under {
        Under::Nothing => Command::new(built.join(example)),
        Under::Valgrind => {
            let mut valgrind = Command::new("valgrind");
            valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full"]);
            valgrind.args(["--errors-for-leak-kinds=definite", "--trace-children=yes"]);
            valgrind.arg(built.join(example));
            valgrind
        }
    };
    command.arg(dir.join("file")).env("LD_LIBRARY_PATH", tree.lib()).env("PMEMHA_SOCKET", agent.socket());
    // The emulated or real memory of the test machine is not persistent; the examples do not depend on it.
    command.env("PMEM_IS_PMEM_FORCE", "1").env_remove("PMEMHA_GROUP");
    let Output { status, stdout, stderr } = command.output().expect("valgrind is installed by scripts/setup");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{example} under {under:?}: {status}\n{stdout}{stderr}");
    stdout.into_owned()
}

/// Runs an example with an agent of its own; returns its output, the image and the file.
fn protected(example: &str, under: Under) -> (String, Vec<u8>, Vec<u8>) {
    let (agent, dir) = (TestAgent::start(), in_memory());
    let said = run(example, &agent, dir.path(), under);
    let file = dir.path().join("file");
    let goodbyes = agent.requests().iter().filter(|r| matches!(r, Request::Goodbye { .. })).count();
    assert!(goodbyes >= 1, "{example} closed its session");
    (said, agent.image(&file), std::fs::read(&file).expect("the example's file"))
}

fn word(image: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(image[offset..offset + 8].try_into().expect("eight bytes"))
}

#[test]
fn a_plain_program_s_bytes_reach_the_destination() {
    let (said, image, file) = protected("01-plain", Under::Nothing);
    assert!(said.starts_with("durable up to LSN "), "{said}");
    assert!(image.starts_with(b"hello from the other machine\0"));
    assert_eq!(image, file);
}

#[test]
fn every_level_can_be_waited_for() {
    let (said, image, file) = protected("02-wait-levels", Under::Nothing);
    assert_eq!((word(&image, 0), &image), (4, &file));
    assert!(said.contains("applied: LSN") && said.ends_with("generation 1, protected\n"), "{said}");
}

#[test]
fn flushes_and_drains_make_no_system_call() {
    let (tree, _) = examples();
    let (include, lib) = (tree.prefix().join("include"), tree.lib());
    let flags = ["-DC_API".to_owned(), format!("-I{}", include.display()), format!("-L{}", lib.display())];
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["-lpmemha"]).collect();
    let program = compile("no-calls-c-api", &["no_calls.c"], &flags);
    let agent = TestAgent::with(Setup { sleep: SleepDepth::Nap, ..Setup::default() });
    let dir = in_memory();
    let mut command = Command::new(program);
    command.arg(dir.path().join("file")).env("LD_LIBRARY_PATH", lib).env("PMEMHA_SOCKET", agent.socket());
    let out = command.output().expect("the program starts");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "no system call\n", "{out:?}");
}

#[test]
fn a_pmdk_pool_is_protected_by_its_address() {
    pmdk_pool(Under::Nothing);
}

/// What libpmemobj keeps in a pool for itself is not the example's to flush, so the image need not be the file.
fn pmdk_pool(under: Under) {
    let (_, image, _) = protected("03-pmdk", under);
    for i in 0..64 {
        let entry = format!("entry {i}\0");
        assert!(image.windows(entry.len()).any(|w| w == entry.as_bytes()), "{entry}");
    }
}

#[test]
fn threads_share_a_session() {
    let (_, image, file) = protected("04-threads", Under::Nothing);
    assert_eq!([0, 64, 128, 192].map(|at| word(&image, at)), [500; 4]);
    assert_eq!(image, file);
}

#[test]
fn every_misuse_is_told_and_none_crashes() {
    let said = run("05-errors", &TestAgent::start(), in_memory().path(), Under::Nothing);
    assert!(said.ends_with("\n0 surprises\n"), "{said}");
    for remedy in ["start pmemhad", "only mappings of files", "drain first"] {
        assert!(said.contains(remedy), "no word of \"{remedy}\":\n{said}");
    }
}

#[test]
fn the_cpp_header_closes_its_session_and_throws_statuses() {
    let (said, image, _) = protected("06-raii", Under::Nothing);
    assert!(image.starts_with(b"written by C++\0"));
    assert!(said.contains("as expected: 1 bytes at 0x"), "{said}");
}

#[test]
fn a_forked_child_writes_beside_its_parent() {
    let (said, image, file) = protected("07-fork", Under::Nothing);
    assert_eq!(said, "child wrote 42, parent 43\n");
    assert_eq!((word(&image, 0), word(&image, 64)), (43, 42));
    assert_eq!(image, file);
}

#[test]
fn a_program_that_flushes_itself_appends_first() {
    let (_, image, file) = protected("08-append", Under::Nothing);
    assert!(image[4096..].starts_with(b"flushed by the program itself\0"));
    assert_eq!(image, file);
}

#[test]
fn a_program_may_do_with_descriptors_as_it_pleases() {
    let (said, image, file) = protected("09-daemon", Under::Nothing);
    assert!(said.starts_with("the agent's status takes "), "{said}");
    assert_eq!(image, file);
}

#[test]
fn valgrind_finds_nothing_in_any_example() {
    for example in
        ["01-plain", "02-wait-levels", "04-threads", "06-raii", "07-fork", "08-append", "09-daemon"]
    {
        let (_, image, file) = protected(example, Under::Valgrind);
        assert_eq!(image, file, "{example}");
    }
    pmdk_pool(Under::Valgrind);
    let said = run("05-errors", &TestAgent::start(), in_memory().path(), Under::Valgrind);
    assert!(said.ends_with("\n0 surprises\n"), "{said}");
}

#[test]
fn a_mapping_of_the_page_cache_is_written_back() {
    let (agent, dir) = (TestAgent::start(), tempfile::tempdir_in(repo().join("target")).unwrap());
    run("01-plain", &agent, dir.path(), Under::Nothing);
    assert!(agent.image(&dir.path().join("file")).starts_with(b"hello from the other machine\0"));
}

#[test]
fn an_installation_is_complete() {
    let (tree, built) = examples();
    let lib = std::fs::read_link(tree.lib().join("libpmemha.so")).expect("a link for the linker");
    assert_eq!(lib, Path::new("libpmemha.so.0"));
    for file in [
        "lib/libpmemha.so.0",
        "lib/libpmemha_preload.so",
        "lib/systemd/system/pmemhad.service",
        "include/pmemha.h",
        "include/pmemha.hpp",
        "bin/pmemha",
        "sbin/pmemhad",
        "share/man/man7/libpmemha.7",
        "share/man/man3/pmemha_open.3",
    ] {
        assert!(tree.prefix().join(file).exists(), "{file} is not installed");
    }
    let unit = std::fs::read_to_string(tree.prefix().join("lib/systemd/system/pmemhad.service")).unwrap();
    assert!(unit.contains(&format!("ExecStart={}/sbin/pmemhad\n", tree.prefix().display())), "{unit}");
    let numbered = |dir: &Path| {
        let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|n| n.starts_with(|c: char| c.is_ascii_digit())).count()
    };
    assert_eq!(numbered(&repo().join("c-examples")), numbered(built), "every example is built");
}

#[test]
fn an_installed_command_finds_its_agent_and_says_where_it_looked_for_one() {
    let (tree, dir) = (&examples().0, in_memory());
    let pool = dir.path().join("pool");
    let run = |cli: &Path| {
        let mut command = Command::new(cli);
        command.args(["run", "--protect"]).arg(&pool).arg("--to").arg(dir.path().join("copy"));
        command.args(["--", "true"]).env("PMEMHA_PRELOAD", tree.lib().join("libpmemha_preload.so"));
        let Output { status, stderr, .. } = command.output().expect("pmemha runs");
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    };
    let cli = tree.prefix().join("bin/pmemha");
    let (code, said) = run(&cli);
    assert_eq!(code, Some(0), "{said}");

    let alone = dir.path().join("bin/pmemha");
    std::fs::create_dir(alone.with_file_name("")).expect("an own directory");
    std::fs::copy(&cli, &alone).expect("an own directory");
    let (code, said) = run(&alone);
    assert_eq!(code, Some(70), "{said}");
    for place in ["bin/pmemhad", "sbin/pmemhad"].map(|place| dir.path().join(place)) {
        assert!(said.contains(&*place.to_string_lossy()) && said.contains("PATH"), "{said}");
    }
}

#[test]
fn the_manual_pages_are_sound() {
    let pages: Vec<_> = std::fs::read_dir(repo().join("man")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(pages.len() >= 5);
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        if let Some(target) = text.strip_prefix(".so man3/") {
            assert!(page.with_file_name(target.trim()).exists(), "{} leads nowhere", page.display());
            continue;
        }
        let out = Command::new("groff").args(["-ww", "-man", "-Tutf8", "-z"]).arg(&page).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.is_empty(), "{}: {said}", page.display());
    }
}
