use super::*;

fn request() -> Request {
    Request {
        session: "00ff".into(),
        url: "ws://target.example:80/secret?token=1".into(),
        host: ("host".into(), "target.example".into()),
        headers: vec![("x-B".into(), "\"1\"".into()), ("a".into(), "ü".into())],
        subprotocols: vec!["mqtt".into()],
        head: Some(Head((0..=255).collect())),
        proxy: Some("socks5://u:secret@proxy.example:1080".into()),
        timeout_ms: 15_000,
    }
}

#[test]
fn messages_come_out_as_they_went_in_at_every_split_point() {
    let mut bytes = encode(&request());
    let first = bytes.len();
    bytes.extend(encode(&request()));
    bytes.extend(b"\x81\x00");
    for split in 0..bytes.len() {
        let mut input = bytes[..split].to_vec();
        let mut seen = 0;
        while let Some(message) = decode::<Request>(&mut input).unwrap() {
            assert_eq!(message, request());
            seen += 1;
        }
        assert_eq!(seen, usize::from(split >= first) + usize::from(split >= 2 * first), "{split} bytes");
        input.extend_from_slice(&bytes[split..]);
        while seen < 2 {
            assert_eq!(decode(&mut input), Ok(Some(request())));
            seen += 1;
        }
        assert_eq!(input, b"\x81\x00");
    }
}

#[test]
fn all_messages() {
    fn same<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(messages: impl IntoIterator<Item = T>) {
        for message in messages {
            let mut bytes = encode(&message);
            assert_eq!(decode(&mut bytes), Ok(Some(message)));
            assert!(bytes.is_empty());
        }
    }
    same([FromAgent::Heartbeat { sessions: u64::MAX }, FromAgent::Draining]);
    same([FromGateway::Heartbeat, FromGateway::Open { count: 3 }, FromGateway::Draining]);
    let took = Took { dns_us: Some(1), tls_us: Some(u64::MAX), ..Took::default() };
    same([
        Reply::Accepted { proxy: false },
        Reply::Accepted { proxy: true },
        Reply::Dialing,
        Reply::ProxyAccepted,
        Reply::Refused { reason: "draining".into() },
        Reply::Connected { subprotocol: Some("mqtt".into()), head: None, took },
        Reply::Connected { subprotocol: None, head: Some(Head(b"\xfc\0\"\\".to_vec())), took: Took::default() },
        Reply::failed(&Failure::TargetRejected { status: 403 }, took),
        Reply::failed(&Failure::ProxyFailed("why".into()), took),
    ]);
}

#[test]
fn a_later_version_is_passed_over() {
    for (json, expected) in [
        (r#"{"type":"sing","song":1}"#, FromGateway::Unknown),
        (r#"{"type":"open","count":2,"why":{"a":[1]}}"#, FromGateway::Open { count: 2 }),
    ] {
        let mut bytes = framed(json.as_bytes());
        assert_eq!(decode(&mut bytes), Ok(Some(expected)), "{json}");
    }
    let mut bytes = framed(br#"{"type":"connected","mood":"good"}"#);
    assert_eq!(decode(&mut bytes), Ok(Some(Reply::Connected { subprotocol: None, head: None, took: Took::default() })));
}

#[test]
fn what_is_no_message() {
    for json in [&b""[..], b"{", b"[]", br#"{"type":"open"}"#, br#"{"type":"open","count":-1}"#, b"\xff\xfe"] {
        assert_eq!(decode::<FromGateway>(&mut framed(json)), Err(LinkError::NotAMessage), "{json:?}");
    }
    let mut bytes = b"GET / HTTP/1.1\r\n".to_vec();
    assert_eq!(decode::<Reply>(&mut bytes), Err(LinkError::TooLong(0x4745_5420)));
}

#[test]
fn failures_reach_the_client_as_the_embedded_agent_would_tell_them() {
    for failed in [
        Failure::TargetNotAllowed,
        Failure::TargetUnreachable("connection refused".into()),
        Failure::TargetRejected { status: 403 },
        Failure::TargetHandshakeInvalid("no accept".into()),
        Failure::TargetTimeout,
    ] {
        let Reply::Failed { code, detail, status, .. } = Reply::failed(&failed, Took::default()) else { panic!() };
        assert_eq!(failure(&code, &detail, status), failed);
    }
    assert_eq!(failure("invalid_key", "", None), Failure::AgentFailure);
    assert_eq!(failure("", "", Some(200)), Failure::AgentFailure);
}

#[test]
fn an_agents_text_is_bounded_and_has_no_control_characters() {
    let Failure::TargetUnreachable(text) = failure("target_unreachable", &"a\r\nü".repeat(1000), None) else {
        panic!()
    };
    assert!(text.len() <= MAX_DETAIL && text.starts_with("aüaü"), "{text}");
}

#[test]
fn a_request_shows_nothing_of_a_client() {
    assert_eq!(format!("{:?}", request()), r#"Request { session: "00ff", .. }"#);
}

#[test]
fn protocol_numbers() {
    assert_eq!(in_common(1..=1), Some(1));
    assert_eq!(in_common(1..=7), Some(1));
    assert_eq!(in_common(0..=1), Some(1));
    assert_eq!(in_common(2..=7), None);
    assert_eq!(in_common(0..=0), None);
}

fn framed(json: &[u8]) -> Vec<u8> {
    let mut bytes = (json.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(json);
    bytes
}

#[test]
fn what_an_agent_wrote_breaks_no_line_and_fills_no_log() {
    assert_eq!(readable("full\r\n2026 INFO all is well\u{1b}[2J"), "full2026 INFO all is well[2J");
    assert_eq!(readable(&"\u{e9}".repeat(100_000)).len(), 512);
}
