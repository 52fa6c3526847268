//! An application as a benchmark needs it: a protected file, mapped, and stores to it that are captured and drained.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use pmemha::region::dirty;
use pmemha::region::memory::{Access, SharedMem};
use pmemha::session::{Options, Session};
use pmemha::types::{Level, Lsn, RegionId};
use pmemha_testkit::node::Node;

use crate::Outcome;
use crate::pair::GROUP;

/// Longest wait for a level.
const SOON: Duration = Duration::from_secs(60);

/// See the module.
pub struct App {
    session: Arc<Session>,
    memory: SharedMem,
    region: RegionId,
    content: Vec<u8>,
}

impl App {
    /// Attaches to the agent of `node` and protects a new file of `bytes`, every page of which holds something. Returns when
    /// the destination's image has all of it, and counts: no copy of the file is under way then.
    pub fn attach(node: &Node, bytes: usize) -> Outcome<App> {
        App::attach_to(&node.socket(), &node.files().join("data"), bytes)
    }

    /// As [`App::attach`], with a socket and a path.
    pub fn attach_to(socket: &std::path::Path, path: &std::path::Path, bytes: usize) -> Outcome<App> {
        let (socket, group) = (Some(socket.to_owned()), Some(GROUP.to_owned()));
        let session = Session::connect(Options { socket, group, program: "pmemha-perf".into() })?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(bytes as u64)?;
        let memory = SharedMem::map(file.as_fd(), 0, bytes, Access::ReadWrite)?;
        let content: Vec<u8> = (0..LONGEST.min(bytes)).map(|i| i as u8 | 1).collect();
        (0..bytes)
            .step_by(content.len())
            .for_each(|at| memory.write(at, &content[..content.len().min(bytes - at)]));
        let region = session.protect(file.as_fd(), 0, false)?.region;
        session.maps(region, dirty::Kind::Digest);
        let app = App { session, memory, region, content };
        app.wait(app.persist(0, LINE), Level::Applied)?;
        Ok(app)
    }

    /// Stores and captures `len` bytes at the `i`th place of the file, and drains.
    pub fn persist(&self, i: usize, len: usize) -> Lsn {
        self.capture(i, len);
        self.session.appender().drain()
    }

    /// Stores and captures, and leaves it at that.
    pub fn capture(&self, i: usize, len: usize) {
        let places = (self.memory.len() / len.next_multiple_of(64)).max(1);
        let at = i % places * len.next_multiple_of(64);
        self.memory.write(at, &self.content[..len]);
        // SAFETY: the lines are those of our mapping, whose length is a multiple of a page; `at` is one of 64.
        unsafe { self.session.appender().capture(self.region, at as u64, self.memory.addr(at), len) };
    }

    /// Publishes what was captured.
    pub fn drain(&self) -> Lsn {
        self.session.appender().drain()
    }

    /// Waits until everything below `lsn` has come as far as `level`.
    pub fn wait(&self, lsn: Lsn, level: Level) -> Outcome<()> {
        Ok(self.session.appender().wait(lsn, level, Some(SOON))?)
    }

    /// How far a level has come.
    pub fn received(&self) -> Lsn {
        self.session.log().acks().received
    }

    /// Ends the session.
    pub fn leave(self) -> Outcome<()> {
        Ok(self.session.goodbye(Some(0))?)
    }
}

/// A cache line.
const LINE: usize = 64;

/// Most bytes of one store.
const LONGEST: usize = 1 << 20;
