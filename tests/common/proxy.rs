//! A way between two agents that loses what it is told to: everything for a while, or some messages by chance.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::chance::Chance;

/// How often a pump looks whether it may still pass on.
const LOOK: Duration = Duration::from_millis(5);

/// Passes connections on to one port. Its threads end with the test's process.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
}

struct Shared {
    target: AtomicU16,
    /// Nothing passes; whatever arrives meanwhile is lost with its connection.
    stalled: AtomicBool,
    /// Connections made before the last stall ended are of no use.
    epoch: AtomicU64,
    losses: AtomicU64,
    chance: Mutex<Chance>,
}

impl Proxy {
    /// Listens; `chance` decides what is lost.
    pub fn start(chance: Chance) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared {
            target: AtomicU16::new(0),
            stalled: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            chance: Mutex::new(chance),
        });
        let theirs = shared.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                join(connection, &theirs);
            }
        });
        Proxy { shared, port }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where connections go.
    pub fn lead_to(&self, port: u16) {
        self.shared.target.store(port, Ordering::SeqCst);
    }

    /// From here on nothing arrives at either end, which does not learn of it.
    pub fn stall(&self) {
        self.shared.stalled.store(true, Ordering::SeqCst);
    }

    /// Ends the stall: the connections are closed with all that they held, new ones work.
    pub fn pass(&self) {
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.shared.stalled.store(false, Ordering::SeqCst);
    }

    /// Loses `count` messages from here on, of either direction and by chance, each with its connection.
    pub fn lose(&self, count: u64) {
        self.shared.losses.store(count, Ordering::SeqCst);
    }

    /// Messages that are still to be lost.
    pub fn left_to_lose(&self) -> u64 {
        self.shared.losses.load(Ordering::SeqCst)
    }
}

fn join(near: TcpStream, shared: &Arc<Shared>) {
    let epoch = shared.epoch.load(Ordering::SeqCst);
    let Ok(far) = TcpStream::connect(("127.0.0.1", shared.target.load(Ordering::SeqCst))) else { return };
    for (from, to) in [(&near, &far), (&far, &near)] {
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
        let shared = shared.clone();
        thread::spawn(move || pump(from, to, epoch, &shared));
    }
}

/// Passes on one direction until an end closes, or the connection is to be lost.
fn pump(mut from: TcpStream, mut to: TcpStream, epoch: u64, shared: &Shared) {
    from.set_read_timeout(Some(LOOK)).expect("a timeout that is not zero");
    let mut buf = [0; 64 << 10];
    while shared.epoch.load(Ordering::SeqCst) == epoch {
        if shared.stalled.load(Ordering::SeqCst) {
            thread::sleep(LOOK);
            continue;
        }
        let n = match from.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        // Stalled while it read: what it holds is lost with the connection.
        if shared.stalled.load(Ordering::SeqCst) {
            continue;
        }
        if shared.loses_this() || to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    // An end that is closed already is as good.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

impl Shared {
    fn loses_this(&self) -> bool {
        if self.losses.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        let loses = chance.below(3) == 0;
        if loses {
            // Under the lock, so never below zero.
            let left = self.losses.load(Ordering::SeqCst);
            self.losses.store(left.saturating_sub(1), Ordering::SeqCst);
        }
        loses
    }
}
