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
#[derive(Debug)]
pub enum Order {
    /// A process of it that attached by itself: it belongs to what is frozen and killed.
    Adopt(u32),
    /// Freeze; reported by the round.
    Freeze(Round),
    /// Let it run.
    Thaw,
    /// Keep it frozen whatever becomes of the agent.
    Hold,
    /// End it.
    Kill,
    /// Start the command, if one is configured and nothing of it runs.
    Start,
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
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Keeper {
    fn run(&mut self, orders: &Receiver<Order>) {
        for order in orders {
            tracing::debug!(group = self.name, ?order, "application");
            let done = match &order {
                Order::Adopt(pid) => self.means.add(*pid),
                Order::Freeze(round) => self.freeze(*round),
                Order::Thaw => self.means.thaw(),
                Order::Hold => self.means.hold_frozen(),
                Order::Kill => self.kill(),
                Order::Start => self.start(),
            };
            if let Err(error) = done {
                tracing::error!(group = self.name, ?order, %error, "the application was not supervised as ordered");
            }
        }
    }

    fn freeze(&mut self, round: Round) -> Result<(), supervise::SuperviseError> {
        let frozen = self.means.freeze(Instant::now() + self.freeze_within);
        self.teller.tell(match &frozen {
            Ok(()) => Event::FreezeDone { round },
            Err(_) => Event::FreezeFailed { round },
        });
        frozen
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
