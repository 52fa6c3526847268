//! The controller of a group that is shipped nowhere: without a destination, with or without an archive.
//!
//! Its application runs with a log that nobody reads, so that a destination can be configured later without a change to
//! the application. Nothing is protected from the loss of the machine, and the status says so. Without an archive one thread a
//! group keeps the ring free, tells appenders that the agent lives, and buries the dead; with one, a [`Source`] does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use super::config;
use super::context::Context;
use super::group::{Controller, Group, GroupError, Notice, OpenGroup};
use super::source::{Source, SourceSetup};
use super::status::{GroupStatus, Role};
use crate::log::region::boottime;
use crate::log::{LinkState, LogRegion, SleepDepth};
use crate::ship::sync::Requester;
use crate::types::Generation;

/// How often the agent says that it lives: a tenth of what appenders allow.
const BEAT: Duration = Duration::from_millis(100);

/// Pause before another try to leave `ahead`.
const AHEAD_PAUSE: Duration = Duration::from_millis(1);

/// Controls a group without destinations. Its thread ends with it.
pub struct Local {
    group: Arc<Group>,
    stop: Arc<AtomicBool>,
    tender: Mutex<Option<Tender>>,
}

/// Who reads the log.
enum Tender {
    Thread(JoinHandle<()>),
    /// Feeds the archive.
    Source(Source),
}

/// Asks for copies of the regions once there is a source to make them. A lock of its own, since notices come under the group's.
type Copies = Arc<Mutex<Option<Requester>>>;

impl Local {
    /// Opens the group and starts its thread.
    pub fn start(context: &Arc<Context>, config: &config::Group) -> Result<Arc<Local>, GroupError> {
        let (name, events) = (config.name.clone(), context.clone());
        let copies = Copies::default();
        let for_notices = copies.clone();
        let group = Group::open(OpenGroup {
            config,
            states: &context.states,
            keeper: &*context.keeper,
            generation: Generation(1),
            id: None,
            placed: &[],
            notify: Box::new(move |notice| {
                if matches!(notice, Notice::RegionAdded { whole: false, .. })
                    && let Some(copies) = &*for_notices.lock().unwrap_or_else(PoisonError::into_inner)
                {
                    copies.request();
                }
                tell(&events, &name, &notice);
            }),
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let tender = if config.archive.is_some() {
            start_source(context, &group).map(Tender::Source)
        } else {
            let (group, stopped) = (group.clone(), stop.clone());
            let thread = thread::Builder::new().name("local".into());
            thread.spawn(move || tend(&group, &stopped)).map(Tender::Thread)
        };
        let tender = tender.map_err(|source| GroupError::System { what: "starting a thread", source })?;
        if let Tender::Source(source) = &tender {
            *copies.lock().unwrap_or_else(PoisonError::into_inner) = Some(source.copies());
        }
        Ok(Arc::new(Local { group, stop, tender: Mutex::new(Some(tender)) }))
    }

    fn halt(&self) {
        // Pairs with the load in `tend`.
        self.stop.store(true, Ordering::Release);
        self.group.log().wake_agent(SleepDepth::Nap);
        match self.tender.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Tender::Thread(thread)) => drop(thread.join()),
            Some(Tender::Source(source)) => drop(source),
            None => {}
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
            supervision: None,
            sessions: self.group.session_status(),
            regions: self.group.region_status(),
            log: Some(self.group.log_status()),
            destinations: Vec::new(),
            archive: match &*self.tender.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(Tender::Source(source)) => source.archive_status(),
                _ => None,
            },
        }
    }

    fn last_gasp(&self) -> Result<(), String> {
        Err(format!("group `{}` has no destination to save to: name one in `destinations`", self.name()))
    }

    fn promote(&self, _force: bool) -> Result<(), String> {
        Err(format!("group `{}` runs here already", self.name()))
    }

    fn cancel(&self) -> Result<(), String> {
        Err(format!("group `{}` has no destination, so no handover is under way", self.name()))
    }

    fn power(&self, _online: bool) {}

    fn finish(&self, _deadline: Instant) -> Option<String> {
        self.halt();
        None
    }
}

fn start_source(context: &Arc<Context>, group: &Arc<Group>) -> io::Result<Source> {
    let (context, name) = (context.clone(), group.name().to_owned());
    Source::start(SourceSetup {
        group: group.clone(),
        destination: None,
        event: Arc::new(move |kind, detail| context.events.emit(Some(&name), kind, detail)),
        superseded: Box::new(|_, _| {}),
        chance: || 0,
    })
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
