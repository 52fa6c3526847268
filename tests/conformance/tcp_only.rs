//! What only the tcp fabric has: a listener that strangers can reach, and TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pmemha::fabric::meeting::MAX_HALF_OPEN;
use pmemha::fabric::meeting::hello::Hello;
use pmemha::fabric::{Fabric, FabricError};
use zerocopy::IntoBytes;

use crate::nodes::{PLAIN, TLS, node, plain, tls};
use crate::rig::{Node, PATIENCE, authority_dir, soon};

fn dial(fabric: &dyn Fabric) -> TcpStream {
    let address = fabric.offer().unwrap().address();
    let port = address.detail["port"].as_u64().unwrap() as u16;
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Nothing but the end of the stream comes.
fn is_shown_out(mut socket: TcpStream) {
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
    }
    assert!(answer.is_empty(), "{answer:?}");
}

#[test]
fn a_guessed_token_is_shown_out_without_an_answer() {
    let rig = plain();
    let _open = rig.right.offer().unwrap();
    let mut socket = dial(&*rig.right);
    socket.write_all(Hello::new([7; 32]).as_bytes()).unwrap();
    is_shown_out(socket);
}

#[test]
fn noise_is_shown_out() {
    for rig in [plain(), tls()] {
        let mut socket = dial(&*rig.right);
        socket.write_all(b"GET / HTTP/1.1\r\nHost: pmemha\r\nAccept: everything\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        // Inside TLS an alert may come first.
        let ended = socket.read_to_end(&mut answer);
        assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
}

#[test]
fn a_token_of_another_version_gets_an_answer_that_says_so() {
    let rig = plain();
    let mut socket = dial(&*rig.right);
    let mut hello = Hello::new([7; 32]).as_bytes().to_vec();
    hello[8] = 200;
    socket.write_all(&hello).unwrap();
    let mut answer = [0; 16];
    socket.read_exact(&mut answer).unwrap();
    assert!(pmemha::fabric::meeting::hello::Welcome::judge(&answer).unwrap_err().contains("same version"));
}

#[test]
fn strangers_who_say_nothing_keep_no_peer_out() {
    let rig = plain();
    let strangers: Vec<_> = (0..3 * MAX_HALF_OPEN).map(|_| dial(&*rig.right)).collect();
    let start = Instant::now();
    let _pair = rig.pair();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    // The oldest had to go; the others go when their time is over.
    is_shown_out(strangers.into_iter().next().unwrap());
}

#[test]
fn a_connection_that_shows_no_token_is_dropped_in_time() {
    let rig = plain();
    let mut socket = dial(&*rig.right);
    socket.write_all(&Hello::new([7; 32]).as_bytes()[..47]).unwrap();
    let start = Instant::now();
    is_shown_out(socket);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn peers_are_known_by_the_name_in_their_certificate() {
    let (left, right) = tls().pair();
    assert_eq!((left.end.peer(), right.end.peer()), ("right", "left"));
    assert!(left.end.encrypted() && right.end.encrypted());
    let (left, right) = plain().pair();
    assert!(!left.end.encrypted() && !right.end.encrypted());
}

#[test]
fn an_offer_is_taken_up_only_at_the_node_that_made_it() {
    let rig = tls();
    let mut address = rig.right.offer().unwrap().address();
    address.detail["node"] = "elsewhere".into();
    let refused = rig.left.connect(&address, soon()).err().unwrap().to_string();
    assert!(refused.contains("elsewhere") && refused.contains("right"), "{refused}");
}

#[test]
fn a_token_alone_does_not_open_an_encrypted_fabric() {
    let dir = tempfile::tempdir().unwrap();
    let authority = pmemha::fabric::tls::make_authority().unwrap();
    authority.write(&dir.path().join("ca.pem"), &dir.path().join("ca.key")).unwrap();
    let stranger = node("left", TLS, dir.path());
    let rig = tls();
    let offer = rig.right.offer().unwrap();
    assert!(stranger.connect(&offer.address(), soon()).is_err());
    let other = node("left", PLAIN, authority_dir());
    let refused = other.connect(&offer.address(), soon()).err().unwrap();
    assert!(
        matches!(refused, FabricError::Protocol { .. }) && refused.to_string().contains("encrypt"),
        "{refused}"
    );
}

#[test]
fn a_token_is_used_up_by_the_first_who_shows_it() {
    let rig = plain();
    let offer = rig.right.offer().unwrap();
    let first = Node { end: rig.left.connect(&offer.address(), soon()).unwrap() };
    assert!(rig.left.connect(&offer.address(), soon()).is_err());
    let right = Node { end: offer.accept(soon()).unwrap() };
    drop(first);
    right.closed();
}

/// Garbage after a good start ends the connection with an error that says what it was.
#[test]
fn garbage_instead_of_frames_is_a_protocol_error() {
    let frames: [&[u8]; 4] =
        [&[0xff; 40], &[1, 9, 0, 0], &[1, 4, 0, 0, 0, 0, 0, 0, 1], &[1, 1, 1, 0, 0, 0, 0, 0, 9]];
    for garbage in frames {
        let rig = plain();
        let offer = rig.right.offer().unwrap();
        let detail = offer.address().detail;
        let token = detail["token"].as_str().unwrap();
        let token: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&token[2 * i..2 * i + 2], 16).unwrap()).collect();
        let mut socket = TcpStream::connect(("127.0.0.1", detail["port"].as_u64().unwrap() as u16)).unwrap();
        socket.write_all(Hello::new(token.try_into().unwrap()).as_bytes()).unwrap();
        let right = Node { end: offer.accept(soon()).unwrap() };
        let mut frame = garbage.to_vec();
        frame.resize(40, 0);
        socket.write_all(&frame).unwrap();
        right.closed();
        let memory = right.memory(4096, pmemha::fabric::RemoteAccess::Local);
        let key = memory.key();
        let refused = right.write((&memory, 0, 8), (key, 0), None);
        assert!(matches!(refused, Err(FabricError::Protocol { .. })), "{garbage:?}: {refused:?}");
    }
}
