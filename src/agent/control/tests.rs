//! The channel against honest and hostile peers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

use super::message::{Answer, Ask, Refusal, encode, refused};
use super::{Client, ControlError, PeerSession, Responder, Server, frame};
use crate::fabric::tls::{Pem, TlsError, TlsIdentity, make_authority, make_node_certificate};
use crate::failover::{self, Request, Round};
use crate::types::{Generation, GroupId};

const SOON: Duration = Duration::from_secs(5);

struct Authority(Pem);

impl Authority {
    fn new() -> Authority {
        Authority(make_authority().unwrap())
    }

    fn identity(&self, node: &str) -> Arc<TlsIdentity> {
        let dir = tempfile::tempdir().unwrap();
        let [ca, cert, key, ca_key] = ["ca.pem", "cert.pem", "key.pem", "ca.key"].map(|f| dir.path().join(f));
        self.0.write(&ca, &ca_key).unwrap();
        make_node_certificate(&self.0, node).unwrap().write(&cert, &key).unwrap();
        Arc::new(TlsIdentity::load(&ca, &cert, &key).unwrap())
    }
}

/// Admits `alpha` and counts what it is asked.
#[derive(Default)]
struct Echo {
    asked: AtomicUsize,
    admitted: Mutex<Vec<String>>,
}

impl Responder for Arc<Echo> {
    fn admit(&self, peer: &str) -> Result<Box<dyn PeerSession>, String> {
        if peer != "alpha" {
            return Err(format!("no group names {peer} as its source"));
        }
        self.admitted.lock().unwrap().push(peer.to_owned());
        Ok(Box::new(EchoSession(self.clone())))
    }
}

struct EchoSession(Arc<Echo>);

impl PeerSession for EchoSession {
    fn answer(&mut self, ask: Ask) -> Answer {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        match ask {
            Ask::Ownership { request: Request::Cancel { round }, .. } => {
                Answer::Ownership { reply: failover::Answer::Cancelled { round } }
            }
            _ => refused(Refusal::UnknownGroup, Generation(0), "no such group here"),
        }
    }
}

struct Rig {
    ca: Authority,
    echo: Arc<Echo>,
    server: Server,
}

