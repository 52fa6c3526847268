//! The application of a group as the state machine sees it: one thread that freezes, thaws, kills and starts it, in the
//! order of the orders.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use super::config;
use super::context::Context;
use super::restarts::Restarts;
use crate::failover::supervise::{self, Helper, StartCommand, SuperviseError, Supervisor, hierarchies};
use crate::failover::{Event, Round};

/// What is to be done to the application.
pub enum Order {
    /// A process of it that attached by itself: it belongs to what is frozen and killed.
    Adopt(u32),
    /// Freeze; reported by the round.
    Freeze(Round, Halfway),
    /// Let it run.
    Thaw,
    /// Keep it frozen whatever becomes of the agent.
    Hold,
    /// End it.
    Kill,
    /// Start the command, if one is configured and nothing of it runs; after a pause if it keeps dying, and at last not any more.
    Start,
    /// Take in what an earlier agent supervised; the answer says whether all of it is frozen.
    Found(Vec<u32>, Sender<bool>),
    /// To be done once every order before has been carried out.
    Then(Deed),
}

/// See [`Order::Then`].
pub struct Deed(pub Box<dyn FnOnce() + Send>);

/// Says whether a frozen application stands in the middle of something that it has to finish before the group can be
/// handed over.
pub struct Halfway(pub Box<dyn Fn() -> bool + Send>);

impl Order {
    /// For messages.
    fn word(&self) -> &'static str {
        match self {
            Order::Adopt(_) => "adopt",
            Order::Freeze(..) => "freeze",
            Order::Thaw => "thaw",
            Order::Hold => "hold frozen",
            Order::Kill => "kill",
            Order::Start => "start",
            Order::Found(..) => "find",
            Order::Then(_) => "go on",
        }
    }
}

/// Hears what becomes of an application.
pub type Hear = Arc<dyn Fn(Event) + Send + Sync>;

/// Gives orders; ends on drop, leaving the application as it is.
pub struct Application {
    means: &'static str,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

struct Keeper {
    name: String,
    means: supervise::Application,
    command: Option<StartCommand>,
    freeze_within: Duration,
    hear: Hear,
    restarts: Restarts,
    /// A start whose pause is not over.
    due: Option<Instant>,
    /// Frozen by order, or about to be: nothing is started.
    frozen: bool,
}

impl Application {
    /// Supervises the application of a group by the best means that this machine has, and starts its command when ordered to.
    pub fn of_group(
        context: &Context,
        config: &config::Group,
        owner: Option<(u32, u32)>,
        hear: Hear,
    ) -> Result<Application, SuperviseError> {
        let name = &config.name;
        let means = best_means(context, name)?;
        let mut env: Vec<_> = config.env.iter().map(|(k, v)| (k.into(), v.into())).collect();
        env.push(("PMEMHA_SOCKET".into(), context.config.socket().into_os_string()));
        env.push(("PMEMHA_GROUP".into(), name.into()));
        let command = (!config.command.is_empty()).then(|| StartCommand {
            argv: config.command.iter().map(Into::into).collect(),
            env,
            directory: config.working_dir.clone(),
            user: owner,
            inherit_input: false,
        });
        let word = means.means();
        let mut keeper = Keeper {
            name: name.clone(),
            means,
            command,
            freeze_within: config.freeze_deadline,
            hear,
            restarts: Restarts::default(),
            due: None,
            frozen: false,
        };
        let (orders, received) = mpsc::channel();
        let thread = thread::Builder::new().name(format!("app-{name}")).spawn(move || keeper.run(&received));
        let thread = thread.map_err(|source| system("starting a thread", source))?;
        Ok(Application { means: word, orders: Some(orders), thread: Some(thread) })
    }

    /// What freezes it, a word for status.
    pub fn means(&self) -> &'static str {
        self.means
    }

