//! Two machines that are well: the program runs at `alpha` and waits for `beta`'s durable copy at every drain.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pmemha_rig::{ALPHA, BETA, Cable, FSDAX, Pair};
use pmemha_testkit::chance::Chance;
use pmemha_testkit::claim::{Claim, KEPT_WITHOUT_POWER};
use pmemha_testkit::image::{Copy, Snapshot};
use serde_json::Value;

use super::BINARIES;
use super::node::{Node, program, start_script};

/// Workloads of `tests/programs`: transactions and the atomic interface of libpmemobj, libpmem alone, four threads.
const MODES: [&str; 4] = ["tx", "atomic", "raw", "threads"];

/// A cut comes at most so long after everything is well again.
const CALM: Duration = Duration::from_millis(300);

/// Port of the control channels.
const PORT: u16 = 7475;

/// The source's file that says whether there is line power.
const POWER: &str = "/run/line-power";

/// Two nodes on two machines.
pub struct Rig {
    /// Owns the group whenever all is well.
    pub alpha: Node,
    /// Its destination.
    pub beta: Node,
    /// Between their machines.
    pub cable: Cable,
    mode: &'static str,
}

impl Rig {
    /// Boots two machines and starts everything; which program runs is a matter of chance. `say` hears how it comes along.
    pub fn boot(chance: &mut Chance, say: &dyn Fn(&str)) -> Rig {
        let mode = MODES[chance.below(MODES.len() as u64) as usize];
        // Not in memory: a machine has memory file systems of its own, in place of the host's.
        let made = tempfile::tempdir().expect("a temporary directory");
        let made = made.path().join("init");
        init(&made, mode);
        say("programs and certificates are made");
        let Pair { alpha, beta, cable } = Pair::boot().unwrap_or_else(|e| panic!("{e}"));
        say("two machines are booted");
        let alpha = Node::install("alpha", alpha, &made.join("alpha"));
        let beta = Node::install("beta", beta, &made.join("beta"));
        let mut rig = Rig { alpha, beta, cable, mode };
        rig.beta.start();
        rig.start_alpha();
        let program = rig.alpha.await_program(0);
        rig.alpha.await_map_sync(program);
        let row = rig.alpha.await_streaming();
        let travels = (&row["fabric"], &row["durability"], &row["encrypted"]);
        assert_eq!(travels, (&"verbs".into(), &"pmem".into(), &false.into()), "{row:#}");
        let there = rig.beta.group()["destinations"][0].take();
        for row in [&row, &there] {
            let memory = (&row["memory"], &row["staged"]);
            let expected = (&"fsdax".into(), &true.into());
            assert_eq!(memory, expected, "an adapter cannot be given memory of fsdax: {row:#}");
        }
        let group = rig.alpha.group();
        let here = (&group["regions"][0]["memory"], &group["log"]["memory"]);
        assert_eq!(here, (&"fsdax".into(), &"memfd".into()), "{group:#}");
        say(&format!("`{mode}` runs, and its destination counts"));
        rig
    }