impl Rig {
    fn new() -> Rig {
        let ca = Authority::new();
        let echo = Arc::new(Echo::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::start(listener, ca.identity("beta"), Arc::new(echo.clone())).unwrap();
        Rig { ca, echo, server }
    }

    fn address(&self) -> String {
        self.server.address().to_string()
    }

    fn connect(&self, identity: &TlsIdentity, expected: &str) -> Result<Client, ControlError> {
        Client::connect(&self.address(), identity, expected, Instant::now() + SOON)
    }

    fn alpha(&self) -> Client {
        self.connect(&self.ca.identity("alpha"), "beta").unwrap()
    }

    /// A TLS stream of `node`'s on which the test writes what it likes.
    fn raw(&self, node: &str) -> StreamOwned<ClientConnection, TcpStream> {
        let tcp = TcpStream::connect(self.server.address()).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        StreamOwned::new(self.ca.identity(node).connect().unwrap(), tcp)
    }
}

fn cancel(attempt: u32) -> Ask {
    let request = Request::Cancel { round: round(attempt) };
    Ask::Ownership { group: "bank".into(), id: GroupId([7; 16]), request }
}

fn cancelled(attempt: u32) -> Answer {
    Answer::Ownership { reply: failover::Answer::Cancelled { round: round(attempt) } }
}

fn round(attempt: u32) -> Round {
    Round { generation: Generation(1), attempt }
}

#[test]
fn asks_are_answered_in_order_and_refusals_are_answers() {
    let rig = Rig::new();
    let mut alpha = rig.alpha();
    for n in 1..20 {
        assert_eq!(alpha.ask(&cancel(n), SOON).unwrap(), cancelled(n));
    }
    assert!(matches!(
        alpha.ask(&Ask::Ping {}, SOON).unwrap(),
        Answer::Refused { reason: Refusal::UnknownGroup, .. }
    ));
}

#[test]
fn silent_strangers_keep_no_peer_out() {
    let rig = Rig::new();
    let mut alpha = rig.alpha();
    // More than there are places of any kind.
    let silent: Vec<_> = (0..600).map(|_| TcpStream::connect(rig.server.address())).collect();
    assert!(silent.iter().all(Result::is_ok));
    assert_eq!(alpha.ask(&cancel(1), SOON).unwrap(), cancelled(1), "a peer keeps its place");
    assert_eq!(rig.alpha().ask(&cancel(2), SOON).unwrap(), cancelled(2), "and another one finds one");
}

#[test]
fn a_certificate_of_another_authority_is_not_heard() {
    let rig = Rig::new();
    let stranger = Authority::new().identity("alpha");
    assert!(rig.connect(&stranger, "beta").is_err());
    assert!(rig.echo.admitted.lock().unwrap().is_empty());
}

#[test]
fn a_node_cannot_take_anothers_name() {
    let rig = Rig::new();
    let mut raw = rig.raw("gamma");
    raw.write_all(&hello("alpha")).unwrap();
    let text = answer_text(&mut raw);
    assert!(text.contains("not_admitted") && text.contains("gamma's certificate"), "{text}");
    assert!(rig.echo.admitted.lock().unwrap().is_empty());
}

#[test]
fn a_node_that_no_group_names_is_told_so() {
    let rig = Rig::new();
    let refused = rig.connect(&rig.ca.identity("gamma"), "beta");
    assert!(matches!(refused, Err(ControlError::Refused { reason: Refusal::NotAdmitted, .. })));
}

#[test]
fn a_server_of_another_name_is_not_trusted() {
    let rig = Rig::new();
    let result = rig.connect(&rig.ca.identity("alpha"), "delta");
    assert!(matches!(result, Err(ControlError::Identity(TlsError::WrongPeer { .. }))));
    assert!(rig.echo.admitted.lock().unwrap().is_empty());
}

#[test]
fn an_ask_before_hello_is_refused() {
    let rig = Rig::new();
    let mut raw = rig.raw("alpha");
    raw.write_all(&encode(&cancel(1)).unwrap()).unwrap();
    assert!(answer_text(&mut raw).contains("out_of_order"));
    assert_eq!(rig.echo.asked.load(Ordering::Relaxed), 0);
}

#[test]
fn another_version_is_told_both_versions() {
    let rig = Rig::new();
    let mut raw = rig.raw("alpha");
    let mut hello = encode(&cancel(1)).unwrap();
    hello[4] = 9;
    raw.write_all(&hello).unwrap();
    let text = answer_text(&mut raw);
    let ours = format!("version {}", frame::VERSION);
    assert!(text.contains("version 9") && text.contains(&ours), "{text}");
}

#[test]
fn oversize_and_garbage_end_the_channel_and_nothing_else() {
    let rig = Rig::new();
    let mut oversize = encode(&cancel(1)).unwrap();
    oversize[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let answer = encode(&cancelled(1)).unwrap();
    for bad in [oversize, b"GET / HTTP/1.1\r\n\r\n".to_vec(), answer] {
        let mut raw = rig.raw("alpha");
        raw.write_all(&bad).unwrap();
        assert!(answer_text(&mut raw).contains("refused"));
        let mut rest = Vec::new();
        // An abrupt end is as good as an orderly one.
        let _ = raw.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    assert!(rig.alpha().ask(&cancel(1), SOON).is_ok());
}

#[test]
fn bytes_that_are_not_tls_end_the_connection() {
    let rig = Rig::new();
    let mut tcp = TcpStream::connect(rig.server.address()).unwrap();
    tcp.write_all(&[0x80; 4096]).unwrap();
    let mut rest = Vec::new();
    let _ = tcp.read_to_end(&mut rest);
    assert!(rig.alpha().ask(&cancel(1), SOON).is_ok());
}

#[test]
fn a_byte_now_and_then_gains_no_time() {
    let rig = Rig::new();
    let mut raw = rig.raw("alpha");
    let began = Instant::now();
    // One byte each 200 ms keeps a per-read limit of seconds alive for ever.
    for byte in hello("alpha").chunks(1) {
        if raw.write_all(byte).and_then(|()| raw.flush()).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
        assert!(began.elapsed() < Duration::from_secs(15), "still heard after {:?}", began.elapsed());
    }
    assert!(rig.echo.admitted.lock().unwrap().is_empty());
}

#[test]
fn a_silent_server_costs_the_client_its_deadline_only() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ca = Authority::new();
    let began = Instant::now();
    let result = Client::connect(
        &silent.local_addr().unwrap().to_string(),
        &ca.identity("alpha"),
        "beta",
        began + Duration::from_millis(300),
    );
    assert!(matches!(result, Err(ControlError::TimedOut { .. })), "{:?}", result.err());
    assert!(began.elapsed() < SOON);
}

#[test]
fn strangers_do_not_keep_a_stopped_server_alive() {
    let rig = Rig::new();
    let mut alpha = rig.alpha();
    alpha.ask(&cancel(1), SOON).unwrap();
    let Rig { server, .. } = rig;
    drop(server);
    assert!(alpha.ask(&cancel(2), SOON).is_err());
}

fn hello(node: &str) -> Vec<u8> {
    encode(&Ask::Hello { node: node.into(), agent: "1".into() }).unwrap()
}

fn answer_text(raw: &mut impl Read) -> String {
    let mut head = [0; frame::HEAD];
    raw.read_exact(&mut head).unwrap();
    let mut body = vec![0; frame::decode(&head).unwrap().len];
    raw.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}
