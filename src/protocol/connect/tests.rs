//! The whole message: one table for each rule, and properties against an obvious reference on serde_json.
mod properties;
mod reference;

use super::*;

impl ConnectRequest {
    fn ours(&self) -> Handshake {
        match &self.opening {
            Opening::Ours(handshake) => handshake.clone(),
            Opening::Passed(_) => panic!("no connect message asks for that"),
        }
    }
}

fn read(json: &str) -> Result<ConnectRequest, ConnectError> {
    let mut text = json.as_bytes().to_vec();
    parse(&mut text)?.validate()
}

/// Reads a message with a `url` and these further fields.
fn with(fields: &str) -> Result<ConnectRequest, ConnectError> {
    read(&format!("{{\"url\":\"ws://h.example/\",{fields}}}"))
}

type List<'a> = &'a [(&'a str, &'a str)];

fn pairs(list: List<'_>) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_example_of_the_protocol_description() {
    let json = r#"{
        "apiKey": "YOUR_API_KEY",
        "url": "wss://target.example.com/stream",
        "headers": {"Authorization": "Bearer token", "Origin": "https://target.example.com"},
        "cookies": {"session": "abc123"},
        "geo": "US,DE",
        "agent": "de1",
        "idle_timeout": 0
    }"#;
    let mut text = json.as_bytes().to_vec();
    let message = parse(&mut text).unwrap();
    assert_eq!(message.key(None), Some("YOUR_API_KEY"));
    let request = message.validate().unwrap();
    assert_eq!(request.target, Target::parse("wss://target.example.com/stream").unwrap());
    assert_eq!(request.ours().host, ("Host".to_owned(), "target.example.com".to_owned()));
    let headers =
        [("Authorization", "Bearer token"), ("Origin", "https://target.example.com"), ("Cookie", "session=abc123")];
    assert_eq!(request.ours().headers, pairs(&headers));
    assert_eq!(request.selection, Selection::new(Some("US,DE"), Some("de1")));
    assert_eq!((request.ours().subprotocols, request.idle_timeout), (vec![], None));
}