    /// Orders are carried out one after the other.
    pub fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread ends only with us.
            let _ = orders.send(order);
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        drop(self.orders.take());
        // The last to let go may be the thread itself, which then simply ends.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Keeper {
    fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            let order = match self.due.filter(|_| !self.frozen) {
                Some(due) => match orders.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Ok(order) => order,
                    Err(RecvTimeoutError::Timeout) => {
                        self.due = None;
                        if let Err(error) = self.start() {
                            tracing::error!(group = self.name, %error, "the application was not started");
                        }
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                None => match orders.recv() {
                    Ok(order) => order,
                    Err(_) => return,
                },
            };
            let what = order.word();
            tracing::debug!(group = self.name, what, "application");
            let done = match order {
                Order::Adopt(pid) => self.means.add(pid),
                Order::Freeze(round, halfway) => self.freeze(round, &halfway),
                Order::Thaw => {
                    self.frozen = false;
                    self.means.thaw()
                }
                Order::Hold => self.means.hold_frozen(),
                Order::Kill => self.kill(),
                Order::Start => {
                    self.plan_start();
                    Ok(())
                }
                Order::Found(pids, answer) => self.means.found(&pids).map(|frozen| {
                    // Whoever asked may have ended.
                    let _ = answer.send(frozen);
                }),
                Order::Then(deed) => {
                    (deed.0)();
                    Ok(())
                }
            };
            if let Err(error) = done {
                tracing::error!(group = self.name, what, %error, "the application was not supervised as ordered");
            }
        }
    }

    fn freeze(&mut self, round: Round, halfway: &Halfway) -> Result<(), supervise::SuperviseError> {
        self.frozen = true;
        let frozen = self.freeze_at_rest(halfway);
        (self.hear)(match &frozen {
            Ok(()) => Event::FreezeDone { round },
            Err(_) => Event::FreezeFailed { round },
        });
        frozen
    }

    /// Freezes; where that has halted a process in the middle of a record that others wait for, lets everything run for a
    /// moment and tries again. The state machine waits twice the deadline before it has the application killed.
    fn freeze_at_rest(&mut self, halfway: &Halfway) -> Result<(), supervise::SuperviseError> {
        let deadline = Instant::now() + self.freeze_within;
        self.means.freeze(deadline)?;
        let mut run = SHORTEST_RUN;
        while (halfway.0)() && Instant::now() + run < deadline {
            self.means.thaw()?;
            thread::sleep(run);
            run = (run * 2).min(LONGEST_RUN);
            self.means.freeze(Instant::now() + self.freeze_within)?;
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<(), supervise::SuperviseError> {
        (self.due, self.frozen) = (None, false);
        self.means.kill()?;
        (self.hear)(Event::ApplicationDied);
        Ok(())
    }

    fn plan_start(&mut self) {
        if self.command.is_none() {
            return;
        }
        self.frozen = false;
        self.due = self.restarts.next(Instant::now());
        if self.due.is_none() {
            tracing::error!(
                group = self.name,
                "the application keeps dying: given up; mend it, then start it again"
            );
            (self.hear)(Event::ApplicationFailedToStart);
        }
    }

    fn start(&mut self) -> Result<(), supervise::SuperviseError> {
        let Some(command) = &self.command else { return Ok(()) };
        if !self.means.members()?.is_empty() {
            return Ok(());
        }
        let mut started = match self.means.start(command) {
            Ok(started) => started,
            Err(error) => {
                (self.hear)(Event::ApplicationFailedToStart);
                return Err(error);
            }
        };
        (self.hear)(Event::ApplicationStarted);
        let hear = self.hear.clone();
        let reaper =
            thread::Builder::new().name(format!("wait-{}", self.name)).spawn(move || match started.wait() {
                Ok(supervise::Exit::Clean) => hear(Event::ApplicationExited),
                Ok(_) => hear(Event::ApplicationDied),
                Err(error) => tracing::error!(%error, "the application's end cannot be seen"),
            });
        reaper.map(drop).map_err(|source| supervise::SuperviseError::System {
            what: "a thread that waits for the application".into(),
            source,
        })
    }
}

/// A control group of its own where one can be made, else signals.
fn best_means(context: &Context, name: &str) -> Result<supervise::Application, SuperviseError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| system("reading the mounts", e))?;
    // Two agents of one machine (a demo, a test) must not freeze each other's applications.
    let dir = context.config.node.state_dir.as_os_str().as_encoded_bytes();
    let unit = format!("{name}-{:08x}", crc32c::crc32c(dir));
    let group_dir = context.states.group_dir(name);
    let lock =
        group_dir.map_err(|e| system("the group's directory", io::Error::other(e)))?.join(WATCHDOG_FILE);
    let helper = || Helper { argv: vec![context.program.clone().into()], lock: Some(lock.clone()) };
    for hierarchy in hierarchies(&mounts) {
        match supervise::Application::new(&unit, Some(&hierarchy), helper()) {
            Ok(means) => return Ok(means),
            Err(error) => tracing::debug!(group = name, %error, "not supervised by this hierarchy"),
        }
    }
    supervise::Application::new(&unit, None, helper())
}

fn system(what: &str, source: io::Error) -> SuperviseError {
    SuperviseError::System { what: what.into(), source }
}

/// How long an application that was halted in the middle of a record runs before it is frozen again: a record takes microseconds.
const SHORTEST_RUN: Duration = Duration::from_micros(200);

/// The same after several attempts: the halted thread may have to wait for a processor.
const LONGEST_RUN: Duration = Duration::from_millis(20);

/// File of the group's directory that the watchdog of its application locks.
const WATCHDOG_FILE: &str = "watchdog";
