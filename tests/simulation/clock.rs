//! The simulated clock, and the threads that wait on it.
//!
//! Everything runs on one thread of the system: the simulated threads are shuttle's, of which one runs until it waits. Whose turn it is
//! then, and how long waits take beyond what was asked, the seed decides. Time passes only when all of them wait.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pmemha::locks::lock;
use pmemha::waits::{self, Simulation};
use pmemha_testkit::chance::Chance;
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::thread::Thread;

/// The first pause of one that waits for something to become true, which doubles up to [`LONGEST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_micros(20);
const LONGEST_LOOK: Duration = Duration::from_millis(8);

/// Of so many waits one takes longer, by up to [`LATE`].
const LATE_ONE_IN: u64 = 48;
const LATE: Duration = Duration::from_millis(3);

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

struct State {
    start: Instant,
    now: Duration,
    timers: BinaryHeap<Reverse<Timer>>,
    set: u64,
    chance: Chance,
    /// Simulated threads that have not ended.
    living: usize,
    /// Where each of them runs.
    homes: BTreeMap<TaskId, Home>,
    /// Threads of the agent of each node that have not begun.
    begin: BTreeMap<usize, usize>,
    /// Until when nothing runs there.
    stalled: BTreeMap<usize, Duration>,
    trace: Option<Vec<String>>,
}

/// Where a simulated thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    pub node: usize,
    /// It is one of the agent's, not of the program.
    pub agent: bool,
}

struct Timer {
    at: Duration,
    number: u64,
    what: What,
}

enum What {
    Wake(Thread),
    Call(Box<dyn FnOnce()>),
}

impl PartialEq for Timer {
    fn eq(&self, other: &Timer) -> bool {
        self.number == other.number
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Timer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Timer) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

fn with<T>(body: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(|state| body(state.as_mut().expect("a simulation has begun")))
}

/// Begins a simulation on this thread of the system. `trace`: what [`say`] is told is kept.
pub fn begin(chance: Chance, trace: bool) {
    STATE.set(Some(State {
        start: Instant::now(),
        now: Duration::ZERO,
        timers: BinaryHeap::new(),
        set: 0,
        chance,
        living: 0,
        homes: BTreeMap::new(),
        begin: BTreeMap::new(),
        stalled: BTreeMap::new(),
        trace: trace.then(Vec::new),
    }));
    waits::simulate(&Clock);
}

/// Ends it; what was said.
pub fn end() -> Vec<String> {
    STATE.take().and_then(|state| state.trace).unwrap_or_default()
}

/// Time since the beginning.
pub fn now() -> Duration {
    with(|state| state.now)
}

/// A number below `end`.
pub fn below(end: u64) -> u64 {
    with(|state| state.chance.below(end))
}

/// Whether one of so many times comes out.
pub fn one_in(times: u64) -> bool {
    below(times) == 0
}

/// A time up to `most`.
pub fn up_to(most: Duration) -> Duration {
    Duration::from_nanos(below(most.as_nanos() as u64))
}

/// For the trace of a seed that is run again.
pub fn say(what: impl FnOnce() -> String) {
    with(|state| {
        let at = state.now.as_micros();
        if let Some(trace) = &mut state.trace {
            trace.push(format!("{at:>9} us  {}", what()));
        }
    });
}

fn set(at: Duration, what: What) {
    with(|state| {
        state.set += 1;
        state.timers.push(Reverse(Timer { at, number: state.set, what }));
    });
}

/// Calls `call` in a while. It must not wait.
pub fn after(time: Duration, call: impl FnOnce() + 'static) {
    set(now() + time, What::Call(Box::new(call)));
}

/// Nothing runs on a node for a while.
pub fn stall(node: usize, time: Duration) {
    with(|state| {
        let until = state.stalled.entry(node).or_default();
        *until = (state.now + time).max(*until);
    });
}

/// Has `body` run as a thread of the agent of a node.
pub fn spawn_on(node: usize, name: String, body: impl FnOnce() + Send + 'static) {
    spawn(Some(Home { node, agent: true }), name, body);
}

/// Has `body` run beside the others.
pub fn spawn(home: Option<Home>, name: String, body: impl FnOnce() + Send + 'static) {
    let of_agent = home.filter(|home| home.agent).map(|home| home.node);
    with(|state| {
        state.living += 1;
        of_agent.into_iter().for_each(|node| *state.begin.entry(node).or_default() += 1);
    });
    let run = move || {
        let me = shuttle::current::me();
        with(|state| {
            of_agent.into_iter().for_each(|node| *state.begin.entry(node).or_default() -= 1);
            home.into_iter().for_each(|home| _ = state.homes.insert(me, home));
        });
        body();
        with(|state| {
            state.living -= 1;
            state.homes.remove(&me);
        });
    };
    shuttle::thread::Builder::new().name(name).spawn(run).expect("a simulated thread");
}

/// Has the others run until `deadline`, or until `ready` says so.
pub fn wait_for(deadline: Instant, ready: &dyn Fn() -> bool) {
    Clock.wait(deadline, ready);
}

/// Lets time pass for everybody until `done` says so, or until `limit`; whether it did. For the thread that simulates.
pub fn drive(limit: Duration, done: impl Fn() -> bool) -> bool {
    loop {
        if done() {
            return true;
        }
        let Some(Reverse(timer)) = with(|state| state.timers.pop()) else { return done() };
        if timer.at > limit {
            with(|state| state.timers.push(Reverse(timer)));
            return false;
        }
        with(|state| state.now = state.now.max(timer.at));
        match timer.what {
            What::Wake(thread) => thread.unpark(),
            What::Call(call) => call(),
        }
        shuttle::thread::yield_now();
    }
}

/// Threads of the agent of a node that have not ended.
pub fn living_on(node: usize) -> usize {
    with(|state| {
        let begun = state.homes.values().filter(|home| **home == Home { node, agent: true }).count();
        begun + state.begin.get(&node).copied().unwrap_or_default()
    })
}

/// Threads that have not ended.
pub fn living() -> usize {
    with(|state| state.living)
}

/// Has the others run until then, or a little longer.
fn park(until: Duration) {
    let me = shuttle::current::me();
    let until = with(|state| {
        let late = state.chance.below(LATE_ONE_IN) == 0;
        let late = if late { state.chance.below(LATE.as_nanos() as u64) } else { 0 };
        let stalled = state.homes.get(&me).and_then(|home| state.stalled.get(&home.node)).copied();
        (until + Duration::from_nanos(late)).max(stalled.unwrap_or_default())
    });
    set(until, What::Wake(shuttle::thread::current()));
    shuttle::thread::park();
}

struct Clock;

impl Simulation for Clock {
    fn now(&self) -> Instant {
        with(|state| state.start + state.now)
    }

