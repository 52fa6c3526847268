//! A group's files beside the copy at its destination, compared while the program runs.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};

use pmemha_testkit::load::Load;
use pmemha_testkit::node::{Binaries, Node, Pair, PairOptions};
use serde_json::Value;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

const BYTES: usize = 8 << 20;

fn pair() -> Pair {
    Pair::start(BINARIES, &PairOptions { group: "log_size = \"1MiB\"\n".into(), ..PairOptions::default() })
}

/// What the command says with `--json`, and its exit code.
fn run(node: &Node, args: &[&str]) -> (Value, Option<i32>) {
    let said = node.cli().args(args).arg("--json").output().expect("the command starts");
    let text = String::from_utf8_lossy(&said.stdout);
    let found = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {text}{}", String::from_utf8_lossy(&said.stderr)));
    (found, said.status.code())
}

/// The ranges of a finding: offset, bytes, whether not flushed.
fn ranges(found: &Value) -> Vec<(u64, u64, bool)> {
    let range = |r: &Value| Some((r["offset"].as_u64()?, r["bytes"].as_u64()?, r["unflushed"].as_bool()?));
    found["ranges"].as_array().expect("ranges").iter().map(|r| range(r).expect("a range")).collect()
}

/// The file of the live image at `node` that has so many bytes.
fn image_file(node: &Node, bytes: usize) -> PathBuf {
    let inside =
        |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let images = inside(&node.replica()).into_iter().filter(|path| path.is_dir());
    let has = |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == bytes as u64);
    let files: Vec<_> = images.flat_map(|image| inside(&image)).filter(has).collect();
    files.into_iter().max().expect("a file of the image")
}

fn settled(node: &Node) {
    node.await_streaming();
}

#[test]
fn what_a_busy_program_has_is_equal_to_its_copy_wherever_it_flushed() {
    let pair = pair();
    let load = Load::paced(&pair.alpha, "tx", 50);
    load.files.await_progress("at first", 200);
    settled(&pair.alpha);
    let (found, code) = run(&pair.alpha, &["verify", "app"]);
    assert_eq!((&found["unrecorded_bytes"], code), (&Value::from(0), Some(0)), "{found:#}");
    assert!(found["compared_bytes"].as_u64() >= Some(1 << 20), "{found:#}");
    load.files.await_progress("meanwhile", 10);
    let row = &pair.alpha.status().expect("it answers")["groups"][0]["destinations"][0];
    assert!(row["lsn_verified"].as_u64() > Some(0), "{row:#}");
    assert_eq!(pair.alpha.await_event("verified")["node"], "beta");
}

#[test]
fn damage_at_a_destination_is_found_to_the_line_and_repaired_while_the_program_runs() {
    let pair = pair();
    let content: Vec<u8> = (0..BYTES).map(|i| (i / 4096 % 255 + 1) as u8).collect();
    fs::write(pair.alpha.files().join("large"), &content).expect("own directory");
    let load = Load::paced(&pair.alpha, "tx", 200);
    load.files.await_progress("at first", 50);
    let large = |g: &Value| {
        let found =
            g["regions"].as_array()?.iter().any(|r| r["path"].as_str().is_some_and(|p| p.ends_with("large")));
        found.then_some(())
    };
    pair.alpha.await_group("the file to be found", large);
    settled(&pair.alpha);
    assert_eq!(run(&pair.alpha, &["verify", "app", "beta"]).1, Some(0));
    let damaged = image_file(&pair.beta, BYTES);
    let file = File::options().write(true).open(&damaged).expect("the image");
    // The search for writes without a record mends what it finds in such a file: it has to be over.
    file.write_all_at(&[0; 64], BYTES as u64 - 64).expect("the image");
    let source = File::options().write(true).open(pair.alpha.files().join("large")).expect("own directory");
    source.write_all_at(&content[..1], 0).expect("own directory");
    pair.alpha.await_group("the search", |g| {
        let row = &g["destinations"][0];
        let [found, recorded] =
            ["unprotected_writes", "unprotected_writes_recorded"].map(|field| row[field].as_u64());
        (found > Some(0) && found == recorded).then_some(())
    });
    settled(&pair.alpha);
    // Within one line, over the end of another, and a page in the last block.
    for (at, len) in [(5000, 1), (70_000, 100), (BYTES - 4096, 4096)] {
        file.write_all_at(&vec![0; len], at as u64).expect("the image");
    }
    let (found, code) = run(&pair.alpha, &["verify", "app"]);
    let expected = [(4992, 64, false), (69_952, 192, false), (BYTES as u64 - 4096, 4096, false)];
    assert_eq!((ranges(&found), code), (expected.to_vec(), Some(1)), "{found:#}");
    assert_eq!(run(&pair.alpha, &["scrub", "app"]).1, Some(0), "it was flushed");
    let (found, code) = run(&pair.alpha, &["verify", "app", "--repair"]);
    assert_eq!((&found["repairs"], code), (&Value::from(true), Some(1)), "{found:#}");
    pair.alpha.await_group("the repair", |g| {
        let row = &g["destinations"][0];
        (row["state"] == "streaming" && row["resumed"] == false).then_some(())
    });
    settled(&pair.alpha);
    assert_eq!(run(&pair.alpha, &["verify", "app"]).1, Some(0));
    assert!(fs::read(image_file(&pair.beta, BYTES)).expect("the image") == content);
    load.files.await_progress("after it", 10);
}

/// Maps a file, stores at the offsets that it is told, makes them durable where it is told `f`, and waits for the next.
const STORER: &str = "
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 1 << 20)
memory = mmap.mmap(file, 1 << 20)
memory[0:64] = b'a' * 64
memory.flush()
print('mapped', flush=True)
for line in sys.stdin:
    word = line.split()
    if word[0] == 'f':
        memory.flush()
    else:
        at, count = int(word[0]), int(word[1])
        memory[at:at + count] = b'x' * count
    print('done', flush=True)
