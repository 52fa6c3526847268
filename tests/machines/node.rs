//! A node on a machine of its own: the agent there, its status, and the program's files.

use std::path::Path;
use std::time::Duration;

use pmemha::replica::image::position::{self, Position, PositionFile};
use pmemha::replica::store::disk::DiskStore;
use pmemha::types::Durability;
use pmemha_rig::{FSDAX, Machine, Running};
use pmemha_testkit::{programs, wait};
use serde_json::Value;

use super::BINARIES;

/// For whatever the emulators delay on a machine that is busy with other things.
const AWAIT: Duration = Duration::from_secs(120);

/// Between two looks at the status, each of which takes some of the machine's only processor.
const LOOK: Duration = Duration::from_millis(100);

/// The agent lives until it is killed.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// The program's pause after each operation: an emulated processor outruns an emulated network, which no real one does.
const PAUSE_US: u32 = 2000;

/// Size of the program's pool, if libpmemobj makes it.
const POOL_MIB: u32 = 16;

/// A machine, and the agent on it.
pub struct Node {
    /// The machine's name and the node's.
    pub name: &'static str,
    machine: Option<Machine>,
    agent: Option<Running>,
}

impl Node {
    /// On a machine that was booted for the first time: takes its configuration, certificates and program from `made` of the
    /// host.
    pub fn install(name: &'static str, machine: Machine, made: &Path) -> Node {
        let node = Node { name, machine: Some(machine), agent: None };
        node.sh(&format!("cp -r {} {FSDAX}/etc && mkdir {FSDAX}/files && sync", made.display()));
        node
    }

    fn machine(&self) -> &Machine {
        self.machine.as_ref().expect("it is on")
    }

