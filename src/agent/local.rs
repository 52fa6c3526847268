//! The controller of a group that is shipped nowhere: without a destination, with or without an archive.
//!
//! Its application runs with a log that nobody reads, so that a destination can be configured later without a change to
//! the application. Nothing is protected from the loss of the machine, and the status says so. Without an archive one thread a
//! group keeps the ring free, tells appenders that the agent lives, and buries the dead; with one, a [`Source`] does.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use super::application::{Application, Look, Order, Present};
use super::config;
use super::context::Context;
use super::events::Kind;
use super::group::{Controller, Crowd, Ending, Group, GroupError, Notice, OpenGroup, Stuck};
use super::restarts::Restarts;
use super::source::{Source, SourceSetup, Wish};
use super::status::{GroupStatus, Role};
use super::users;
use crate::failover::{Alarm, Event, OnDeath};
use crate::locks::lock;
use crate::log::region::{BEAT, boottime};
use crate::log::{LinkState, LogRegion, SleepDepth};
use crate::ship::sync::Requester;
use crate::types::Generation;

/// Pause before another try to leave `ahead`.
const AHEAD_PAUSE: Duration = Duration::from_millis(1);

/// Controls a group without destinations. Its thread ends with it.
pub struct Local {
    group: Arc<Group>,
    application: Option<Arc<Application>>,
    stop: Arc<AtomicBool>,
    tender: Mutex<Option<Tender>>,
}

/// Who reads the log.
enum Tender {
    Thread(JoinHandle<()>),
    /// Feeds the archive.
    Source(Source),
}

/// The group, once it is open.
type Opened = Arc<OnceLock<Weak<Group>>>;

/// Asks for copies of the regions once there is a source to make them. A lock of its own, since notices come under the group's.
type Copies = Arc<Mutex<Option<Requester>>>;