    fn sleep(&self, time: Duration) {
        park(now() + time);
    }

    fn wait(&self, deadline: Instant, ready: &dyn Fn() -> bool) {
        let deadline = deadline.saturating_duration_since(with(|state| state.start));
        let mut look = FIRST_LOOK;
        while !ready() && now() < deadline {
            park(deadline.min(now() + look));
            look = LONGEST_LOOK.min(look * 2);
        }
    }

    fn spawn(&self, name: String, body: Box<dyn FnOnce() + Send>) {
        let me = shuttle::current::me();
        spawn(with(|state| state.homes.get(&me).copied()), name, body);
    }
}

/// Whose turn it is: one of those that can run, and the thread that simulates when there is none.
pub struct Turns(pub Option<Chance>, pub Chance);

impl Scheduler for Turns {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.1 = self.0.take()?;
        Some(Schedule::new(0))
    }

    fn next_task(&mut self, all: &[&Task], _: Option<TaskId>, _: bool) -> Option<TaskId> {
        let main = TaskId::from(0);
        let others = || all.iter().filter(|task| task.runnable() && task.id() != main);
        match others().count() as u64 {
            0 => Some(main),
            n => others().nth(self.1.below(n) as usize).map(|task| task.id()),
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.1.number()
    }
}

/// Something that one thread has at a time, for as long as it likes: whoever wants it meanwhile waits on the simulated clock.
pub struct Baton<T>(Mutex<Option<T>>);

impl<T> Baton<T> {
    pub fn new(value: T) -> Baton<T> {
        Baton(Mutex::new(Some(value)))
    }

    pub fn take(&self) -> Held<'_, T> {
        loop {
            if let Some(value) = lock(&self.0).take() {
                return Held { baton: self, value: Some(value) };
            }
            waits::yield_now();
        }
    }
}

pub struct Held<'a, T> {
    baton: &'a Baton<T>,
    value: Option<T>,
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("held")
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("held")
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        *lock(&self.baton.0) = self.value.take();
    }
}
