//! The demo's two nodes: alpha, where the application starts and whose power is cut, and beta, its heir.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pmemha::agent::status::{DestinationState, DestinationStatus, GroupStatus};
use serde_json::Value;

use super::program::{Lines, Program};
use crate::agent::Agent;
use crate::failure::{Failure, SOFTWARE};
use crate::local_agent::{Home, LocalAgent, make_dir, make_homes, quote, write};

/// Name of the group.
const GROUP: &str = "app";

/// A node with its agent and the application's files on it.
pub struct Machine {
    dir: PathBuf,
    agent: LocalAgent,
}

impl Machine {
    /// The application's lines.
    pub fn lines(&self) -> Lines {
        Lines::read(&self.dir.join("lines"))
    }

    /// The group, as the agent sees it.
    pub fn group(&self) -> Result<GroupStatus, Failure> {
        self.agent().group(GROUP)
    }

    /// The group's stream.
    pub fn stream(&self) -> Result<DestinationStatus, Failure> {
        let row = self.group()?.destinations.into_iter().next();
        row.ok_or_else(|| Failure::new(SOFTWARE, "the agent knows of no destination"))
    }

    /// Everything that happened to the group so far.
    pub fn events(&self) -> Result<Vec<Value>, Failure> {
        self.agent().events(GROUP)
    }

    fn agent(&self) -> &Agent {
        self.agent.agent()
    }
}

/// The two.
pub struct Machines {
    /// The source.
    pub alpha: Machine,
    /// The heir.
    pub beta: Machine,
}

impl Machines {
    /// Starts both agents in the new directory `dir`; alpha's starts `program` with drains that wait for `commit`.
    pub fn start(dir: &Path, program: &Program, preload: &Path, commit: &str) -> Result<Machines, Failure> {
        make_dir(dir)?;
        let [alpha, beta] = make_homes(dir, ["alpha", "beta"])?;
        for home in [&alpha, &beta] {
            make_dir(&files(home))?;
        }
        write_power(alpha.dir(), true)?;
        let command = |home: &Home| {
            let [pool, lines] = [files(home).join("pool"), home.dir().join("lines")];
            format!("[{}, {}, {}]", quote(program.path()), quote(&pool), quote(&lines))
        };
        let env = format!("{{ LD_PRELOAD = {}, PMEM_IS_PMEM_FORCE = \"1\" }}", quote(preload));
        beta.configure(
            &alpha,
            &format!(
                "[[replica]]\ngroup = \"{GROUP}\"\nfrom = [\"alpha\"]\ndir = {}\nencrypt = false\n\
                 durability = \"battery\"\npaths = {{ {} = {} }}\nstart = {}\nenv = {env}\n",
                quote(&beta.dir().join("replica")),
                quote(&files(&alpha)),
                quote(&files(&beta)),
                command(&beta),
            ),
        )?;
        alpha.configure(
            &beta,
            &format!(
                "[power]\nsource = \"file\"\npath = {}\n\n\
                 [[group]]\nname = \"{GROUP}\"\nprotect = [{}]\ndestinations = [\"beta\"]\n\
                 commit = \"{commit}\"\ncommand = {}\nenv = {env}\n",
                quote(&alpha.dir().join(POWER)),
                quote(&files(&alpha).join("*")),
                command(&alpha),
            ),
        )?;
        let start = |home: &Home| {
            Ok::<_, Failure>(Machine { dir: home.dir().into(), agent: LocalAgent::start(home, None)? })
        };
        let beta = start(&beta)?;
        Ok(Machines { alpha: start(&alpha)?, beta })
    }

    /// Whether the application runs at alpha with every byte of it protected.
    pub fn protected(&self) -> Result<bool, Failure> {
        let opened = self.alpha.lines().acknowledged > 0;
        Ok(opened && self.alpha.stream()?.state == DestinationState::Streaming)
    }

    /// Cuts alpha's line power; returns when.
    pub fn cut_power(&self) -> Result<SystemTime, Failure> {
        let now = SystemTime::now();
        write_power(&self.alpha.dir, false)?;
        Ok(now)
    }

    /// Alpha's battery is empty: its agent and its application are gone from one instant to the next.
    pub fn empty_battery(&mut self, program: &Program) {
        self.alpha.agent.kill();
        program.kill(&self.alpha.dir.join("lines"));
    }

    /// Fails if an agent has ended.
    pub fn check(&mut self) -> Result<(), Failure> {
        for machine in [&mut self.alpha, &mut self.beta] {
            if !machine.agent.runs() {
                return Err(Failure::new(
                    SOFTWARE,
                    format!("the agent in {} has ended", machine.dir.display()),
                ));
            }
        }
        Ok(())
    }

    /// The last lines of both agents.
    pub fn diagnostics(&self) -> String {
        let said = |name, machine: &Machine| {
            format!("the agent of {name} said last:\n{}", machine.agent.diagnostics())
        };
        format!("{}\n{}", said("alpha", &self.alpha), said("beta", &self.beta))
    }
}

fn files(home: &Home) -> PathBuf {
    home.dir().join("files")
}

/// By rename, so that the watcher never reads half a file.
fn write_power(dir: &Path, online: bool) -> Result<(), Failure> {
    let (file, aside) = (dir.join(POWER), dir.join("online.new"));
    write(&aside, if online { "1\n" } else { "0\n" })?;
    fs::rename(&aside, &file).map_err(Failure::system(file.display()))
}

/// The watched file that says whether alpha has line power.
const POWER: &str = "online";