";

struct Storer {
    program: Child,
    told: ChildStdin,
    said: BufReader<std::process::ChildStdout>,
}

impl Storer {
    fn start(node: &Node) -> Storer {
        let mut program = node.preloaded(Path::new("/usr/bin/python3"));
        program.args(["-c", STORER]).arg(node.files().join("mapped"));
        let mut program =
            program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 is installed");
        let (told, said) = (program.stdin.take().expect("piped"), program.stdout.take().expect("piped"));
        let mut storer = Storer { program, told, said: BufReader::new(said) };
        storer.hear("mapped");
        storer
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.told, "{word}").expect("it lives");
        self.hear("done");
    }

    fn hear(&mut self, word: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it lives");
        assert_eq!(line.trim(), word);
    }
}

impl Drop for Storer {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn what_a_program_stored_and_never_flushed_is_listed_until_it_does() {
    let pair = pair();
    let mut storer = Storer::start(&pair.alpha);
    settled(&pair.alpha);
    assert_eq!(run(&pair.alpha, &["scrub", "app"]).1, Some(0));
    storer.tell("100 10");
    storer.tell("300000 200");
    let (found, code) = run(&pair.alpha, &["scrub", "app"]);
    assert_eq!((ranges(&found), code), (vec![(64, 64, true), (299_968, 256, true)], Some(1)), "{found:#}");
    // Nothing of it passed the log by.
    assert_eq!(run(&pair.alpha, &["verify", "app"]).1, Some(0));
    storer.tell("f");
    settled(&pair.alpha);
    assert_eq!(run(&pair.alpha, &["scrub", "app"]).1, Some(0));
}

#[test]
fn a_comparison_can_be_slow_and_is_refused_where_there_is_nothing_to_compare() {
    let mut pair = pair();
    let content: Vec<u8> = (0..BYTES).map(|i| (i / 4096 % 255 + 1) as u8).collect();
    fs::write(pair.alpha.files().join("large"), &content).expect("own directory");
    pair.alpha.await_group("the file", |g| (g["regions"].as_array()?.len() == 1).then_some(()));
    settled(&pair.alpha);
    let refused = |args: &[&str], why: &str| {
        let said = pair.alpha.cli().args(args).output().expect("the command starts");
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && text.contains(why), "{args:?}: {text}");
    };
    refused(&["verify", "app", "gamma"], "no destination `gamma`; known: beta");
    refused(&["verify", "none"], "no group `none`");
    refused(&["verify", "app", "--rate", "fast"], "MiB/s");
    let mut slow = pair.alpha.cli();
    let mut slow =
        slow.args(["verify", "app", "--rate", "1MiB/s"]).stdout(Stdio::null()).spawn().expect("it starts");
    pair.alpha.await_group("its progress", |g| {
        let progress = &g["destinations"][0]["verify"]["progress"];
        (progress["done_bytes"].as_u64()? > 0 && progress["total_bytes"] == BYTES).then_some(())
    });
    refused(&["verify", "app"], "under way");
    pair.beta.kill();
    assert_eq!(slow.wait().expect("it ends").code(), Some(69), "its destination went away");
    let row = pair.alpha.status().expect("it answers")["groups"][0]["destinations"][0].take();
    assert!(row["verify"]["error"].is_string() && row["lsn_verified"].is_null(), "{row:#}");
}

/// pynvm's dictionary, filled; then it waits.
const DICTIONARY: &str = "
import sys
import nvm.pmemobj as pmemobj
pool = pmemobj.PersistentObjectPool(sys.argv[1], flag='c', pool_size=16 << 20)
pool.root = pool.new(pmemobj.PersistentDict)
print('made', flush=True)
sys.stdin.readline()
for i in range(200):
    pool.root[i] = 'v' * i
print('filled', flush=True)
sys.stdin.read()
";

/// A program that many use and that forgets flushes: found again and again, where nothing is stored any more.
#[test]
fn pynvm_forgets_to_flush_what_its_dictionary_stored() {
    let pair = pair();
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pynvm/bin/python");
    if !python.exists() {
        // Past the harness, which keeps what a test that passes prints to itself.
        let path = python.display();
        let _ = writeln!(std::io::stderr(), "\nskipped: pynvm: there is no {path}: `scripts/pynvm` makes it");
        return;
    }
    let mut program = pair.alpha.preloaded(&python);
    program.args(["-c", DICTIONARY]).arg(pair.alpha.files().join("pool")).env("PMEM_IS_PMEM_FORCE", "1");
    let mut program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a python");
    let (mut told, said) = (program.stdin.take().expect("piped"), program.stdout.take().expect("piped"));
    let mut said = BufReader::new(said).lines();
    let mut hear = |word| assert_eq!(said.next().and_then(Result::ok).as_deref(), Some(word));
    hear("made");
    // A copy of the file takes what lies in it, flushed or not.
    settled(&pair.alpha);
    told.write_all(b"\n").expect("it lives");
    hear("filled");
    settled(&pair.alpha);
    let [first, second] = [0, 1].map(|_| run(&pair.alpha, &["scrub", "app"]));
    let _ = program.kill();
    let _ = program.wait();
    println!("{} bytes in {} ranges were never flushed", first.0["unflushed_bytes"], ranges(&first.0).len());
    assert_eq!(first.1, Some(1), "{:#}", first.0);
    assert_eq!(ranges(&first.0), ranges(&second.0));
    assert!(ranges(&first.0).iter().all(|(_, _, unflushed)| *unflushed), "{:#}", first.0);
}
