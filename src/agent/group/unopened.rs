//! Existing files that match the group's patterns, and that no program has opened: they are the group's all the same, since an
//! heir without them would have half a database.
//!
//! [`Group::look_for_files`] enters them: when the group is opened, before any program can attach, and now and then by a thread of
//! `agent::source`, for what comes later by ways that nobody hooks. No client vouches for such a file with a descriptor, and
//! everybody who has the log mapped gets its content. So the rights are asked instead: everybody whom the
//! application runs as may read it, and one of them may write it. Others, and those for which there is no room, are not entered
//! but named, in the status and by an event.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, fstat, open, openat, statat};
use rustix::process::{Resource, getrlimit};

use super::region::{Candidate, ProtectError};
use super::rest::Rest;
use super::walk::{Sighting, Walk, is_listed, may};
use super::{Group, Notice, Reader};
use crate::agent::group::reader::Right;
use crate::agent::status::UnprotectedFile;
use crate::file_id::FileId;
use crate::locks::lock;
use crate::replica::place::is_beside;

/// What the looks so far have seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Lookout {
    /// Whether there was one.
    begun: bool,
    /// What the files were like that could be entered.
    seen: BTreeMap<FileId, Rest>,
    /// What is not entered, and why.
    refused: BTreeMap<PathBuf, String>,
    /// How many more than are kept.
    more: u64,
}

/// A file to be entered.
struct Unopened {
    /// Open for reading.
    file: OwnedFd,
    candidate: Candidate,
}

