//! The controller of a group that is shipped nowhere: neither destination nor archive.
//!
//! Its application runs with a log that nobody reads, so that a destination can be configured later without a change to
//! the application. Nothing is protected by it, and the status says so. One thread a group keeps the ring free, tells
//! appenders that the agent lives, and buries the dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use super::config;
use super::context::Context;
use super::group::{Controller, Group, GroupError, Notice, OpenGroup};
use super::status::{GroupStatus, Role};
use crate::log::region::boottime;
use crate::log::{LinkState, LogRegion, SleepDepth};
use crate::types::Generation;

/// How often the agent says that it lives: a tenth of what appenders allow.
const BEAT: Duration = Duration::from_millis(100);

/// Pause before another try to leave `ahead`.
const AHEAD_PAUSE: Duration = Duration::from_millis(1);

/// Controls a group without destinations. Its thread ends with it.
pub struct Local {
    group: Arc<Group>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Local {
    /// Opens the group and starts its thread.
    pub fn start(context: &Arc<Context>, config: &config::Group) -> Result<Arc<Local>, GroupError> {
        let (name, events) = (config.name.clone(), context.clone());
        let group = Group::open(OpenGroup {
            config,
            states: &context.states,
            keeper: &*context.keeper,
            generation: Generation(1),
            notify: Box::new(move |notice| tell(&events, &name, &notice)),
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let (for_thread, stopped) = (group.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name("local".into())
            .spawn(move || tend(&for_thread, &stopped))
            .map_err(|source| GroupError::System { what: "starting a thread", source })?;
        Ok(Arc::new(Local { group, stop, thread: Mutex::new(Some(thread)) }))
    }

    fn halt(&self) {
        // Pairs with the load in `tend`.
        self.stop.store(true, Ordering::Release);
        self.group.log().wake_agent(SleepDepth::Nap);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Controller for Local {
    fn name(&self) -> &str {
        self.group.name()
    }

    fn attach(&self) -> Result<Arc<Group>, String> {
        Ok(self.group.clone())
    }

    fn report(&self) -> GroupStatus {
        GroupStatus {
            name: self.name().into(),
            role: Role::Source,
            generation: self.group.generation(),
            state: "unprotected".into(),
            sessions: self.group.session_status(),
            regions: self.group.region_status(),
            log: Some(self.group.log_status()),
            destinations: Vec::new(),
        }
    }

    fn last_gasp(&self) -> Result<(), String> {
        Err(format!("group `{}` has no destination to save to: name one in `destinations`", self.name()))
    }

    fn promote(&self, _force: bool) -> Result<(), String> {
        Err(format!("group `{}` runs here already", self.name()))
    }

    fn power(&self, _online: bool) {}

    fn finish(&self, _deadline: Instant) -> Option<String> {
        self.halt();
        None
    }
}

/// Keeps the ring free until told to stop.
fn tend(group: &Group, stop: &AtomicBool) {
    let log = group.log();
    // Pairs with the store in `halt`.
    while !stop.load(Ordering::Acquire) {
        log.beat(boottime(), std::process::id(), LinkState::None);
        let published = log.published();
        log.set_free(published);
        if log.is_ahead() && !leave_ahead(log) {
            // A slot is still being written. Its owner cannot wake us while the log is ahead.
            thread::park_timeout(AHEAD_PAUSE);
            continue;
        }
        log.sleep_until_work(published, SleepDepth::Nap, BEAT);
    }
}

/// The application outran the ring: nobody needs what the ring holds, so it is emptied and recording goes on. False if
/// that is not possible yet.
fn leave_ahead(log: &LogRegion) -> bool {
    log.publish_filled(&|owner| owner.confirmed_dead());
    log.set_free(log.published());
    let end = log.tail();
    let left = log.published() == end && log.close_gap();
    if left {
        log.end_gap(end);
    }
    left
}

fn tell(context: &Context, group: &str, notice: &Notice) {
    let (kind, detail) = match notice {
        Notice::RegionAdded { region, .. } => (
            "region_protected",
            json!({ "region": region.id(), "path": region.path(), "bytes": region.len() }),
        ),
        Notice::ProcessAttached { pid } => ("process_attached", json!({ "pid": pid })),
        Notice::ProcessEnded { pid, ending } => {
            ("process_ended", json!({ "pid": pid, "how": ending.word() }))
        }
        Notice::ApplicationEnded(ending) => ("application_ended", json!({ "how": ending.word() })),
    };
    context.events.emit(Some(group), kind, detail);
}
