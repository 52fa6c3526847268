//! The application of a group as the state machine sees it: one thread that freezes, thaws, kills and starts it, in the
//! order of the orders, and says when it has ended: not before nothing of it is left. The rest of an application that died is
//! ended; one that went to the background by a clean end of what was started goes on there.

mod freeze;
mod kill;
mod means;
mod order;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use order::{Deed, Halfway, Look, Order, Present, Ticket};

use super::config;
use super::context::Context;
use super::restarts::Restarts;
use crate::failover::supervise::{Exit, ExitWatch, StartCommand, SuperviseError, Supervisor};
use crate::failover::{Event, Life};
use crate::locks::lock;
use means::{best_means, children, system};

/// Hears what becomes of an application.
pub type Hear = Arc<dyn Fn(Event) + Send + Sync>;

/// Gives orders; ends on drop, leaving the application as it is.
pub struct Application {
    means: &'static str,
    input: Sender<Input>,
    /// Why the command was not started when it last should have been.
    failure: Arc<Mutex<Option<String>>>,
    /// Orders that halt it, so far. Relaxed: those and the tickets are of one thread, the state machine's.
    halts: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

enum Input {
    Order(Order),
    /// The started command has ended, in the given run.
    Ended(u64, Exit),
    /// The processes that were waited for have, in the given run.
    Gone(u64, Rest),
    /// The same, and nothing was attached: whatever the last to be attached had to say came before this.
    Silent(u64, Rest),
    Stop,
}

/// What must have ended before an end is told.
#[derive(Clone, Copy)]
enum Rest {
    /// Every process; the end is then this.
    All { clean: bool },
    /// Every process that may append: one that gave its session up may live on. The end is a clean one.
    Writers,
    /// Every process; then the command is started after all.
    BeforeStart,
}

struct Keeper {
    name: String,
    means: Supervisor,
    command: Option<StartCommand>,
    freeze_within: Duration,
    hear: Hear,
    /// Bounds starts in a row; without, each is made at once: what an heir takes over must not wait.
    restarts: Option<Restarts>,
    /// A start that is ordered and not yet made. Until it is, no end is told: it would be taken for that of what is started.
    due: Option<Due>,
    /// Frozen by order, or about to be: nothing is started.
    frozen: bool,
    /// Orders that halted it, so far.
    halts: u64,
    /// The same when it was last ended by order.
    killed: u64,
    look: Box<dyn Look>,
    input: Sender<Input>,
    /// Counts starts and ends: what was heard of an earlier run says nothing of the present one.
    run: u64,
    /// A command of ours is, or was, the application: its end is told by whoever waits for it.
    commanded: bool,
    /// The order to hold frozen could not be carried out.
    unheld: bool,
    /// See [`Application::failure`].
    failure: Arc<Mutex<Option<String>>>,
}

/// What a start waits for.
#[derive(Clone, Copy)]
enum Due {
    /// The end of a pause.
    At(Instant),
    /// The end of what is left of the application.
    OnceGone,
}

impl Application {
    /// Supervises the application of a group by the best means that this machine has, and starts its command when ordered to,
    /// as often as `restarts` allows.
    pub fn of_group(
        context: &Context,
        config: &config::Group,
        owner: Option<(u32, u32)>,
        restarts: Option<Restarts>,
        look: Box<dyn Look>,
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
        });
        let started = Self::start(name, means, command, config.freeze_deadline, restarts, look, hear);
        started.map_err(|source| system("starting a thread", source))
    }

    fn start(
        name: &str,
        means: Supervisor,
        command: Option<StartCommand>,
        freeze_within: Duration,
        restarts: Option<Restarts>,
        look: Box<dyn Look>,
        hear: Hear,
    ) -> io::Result<Application> {
        let (input, received) = mpsc::channel();
        let (word, failure) = (means.means(), Arc::default());
        let mut keeper = Keeper {
            name: name.to_owned(),
            means,
            command,
            freeze_within,
            hear,
            restarts,
            due: None,
            frozen: false,
            halts: 0,
            killed: 0,
            look,
            input: input.clone(),
            run: 0,
            commanded: false,
            unheld: false,
            failure: Arc::clone(&failure),
        };
        let thread =
            thread::Builder::new().name(format!("app-{name}")).spawn(move || keeper.run(&received))?;
        Ok(Application { means: word, input, failure, halts: AtomicU64::new(0), thread: Some(thread) })
    }

    /// What freezes it, a word for status.
    pub fn means(&self) -> &'static str {
        self.means
    }

    /// Why the command could not be started, or is not started again; nothing once it was.
    pub fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// For a start that is to be ordered later, perhaps from another thread.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.halts.load(Ordering::Relaxed))
    }

    /// Orders are carried out one after the other.
    pub fn order(&self, order: Order) {
        self.halts.fetch_add(u64::from(order.halts()), Ordering::Relaxed);
        // The thread ends only with us.
        let _ = self.input.send(Input::Order(order));
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.input.send(Input::Stop);
        // The last to let go may be the thread itself, which then simply ends.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Keeper {
    fn run(&mut self, inputs: &Receiver<Input>) {
        loop {
            let input = match self.due {
                Some(Due::At(due)) if !self.frozen => {
                    inputs.recv_timeout(due.saturating_duration_since(Instant::now()))
                }
                _ => inputs.recv().map_err(RecvTimeoutError::from),
            };
            let (what, done) = match input {
                Err(RecvTimeoutError::Timeout) => ("start", self.start()),
                Ok(Input::Order(order)) => (order.word(), self.carry_out(order)),
                Ok(Input::Ended(run, exit)) if run == self.run => ("see the end", self.command_ended(exit)),
                Ok(Input::Gone(run, rest)) if run == self.run => {
                    if !self.look.present().attached {
                        let _ = self.input.send(Input::Silent(run, rest));
                    }
                    continue;
                }
                Ok(Input::Silent(run, rest)) if run == self.run => ("see the end", self.rest_gone(rest)),
                Ok(Input::Ended(..) | Input::Gone(..) | Input::Silent(..)) => continue,
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(error) = done {
                tracing::error!(group = self.name, what, %error, "the application was not supervised as ordered");
            }
        }
    }

    fn carry_out(&mut self, order: Order) -> Result<(), SuperviseError> {
        tracing::debug!(group = self.name, what = order.word(), "application");
        self.halts += u64::from(order.halts());
        match order {
            Order::Adopt(pid) => self.adopt(pid),
            Order::Freeze(round, halfway) => self.freeze(round, &halfway),
            Order::Thaw => {
                (self.frozen, self.unheld) = (false, false);
                self.means.thaw()
            }
            Order::Hold => {
                self.frozen = true;
                self.hold()
            }
            Order::Kill => {
                (self.due, self.frozen, self.killed) = (None, false, self.halts);
                self.kill()
            }
            Order::Start(ticket) => {
                self.plan_start(ticket);
                Ok(())
            }
            Order::Found(pids, answer) => self.found(&pids).map(|life| {
                // Whoever asked may have ended.
                let _ = answer.send(life);
            }),
            // Or somebody has attached since.
            Order::Over { .. } if self.commanded || self.look.present().attached => Ok(()),
            Order::Over { clean: true } => self.ended_cleanly(Rest::Writers),
            Order::Over { clean: false } => self.kill(),
            Order::Then(deed) => {
                if self.unheld {
                    self.hold()?;
                }
                (deed.0)();
                Ok(())
            }
        }
    }

    fn hold(&mut self) -> Result<(), SuperviseError> {
        self.unheld = true;
        self.means.hold_frozen()?;
        self.unheld = false;
        Ok(())
    }

    fn plan_start(&mut self, ticket: Ticket) {
        if self.command.is_none() || ticket.0 < self.killed {
            return;
        }
        // Overtaken by a freeze, it waits for the thaw.
        self.frozen &= ticket.0 < self.halts;
        let now = Instant::now();
        let at = self.restarts.as_mut().map_or(Some(now), |restarts| restarts.next(now));
        self.due = at.map(Due::At);
        if self.due.is_none() {
            self.failed_to_start("it keeps dying");
        }
    }

    /// Says that the command is not started any more.
    fn failed_to_start(&self, why: &str) {
        tracing::error!(group = self.name, why, "the application is not started");
        *lock(&self.failure) = Some(why.to_owned());
        (self.hear)(Event::ApplicationFailedToStart);
    }

    fn start(&mut self) -> Result<(), SuperviseError> {
        let started = self.start_unless_occupied();
        if let Err(error) = &started {
            self.due = None;
            self.failed_to_start(&error.to_string());
        }
        started
    }

    /// Starts the command, or waits for the end of what still runs: which must not be frozen for that, nor must the control group
    /// that an earlier one has left.
    fn start_unless_occupied(&mut self) -> Result<(), SuperviseError> {
        let Some(command) = &self.command else { return Ok(()) };
        self.means.thaw()?;
        let members = self.left(Rest::BeforeStart)?;
        if !members.is_empty() {
            self.due = Some(Due::OnceGone);
            return self.await_end(members, Rest::BeforeStart);
        }
        self.due = None;
        let mut started = self.means.start(command)?;
        *lock(&self.failure) = None;
        self.run += 1;
        self.commanded = true;
        (self.hear)(Event::ApplicationStarted);
        let (input, run) = (self.input.clone(), self.run);
        self.wait_beside(move || match started.wait() {
            // Nobody waits any more: the agent is ending.
            Ok(exit) => drop(input.send(Input::Ended(run, exit))),
            Err(error) => tracing::error!(%error, "the application's end cannot be seen"),
        })
    }

    fn found(&mut self, pids: &[u32]) -> Result<Life, SuperviseError> {
        let pids: Vec<u32> = pids.iter().copied().filter(|pid| self.look.owns(*pid)).collect();
        let frozen = self.means.found(&pids)?;
        let mut left = self.left(Rest::All { clean: false })?;
        let doubtful = self.look.present().doubtful;
        let frozen = frozen && doubtful.is_empty();
        left.extend(doubtful);
        if left.is_empty() {
            // What is started next must not join a group that has been left frozen.
            self.means.thaw()?;
            return Ok(Life::Gone);
        }
        self.await_end(left, Rest::All { clean: false })?;
        Ok(if frozen { Life::Frozen } else { Life::Running })
    }

    fn command_ended(&mut self, exit: Exit) -> Result<(), SuperviseError> {
        match exit {
            Exit::Clean => self.ended_cleanly(Rest::All { clean: true }),
            Exit::Failed(_) | Exit::Killed(_) => self.kill(),
        }
    }

    /// Who spoke for the application has ended of its own will: it goes on in what is left of it.
    fn ended_cleanly(&mut self, rest: Rest) -> Result<(), SuperviseError> {
        let left = self.left(rest)?;
        if left.is_empty() {
            self.tell_end(true);
            return Ok(());
        }
        tracing::info!(group = self.name, ?left, "what was started has ended, and the application goes on");
        // What waits for the same processes already would take their end for a death.
        self.run += 1;
        self.commanded = false;
        self.await_end(left, rest)
    }

    fn rest_gone(&mut self, rest: Rest) -> Result<(), SuperviseError> {
        if let Rest::All { clean: false } = rest {
            // Whoever held the end back may have left somebody behind.
            return self.kill();
        }
        let left = self.left(rest)?;
        if !left.is_empty() {
            return self.await_end(left, rest);
        }
        match rest {
            Rest::BeforeStart => self.release_start(),
            Rest::Writers => self.tell_end(true),
            Rest::All { clean } => self.tell_end(clean),
        }
        Ok(())
    }

    /// Says that nothing of the application is left, unless it is to be started anyway.
    fn tell_end(&mut self, clean: bool) {
        self.run += 1;
        self.commanded = false;
        if self.due.is_some() {
            return self.release_start();
        }
        (self.hear)(if clean { Event::ApplicationExited } else { Event::ApplicationDied });
    }

    /// Nothing is left that a start waited for: it is made next. One that is in its pause goes on with that.
    fn release_start(&mut self) {
        if let Some(Due::OnceGone) = self.due {
            self.due = Some(Due::At(Instant::now()));
        }
    }

    /// What is left of the application; never this process, which an application in the same process may have brought in.
    fn left(&self, rest: Rest) -> Result<Vec<u32>, SuperviseError> {
        let mut left = self.look.present().writers;
        if !matches!(rest, Rest::Writers) {
            left.extend(self.means.members()?);
        }
        left.retain(|pid| *pid != std::process::id());
        left.sort_unstable();
        left.dedup();
        Ok(left)
    }

    /// Takes in a process that has attached, and its descendants that have the log: whom it forked before is not in its control
    /// group. Whoever is missed is found by a freeze.
    fn adopt(&mut self, pid: u32) -> Result<(), SuperviseError> {
        let mut family = vec![pid];
        for _ in 0..LARGEST_FAMILY {
            let Some(next) = family.pop() else { break };
            self.take_in(next)?;
            family.extend(children(next));
        }
        Ok(())
    }

    /// Takes in a process, if it is still the application's.
    fn take_in(&mut self, pid: u32) -> Result<(), SuperviseError> {
        if !self.look.owns(pid) {
            tracing::debug!(group = self.name, pid, "not of the application, or not any more");
            return Ok(());
        }
        match self.means.add(pid) {
            // It has ended meanwhile.
            Err(_) if !self.look.owns(pid) => Ok(()),
            added => added,
        }
    }

    /// Looks again when `pids` have ended.
    fn await_end(&self, pids: Vec<u32>, rest: Rest) -> Result<(), SuperviseError> {
        let (input, run) = (self.input.clone(), self.run);
        self.wait_beside(move || {
            for pid in pids {
                let ended = ExitWatch::open(pid).and_then(|watch| match watch {
                    Some(watch) => loop {
                        if watch.wait(Instant::now() + LONG)? {
                            break Ok(());
                        }
                    },
                    None => Ok(()),
                });
                if let Err(error) = ended {
                    tracing::error!(pid, %error, "the application's end cannot be seen");
                    return;
                }
            }
            // Nobody waits any more: the agent is ending.
            let _ = input.send(Input::Gone(run, rest));
        })
    }

    fn wait_beside(&self, wait: impl FnOnce() + Send + 'static) -> Result<(), SuperviseError> {
        let waiting = thread::Builder::new().name(format!("wait-{}", self.name)).spawn(wait);
        waiting.map(drop).map_err(|source| SuperviseError::System {
            what: "a thread that waits for the application".into(),
            source,
        })
    }
}

/// Descendants of one process that are looked at when it attaches; the largest servers of our users have a few hundred.
const LARGEST_FAMILY: usize = 4096;

/// A wait for an end is taken up again after this time, which only keeps the sum of times within bounds.
const LONG: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