impl Group {
    /// Enters the files that match and that are not the group's yet. At the first look all of them; later those that nobody has
    /// written to since the last look, since whoever puts a file there may not be done.
    pub fn look_for_files(&self) {
        let _alone = lock(&self.looking);
        if self.is_still() {
            return;
        }
        let users = self.access.readers(self.name(), &self.roster.users());
        let known: BTreeSet<FileId> = self.lock().regions.values().map(|region| region.id_of_file).collect();
        let before = lock(&self.lookout).clone();
        let mut now = Lookout { begun: true, ..Lookout::default() };
        let mut found = Vec::new();
        let mut room = self.room_for_unopened(known.len());
        let mut hear = |sighting: Sighting<'_>| {
            let Ok(id) = FileId::within(sighting.folder, sighting.name) else { return };
            if known.contains(&id) || is_beside(sighting.name) {
                return;
            }
            match self.examine(&sighting, &users) {
                Ok(None) => {}
                Ok(Some(_)) if room == 0 => now.refuse(sighting.path, self.full()),
                Ok(Some((unopened, rest))) => {
                    now.seen.insert(id, rest);
                    match before.seen.get(&id) {
                        Some(then) if *then != rest => now.refuse(sighting.path, BUSY.into()),
                        None if before.begun => {}
                        _ => {
                            room -= 1;
                            found.push(unopened);
                        }
                    }
                }
                Err(why) => now.refuse(sighting.path, why),
            }
        };
        let troubles = Walk::new(&self.config.protect, &users, &self.apart, &mut hear).walk();
        troubles.into_iter().for_each(|(path, why)| now.refuse(path, why));
        for (path, why) in self.enter_unopened(found) {
            now.refuse(path, why);
        }
        for (path, why) in now.refused.iter().filter(|(path, _)| !before.refused.contains_key(*path)) {
            tracing::warn!(group = self.name(), path = %path.display(), why, "matches `protect` and is not protected");
            (self.notify)(Notice::NotProtected { path: path.clone(), why: why.clone() });
        }
        *lock(&self.lookout) = now;
    }

    /// The first look, if there has been none: not before now might anything be entered in a group that was found given up.
    pub fn look_at_first(&self) {
        if !lock(&self.lookout).begun {
            self.look_for_files();
        }
    }

    /// What matches and is not protected, as of the last look, and how many more there are.
    pub fn unprotected_files(&self) -> (Vec<UnprotectedFile>, u64) {
        let seen = lock(&self.lookout);
        let file = |(path, why): (&PathBuf, &String)| UnprotectedFile {
            path: path.display().to_string(),
            why: why.clone(),
        };
        (seen.refused.iter().map(file).collect(), seen.more)
    }

    /// Asks for a file what a client would be asked for; why it is not to be entered. None if it is not what it was when it was seen.
    fn examine(&self, seen: &Sighting<'_>, users: &[Reader]) -> Result<Option<(Unopened, Rest)>, String> {
        let Ok(stat) = statat(seen.folder, seen.name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(None) };
        if let Some((user, _)) = users.iter().zip(seen.reach).find(|(_, reach)| !**reach) {
            return Err(format!("user {} does not reach it, and the log would show its content", user.uid));
        }
        // As a mere path first: to open what has been put there meanwhile could do something, or keep us waiting.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = match openat(seen.folder, seen.name, flags, Mode::empty()) {
            Ok(path) => path,
            Err(_) => return Ok(None),
        };
        let listed = is_listed(path.as_fd());
        if let Some(user) = users.iter().find(|user| !may(user, Right::Read, &stat, listed)) {
            return Err(format!("user {} may not read it, and the log would show its content", user.uid));
        }
        // An owner can give itself the right.
        let writes = |user: &Reader| user.uid == stat.st_uid || may(user, Right::Write, &stat, listed);
        if !users.iter().any(writes) {
            let all: Vec<_> = users.iter().map(|user| user.uid.to_string()).collect();
            return Err(format!("no user of the group's ({}) may write it", all.join(", ")));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let link = format!("/proc/self/fd/{}", path.as_raw_fd());
        let file = open(link, flags, Mode::empty()).map_err(|e| format!("the agent may not read it: {e}"))?;
        let opened = fstat(&file).map_err(|e| e.to_string())?;
        let same = |a: &rustix::fs::Stat, b: &rustix::fs::Stat| {
            let rights = |s: &rustix::fs::Stat| (s.st_dev, s.st_ino, s.st_mode, s.st_uid, s.st_gid);
            rights(a) == rights(b)
        };
        if !same(&stat, &opened) {
            return Ok(None);
        }
        let rest =
            Rest { size: opened.st_size as u64, modified: (opened.st_mtime, opened.st_mtime_nsec as i64) };
        match Candidate::examine(file.as_fd()) {
            Ok(candidate) if !self.patterns().matches(candidate.path()) => Ok(None),
            Ok(candidate) => Ok(Some((Unopened { file, candidate }, rest))),
            Err(ProtectError::Unfit { why, .. }) => Err(why),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Enters files, all at once; those that were not, and why.
    fn enter_unopened(&self, files: Vec<Unopened>) -> Vec<(PathBuf, String)> {
        if files.is_empty() {
            return Vec::new();
        }
        let mut inner = self.lock();
        if self.is_still() {
            return Vec::new();
        }
        let (mut newcomers, mut refused) = (Vec::new(), Vec::new());
        for Unopened { file, candidate } in files {
            let path = candidate.path().to_owned();
            // A client may have asked for it since it was seen.
            if inner.regions.values().any(|region| region.id_of_file == candidate.id()) {
                continue;
            }
            match self.newcomer(&mut inner, file, &candidate, candidate.size(), false) {
                Ok(newcomer) => {
                    // Whoever opens it first finds out by this whether it has been written to since.
                    newcomer.region().set_rest(Rest::of(newcomer.region()));
                    newcomers.push(newcomer);
                }
                Err(error) => refused.push((path, error.to_string())),
            }
        }
        if let Err(error) = self.admit(&mut inner, &newcomers) {
            let why = error.to_string();
            refused.extend(newcomers.iter().map(|newcomer| (newcomer.region().path(), why.clone())));
        }
        refused
    }

    /// How many files may be entered that nobody has opened, with `known` files in the group: the other half is for those that
    /// programs open. So is a quarter of the agent's descriptors.
    fn room_for_unopened(&self, known: usize) -> usize {
        let regions = (self.log().spec().regions as usize / 2).saturating_sub(known);
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 4 * 3;
        // The lowest free number is the one that is given out, so the next one tells how many are in use.
        let used = next_descriptor(&self.log_fd);
        regions.min(usize::try_from(descriptors.saturating_sub(used)).unwrap_or(usize::MAX))
    }

    fn full(&self) -> String {
        let half = self.log().spec().regions / 2;
        format!(
            "there are too many files: a group has at most {half} that no program has opened, and the agent as many files open as \
             three quarters of LimitNOFILE"
        )
    }
}

/// The number that the next descriptor of this process gets.
fn next_descriptor(any: &OwnedFd) -> u64 {
    any.try_clone().map_or(u64::MAX, |next| next.as_raw_fd() as u64)
}

impl Lookout {
    fn refuse(&mut self, path: PathBuf, why: String) {
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(path, why);
        } else {
            self.more += 1;
        }
    }
}

/// Why a file waits.
const BUSY: &str =
    "somebody writes to it who is not protected: it is protected once it is left alone for some seconds";

/// Files that are named as not protected; an answer may have room for fewer.
const MAX_REFUSED: usize = 64;
