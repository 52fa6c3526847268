use super::*;
use crate::fabric::tls::{TlsIdentity, make_authority, make_node_certificate};

fn standby(dir: &std::path::Path) -> Standby {
    let path = |name: &str| dir.join(name);
    let authority = make_authority().unwrap();
    authority.write(&path("ca"), &path("ca-key")).unwrap();
    make_node_certificate(&authority, "heir").unwrap().write(&path("cert"), &path("key")).unwrap();
    let identity = TlsIdentity::load(&path("ca"), &path("cert"), &path("key")).unwrap();
    let fabrics =
        Fabrics::start("127.0.0.1:0".parse().unwrap(), None, &identity, &Default::default()).unwrap();
    let text = format!(
        "group = \"db\"\nfrom = [\"source\"]\ndir = \"{}/replica\"\ndurability = \"battery\"\nencrypt = false\n",
        dir.display()
    );
    let config = toml::from_str(&text).unwrap();
    let states = Arc::new(StateDir::open(&path("state")).unwrap());
    Standby::open(config, states, Arc::new(fabrics)).unwrap()
}

fn open() -> OpenGroup {
    OpenGroup {
        group: "db".into(),
        id: GroupId([7; 16]),
        generation: Generation(1),
        ring_bytes: 64 << 10,
        free: Lsn(0),
        published: Lsn(0),
        regions: 0,
        region_bytes: 0,
    }
}

#[test]
fn a_revocation_voids_every_stream_whose_admission_was_asked_for_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let standby = standby(dir.path());
    // Admitted before the revocation, opened only after it.
    let turn = standby.turn();
    standby.revoke();
    let late = standby.open_group("source", &open(), turn);
    assert!(matches!(late, Err(Answer::Refused { reason: Refusal::OutOfOrder, .. })));
    // Opened before the revocation, attached after it, with its endpoint connected.
    let turn = standby.turn();
    let Ok((opened, answer)) = standby.open_group("source", &open(), turn) else {
        panic!("a turn that nothing voided is refused");
    };
    let fabric = standby.fabrics.for_offer(&answer.offer, false).unwrap().clone();
    let _endpoint = fabric.connect(&answer.offer, Instant::now() + ACCEPT_WITHIN).unwrap();
    standby.revoke();
    let attached = standby.attach(opened, RemoteKey { key: 1, addr: 0, len: 4096 }, Lsn(0), true);
    assert!(matches!(attached, Answer::Refused { reason: Refusal::OutOfOrder, .. }), "{attached:?}");
    assert_eq!(standby.source(), None);
}