    /// The workload that runs.
    pub fn mode(&self) -> &'static str {
        self.mode
    }

    /// Starts the agent of a machine that has line power.
    pub fn start_alpha(&mut self) {
        self.line_power(true);
        self.alpha.start();
    }

    /// Switches `alpha`'s line power; batteries keep the machine running.
    pub fn line_power(&self, on: bool) {
        self.alpha.sh(&format!("echo {} >{POWER}.new && mv {POWER}.new {POWER}", u8::from(on)));
    }

    /// Waits until all is well, then for a random moment; what the source claims then, and the program's process.
    pub fn moment(&self, chance: &mut Chance) -> (Claim, u32) {
        self.alpha.await_streaming();
        let given_up = |group: &Value| group["log"]["commits_given_up"].as_u64();
        // From where on drains wait again: the program learns of the destination with the agent's next pulse.
        let before = self.alpha.await_group("drains that wait for the destination", |before| {
            self.alpha.await_progress(2);
            (given_up(&self.alpha.group()) == given_up(before)).then(|| before.clone())
        });
        chance.pass(CALM);
        let done = self.alpha.done();
        let group = self.alpha.group();
        let pid = program(&group).unwrap_or_else(|| panic!("the program is gone: {group:#}"));
        (Claim { done, waited: given_up(&group) == given_up(&before), group }, pid)
    }

    /// A copy of what `beta`'s machine has of the group, opened as an agent does after a crash. No agent runs there.
    pub fn copy_of_beta(&self) -> Copy {
        let tar = "tar -C state/groups/app -cf /run/copy.tar replica.json && tar -Srf /run/copy.tar replica";
        let tar =
            self.beta.bytes(&format!("cd {FSDAX} && {tar} && gzip -1c /run/copy.tar && rm /run/copy.tar"));
        Snapshot::of_archive(&tar).open(&[Path::new(&format!("{FSDAX}/files"))])
    }

    /// Proves `claim` on `beta`'s machine, which was cut and booted; in words, what there was to recover.
    pub fn prove(&self, claim: &Claim) -> String {
        let mut copy = self.copy_of_beta();
        let (from, to) = (copy.recovery().from, copy.recovery().to);
        let found = claim.prove(self.mode, &KEPT_WITHOUT_POWER, &mut copy);
        let (done, landed) = (claim.done, to.since(from));
        format!("{done} acknowledged, {found} found, {landed} bytes had landed and were not applied")
    }

    /// Waits until the program, which `beta` has taken over in a generation past `before`, runs there, with `done` operations at
    /// least; how many it found.
    pub fn assert_taken_over(&self, before: u64, done: u64) -> u64 {
        let program = self.beta.await_program(before);
        self.beta.await_map_sync(program);
        let found = self.beta.found_at_start();
        assert!(found >= done, "{done} were done, the heir found {found}");
        found
    }

    /// Has `beta` hand the group back to `alpha`, which follows.
    pub fn hand_back(&self) {
        self.beta.await_streaming();
        self.alpha.await_state(&["standby"]);
        let generation = generation(&self.beta.group());
        self.beta.sh("pmemha last-gasp app");
        let program = self.alpha.await_program(generation);
        assert_eq!(self.beta.writers(), 0, "one writer");
        self.alpha.await_map_sync(program);
        self.beta.await_state(&["standby"]);
    }
}

/// The generation of a group in a status.
pub fn generation(group: &Value) -> u64 {
    group["generation"].as_u64().unwrap_or_else(|| panic!("no generation: {group:#}"))
}

/// Has `pmemha init` make certificates and configurations, and edits these as their comments ask for. Beside them goes the
/// program's start.
fn init(made: &Path, mode: &str) {
    let out = Command::new(BINARIES.cli)
        .arg("init")
        .arg(made)
        .args(["--install", &format!("{FSDAX}/etc")])
        .args(["--node", &format!("alpha={ALPHA}:{PORT}"), "--node", &format!("beta={BETA}:{PORT}")])
        .output()
        .expect("pmemha runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let replica = |from: &str| {
        format!(
            "[[replica]]\ngroup = \"app\"\nfrom = [\"{from}\"]\ndir = \"{FSDAX}/replica\"\nfabric = \"verbs\"\n\
             paths = {{ \"{FSDAX}/files\" = \"{FSDAX}/files\" }}\nstart = [\"{FSDAX}/etc/program\"]\n"
        )
    };
    let group = format!(
        "[power]\nsource = \"file\"\npath = \"{POWER}\"\n\n\
         [[group]]\nname = \"app\"\nprotect = [\"{FSDAX}/files/*\"]\ndestinations = [\"beta\"]\nlog_size = \"4MiB\"\n\
         commit = \"durable\"\ncommit_timeout = \"500ms\"\non_death = \"failover\"\ncommand = [\"{FSDAX}/etc/program\"]\n\n"
    );
    for (name, rest) in [("alpha", group + &replica("beta")), ("beta", replica("alpha"))] {
        let file = made.join(name).join("pmemhad.conf");
        let text = fs::read_to_string(&file).expect("made by init");
        let state = "# state_dir = \"/var/lib/pmemha\"";
        let (head, _) = text.split_once("[[group]]").expect("an example of a group");
        assert!(head.contains(state), "{head}");
        let text = head.replace(state, &format!("state_dir = \"{FSDAX}/state\"")) + &rest;
        fs::write(file, text).expect("our own directory");
        let program = made.join(name).join("program");
        fs::write(&program, start_script(mode)).expect("our own directory");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("our own file");
    }
}