    /// Runs a shell script, which must end well; what it prints.
    pub fn sh(&self, script: &str) -> String {
        let run = self
            .machine()
            .command("sh")
            .args(["-c", script])
            .env("PATH", path())
            .env("PMEMHA_PRELOAD", preload())
            .text();
        run.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// What a shell script prints, byte for byte.
    pub fn bytes(&self, script: &str) -> Vec<u8> {
        let run = self.machine().command("sh").args(["-ec", script]).output();
        run.unwrap_or_else(|e| panic!("{}: {e}", self.name)).stdout
    }

    /// Starts a shell script that runs beside.
    pub fn beside(&self, script: &str) -> Running {
        let command = self
            .machine()
            .command("sh")
            .args(["-c", script])
            .env("PATH", path())
            .env("PMEMHA_PRELOAD", preload())
            .limit(FOR_EVER);
        command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Starts the agent and waits until it answers. What it has to say stands in the machine's log.
    pub fn start(&mut self) {
        let agent = format!("exec pmemhad --config {FSDAX}/etc/pmemhad.conf >>/dev/console 2>&1");
        self.agent = Some(self.beside(&agent));
        wait::until(&format!("the agent of {} to answer", self.name), AWAIT, || self.try_status());
    }

    /// Takes note that the agent was killed by a command of the caller's.
    pub fn agent_was_killed(&mut self) {
        let ended = self.agent.take().expect("it ran").wait();
        ended.unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// Process id of the agent.
    pub fn agent(&self) -> u64 {
        self.try_status().expect("the agent answers")["node"]["pid"].as_u64().expect("a number")
    }

    /// Stops the agent in its tracks; its process.
    pub fn stand_still(&self) -> u64 {
        let agent = self.agent();
        self.sh(&format!("kill -STOP {agent}"));
        agent
    }

    /// Lets an agent that stands still go on.
    pub fn go_on(&self, agent: u64) {
        self.sh(&format!("kill -CONT {agent}"));
    }

    /// Lets an agent that stands still go on for a moment.
    pub fn go_on_for(&self, agent: u64, moment: Duration) {
        self.sh(&format!("kill -CONT {agent} && sleep {:.6} && kill -STOP {agent}", moment.as_secs_f64()));
    }

    /// How far the replica has been applied, as its files say; none before they do. No agent runs, or it stands still.
    pub fn position(&self) -> Option<Position> {
        let bytes = self.bytes(&format!("cat {FSDAX}/replica/{}", position::FILE));
        let dir = pmemha_testkit::dirs::in_memory();
        std::fs::write(dir.path().join(position::FILE), bytes).expect("an own directory");
        let file = PositionFile::open(&DiskStore::new(Durability::Battery), dir.path());
        file.unwrap_or_else(|e| panic!("{}: {e}", self.name)).1
    }

    /// Kills the agent as `kill -9` does.
    pub fn kill(&mut self) {
        self.agent.as_ref().expect("it runs").kill();
        self.agent_was_killed();
    }

    /// Cuts the machine's power.
    pub fn cut_power(&mut self) -> Off {
        let off = self.machine.take().expect("it is on").cut_power();
        self.agent = None;
        Off(off)
    }

    /// Boots the machine on the same NVDIMM; no agent runs.
    pub fn boot(&mut self, off: Off) {
        self.machine = Some(off.0.boot().unwrap_or_else(|e| panic!("{e}")));
    }

    /// `pmemha status --json`, if the agent answers.
    pub fn try_status(&self) -> Option<Value> {
        let asked = self.machine().command(BINARIES.cli).args(["status", "--json"]).text();
        asked.ok().map(|text| serde_json::from_str(&text).expect("status is JSON"))
    }

    /// The group `app` in the status.
    pub fn group(&self) -> Value {
        self.try_status().expect("the agent answers")["groups"][0].take()
    }

    /// Waits until `probe` finds what it looks for in the status of the group `app`.
    pub fn await_group<T>(&self, what: &str, mut probe: impl FnMut(&Value) -> Option<T>) -> T {
        let mut last = Value::Null;
        let found = wait::attempt(AWAIT, || {
            last = self.try_status()?["groups"][0].take();
            let found = probe(&last);
            if found.is_none() {
                std::thread::sleep(LOOK);
            }
            found
        });
        found.unwrap_or_else(|| {
            panic!("waited {AWAIT:?} in vain for: {what} at {}; the group is {last:#}", self.name)
        })
    }

    /// Waits until the group is in one of these states.
    pub fn await_state(&self, wanted: &[&str]) -> Value {
        self.await_group(&format!("{wanted:?}"), |g| {
            wanted.iter().any(|s| g["state"] == **s).then(|| g.clone())
        })
    }

    /// Waits until the destination's image counts, with everything applied that was published until now.
    pub fn await_streaming(&self) -> Value {
        let counts = |group: &Value| {
            let row = &group["destinations"][0];
            (row["state"] == "streaming" && row["sync"].is_null() && group["log"]["ahead"] == false)
                .then(|| row.clone())
        };
        let published = self.await_group("a destination that counts", counts)["lsn_published"].clone();
        self.await_group("the destination to catch up", |group| {
            counts(group).filter(|row| row["lsn_applied"].as_u64() >= published.as_u64())
        })
    }

    /// Waits until the agent runs the program in a generation past `before`; the program's process.
    pub fn await_program(&self, before: u64) -> u32 {
        self.await_group("the program to run", |group| {
            let later = group["generation"].as_u64() > Some(before);
            program(group).filter(|_| later)
        })
    }

    /// Number of the last operation that returned to the program here.
    pub fn done(&self) -> u64 {
        let read = self.sh(&format!("od -An -tu8 -N8 {FSDAX}/files/acks"));
        read.trim().parse().expect("a number")
    }

    /// Waits until `more` operations have returned since now.
    pub fn await_progress(&self, more: u64) {
        let wanted = self.done() + more;
        self.sh(&format!(
            "until [ $(od -An -tu8 -N8 {FSDAX}/files/acks) -ge {wanted} ]; do sleep 0.05; done"
        ));
    }

    /// How often the program was started on this machine.
    pub fn starts(&self) -> usize {
        self.sh(&format!("cat {FSDAX}/starts 2>/dev/null || :")).lines().count()
    }

    /// How many operations the program found here when it was started last.
    pub fn found_at_start(&self) -> u64 {
        let found = self.sh(&format!("cat {FSDAX}/found"));
        let number = found
            .trim()
            .strip_prefix("ok ")
            .and_then(|numbers| numbers.split(' ').map(str::parse::<u64>).sum::<Result<u64, _>>().ok());
        number.unwrap_or_else(|| panic!("{}: the program found its files {found}", self.name))
    }

    /// How many processes work on the program's files, whoever started them.
    pub fn writers(&self) -> usize {
        let count =
            format!("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -cx '[g]o-on' || :");
        self.sh(&count).trim().parse().expect("a number")
    }

    /// Waits until the program's pool is mapped with `MAP_SYNC`, which the kernel grants for DAX alone. libpmemobj maps the pool's
    /// header without it first.
    pub fn await_map_sync(&self, program: u32) {
        let look = format!(
            "awk '$6 == \"{FSDAX}/files/pool\" {{ here = 1 }} here && /^VmFlags/ {{ print; here = 0 }}' /proc/{program}/smaps"
        );
        let mut last = String::new();
        let mapped = wait::attempt(AWAIT, || {
            last = self.sh(&look);
            last.lines().any(|flags| flags.split(' ').any(|flag| flag == "sf")).then_some(())
        });
        assert!(mapped.is_some(), "{}: the pool is mapped {last:?}", self.name);
    }

    /// The end of the machine's log, where the agent's is, too.
    fn console(&self) -> String {
        let Some(machine) = &self.machine else { return String::new() };
        let log = std::fs::read_to_string(machine.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(60)..];
        format!("--- the log of {}, {} ---\n{}", self.name, machine.log().display(), tail.join("\n"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.console());
        }
    }
}

/// A machine without power.
pub struct Off(pmemha_rig::PoweredOff);

/// The process of the program, if it runs under the agent.
pub fn program(group: &Value) -> Option<u32> {
    let attached = group["sessions"].as_array()?.iter().find_map(|s| s["pid"].as_u64());
    attached.filter(|_| group["state"] == "running").map(|pid| pid as u32)
}

/// The script that an agent starts as the program: notes that it was started and what is found then, and becomes the workload
/// of `tests/programs`, which knows nothing of pmemha.
///
/// It is a copy that is looked at, since opening a pool repairs what a power cut left half done, and every store counts.
pub fn start_script(mode: &str) -> String {
    let (workload, preload) = (programs::workload().display(), preload());
    format!(
        "#!/bin/sh\n\
         cd {FSDAX} && cat /proc/sys/kernel/random/boot_id >>starts || exit 1\n\
         if [ -e files/pool ]; then\n\
         \trm -rf copy && mkdir copy && cp --sparse=always files/pool files/acks copy || exit 1\n\
         \techo copy/pool copy/acks | {workload} check-many {mode} >found\n\
         fi\n\
         exec env LD_PRELOAD={preload} WORKLOAD_PAUSE_US={PAUSE_US} WORKLOAD_POOL_MIB={POOL_MIB} {workload} go-on {mode} {FSDAX}/files/pool {FSDAX}/files/acks {endless} >/dev/null\n",
        endless = pmemha_testkit::load::ENDLESS,
    )
}

fn preload() -> String {
    programs::preload().display().to_string()
}

/// The folder of our programs first.
fn path() -> String {
    let ours = Path::new(BINARIES.agent).parent().expect("a folder");
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", ours.display())
}
