//! A test agent, a directory of protected files, and programs under the library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use pmemha::log::{OnFull, Policy, SleepDepth};
use pmemha_testkit::dirs::{MEMORY, in_memory};
use pmemha_testkit::programs::{compile, preload};
use pmemha_testkit::test_agent::{Setup, TestAgent};

pub struct Rig {
    pub agent: TestAgent,
    dir: tempfile::TempDir,
    shared_memory: PathBuf,
}

impl Rig {
    /// All files of the directory are protected, but for those that end in `.tmp`.
    pub fn new() -> Rig {
        Rig::with_places(PLACES)
    }

    /// With room for so many writers, the agent included.
    pub fn with_places(appenders: u32) -> Rig {
        Rig::start(in_memory(), appenders, SleepDepth::Deep)
    }

    /// With its files in `dir`.
    pub fn in_dir(dir: tempfile::TempDir) -> Rig {
        Rig::start(dir, PLACES, SleepDepth::Deep)
    }

    /// With an agent that no program has to wake.
    pub fn with_a_light_sleeper() -> Rig {
        Rig::start(in_memory(), PLACES, SleepDepth::Nap)
    }

    fn start(dir: tempfile::TempDir, appenders: u32, sleep: SleepDepth) -> Rig {
        let name = dir.path().file_name().expect("a name of its own").to_string_lossy();
        let shared = Path::new(MEMORY).join(format!("shared-{name}"));
        let protect =
            vec![format!("{}/**/*[!p]", dir.path().display()), format!("{}*[!p]", shared.display())];
        // The test agent knows no first sync, so a gap would never be closed: programs wait for room.
        let policy =
            Policy { on_full: OnFull::Block, block_limit: Duration::from_secs(30), ..Policy::default() };
        let mut setup = Setup { protect, policy, sleep, ..Setup::default() };
        setup.spec.ring_bytes = RING;
        setup.spec.appenders = appenders;
        Rig { agent: TestAgent::with(setup), dir, shared_memory: shared.with_extension("file") }
    }

    /// A protected file that `shm_open` finds.
    pub fn shared_memory(&self) -> &Path {
        &self.shared_memory
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `program`, to be run under the library.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env("LD_PRELOAD", preload())
            .env("PMEMHA_SOCKET", self.agent.socket())
            .env("PMEM_IS_PMEM_FORCE", "1")
            .current_dir(self.dir.path());
        command
    }

    /// Runs one of the steps to its end, which must be a good one and a silent one.
    pub fn run_step(&self, way: &str) {
        let mut command = self.command(steps());
        self.finish(command.arg(way).arg(self.path("file")));
    }

    /// Runs `command` to its end, which must be a good one; the library must not complain.
    pub fn finish(&self, command: &mut Command) -> String {
        let output = command.output().expect("the program starts");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
        assert!(!err.contains("pmemha["), "the library complains: {err}");
        out.into_owned()
    }

    /// The image of `name` is the file, byte for byte.
    pub fn assert_same(&self, name: &str) {
        assert!(!self.agent.log().is_ahead(), "the ring was too small for this test");
        let (image, file) = (self.agent.image(&self.path(name)), std::fs::read(self.path(name)).unwrap());
        assert_eq!(image.len(), file.len(), "sizes of image and file");
        let differs = (0..file.len()).find(|i| image[*i] != file[*i]);
        if let Some(at) = differs {
            let count = (0..file.len()).filter(|i| image[*i] != file[*i]).count();
            panic!("{name}: {count} bytes differ, the first at {at}: {} != {}", image[at], file[at]);
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Most tests make none.
        let _ = std::fs::remove_file(&self.shared_memory);
    }
}

const PLACES: u32 = 64;

/// Less than the larger programs here write at once: they wait for room.
pub const RING: u64 = 4 << 20;

pub fn steps() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| compile("preload-steps", &["preload/steps.c"], &["-lpmem", "-lpmem2", "-lpthread"]))
}
