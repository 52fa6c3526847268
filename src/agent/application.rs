//! The application of a group as the state machine sees it: one thread that freezes, thaws, kills and starts it, in the
//! order of the orders.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::ownership::Teller;
use crate::failover::supervise::{self, StartCommand, Supervisor};
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
    /// Start the command, if one is configured and nothing of it runs.
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
    teller: Teller,
}

impl Application {
    /// Supervises with `means`; starts `command` when ordered to.
    pub fn start(
        name: &str,
        means: supervise::Application,
        command: Option<StartCommand>,
        freeze_within: Duration,
        teller: Teller,
    ) -> io::Result<Application> {
        let (orders, received) = mpsc::channel();
        let word = means.means();
        let mut keeper = Keeper { name: name.to_owned(), means, command, freeze_within, teller };
        let thread =
            thread::Builder::new().name(format!("app-{name}")).spawn(move || keeper.run(&received))?;
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
        for order in orders {
            let what = order.word();
            tracing::debug!(group = self.name, what, "application");
            let done = match order {
                Order::Adopt(pid) => self.means.add(pid),
                Order::Freeze(round, halfway) => self.freeze(round, &halfway),
                Order::Thaw => self.means.thaw(),
                Order::Hold => self.means.hold_frozen(),
                Order::Kill => self.kill(),
                Order::Start => self.start(),
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
        let frozen = self.freeze_at_rest(halfway);
        self.teller.tell(match &frozen {
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
        self.means.kill()?;
        self.teller.tell(Event::ApplicationDied);
        Ok(())
    }

    fn start(&mut self) -> Result<(), supervise::SuperviseError> {
        let Some(command) = &self.command else { return Ok(()) };
        if !self.means.members()?.is_empty() {
            return Ok(());
        }
        let mut started = match self.means.start(command) {
            Ok(started) => started,
            Err(error) => {
                self.teller.tell(Event::ApplicationFailedToStart);
                return Err(error);
            }
        };
        self.teller.tell(Event::ApplicationStarted);
        let teller = self.teller.clone();
        let reaper =
            thread::Builder::new().name(format!("wait-{}", self.name)).spawn(move || match started.wait() {
                Ok(supervise::Exit::Clean) => teller.tell(Event::ApplicationExited),
                Ok(_) => teller.tell(Event::ApplicationDied),
                Err(error) => tracing::error!(%error, "the application's end cannot be seen"),
            });
        reaper.map(drop).map_err(|source| supervise::SuperviseError::System {
            what: "a thread that waits for the application".into(),
            source,
        })
    }
}

/// How long an application that was halted in the middle of a record runs before it is frozen again: a record takes microseconds.
const SHORTEST_RUN: Duration = Duration::from_micros(200);

/// The same after several attempts: the halted thread may have to wait for a processor.
const LONGEST_RUN: Duration = Duration::from_millis(20);
