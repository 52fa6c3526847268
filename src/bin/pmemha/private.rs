//! Agents for one run: a source and a destination on this machine, over loopback, stopped when the program has ended.
//!
//! Two processes, since a node has one role in a group.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pmemha::agent::events::Kind;
use pmemha::agent::sessions::LAUNCHER;
use pmemha::agent::status::{DestinationState, DestinationStatus};
use pmemha::session::patterns::Patterns;
use pmemha::session::wire::{Request, VERSION};
use pmemha::types::Lsn;

use crate::agent::Agent;
use crate::failure::{Failure, USAGE};
use crate::local_agent::{LOOK, LocalAgent, READY_WITHIN, make_dir, make_homes, quote};

/// Node of the agent that the program attaches to.
const SOURCE: &str = "source";

/// Node of the agent that keeps the copy.
const COPY: &str = "copy";

/// Name of the group.
pub const GROUP: &str = "run";

/// A copy of which nothing moves for this long is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A copy that takes longer than this is told of.
const SILENCE: Duration = Duration::from_secs(2);

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

/// The agents. Dropped without [`Private::finish`], they are killed.
pub struct Private {
    // In the order in which they are stopped: the source brings out what it has while the copy still listens.
    source: LocalAgent,
    copy: LocalAgent,
    _dir: OwnDir,
}

/// A directory of keys, logs and state that only this run needs, removed when dropped.
struct OwnDir(PathBuf);

impl OwnDir {
    fn make(dir: &Path) -> Result<OwnDir, Failure> {
        make_dir(dir)?;
        Ok(OwnDir(dir.into()))
    }
}

impl Drop for OwnDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Private {
    /// Starts both, with their state in the new directory `dir`, and waits until they serve.
    pub fn start(dir: &Path, wanted: &Wanted<'_>) -> Result<Private, Failure> {
        apart(dir, wanted)?;
        let own = OwnDir::make(dir)?;
        let [source, copy] = make_homes(dir, [SOURCE, COPY])?;
        copy.configure(&source, &replica_section(wanted))?;
        source.configure(&copy, &group_section(wanted))?;
        let copy = LocalAgent::start(&copy, Some(&source))?;
        let source = LocalAgent::start(&source, None)?;
        let private = Private { source, copy, _dir: own };
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

    /// Whether anything was protected at any time.
    pub fn has_protected(&self) -> Result<bool, Failure> {
        if !self.agent().group(GROUP)?.regions.is_empty() {
            return Ok(true);
        }
        // What was protected may have been removed again.
        let protected = serde_json::json!(Kind::RegionProtected);
        Ok(self.agent().events(GROUP)?.iter().any(|event| event["kind"] == protected))
    }

    /// Has them finish, once everything that the program made persistent is in the image; if it is not, why. Whoever sets
    /// `given_up` does not want to wait for it.
    pub fn finish(mut self, given_up: &AtomicBool) -> Result<(), String> {
        let complete = self.await_copy(given_up);
        if given_up.load(Ordering::Relaxed) {
            return complete;
        }
        let left = self.source.stop().and_then(|mut left| {
            left.extend(self.copy.stop()?);
            Ok(left)
        });
        complete?;
        match left.map_err(Failure::into_message)?.as_slice() {
            [] => Ok(()),
            left => Err(left.join("; ")),
        }
    }

    fn await_copy(&self, given_up: &AtomicBool) -> Result<(), String> {
        let began = Instant::now();
        let (mut target, mut before, mut moved, mut told) = (None, None, began, false);
        loop {
            let group = self.agent().group(GROUP).map_err(Failure::into_message)?;
            let row = group.destinations.first().ok_or("the agent knows of no copy")?;
            let target = *target.get_or_insert(row.lsn_published);
            let Some(why) = missing(row, target) else { return Ok(()) };
            let progress = (row.lsn_received, row.lsn_applied, row.sync.map(|sync| sync.done_bytes));
            if before.replace(progress) != Some(progress) {
                moved = Instant::now();
            }
            if given_up.load(Ordering::Relaxed) {
                return Err(format!("given up: {why}"));
            }
            if row.state == DestinationState::Refused || moved.elapsed() >= PATIENCE {
                return Err(why);
            }
            if began.elapsed() >= SILENCE && !told {
                eprintln!(
                    "pmemha: the program has ended; its copy is being completed, and an interrupt gives it up"
                );
                told = true;
            }
            thread::sleep(LOOK);
        }
    }
}

/// What the image lacks of everything up to `target`, if anything.
fn missing(row: &DestinationStatus, target: Lsn) -> Option<String> {
    let uncopied = row.exposure_bytes > row.lsn_published.since(row.lsn_durable);
    let left = target.since(row.lsn_applied);
    let why = match row.state {
        DestinationState::Streaming if left == 0 && !uncopied => return None,
        DestinationState::Streaming if uncopied => "files are still to be copied as a whole".into(),
        DestinationState::Streaming => format!("{left} bytes of the log are not in it"),
        DestinationState::Syncing => "a copy of the files is not complete".into(),
        state => format!("its agent is not connected ({})", state.word()),
    };
    Some(row.last_error.as_ref().map_or(why.clone(), |error| format!("{why}: {error}")))
}

impl Drop for Private {
    fn drop(&mut self) {
        self.source.end();
        self.copy.end();
    }
}

/// What the agents fill must not be protected: it would be copied into itself.
fn apart(dir: &Path, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let protect = Patterns::new(wanted.protect).map_err(|e| Failure::new(USAGE, e.to_string()))?;
    for own in [Some(dir), Some(wanted.image), wanted.archive].into_iter().flatten() {
        let real = own.ancestors().find_map(|a| Some(a.canonicalize().ok()?.join(own.strip_prefix(a).ok()?)));
        if protect.matches(&real.unwrap_or_else(|| own.into()).join("x")) {
            let why = format!("{} lies in what --protect names: name another directory", own.display());
            return Err(Failure::new(USAGE, why));
        }
    }
    Ok(())
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
