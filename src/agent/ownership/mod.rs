//! Who owns a group: the thread that drives the group's state machine on this node.
//!
//! It hands events to the machine one at a time, stores what must be stored before anything that rests on it is
//! done, counts the machine's time limits, and answers the other node's requests. What the machine wants done goes to
//! [`Deeds`], whose results come back as events. Made by the group's controller; any thread may tell or ask.

mod durable;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use durable::{DurableFile, StoreError};

use crate::failover::{Action, Answer, Durable, Event, Hands, Machine, Phase, Request, State};
use crate::locks::lock;

/// Pause before an event is handed in again after its state could not be stored.
const STORE_AGAIN: Duration = Duration::from_millis(500);

/// What the machine wants done, except storing and answering. Called on the machine's thread, so it only begins
/// things; results come back through [`Teller`].
pub trait Deeds: Send {
    /// Begins `action`.
    fn act(&mut self, action: Action);
}

/// Tells the machine what happened. Cheap to clone; telling never blocks.
#[derive(Clone)]
pub struct Teller(Sender<Input>);

impl Teller {
    /// Hands in an event, in order with others of the same thread. Nothing happens if the group has been closed.
    pub fn tell(&self, event: Event) {
        let _ = self.0.send(Input::Event(event));
    }

    /// Hands in a request of the other node and waits for the answer, whose promises are then durable. `None`: no
    /// answer within `within`, or the group has been closed.
    pub fn ask(&self, request: Request, within: Duration) -> Option<Answer> {
        let (reply, answer) = mpsc::channel();
        self.0.send(Input::Request(request, reply)).ok()?;
        answer.recv_timeout(within).ok()
    }

    /// The state once everything that this thread told before has been handled. `None`: not within `within`, or the
    /// group has been closed.
    pub fn state(&self, within: Duration) -> Option<State> {
        let (reply, state) = mpsc::channel();
        self.0.send(Input::Look(reply)).ok()?;
        state.recv_timeout(within).ok()
    }
}

/// A group's machine with its thread; stopped on drop.
pub struct Ownership {
    teller: Teller,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Why storing fails at present.
    fault: Mutex<Option<String>>,
    /// Nobody waits any more for what cannot be stored. Relaxed: it orders nothing.
    stop: AtomicBool,
}

enum Input {
    Event(Event),
    Request(Request, Sender<Answer>),
    Look(Sender<State>),
    Stop,
}

/// Events for a machine whose deeds are still being made: a teller is needed to make them.
pub struct Inbox {
    teller: Teller,
    input: Receiver<Input>,
}

impl Inbox {
    /// An empty one.
    pub fn new() -> Inbox {
        let (sender, input) = mpsc::channel();
        Inbox { teller: Teller(sender), input }
    }

    /// Tells whoever will drive.
    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }
}

#[cfg(test)]
impl Inbox {
    /// The next event, for a test that plays the machine.
    pub fn next(&self, within: Duration) -> Option<Event> {
        match self.input.recv_timeout(within).ok()? {
            Input::Event(event) => Some(event),
            Input::Request(..) | Input::Look(_) | Input::Stop => None,
        }
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Ownership {
    /// Drives `machine`, whose durable part is stored in `store`. The first event must be [`Event::Recovered`].
    pub fn start(
        name: &str,
        machine: Machine,
        store: DurableFile,
        deeds: Box<dyn Deeds>,
        inbox: Inbox,
    ) -> io::Result<Ownership> {
        let shared = Arc::new(Shared {
            state: Mutex::new(machine.state().clone()),
            fault: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let driver = Driver {
            machine,
            hands: OwnHands { store, deeds, reply: None, shared: shared.clone() },
            shared: shared.clone(),
        };
        let Inbox { teller, input } = inbox;
        let thread = thread::Builder::new().name(format!("own-{name}")).spawn(move || driver.run(&input))?;
        Ok(Ownership { teller, shared, thread: Some(thread) })
    }

    /// For whoever has events.
    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// The present state.
    pub fn state(&self) -> State {
        lock(&self.shared.state).clone()
    }

    /// Why the state cannot be stored at present, if so.
    pub fn fault(&self) -> Option<String> {
        lock(&self.shared.fault).clone()
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.teller.0.send(Input::Stop);
        // The last to let go may be the thread itself, which then simply ends.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

struct Driver {
    machine: Machine,
    hands: OwnHands,
    shared: Arc<Shared>,
}

impl Driver {
    fn run(mut self, input: &Receiver<Input>) {
        let mut since = (self.machine.state().phase, Instant::now());
        loop {
            let next = match self.due(since) {
                Some(due) => input.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => input.recv().map_err(RecvTimeoutError::from),
            };
            match next {
                Ok(Input::Event(event)) => self.handle(&event),
                Ok(Input::Request(request, reply)) => {
                    self.hands.reply = Some(reply);
                    self.handle(&Event::Request(request));
                    self.hands.reply = None;
                }
                Ok(Input::Look(reply)) => {
                    // One that no longer waits has no use for it.
                    let _ = reply.send(self.machine.state().clone());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.handle(&Event::Timeout);
                    since.1 = Instant::now();
                }
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let phase = self.machine.state().phase;
            if phase != since.0 {
                since = (phase, Instant::now());
            }
        }
    }

    fn due(&self, (phase, since): (Phase, Instant)) -> Option<Instant> {
        self.machine.policy().patience(phase).map(|patience| since + patience)
    }

    /// Hands the event in until its state is stored: going on without would break what was promised. Given up only with the
    /// group, as by a power cut: nothing was done on it.
    fn handle(&mut self, event: &Event) {
        while let Err(error) = self.machine.handle(event, &mut self.hands) {
            tracing::error!(%error, "the group's state cannot be stored: nothing is done until it can");
            if matches!(event, Event::Request(_)) {
                return; // The asker gets no answer, and asks again.
            }
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(STORE_AGAIN);
        }
        *lock(&self.shared.state) = self.machine.state().clone();
    }
}

struct OwnHands {
    store: DurableFile,
    deeds: Box<dyn Deeds>,
    reply: Option<Sender<Answer>>,
    shared: Arc<Shared>,
}

impl Hands for OwnHands {
    type Error = StoreError;

    fn persist(&mut self, durable: &Durable) -> Result<(), StoreError> {
        let saved = self.store.save(durable);
        *lock(&self.shared.fault) = saved.as_ref().err().map(ToString::to_string);
        saved
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Reply(answer) => {
                if let Some(reply) = self.reply.take() {
                    // An asker that no longer waits asks again.
                    let _ = reply.send(answer);
                }
            }
            other => self.deeds.act(other),
        }
    }
}

#[cfg(test)]
mod tests;
