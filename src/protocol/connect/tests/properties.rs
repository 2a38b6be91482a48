//! What must hold for every message, and that it means the same here as in the reference.
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::{ConnectError, ConnectRequest, parse};
use super::reference;

/// A JSON string, sometimes with every character escaped.
fn string(text: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (text, any::<bool>()).prop_map(|(text, escaped)| {
        if escaped {
            let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            format!("\"{units}\"")
        } else {
            serde_json::to_string(&text).unwrap()
        }
    })
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(texts).prop_map(str::to_owned)
}

fn anything() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        one_of(&[
            "null",
            "true",
            "false",
            "0",
            "-0",
            "1",
            "-1",
            "0.5",
            "1e-400",
            "18446744073709551616",
            "1e300",
            "4294967296"
        ]),
        any::<f64>().prop_filter("JSON has none", |n| n.is_finite()).prop_map(|n| n.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        string("\\PC{0,8}".boxed()),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            vec((string("[a-z]{0,2}"), inner), 0..4).prop_map(object),
        ]
    })
}

fn object(members: Vec<(String, String)>) -> String {
    let members: Vec<String> = members.into_iter().map(|(name, value)| format!("{name} :{value}")).collect();
    format!("{{ {}}}", members.join("\n,"))
}

/// Mostly what is right, so that whole messages often are.
fn or_anything(good: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    prop_oneof![30 => good, 1 => Just("null".to_owned()), 1 => anything()]
}

fn field() -> impl Strategy<Value = (String, String)> {
    let header_names = one_of(&[
        "Host",
        "host",
        "Cookie",
        "cookie",
        "Authorization",
        "X-A",
        "x-a",
        "X-B",
        "Origin",
        "Sec-WebSocket-Protocol",
        "Connection",
        "te",
        "Proxy-X",
        "sec-websocket-key",
        "Sec-WebSocket-Extension",
    ]);
    let header_name = prop_oneof![20 => header_names, 8 => one_of(&["Cookie", "cookie"]), 2 => "[!-~]{1,4}", 1 => "[ -~\\r\\n\\x00ü]{0,4}"];
    let header_value = prop_oneof![
        20 => one_of(&["", "x", " x ", "a=1; b=2", "a=1;a=3; c", "b = 2;; d=4", "chat, superchat", "ü"]),
        5 => "[ -~\\tü]{0,9}",
        1 => "[ -~\\t\\r\\n\\x00\\x7fü]{0,9}",
    ];
    let headers = vec((string(header_name), or_anything(string(header_value))), 0..6).prop_map(object);
    let cookie_name = prop_oneof![20 => "[abcd]", 2 => "[!-~]{1,4}", 1 => "[ -~\\t\\x00ü]{0,3}"];
    let cookie_value = prop_oneof![20 => "[a-z0-9= ]{0,5}", 1 => "[ -~\\t\\r\\nü]{0,5}"];
    let cookies = vec((string(cookie_name), or_anything(string(cookie_value))), 0..5).prop_map(object);
    let url = prop_oneof![
        10 => one_of(&["ws://h.example", "wss://u:p@h.example:8443/p?q", "ws://[::1]:80/", "wss://127.1/ü"]),
        1 => one_of(&["http://h", "ws://", "ws://h/#", ""]),
        1 => "wss?://[a-z0-9.:@/?#ü ]{1,12}",
    ];
    let timeout = prop_oneof![
        one_of(&["0", "0.0", "-0", "1", "0.5", "1e-400", "4294967295", "4294967296", "18446744073709551616"]),
        (0.0..1e12).prop_map(|n: f64| n.to_string()),
    ];
    let list = || string(prop_oneof![Just("us, DE,,".to_owned()), Just(String::new()), "[a-zA-Z0-9, ]{0,9}".boxed()]);
    let key = || string(prop_oneof![5 => "[a-z0-9]{1,5}", 1 => Just(String::new())]);
    prop_oneof![
        2 => (string(Just("url".to_owned())), or_anything(string(url))),
        1 => (string(Just("apiKey".to_owned())), or_anything(key())),
        1 => (string(Just("key".to_owned())), or_anything(key())),
        4 => (string(Just("headers".to_owned())), or_anything(headers)),
        3 => (string(Just("cookies".to_owned())), or_anything(cookies)),
        1 => (string(Just("geo".to_owned())), or_anything(list())),
        1 => (string(Just("agent".to_owned())), or_anything(list())),
        2 => (string(Just("idle_timeout".to_owned())), or_anything(timeout)),
        1 => (string(Just("proxy".to_owned())), or_anything(string(one_of(&["socks5://u:p@h", "http://h:1/", "http://h/p", ""])))),
        1 => (string(one_of(&["PROXY", "Url", "x"])), prop_oneof![Just("null".to_owned()), anything().boxed()]),
    ]
}

/// A message that begins with a good `url`, which a later one may replace.
fn message() -> impl Strategy<Value = String> {
    vec(field(), 0..8).prop_map(|mut fields| {
        fields.insert(0, ("\"url\"".to_owned(), "\"wss://u:p@relay.example.com/\"".to_owned()));
        object(fields)
    })
}

