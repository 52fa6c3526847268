//! Peers that die, stall or were never there.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pmemha::fabric::{EndpointAddress, FabricError, RemoteAccess, RemoteKey, Wake};

use crate::nodes;
use crate::rig::{Node, Rig, authority_dir, content, soon, travelled, write};

const PEER_ADDRESS: &str = "CONFORMANCE_PEER_ADDRESS";
const PEER_RECIPE: &str = "CONFORMANCE_PEER_RECIPE";
const PEER_AUTHORITY: &str = "CONFORMANCE_PEER_AUTHORITY";

const PEER_BYTES: usize = 8 << 20;

/// The other process of the tests below: connects, registers memory, says its key and stays until it is killed. Run by the
/// harness like any test it has nothing to do.
#[test]
fn peer_process() {
    let Ok(address) = std::env::var(PEER_ADDRESS) else { return };
    let address: EndpointAddress = serde_json::from_str(&address).unwrap();
    let authority = std::env::var(PEER_AUTHORITY).unwrap();
    let fabric = nodes::node("peer", &std::env::var(PEER_RECIPE).unwrap(), authority.as_ref());
    let node = Node { end: fabric.connect(&address, soon()).unwrap() };
    let memory = node.memory(PEER_BYTES, RemoteAccess::Write);
    println!("\nKEY {}", serde_json::to_string(&memory.key()).unwrap());
    loop {
        std::thread::park();
    }
}

struct Peer(Child);

impl Peer {
    /// A peer in a process of its own, and our end of the connection to it.
    fn start(rig: &Rig) -> (Peer, Node, RemoteKey) {
        let offer = rig.right.offer().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["failure::peer_process", "--exact", "--nocapture"])
            .env(PEER_ADDRESS, serde_json::to_string(&offer.address()).unwrap())
            .env(PEER_RECIPE, rig.recipe)
            .env(PEER_AUTHORITY, authority_dir())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let peer = Peer(child);
        let node = Node { end: offer.accept(soon()).unwrap() };
        let line = output.lines().map(Result::unwrap).find_map(|l| l.strip_prefix("KEY ").map(str::to_owned));
        let key = serde_json::from_str(&line.expect("the peer says its key")).unwrap();
        (peer, node, key)
    }

    /// Killed, and gone with all that it had opened.
    fn is_killed(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn a_killed_peer_completes_everything_with_an_error(rig: &Rig) {
    let (mut peer, node, key) = Peer::start(rig);
    let from = node.memory(PEER_BYTES, RemoteAccess::Local);
    let write = |i| node.write((&from, 0, PEER_BYTES), (key, 0), Some(i));
    peer.signal(rustix::process::Signal::STOP);
    // Stopped first, so that much is in flight.
    (0..16).for_each(|i| write(i).unwrap());
    peer.is_killed();
    // What an adapter has taken for a stopped process is written; for one that is gone it takes nothing.
    let refused = write(16).err();
    let ended = node.completions(16 + u64::from(refused.is_none()) as usize);
    assert!(ended.iter().map(|c| c.id).eq(0..ended.len() as u64));
    let last = ended.last().unwrap();
    let error = refused.as_ref().or(last.result.as_ref().err());
    assert!(matches!(error, Some(FabricError::Disconnected { .. })), "{error:?}, {last:?}");
    node.closed();
}

pub fn a_stopped_peer_blocks_no_call(rig: &Rig) {
    let (peer, node, key) = Peer::start(rig);
    let from = node.memory(PEER_BYTES, RemoteAccess::Local);
    peer.signal(rustix::process::Signal::STOP);
    let start = Instant::now();
    let mut posted = 0;
    while node.write((&from, 0, PEER_BYTES), (key, 0), Some(posted)).is_ok() {
        posted += 1;
    }
    assert_eq!(posted, node.end.limit() as u64);
    let refused = node.write((&from, 0, 8), (key, 0), Some(posted));
    assert!(matches!(refused, Err(FabricError::Busy { .. })), "{refused:?}");
    // Where adapters move the bytes, some may have landed: a stopped process's memory is as good as any.
    let mut ended = Vec::new();
    node.end.poll(&mut ended);
    drop(node.memory(4096, RemoteAccess::Write));
    node.end.wait(Duration::from_millis(1));
    node.end.revoke().unwrap();
    // A stopped process cannot be waited for: minutes would mean that something did.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    ended.extend(node.completions(posted as usize - ended.len()));
    assert!(ended.into_iter().map(|c| c.id).eq(0..posted), "each once, in order");
}

pub fn a_dropped_endpoint_is_noticed(rig: &Rig) {
    let (left, right) = rig.pair();
    drop(left);
    right.closed();
    let (left, right) = rig.pair();
    drop(right);
    left.closed();
}

/// What the memory is used for next is nobody else's.
pub fn a_dropped_endpoint_reads_its_memory_no_more(rig: &Rig) {
    for round in 0..20 {
        let (left, right) = rig.pair();
        let bytes = 8 << 20;
        let from = left.memory(bytes, RemoteAccess::Local);
        let to = right.memory(bytes, RemoteAccess::Write);
        from.memory().write(0, &vec![1; bytes]);
        (0..4).for_each(|i| left.write((&from, 0, bytes), (to.key(), 0), Some(i)).unwrap());
        drop(left);
        from.memory().write(0, &vec![2; bytes]);
        right.closed();
        assert!(
            content(&to).iter().all(|b| *b < 2),
            "round {round}: what was stored afterwards has been sent"
        );
    }
}

pub fn a_dead_endpoint_refuses_posts_and_says_closed(rig: &Rig) {
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write).key();
    drop(right);
    left.closed();
    let refused = left.end.write(&[write((&from, 0, 8), (to, 0), Some(1))]);
    assert!(matches!(refused, Err(FabricError::Disconnected { .. })), "{refused:?}");
    assert_eq!(left.end.poll(&mut Vec::new()), 0);
    assert_eq!(left.end.wait(Duration::from_secs(60)), Wake::Closed);
}

pub fn an_offer_that_was_dropped_admits_nobody(rig: &Rig) {
    let offer = rig.right.offer().unwrap();
    let address = travelled(&offer.address());
    drop(offer);
    assert!(rig.left.connect(&address, soon()).is_err());
}

pub fn an_offer_admits_one_peer(rig: &Rig) {
    let offer = rig.right.offer().unwrap();
    let address = travelled(&offer.address());
    let _first = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| offer.accept(soon()).unwrap());
        (rig.left.connect(&address, soon()).unwrap(), accepting.join().unwrap())
    });
    assert!(rig.left.connect(&address, soon()).is_err());
}

pub fn waiting_for_a_peer_ends_at_the_deadline(rig: &Rig) {
    let offer = rig.right.offer().unwrap();
    let start = Instant::now();
    let nobody = offer.accept(start + Duration::from_millis(50));
    assert!(matches!(nobody, Err(FabricError::Disconnected { .. })));
    assert!(start.elapsed() >= Duration::from_millis(50));
}

pub fn an_address_of_another_kind_is_refused(rig: &Rig) {
    let mut address = rig.right.offer().unwrap().address();
    address.kind = "carrier pigeon".to_owned();
    let refused = rig.left.connect(&address, soon()).err().unwrap().to_string();
    assert!(refused.contains("carrier pigeon"), "{refused}");
}
