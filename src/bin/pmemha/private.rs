//! Agents for one run: a source and a destination on this machine, over loopback, stopped when the program has ended.
//!
//! Two processes, since a node has one role in a group.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use pmemha::agent::sessions::LAUNCHER;
use pmemha::session::wire::{Request, VERSION};

use crate::agent::Agent;
use crate::failure::Failure;
use crate::local_agent::{LOOK, LocalAgent, READY_WITHIN, make_homes, quote};

/// Node of the agent that the program attaches to.
const SOURCE: &str = "source";

/// Node of the agent that keeps the copy.
const COPY: &str = "copy";

/// Name of the group.
pub const GROUP: &str = "run";

/// What the agent is to do.
pub struct Wanted<'a> {
    /// Absolute patterns to protect.
    pub protect: &'a [String],
    /// Where the image goes.
    pub image: &'a Path,
    /// Where an archive goes, if there is to be one.
    pub archive: Option<&'a Path>,
    /// Commit level.
    pub commit: &'a str,
}

/// The agents. Dropped without [`Private::stop`], they are killed.
pub struct Private {
    dir: PathBuf,
    // In the order in which they are stopped: the source brings out what it has while the copy still listens.
    source: LocalAgent,
    copy: LocalAgent,
}

impl Private {
    /// Starts both, with their state in the new directory `dir`, and waits until they serve.
    pub fn start(dir: &Path, wanted: &Wanted<'_>) -> Result<Private, Failure> {
        let [source, copy] = make_homes(dir, [SOURCE, COPY])?;
        copy.configure(&source, &replica_section(wanted))?;
        source.configure(&copy, &group_section(wanted))?;
        let copy = LocalAgent::start(&copy)?;
        let source = LocalAgent::start(&source)?;
        let private = Private { dir: dir.into(), source, copy };
        private.await_admission()?;
        Ok(private)
    }

    /// The source admits applications once it has heard from the copy that nobody else owns the group.
    fn await_admission(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        let hello = Request::Hello {
            version: VERSION,
            group: Some(GROUP.into()),
            program: LAUNCHER.into(),
            after: None,
        };
        loop {
            match self.agent().ask(&hello) {
                Err(_) if Instant::now() < deadline => thread::sleep(LOOK),
                answered => return answered.map(drop),
            }
        }
    }

    /// The source's agent, to speak to.
    pub fn agent(&self) -> &Agent {
        self.source.agent()
    }

    /// Has them finish, and removes what only they needed.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.source.stop()?;
        self.copy.stop()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.source.end();
        self.copy.end();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn group_section(wanted: &Wanted<'_>) -> String {
    let protect = serde_json::Value::from(wanted.protect.to_vec());
    let archive =
        wanted.archive.map_or(String::new(), |dir| format!("archive = {{ dir = {} }}\n", quote(dir)));
    format!(
        "[[group]]\nname = \"{GROUP}\"\nprotect = {protect}\ndestinations = [\"{COPY}\"]\ncommit = \"{}\"\n{archive}",
        wanted.commit
    )
}

fn replica_section(wanted: &Wanted<'_>) -> String {
    let image = quote(wanted.image);
    format!("[[replica]]\ngroup = \"{GROUP}\"\nfrom = [\"{SOURCE}\"]\ndir = {image}\nencrypt = false\n")
}
