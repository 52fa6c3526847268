use super::*;
use crate::failover::{NodeName, Request, Round, Saved};
use proptest::prelude::*;
use serde_json::Value;

fn report() -> ReplicaReport {
    ReplicaReport {
        generation: Generation(3),
        landed: Lsn(96),
        durable: Lsn(64),
        applied: Lsn(32),
        digest: 7,
        log: LogId(8),
        stream: 9,
        image: ImageState::Consistent,
    }
}

#[test]
fn messages_are_golden() {
    let ask = Ask::Attach { ack: RemoteKey { key: 1, addr: 2, len: 64 }, from: Lsn(5), fresh: Some(9) };
    let text = r#"{"ask":"attach","ack":{"key":1,"addr":2,"len":64},"from":5,"fresh":9}"#;
    assert_eq!(serde_json::to_string(&ask).unwrap(), text);
    assert_eq!(decode::<Ask>(text.as_bytes()).unwrap(), ask);

    for (text, fault) in [
        (r#"{"answer":"pong","fault":null}"#, None),
        (r#"{"answer":"pong","fault":"its disk is full"}"#, Some("its disk is full".to_owned())),
    ] {
        let pong = Answer::Pong { fault };
        assert_eq!(serde_json::to_string(&pong).unwrap(), text);
        assert_eq!(decode::<Answer>(text.as_bytes()).unwrap(), pong);
    }

    let text = r#"{"generation":3,"landed":96,"durable":64,"applied":32,"digest":7,"log":8,"stream":9,"image":"consistent"}"#;
    assert_eq!(serde_json::to_string(&report()).unwrap(), text);
    assert_eq!(serde_json::from_str::<ReplicaReport>(text).unwrap(), report());
}

#[test]
fn unknown_fields_and_kinds_are_refused() {
    for text in [
        r#"{"ask":"ping","more":1}"#,
        r#"{"ask":"pong"}"#,
        r#"{"ask":"attach","ack":{"key":1,"addr":2,"len":64},"from":-5,"fresh":9}"#,
        r#"{"ask":"attach","ack":{"key":1,"addr":2,"len":64,"rights":7},"from":5,"fresh":9}"#,
        r#"[]"#,
        "",
    ] {
        assert!(decode::<Ask>(text.as_bytes()).is_err(), "accepted {text}");
    }
}

/// `message` with `field` added to one of the objects in it, for each of them.
fn with_field(message: &Value, field: &str) -> Vec<Value> {
    let mut all = Vec::new();
    match message {
        Value::Object(object) => {
            let mut more = object.clone();
            more.insert(field.into(), "/etc/shadow".into());
            all.push(Value::Object(more));
            for (name, inner) in object {
                all.extend(with_field(inner, field).into_iter().map(|inner| {
                    let mut other = object.clone();
                    other.insert(name.clone(), inner);
                    Value::Object(other)
                }));
            }
        }
        Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    all
}

/// A path, a command or a user in `message`, wherever it stands, makes it none.
fn takes_nothing_more<M: Message + std::fmt::Debug>(message: &M) {
    let message = serde_json::to_value(message).unwrap();
    decode::<M>(message.to_string().as_bytes()).unwrap();
    for field in ["path", "command", "user"] {
        for more in with_field(&message, field) {
            let why = decode::<M>(more.to_string().as_bytes()).expect_err(&more.to_string()).to_string();
            assert!(why.contains(&format!("unknown field `{field}`")), "{more}: {why}");
        }
    }
}

#[test]
fn an_answer_with_a_path_a_command_or_a_user_is_refused() {
    let key = RemoteKey { key: 1, addr: 2, len: 3 };
    let opened = GroupOpened {
        have: report(),
        durability: Durability::Battery,
        encrypt: true,
        memory: MemoryKind::Tmpfs,
        staged: false,
        // What the fabric that made it needs is the fabric's to judge.
        offer: EndpointAddress { kind: "tcp".into(), detail: Value::Null },
    };
    let round = Round { generation: Generation(1), attempt: 2 };
    for answer in [
        Answer::HelloOk { node: "beta".into(), agent: "1".into() },
        Answer::GroupOpened(opened),
        Answer::Attached { landing: key },
        Answer::Pong { fault: Some("full".into()) },
        Answer::Digests { digests: vec![1] },
        Answer::Image { digests: vec![1] },
        Answer::Base { begun: true, region: Some(RegionId(1)), digests: vec![1] },
        Answer::Ownership { reply: failover::Answer::Noted { round } },
        refused(Refusal::Failed, Generation(1), "no"),
    ] {
        takes_nothing_more(&answer);
    }
}

#[test]
fn names_are_bounded() {
    let hello = |node: String| Ask::Hello { node, agent: "1".into() };
    assert!(encode(&hello("n".repeat(MAX_NAME))).is_ok());
    assert!(encode(&hello("n".repeat(MAX_NAME + 1))).is_err());
    assert!(encode(&hello(String::new())).is_err());
}

#[test]
fn pages_asked_for_at_once_are_bounded() {
    let ask = |pages: usize| Ask::Digests { region: RegionId(1), pages: vec![u64::MAX; pages] };
    assert!(encode(&ask(MAX_PAGES)).is_ok());
    assert!(encode(&ask(MAX_PAGES + 1)).is_err());
    assert!(encode(&Answer::Digests { digests: vec![0; MAX_PAGES + 1] }).is_err());
}

#[test]
fn a_long_refusal_is_cut_at_a_character() {
    let Answer::Refused { message, .. } = refused(Refusal::Failed, Generation(1), "é".repeat(MAX_TEXT))
    else {
        unreachable!()
    };
    assert_eq!(message.len(), MAX_TEXT);
    assert!(encode(&refused(Refusal::Failed, Generation(1), "é".repeat(2 * MAX_TEXT + 1))).is_ok());
}

fn asks() -> impl Strategy<Value = Ask> {
    let key =
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(key, addr, len)| RemoteKey { key, addr, len });
    prop_oneof![
        ("[a-z]{1,255}", ".{1,40}").prop_map(|(node, agent)| Ask::Hello { node, agent }),
        ("[a-z]{1,255}", any::<[u8; 16]>(), any::<u32>(), any::<u64>(), any::<u64>()).prop_map(
            |(group, id, generation, log, ring_bytes)| {
                Ask::OpenGroup(OpenGroup {
                    group,
                    id: GroupId(id),
                    generation: Generation(generation),
                    log: LogId(log),
                    ring_bytes,
                })
            }
        ),
        (key, any::<u64>(), any::<Option<u32>>()).prop_map(|(ack, from, fresh)| Ask::Attach {
            ack,
            from: Lsn(from),
            fresh
        }),
        Just(Ask::Ping {}),
        prop::collection::vec(any::<u64>(), 0..MAX_PAGES)
            .prop_map(|pages| Ask::Digests { region: RegionId(1), pages }),
        ("[a-z]{1,255}", any::<[u8; 16]>(), any::<u64>(), 0..=MAX_BLOCKS as u32).prop_map(
            |(group, id, first, count)| Ask::Base {
                group,
                id: GroupId(id),
                generation: Generation(2),
                begin: Lsn(32),
                name: "/pool".into(),
                block: BLOCKS.0,
                first,
                count,
            }
        ),
        ("[a-z]{1,255}", any::<[u8; 16]>(), any::<u64>(), 0..=MAX_BLOCKS as u32).prop_map(
            |(group, id, first, count)| Ask::Image {
                group,
                id: GroupId(id),
                generation: Generation(2),
                region: RegionId(1),
                block: LINE as u32,
                first,
                count,
            }
        ),
        ("[a-z]{1,255}", any::<[u8; 16]>(), requests()).prop_map(|(group, id, request)| Ask::Ownership {
            group,
            id: GroupId(id),
            request
        }),
    ]
}

fn requests() -> impl Strategy<Value = Request> {
    let round =
        (any::<u32>(), any::<u32>()).prop_map(|(g, attempt)| Round { generation: Generation(g), attempt });
    let heir = "[a-z]{1,255}".prop_map(NodeName);
    prop_oneof![
        (round.clone(), heir.clone(), any::<bool>())
            .prop_map(|(round, heir, trigger)| { Request::SaveStarted { round, heir, trigger } }),
        (round.clone(), heir, any::<u64>(), any::<u64>()).prop_map(|(round, heir, lsn, digest)| {
            Request::Saved { round, heir, saved: Saved { lsn: Lsn(lsn), digest } }
        }),
        round.clone().prop_map(|round| Request::Cancel { round }),
        (round, any::<u64>()).prop_map(|(round, life)| Request::Confirm { round, life }),
        (any::<u32>(), any::<u64>()).prop_map(|(g, life)| Request::Ask { generation: Generation(g), life }),
    ]
}

proptest! {
    #[test]
    fn every_ask_comes_back(ask in asks()) {
        let frame = encode(&ask).unwrap();
        let head = frame::decode(frame[..frame::HEAD].try_into().unwrap()).unwrap();
        prop_assert_eq!(head.way, Way::Ask);
        prop_assert_eq!(head.len, frame.len() - frame::HEAD);
        prop_assert_eq!(decode::<Ask>(&frame[frame::HEAD..]).unwrap(), ask);
    }

    #[test]
    fn an_ask_with_a_path_a_command_or_a_user_is_refused(ask in asks()) {
        takes_nothing_more(&ask);
    }

    #[test]
    fn garbage_is_never_a_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode::<Ask>(&body);
        let _ = decode::<Answer>(&body);
    }

    #[test]
    fn a_damaged_ask_is_refused_or_a_bounded_ask(ask in asks(), at: prop::sample::Index, byte: u8) {
        let mut frame = encode(&ask).unwrap();
        let at = frame::HEAD + at.index(frame.len() - frame::HEAD);
        frame[at] = byte;
        if let Ok(other) = decode::<Ask>(&frame[frame::HEAD..]) {
            prop_assert!(other.check().is_ok());
        }
    }
}