/// Reads the bytes as far as they go. What comes out must be fit for the wire, or for an error message.
fn read(text: &[u8]) -> Result<ConnectRequest, ConnectError> {
    let mut text = text.to_vec();
    let result = parse(&mut text).and_then(|message| {
        let _ = message.key(Some("header"));
        message.validate()
    });
    match &result {
        Ok(request) => assert_fit_for_the_wire(request),
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.len() < 400 && !shown.chars().any(char::is_control), "{shown:?}");
        }
    }
    result
}

fn assert_fit_for_the_wire(request: &ConnectRequest) {
    let mut names: Vec<String> = request.ours().headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert!(!names.iter().any(|name| name == "host" || name == "upgrade" || name == "connection"));
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "{:?}", request.ours().headers);
    for (name, value) in &request.ours().headers {
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':'), "{name:?}");
        assert!(!value.contains(['\r', '\n', '\0']), "{value:?}");
    }
    assert!(request.ours().host.0.eq_ignore_ascii_case("host"), "{:?}", request.ours().host);
    assert!(!request.ours().host.1.contains(['\r', '\n', '\0']), "{:?}", request.ours().host);
}

proptest! {
    #[test]
    fn bytes_never_panic(text in vec(any::<u8>(), 0..300)) {
        let _ = read(&text);
    }

    #[test]
    fn what_is_json_is_agreed_on(text in "([{}\\[\\]:,\"\\\\]|[0-9eE.+-]|true|null|\\\\u[0-9a-f]{4}|\"[a-z]\"| |\\PC){0,24}") {
        let wrapped = format!("{{\"url\":\"ws://h\",\"x\":{text}}}");
        let member = format!("{{\"url\":\"ws://h\",\"headers\":{{\"x\":\"{text}\"}}}}");
        for text in [text, wrapped, member] {
            let ours = parse(&mut text.clone().into_bytes()).is_ok();
            prop_assert_eq!(ours, reference::parse(text.as_bytes()).is_some(), "{}", text);
            let _ = read(text.as_bytes());
        }
    }

    #[test]
    fn a_damaged_message_never_panics(
        text in message(), at in any::<Index>(), byte in any::<u8>(), kind in 0..4,
    ) {
        let mut text = text.into_bytes();
        let at = at.index(text.len());
        match kind {
            0 => text[at] = byte,
            1 => text.truncate(at),
            2 => text.insert(at, byte),
            _ => drop(text.remove(at)),
        }
        let known = reference::parse(&text).is_some();
        let _ = read(&text);
        let wrong_key_type = reference::parse(&text).is_some_and(|fields| reference::key(&fields, None).is_err());
        prop_assert_eq!(parse(&mut text).is_ok(), known && !wrong_key_type);
    }

    #[test]
    fn every_message_means_what_the_reference_says(text in message(), header in proptest::option::of("[a-z]{0,2}")) {
        let fields = reference::parse(text.as_bytes()).expect("generated JSON is JSON");
        let header = header.as_deref();
        let mut bytes = text.clone().into_bytes();
        match (parse(&mut bytes), reference::key(&fields, header)) {
            (Ok(message), Ok(key)) => prop_assert_eq!(message.key(header), key.as_deref()),
            (Err(error), Err(wrong)) => {
                prop_assert!(names_one_of(&error, &wrong), "{error} {wrong:?}");
                return Ok(());
            }
            (ours, theirs) => return Err(TestCaseError::fail(format!("{ours:?} {theirs:?}"))),
        }
        match (read(text.as_bytes()), reference::validate(&fields)) {
            (Ok(ours), Ok(theirs)) => {
                prop_assert_eq!(&ours.ours().headers, &theirs.ours().headers);
                let (timeout, reference) = (ours.idle_timeout, theirs.idle_timeout);
                // serde_json reads some floats wrong in the last bit.
                let equal_timeouts = match (timeout, reference) {
                    (Some(ours), Some(theirs)) => ours.abs_diff(theirs) <= ours / 1_000_000_000,
                    (ours, theirs) => ours == theirs,
                };
                prop_assert!(equal_timeouts, "{timeout:?} {reference:?}");
                let theirs = ConnectRequest { idle_timeout: timeout, ..theirs };
                prop_assert!(ours == theirs, "{ours:?} {theirs:?}");
            }
            (Err(error), Err(wrong)) => prop_assert!(names_one_of(&error, &wrong), "{error} {wrong:?}"),
            (ours, theirs) => return Err(TestCaseError::fail(format!("{ours:?} {theirs:?}"))),
        }
    }
}

fn names_one_of(error: &ConnectError, fields: &[String]) -> bool {
    // A name that is long in escaped form is cut in the error.
    let shown = error.to_string();
    fields
        .iter()
        .any(|field| shown.starts_with(&format!("{field}: ")) || (field.len() > 64 && shown.starts_with(&field[..60])))
}