#[test]
fn the_key_comes_from_one_place() {
    // message, X-API-Key, key
    let table = [
        (r#"{"apiKey":"a"}"#, None, Some("a")),
        (r#"{"key":"k"}"#, None, Some("k")),
        (r#"{"apiKey":"a","key":"k"}"#, Some("h"), Some("a")),
        (r#"{"key":"k","apiKey":"a"}"#, Some("h"), Some("a")),
        (r#"{"apiKey":null,"key":"k"}"#, Some("h"), Some("k")),
        (r#"{"apiKey":"","key":"k"}"#, Some("h"), None),
        (r#"{"apiKey":""}"#, Some("h"), None),
        (r#"{"key":""}"#, Some("h"), None),
        (r#"{"apiKey":null,"key":null}"#, Some("h"), Some("h")),
        ("{}", Some("h"), Some("h")),
        ("{}", Some(""), None),
        ("{}", None, None),
        (r#"{"apiKey":"a","apiKey":"b"}"#, None, Some("b")),
        (r#"{"apiKey":"a","apiKey":null}"#, None, None),
        (r#"{"api\u004bey":"\u0061"}"#, None, Some("a")),
        (r#"{"APIKEY":"a"}"#, None, None),
        // The other fields are not judged yet.
        (r#"{"apiKey":"a","url":5,"proxy":"x"}"#, None, Some("a")),
    ];
    for (json, header, expected) in table {
        let mut text = json.as_bytes().to_vec();
        assert_eq!(parse(&mut text).unwrap().key(header), expected, "{json} {header:?}");
    }
}

#[test]
fn wrong_types_name_the_field() {
    for field in FIELDS {
        let (good, expected) = match field {
            "headers" | "cookies" => ("{}", "an object"),
            "idle_timeout" => ("1", "a number"),
            "proxy" => ("\"http://h\"", "a string"),
            _ => ("\"ws://h/\"", "a string"),
        };
        for (value, found) in [
            ("1", "a number"),
            ("\"x\"", "a string"),
            ("true", "a boolean"),
            ("[\"x\"]", "an array"),
            ("{}", "an object"),
        ] {
            let result = with(&format!("\"{field}\":{value}"));
            if found == expected {
                assert!(matches!(field, "url" | "proxy") || result.is_ok(), "{field} {value}");
            } else {
                assert_eq!(result.unwrap_err().to_string(), format!("{field}: must be {expected}, not {found}"));
                // Given twice, the last counts.
                assert!(with(&format!("\"{field}\":{value},\"{field}\":{good}")).is_ok(), "{field} {value}");
                assert!(with(&format!("\"{field}\":{good},\"{field}\":{value}")).is_err(), "{field} {value}");
            }
        }
        assert_eq!(with(&format!("\"{field}\":null")).is_ok(), field != "url", "{field}");
    }
}

#[test]
fn errors_name_the_field() {
    let table = [
        ("{}", "url: is required"),
        (r#"{"url":null}"#, "url: is required"),
        (r#"{"url":""}"#, "url: must start with ws:// or wss://"),
        (r#"{"url":"http://h"}"#, "url: must start with ws:// or wss://, not http://"),
        (r#"{"url":"ws://h/#"}"#, "url: must not have a fragment (write # as %23)"),
        (r#"{"url":"ws://h","proxy":""}"#, "proxy: must start with socks5://, socks5h:// or http://"),
        (
            r#"{"url":"ws://h","proxy":"https://h"}"#,
            "proxy: must start with socks5://, socks5h:// or http://, not https://",
        ),
        (r#"{"url":"ws://h","proxy":"socks5://h:0"}"#, "proxy: port 0 cannot be dialled"),
        (r#"{"url":"ws://h","headers":{"a b":""}}"#, "headers.a b: not a legal header name"),
        (r#"{"url":"ws://h","cookies":{"a":";"}}"#, "cookies.a: not a legal cookie value"),
        (r#"{"url":"ws://h","idle_timeout":-1}"#, "idle_timeout: must be a finite number, 0 or more"),
    ];
    for (json, expected) in table {
        assert_eq!(read(json).expect_err(json).to_string(), expected, "{json}");
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let nested = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    let many: Vec<String> = (0..5_000).map(|i| format!("\"{i}\":{i}")).collect();
    for fields in
        ["\"x\":{\"url\":5}", "\"URL\":5,\"\":0,\"type\":\"connect\"", &format!("\"x\":{nested}"), &many.join(",")]
    {
        let request = with(fields).unwrap();
        assert_eq!(request.ours().host.1, "h.example", "{fields:.60}");
    }
}

#[test]
fn idle_timeouts() {
    let none = None;
    let table = [
        ("0", none),
        ("0.0", none),
        ("-0", none),
        ("-0.0", none),
        ("0e999999999999", none),
        ("1e-400", none),
        ("1", Some(Duration::from_secs(1))),
        ("0.25", Some(Duration::from_millis(250))),
        ("1e1", Some(Duration::from_secs(10))),
        ("1e-300", Some(Duration::from_nanos(1))),
        ("4294967295", Some(Duration::from_secs(4_294_967_295))),
        ("4294967296", none),
        ("9223372036854775808", none),
        ("18446744073709551615", none),
        ("18446744073709551616", none),
        ("1e19", none),
        ("1.7976931348623157e308", none),
    ];
    for (number, expected) in table {
        assert_eq!(with(&format!("\"idle_timeout\":{number}")).unwrap().idle_timeout, expected, "{number}");
    }
    for number in
        ["-1", "-0.001", "-1e-300", "-9223372036854775809", "1e400", "-1e400", "1e99999999999999999999", "NaN"]
    {
        let error = with(&format!("\"idle_timeout\":{number}")).unwrap_err().to_string();
        assert!(error.starts_with("idle_timeout: "), "{number}: {error}");
    }
    assert_eq!(idle_timeout(f64::NAN), idle_timeout(-1.0));
    assert_eq!(idle_timeout(f64::INFINITY), idle_timeout(-1.0));
}

#[test]
fn headers_and_cookies_come_together() {
    // further fields, host, headers
    let table: &[(&str, &str, List<'_>)] = &[
        (r#""x":0"#, "h.example", &[]),
        (r#""headers":{"A":"1","host":"other:1","B":"2"}"#, "other:1", &[("A", "1"), ("B", "2")]),
        (r#""cookies":{"a":"1"},"headers":{"X":"y"}"#, "h.example", &[("X", "y"), ("Cookie", "a=1")]),
        (
            r#""cookies":{"a":"1"},"headers":{"cookie":"b=2","X":"y"}"#,
            "h.example",
            &[("cookie", "b=2; a=1"), ("X", "y")],
        ),
        (r#""cookies":{},"headers":{"Cookie":"b=2;c=3"}"#, "h.example", &[("Cookie", "b=2;c=3")]),
        (r#""cookies":null,"headers":null"#, "h.example", &[]),
        (r#""url":"ws://u:p@h.example:81/""#, "h.example:81", &[("Authorization", "Basic dTpw")]),
        (
            r#""url":"ws://u:p@[::1]/","headers":{"X":"y"},"cookies":{"a":"1"}"#,
            "[::1]",
            &[("X", "y"), ("Authorization", "Basic dTpw"), ("Cookie", "a=1")],
        ),
        (r#""url":"ws://u:p@h/","headers":{"authorization":"Bearer t"}"#, "h", &[("authorization", "Bearer t")]),
    ];
    for (fields, host, headers) in table {
        let request = with(fields).unwrap();
        assert_eq!((request.ours().host.1.as_str(), request.ours().headers), (*host, pairs(headers)), "{fields}");
    }
}

#[test]
fn subprotocols_are_listed_and_sent_as_written() {
    let table: &[(&str, &[&str])] =
        &[("chat", &["chat"]), ("chat,superchat", &["chat", "superchat"]), (" a ,, b\t, ", &["a", "b"]), ("", &[])];
    for (value, expected) in table {
        let value_json = serde_json::to_string(value).unwrap();
        let request = with(&format!("\"headers\":{{\"sec-websocket-PROTOCOL\":{value_json}}}")).unwrap();
        assert_eq!(request.ours().subprotocols, *expected, "{value:?}");
        assert_eq!(request.ours().headers, pairs(&[("sec-websocket-PROTOCOL", value.trim())]));
    }
}

#[test]
fn nothing_secret_is_shown() {
    let mut text = br#"{"key":"hunter2","url":"wss://hunter2:hunter2@h/hunter2?hunter2","headers":{"A":"hunter2"},"cookies":{"a":"hunter2"},"proxy":"http://hunter2:hunter2@h"}"#
        .to_vec();
    let message = parse(&mut text).unwrap();
    let shown = format!("{message:?}") + &format!("{:?}", message.validate().unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");
    for fields in [
        r#""url":"hunter2""#,
        r#""url":"ws://hunter2:0/""#,
        r#""url":"ws://u:hunter2@h/#hunter2""#,
        r#""proxy":"hunter2""#,
        r#""proxy":"socks5://u:hunter2@h/hunter2""#,
        r#""proxy":"socks4://u:hunter2@h""#,
        r#""headers":{"A":"hunter2\n"}"#,
        r#""cookies":{"a":"hunter2;"}"#,
        r#""headers":"hunter2""#,
        r#""key":"hunter2"#,
    ] {
        let error = with(fields).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}

#[test]
fn sixty_four_kib_of_anything_is_quick_and_bounded() {
    let names: Vec<String> = (0..5_000).map(|i| format!("\"n{i}\":\"\"")).collect();
    let object = format!("{{{}}}", names.join(","));
    let cookie: Vec<String> = (0..5_000).map(|i| format!("n{i}=x")).collect();
    let cookie = cookie.join(";");
    let escapes = "\\u0000".repeat(10_000);
    let long = "x".repeat(60_000);
    for fields in [
        format!("\"headers\":{object}"),
        format!("\"cookies\":{object},\"headers\":{{\"Cookie\":\"{cookie}\"}}"),
        format!("\"geo\":\"{}\"", "us,".repeat(20_000)),
        format!("\"headers\":{{\"a\":\"{long}\",\"b\":\"1\"}}"),
        format!("\"url\":\"ws://h/{}\"", "ü".repeat(30_000)),
    ] {
        assert!(with(&fields).is_ok(), "{fields:.40}");
    }
    for fields in [
        format!("\"url\":\"ws://{long}/\""),
        format!("\"url\":\"{long}://h/\""),
        format!("\"url\":\"ws://{}/\"", "ü".repeat(30_000)),
        format!("\"url\":\"ws://{}/\"", "ü.".repeat(20_000)),
        format!("\"headers\":{{\"{escapes}\":\"\"}}"),
        format!("\"headers\":{{\"{long} \":\"\"}}"),
        format!("\"cookies\":{{\"{escapes}\":\"\"}}"),
        format!("\"idle_timeout\":{}", "9".repeat(60_000)),
        format!("\"proxy\":\"socks5://{long}:{long}@h\"").replace(&long, &long[..30_000]),
        format!("\"proxy\":\"http://{long}\""),
    ] {
        let error = with(&fields).unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
    }
}
