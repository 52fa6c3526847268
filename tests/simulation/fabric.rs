//! A simulated fabric: writes that land late, in pieces, in any order within one, or half when a connection breaks.
//!
//! As an adapter does it: bytes are read from the source's memory when they go out, not when they were posted; a completion may come before the
//! bytes are in their place, where an adapter holds them ([`Pipe::holds`]), until a read fetches what is behind them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use pmemha::fabric::{
    Completion, Endpoint, FabricError, Local, Registration, RemoteAccess, RemoteKey, Wake, Write,
};
use pmemha::locks::lock;
use pmemha::region::memory::SharedMem;
use pmemha::waits;

use crate::clock::{self, after, below, one_in, up_to};

/// Requests of one end in flight.
const LIMIT: usize = 12;

/// Bytes that land together.
const PIECE: usize = 64;

/// What a write takes mostly, and now and then.
const QUICK: Duration = Duration::from_micros(60);
const SLOW: Duration = Duration::from_millis(4);

/// A connection between two nodes.
pub struct Pipe {
    sides: Mutex<[Side; 2]>,
    peers: [String; 2],
    /// The adapter behind the second end completes before it places.
    holds: bool,
}

#[derive(Default)]
struct Side {
    memories: Vec<Weak<Memory>>,
    posted: VecDeque<Posted>,
    /// The first of them is on its way.
    moving: bool,
    /// Posted and not completed.
    in_flight: usize,
    completions: VecDeque<Completion>,
    immediates: VecDeque<u32>,
    notify: Option<Arc<dyn Fn() + Send + Sync>>,
    interrupted: bool,
    closed: Option<Why>,
}

#[derive(Clone, Copy, PartialEq)]
enum Why {
    Broken,
    Revoked,
}

struct Posted {
    what: Request,
    local: (Arc<dyn Registration>, usize, usize),
    remote: (RemoteKey, u64),
    signal: Option<u64>,
    immediate: Option<u32>,
    /// Pieces still to land; none before the first has.
    left: Option<Vec<(usize, usize)>>,
    completed: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Request {
    Write,
    Read,
}

/// Registered memory of one end.
struct Memory {
    key: u64,
    memory: Arc<SharedMem>,
    access: RemoteAccess,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("key", &self.key).field("access", &self.access).finish_non_exhaustive()
    }
}

impl Registration for Memory {
    fn key(&self) -> RemoteKey {
        RemoteKey { key: self.key, addr: 0, len: self.memory.len() as u64 }
    }

    fn memory(&self) -> &Arc<SharedMem> {
        &self.memory
    }
}

/// One end of a connection.
pub struct End {
    pipe: Arc<Pipe>,
    side: usize,
}

impl Pipe {
    /// The ends at the first and the second of the nodes of these names.
    pub fn between(first: &str, second: &str, holds: bool) -> (Arc<Pipe>, [Arc<dyn Endpoint>; 2]) {
        let peers = [second.to_owned(), first.to_owned()];
        let pipe = Arc::new(Pipe { sides: Mutex::default(), peers, holds });
        let ends = [0, 1].map(|side| Arc::new(End { pipe: pipe.clone(), side }) as Arc<dyn Endpoint>);
        (pipe, ends)
    }

    /// The connection is lost; what is on its way lands in part.
    pub fn cut(&self) {
        self.close(Why::Broken);
    }

    fn close(&self, why: Why) {
        let mut sides = lock(&self.sides);
        for side in sides.iter_mut().filter(|side| side.closed.is_none()) {
            side.closed = Some(why);
            let unfinished = side.posted.drain(..).filter(|posted| !posted.completed);
            let failed = unfinished.filter_map(|posted| posted.signal);
            side.completions.extend(failed.map(|id| Completion { id, result: Err(error(why, "the peer")) }));
        }
        drop(sides);
        self.notify(0);
        self.notify(1);
    }

    fn notify(&self, side: usize) {
        let notify = lock(&self.sides)[side].notify.clone();
        notify.iter().for_each(|notify| notify());
    }

    /// Has the next request of `side` go out.
    fn move_on(self: &Arc<Self>, side: usize) {
        let mut sides = lock(&self.sides);
        let mine = &mut sides[side];
        if mine.moving || mine.posted.is_empty() {
            return;
        }
        mine.moving = true;
        drop(sides);
        let pipe = self.clone();
        after(if one_in(40) { up_to(SLOW) } else { up_to(QUICK) }, move || pipe.land(side));
    }