impl Local {
    /// Opens the group and starts its thread.
    pub fn start(context: &Arc<Context>, config: &config::Group) -> Result<Arc<Local>, GroupError> {
        let (name, events) = (config.name.clone(), context.clone());
        let copies = Copies::default();
        let for_notices = copies.clone();
        let opened = Opened::default();
        let care = Arc::new(Care { restart: config.on_death == OnDeath::Restart, ..Care::default() });
        let (cares, application) = (care.clone(), start_application(context, config, &care, &opened)?);
        let group = Group::open(OpenGroup {
            config,
            states: &context.states,
            access: &context.access,
            keeper: &*context.keeper,
            generation: Generation(1),
            id: None,
            placed: &[],
            apart: context.own_dirs(),
            notify: Box::new(move |notice| {
                if matches!(notice, Notice::RegionAdded { whole: false, .. })
                    && let Some(copies) = &*lock(&for_notices)
                {
                    copies.request();
                }
                let (kind, detail) = notice.event();
                events.events.emit(Some(&name), kind, detail);
                cares.notice(&notice);
            }),
        })?;
        group.look_for_files();
        opened.get_or_init(|| Arc::downgrade(&group));
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
            *lock(&copies) = Some(source.copies());
        }
        if let Some(application) = &application {
            care.take_over(application, &group);
        }
        Ok(Arc::new(Local { group, application, stop, tender: Mutex::new(Some(tender)) }))
    }

    fn halt(&self) {
        // Pairs with the load in `tend`.
        self.stop.store(true, Ordering::Release);
        self.group.log().wake_agent(SleepDepth::Nap);
        match lock(&self.tender).take() {
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
        let (unprotected_files, unprotected_files_more) = self.group.unprotected_files();
        GroupStatus {
            name: self.name().into(),
            role: Role::Source,
            generation: self.group.generation(),
            state: "unprotected".into(),
            supervision: self.application.as_ref().map(|a| a.means().to_owned()),
            error: self.application.as_ref().and_then(|a| a.failure()),
            sessions: self.group.session_status(),
            regions: self.group.region_status(),
            budget: None,
            regions_more: 0,
            regions_more_bytes: 0,
            unprotected_files,
            unprotected_files_more,
            log: Some(self.group.log_status()),
            destinations: Vec::new(),
            archive: match &*lock(&self.tender) {
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

    fn set_paused(&self, node: &str, _paused: bool) -> Result<(), String> {
        Err(format!("group `{}` has no destination `{node}`", self.name()))
    }

    fn verify(&self, _wish: &Wish) -> Result<(String, u64), String> {
        Err(format!("group `{}` has no destination to compare with", self.name()))
    }

    fn power(&self, _online: bool) {}

    fn finish(&self, deadline: Instant) -> Option<String> {
        let left = match &*lock(&self.tender) {
            Some(Tender::Source(source)) => source.finish(deadline),
            _ => None,
        };
        self.halt();
        left.map(|why| format!("group `{}`: {why}", self.name()))
    }
}

/// Has the application run: started with the agent, and again when it dies if so configured. A clean exit is left at that.
#[derive(Default)]
struct Care {
    restart: bool,
    /// Whoever waits for the command reports its end; the ends of attached processes are no news then.
    commanded: AtomicBool,
    application: OnceLock<Weak<Application>>,
}

impl Care {
    /// Starts the command, unless the application has outlived an earlier agent.
    fn take_over(&self, application: &Arc<Application>, group: &Group) {
        if self.application.set(Arc::downgrade(application)).is_err() {
            unreachable!("a group is taken over once");
        }
        let running: Vec<u32> = group.appending().into_iter().filter_map(|p| p.pid).collect();
        if running.is_empty() {
            self.start();
        }
        running.into_iter().for_each(|pid| application.order(Order::Adopt(pid)));
    }

    fn start(&self) {
        if let Some(application) = self.application.get().and_then(Weak::upgrade) {
            self.commanded.store(true, Ordering::Release);
            application.order(Order::Start(application.ticket()));
        }
    }

    /// What an application says that we found running.
    fn notice(&self, notice: &Notice) {
        if let Notice::ApplicationEnded(Ending::Died(_)) = notice
            && self.restart
            && !self.commanded.load(Ordering::Acquire)
        {
            self.start();
        }
    }
}

fn start_application(
    context: &Arc<Context>,
    config: &config::Group,
    care: &Arc<Care>,
    group: &Opened,
) -> Result<Option<Arc<Application>>, GroupError> {
    if config.command.is_empty() {
        return Ok(None);
    }
    let owner = config.user.as_ref().map(users::resolve).transpose().map_err(GroupError::User)?;
    let (care, events, name) = (care.clone(), context.clone(), config.name.clone());
    let hear = move |event| {
        let (how, again) = match event {
            Event::ApplicationDied => ("died", care.restart),
            Event::ApplicationExited => ("exited", false),
            Event::ApplicationFailedToStart => (FAILED_TO_START, false),
            _ => return,
        };
        events.events.emit(Some(&name), Kind::CommandEnded, json!({ "how": how, "restarts": again }));
        if again {
            care.start();
        }
        if how == FAILED_TO_START {
            let message = "the command of this group could not be started: `pmemha status` says why; mend it and restart pmemhad";
            let detail = json!({ "what": Alarm::StartFailed, "message": message });
            events.events.emit(Some(&name), Kind::Alarm, detail);
        }
    };
    let owner = owner.map(|u| (u.uid, u.gid));
    let look = Box::new(LocalLook(group.clone()));
    let application =
        Application::of_group(context, config, owner, Some(Restarts::default()), look, Arc::new(hear))?;
    Ok(Some(Arc::new(application)))
}

/// How a command ended that never ran, or is not started any more.
const FAILED_TO_START: &str = "failed to start";

/// What the application's thread sees of the group once that is open.
struct LocalLook(Opened);

impl Look for LocalLook {
    /// No second writer is to be feared where nothing is handed over: the means' view is enough.
    fn present(&self) -> Present {
        Present::default()
    }

    fn everyone(&self, _: Instant) -> Crowd {
        Crowd::default()
    }

    fn owns(&self, pid: u32) -> bool {
        self.0.get().and_then(Weak::upgrade).is_some_and(|group| group.owns(pid))
    }
}

fn start_source(context: &Arc<Context>, group: &Arc<Group>) -> io::Result<Source> {
    let (context, name) = (context.clone(), group.name().to_owned());
    Source::start(SourceSetup {
        group: group.clone(),
        destinations: Vec::new(),
        way: None,
        event: Arc::new(move |kind, detail| context.events.emit(Some(&name), kind, detail)),
        refused: Box::new(|_, _, _| {}),
        chance: || 0,
    })
}

/// Keeps the ring free until told to stop.
fn tend(group: &Group, stop: &AtomicBool) {
    let (log, mut stuck) = (group.log(), Stuck::default());
    // Pairs with the store in `halt`.
    while !stop.load(Ordering::Acquire) {
        log.beat(boottime(), std::process::id(), LinkState::None);
        if stuck.is(log) {
            group.bury_dead_appenders();
        }
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
