//! A replica as the agent holds it: opened once, attached to one source at a time, promoted at most once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::applier::{Applier, ApplierConfig, ApplyError, StreamStart};
use super::image::set::Promotable;
use super::promote::{self, PromoteError, SavedMark};
use super::recover::{self, Recovery};
use super::status::ReplicaStatus;
use super::worker::{self, Link, Shared};
use crate::fabric::Endpoint;
use crate::locks::lock;
use crate::region::memory::SharedMem;
use crate::waits::{self, Thread};

/// One group's replica. All methods are for one thread at a time, except through [`Replica::watch`].
pub struct Replica {
    shared: Arc<Shared>,
    engine: Engine,
}

enum Engine {
    Idle(Box<Applier>),
    Running {
        endpoint: Arc<dyn Endpoint>,
        thread: Thread<Box<Applier>>,
    },
    /// Only while one of the others is exchanged.
    Moving,
}

/// Reads a replica's status from any thread.
#[derive(Clone)]
pub struct StatusWatch(Arc<Shared>);

impl StatusWatch {
    /// As of the last thing that happened.
    pub fn status(&self) -> ReplicaStatus {
        self.0.status().clone()
    }
}

impl Replica {
    /// Opens or creates the replica, recovering from whatever crash came before.
    pub fn open(config: ApplierConfig) -> Result<(Replica, Recovery), ApplyError> {
        let (applier, recovery) = recover::open(config)?;
        let mut status = ReplicaStatus::of(&applier);
        status.set_aside.clone_from(&recovery.set_aside);
        let shared = Arc::new(Shared::new(status));
        Ok((Replica { shared, engine: Engine::Idle(Box::new(applier)) }, recovery))
    }

    /// The status.
    pub fn status(&self) -> ReplicaStatus {
        self.shared.status().clone()
    }

    /// Access to the status from other threads.
    pub fn watch(&self) -> StatusWatch {
        StatusWatch(self.shared.clone())
    }

    /// Makes room for a source's stream and returns the landing ring, to be registered for writing on the source's
    /// endpoint. A source attached before is detached; its endpoint must have been revoked.
    pub fn take_stream(&mut self, start: StreamStart) -> Result<Arc<SharedMem>, ApplyError> {
        let shared = self.shared.clone();
        let applier = self.applier()?;
        let ring = applier.take_stream(start);
        let mut status = shared.status();
        status.update(applier);
        if ring.is_ok() {
            (status.faulted, status.poisoned) = (None, false);
        }
        ring
    }

    /// Starts to follow the ring and to acknowledge. After [`Replica::take_stream`].
    pub fn attach(&mut self, link: Link) -> std::io::Result<()> {
        self.detach();
        let Engine::Idle(applier) = std::mem::replace(&mut self.engine, Engine::Moving) else {
            unreachable!("detached just now")
        };
        self.shared.stop.store(false, Ordering::Relaxed);
        let (shared, endpoint) = (self.shared.clone(), link.endpoint.clone());
        // The applier waits in a slot of its own, so that it is not lost when no thread can be had.
        let slot = Arc::new(std::sync::Mutex::new(Some(applier)));
        let theirs = slot.clone();
        let take =
            move |slot: &std::sync::Mutex<Option<Box<Applier>>>| lock(slot).take().expect("taken once");
        let body = move || worker::run(take(&theirs), link, &shared);
        match waits::spawn("pmemha-applier".into(), body) {
            Ok(thread) => {
                self.engine = Engine::Running { endpoint, thread };
                Ok(())
            }
            Err(e) => {
                self.engine = Engine::Idle(take(&slot));
                Err(e)
            }
        }
    }

    /// Whether a source was attached whose connection has ended by itself.
    pub fn has_ended(&self) -> bool {
        matches!(&self.engine, Engine::Running { thread, .. } if thread.is_finished())
    }

    /// Stops following; what landed is applied first, unless faulted. For a promotion, revoke the endpoint before.
    pub fn detach(&mut self) {
        if let Engine::Running { .. } = self.engine {
            let Engine::Running { endpoint, thread } = std::mem::replace(&mut self.engine, Engine::Moving)
            else {
                unreachable!("checked above")
            };
            // Release: pairs with the acquire in `worker::run`.
            self.shared.stop.store(true, Ordering::Release);
            endpoint.interrupt();
            let applier = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            self.engine = Engine::Idle(applier);
        }
    }

    /// Whether the image is what the source saved, and its regions have places by `paths`: see [`promote::verify`] and
    /// [`promote::check_places`]. The source's access must have been revoked.
    pub fn verify(
        &mut self,
        saved: Option<SavedMark>,
        paths: &BTreeMap<PathBuf, PathBuf>,
    ) -> Result<Promotable, PromoteError> {
        let applier = self.applier()?;
        let image = promote::verify(applier, saved)?;
        promote::check_places(applier, paths)?;
        Ok(image)
    }

    /// Makes the image the application's files: see [`promote`]. The source's access must have been revoked.
    pub fn promote(&mut self, request: &promote::Request<'_>) -> Result<promote::Promoted, PromoteError> {
        let shared = self.shared.clone();
        let applier = self.applier()?;
        let done = promote::promote(applier, request, &mut |_| Ok(()));
        shared.status().update(applier);
        done
    }

    /// The applier with everything applied that landed; detaches the source. An error that an attachment met before
    /// is met again, or was mended.
    pub fn applier(&mut self) -> Result<&mut Applier, ApplyError> {
        self.detach();
        let Engine::Idle(applier) = &mut self.engine else { unreachable!("detached just now") };
        let poisoned = self.shared.status().poisoned;
        if !poisoned {
            applier.reopen()?;
            recover::drain(applier)?;
        }
        Ok(applier)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.detach();
    }
}