    /// A part of what is on its way lands.
    fn land(self: &Arc<Self>, side: usize) {
        let mut sides = lock(&self.sides);
        if sides[side].closed.is_some() {
            return;
        }
        sides[side].moving = false;
        let Some(first) = sides[side].posted.front_mut() else { return };
        let target = (first.remote.0, first.what);
        let left = first.left.take().unwrap_or_else(|| pieces(first.local.2));
        // A part of it, mostly all.
        let now = if one_in(4) { below(left.len() as u64 + 1) as usize } else { left.len() };
        let (now, later) = left.split_at(now);
        let (local, offset, _) = first.local.clone();
        let remote_offset = first.remote.1;
        first.left = Some(later.to_vec());
        let memory = sides[1 - side].memories.get(target.0.key as usize).and_then(Weak::upgrade);
        let allowed = memory.filter(|memory| match target.1 {
            Request::Write => memory.access == RemoteAccess::Write,
            Request::Read => memory.access != RemoteAccess::Local,
        });
        let Some(memory) = allowed else {
            drop(sides);
            return self.close(Why::Broken);
        };
        for (at, len) in now {
            let mut bytes = vec![0; *len];
            let (here, there) =
                ((local.memory(), offset + at), (&memory.memory, remote_offset as usize + at));
            let (from, to) = if target.1 == Request::Write { (here, there) } else { (there, here) };
            from.0.read(from.1, &mut bytes);
            to.0.write(to.1, &bytes);
        }
        let whole = later.is_empty();
        let first = sides[side].posted.front_mut().expect("it was there");
        let completes = (whole || self.holds && side == 0 && target.1 == Request::Write) && !first.completed;
        first.completed |= completes;
        let (signal, immediate) = (first.signal.filter(|_| completes), first.immediate.filter(|_| whole));
        if whole {
            sides[side].posted.pop_front();
        }
        sides[1 - side].immediates.extend(immediate);
        if let Some(id) = signal {
            sides[side].completions.push_back(Completion { id, result: Ok(()) });
        }
        if completes {
            sides[side].in_flight -= 1;
        }
        drop(sides);
        if signal.is_some() {
            self.notify(side);
        }
        if immediate.is_some() {
            self.notify(1 - side);
        }
        self.move_on(side);
    }
}

/// What a write of so many bytes lands in, in the order in which it does.
fn pieces(len: usize) -> Vec<(usize, usize)> {
    let mut pieces: Vec<_> = (0..len).step_by(PIECE).map(|at| (at, PIECE.min(len - at))).collect();
    for i in (1..pieces.len()).rev() {
        pieces.swap(i, below(i as u64 + 1) as usize);
    }
    pieces
}

fn error(why: Why, peer: &str) -> FabricError {
    match why {
        Why::Broken => {
            FabricError::Disconnected { peer: peer.into(), reason: "the simulated cable was cut".into() }
        }
        Why::Revoked => FabricError::Revoked { peer: peer.into() },
    }
}

impl End {
    fn post(&self, requests: Vec<Posted>) -> Result<(), FabricError> {
        let mut sides = lock(&self.pipe.sides);
        let mine = &mut sides[self.side];
        if let Some(why) = mine.closed {
            return Err(error(why, self.peer()));
        }
        if mine.in_flight + requests.len() > LIMIT {
            return Err(FabricError::Busy { in_flight: mine.in_flight });
        }
        mine.in_flight += requests.len();
        mine.posted.extend(requests);
        drop(sides);
        self.pipe.move_on(self.side);
        Ok(())
    }
}

impl Endpoint for End {
    fn peer(&self) -> &str {
        &self.pipe.peers[self.side]
    }

    fn encrypted(&self) -> bool {
        false
    }

    fn register(
        &self,
        memory: Arc<SharedMem>,
        access: RemoteAccess,
    ) -> Result<Arc<dyn Registration>, FabricError> {
        let memories = &mut lock(&self.pipe.sides)[self.side].memories;
        let memory = Arc::new(Memory { key: memories.len() as u64, memory, access });
        memories.push(Arc::downgrade(&memory));
        Ok(memory)
    }

    fn write(&self, writes: &[Write<'_>]) -> Result<(), FabricError> {
        let posted = |write: &Write<'_>| Posted {
            what: Request::Write,
            local: (write.local.memory.clone(), write.local.offset, write.local.len),
            remote: (write.remote, write.remote_offset),
            signal: write.signal,
            immediate: write.immediate,
            left: None,
            completed: false,
        };
        self.post(writes.iter().map(posted).collect())
    }

    fn read(
        &self,
        into: Local<'_>,
        remote: RemoteKey,
        remote_offset: u64,
        signal: u64,
    ) -> Result<(), FabricError> {
        self.post(vec![Posted {
            what: Request::Read,
            local: (into.memory.clone(), into.offset, into.len),
            remote: (remote, remote_offset),
            signal: Some(signal),
            immediate: None,
            left: None,
            completed: false,
        }])
    }

    fn poll(&self, out: &mut Vec<Completion>) -> usize {
        let completions = &mut lock(&self.pipe.sides)[self.side].completions;
        let n = completions.len();
        out.extend(completions.drain(..));
        n
    }

    fn take_immediate(&self) -> Option<u32> {
        lock(&self.pipe.sides)[self.side].immediates.pop_front()
    }

    fn wait(&self, timeout: Duration) -> Wake {
        let some = |side: &Side| !side.completions.is_empty() || !side.immediates.is_empty();
        let ready = || {
            let side = &lock(&self.pipe.sides)[self.side];
            some(side) || side.interrupted || side.closed.is_some()
        };
        clock::wait_for(waits::now() + timeout, &ready);
        let side = &mut lock(&self.pipe.sides)[self.side];
        let interrupted = std::mem::take(&mut side.interrupted);
        match () {
            () if some(side) || interrupted => Wake::Ready,
            () if side.closed.is_some() => Wake::Closed,
            () => Wake::TimedOut,
        }
    }

    fn interrupt(&self) {
        lock(&self.pipe.sides)[self.side].interrupted = true;
    }

    fn on_event(&self, notify: Box<dyn Fn() + Send + Sync>) {
        lock(&self.pipe.sides)[self.side].notify = Some(notify.into());
    }

    fn revoke(&self) -> Result<(), FabricError> {
        // Meanwhile the peer's writes still land.
        waits::sleep(up_to(Duration::from_micros(300)));
        self.pipe.close(Why::Revoked);
        Ok(())
    }

    fn limit(&self) -> usize {
        LIMIT / 2
    }
}
