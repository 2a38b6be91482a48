//! What the client wants to say to the target: the fields `headers` and `cookies`.
//!
//! Owns the rules for names and values (RFC 9110 section 5), what is dropped because the handshake owns it, and that
//! a name stands once, in order and as written. Nothing that leaves here can end a header line or begin another one.
//! Must never add what the handshake itself says, and never put a value into an error.
use std::collections::hash_map::Entry;

use ahash::AHashMap;

use super::cookies::{self, Cookie};
use super::error::{ConnectError, Reason};
use super::json::{Members, Value};

/// Headers for the target: names as written, each once, in the order of the message.
#[derive(Default)]
pub(super) struct Headers(Vec<(String, String)>);

impl Headers {
    /// Reads the object `headers`.
    ///
    /// Of names that differ at most in case the last counts, in the place of the first.
    /// Optional white space around a value is no part of it (RFC 9110 section 5.5).
    ///
    /// # Errors
    /// A value that is no string, a name that is no token (RFC 9110 section 5.6.2), a value with control characters
    /// other than tab; none of these in what is dropped.
    pub(super) fn read(members: Members<'_, '_>) -> Result<Self, ConnectError> {
        let kept = members.filter(|(name, _)| !owned_by_handshake(name));
        let mut headers = Vec::new();
        for (name, value) in last_of_each(kept, str::to_ascii_lowercase) {
            let error = |reason: Reason| reason.of_member("headers", name);
            let value = match value {
                Value::String(value) => value.trim_matches([' ', '\t']),
                other => return Err(error(Reason::WrongType { expected: "a string", found: other.kind() })),
            };
            if !is_token(name) {
                return Err(error(Reason::HeaderName));
            }
            if !is_field_value(value) {
                return Err(error(Reason::HeaderValue));
            }
            headers.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self(headers))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.position(name).map(|at| self.0[at].1.as_str())
    }

    /// Takes the header out, its name as written.
    pub(super) fn remove(&mut self, name: &str) -> Option<(String, String)> {
        self.position(name).map(|at| self.0.remove(at))
    }

    /// Adds the header at the end, unless the client has given it.
    pub(super) fn add_if_absent(&mut self, name: &str, value: String) {
        if self.position(name).is_none() {
            self.0.push((name.to_owned(), value));
        }
    }

    /// Merges cookies into the `Cookie` header, in its place, or at the end where there is none.
    pub(super) fn merge_cookies(&mut self, cookies: &[Cookie]) {
        if cookies.is_empty() {
            return;
        }
        match self.position("Cookie") {
            Some(at) => self.0[at].1 = cookies::merge(&self.0[at].1, cookies),
            None => self.0.push(("Cookie".to_owned(), cookies::merge("", cookies))),
        }
    }

    pub(super) fn into_list(self) -> Vec<(String, String)> {
        self.0
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|(given, _)| given.eq_ignore_ascii_case(name))
    }
}

/// Each name once: its last member, in the place of its first. Through a map, since 64 KiB hold thousands of names.
pub(super) fn last_of_each<'t, 'a>(
    members: impl Iterator<Item = (&'a str, Value<'t, 'a>)>,
    same: fn(&str) -> String,
) -> Vec<(&'a str, Value<'t, 'a>)> {
    let mut places: AHashMap<String, usize> = AHashMap::new();
    let mut list = Vec::new();
    for member in members {
        match places.entry(same(member.0)) {
            Entry::Occupied(place) => list[*place.get()] = member,
            Entry::Vacant(place) => {
                place.insert(list.len());
                list.push(member);
            }
        }
    }
    list
}

/// Headers that belong to the opening handshake (RFC 6455 section 4.1), to the message's framing or to one hop
/// (RFC 9110 section 7.6.1). People paste whole header sets from a browser, so these are dropped in silence.
fn owned_by_handshake(name: &str) -> bool {
    const OWNED: [&str; 11] = [
        "connection",
        "upgrade",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
        "sec-websocket-accept",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "keep-alive",
    ];
    const PREFIX: &str = "proxy-";
    OWNED.iter().any(|owned| owned.eq_ignore_ascii_case(name))
        || name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let tchar = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(tchar)
}

/// RFC 9110 section 5.5, with `obs-text`: what is not ASCII goes out as UTF-8.
fn is_field_value(text: &str) -> bool {
    text.bytes().all(|b| b == b'\t' || !b.is_ascii_control())
}

#[cfg(test)]
mod tests {
    use super::super::json::Message;
    use super::*;

    /// Reads `headers` from the JSON text of one object.
    fn read(json: &str) -> Result<Vec<(String, String)>, ConnectError> {
        let mut text = format!("{{\"o\":{json}}}").into_bytes();
        let message = Message::parse(&mut text, &[]).unwrap();
        match message.field("o") {
            Some(Value::Object(members)) => Headers::read(members).map(Headers::into_list),
            _ => panic!("no object: {json}"),
        }
    }

    #[test]
    fn headers_are_kept_as_written_each_once() {
        let table: &[(&str, &[(&str, &str)])] = &[
            ("{}", &[]),
            (r#"{"b":"1","a":"2"}"#, &[("b", "1"), ("a", "2")]),
            (r#"{"X-lOWER":"V"}"#, &[("X-lOWER", "V")]),
            (r#"{"a":"1","b":"2","a":"3"}"#, &[("a", "3"), ("b", "2")]),
            (r#"{"a":"1","b":"2","A":"3"}"#, &[("A", "3"), ("b", "2")]),
            (r#"{"a":"1","b":"2","A":null,"a":"4"}"#, &[("a", "4"), ("b", "2")]),
            (r#"{"a":"x\ny","A":"fine"}"#, &[("A", "fine")]),
            (r#"{"a":""}"#, &[("a", "")]),
            (r#"{"a":" \t x\ty z \t"}"#, &[("a", "x\ty z")]),
            (r#"{"a":"ü€\u0080"}"#, &[("a", "ü€\u{80}")]),
            (r#"{"!#$%&'*+-.^_`|~09azAZ":"1"}"#, &[("!#$%&'*+-.^_`|~09azAZ", "1")]),
            (
                r#"{"Host":"h","Origin":"o","User-Agent":"u","Authorization":"a","Cookie":"c","Sec-WebSocket-Protocol":"p"}"#,
                &[
                    ("Host", "h"),
                    ("Origin", "o"),
                    ("User-Agent", "u"),
                    ("Authorization", "a"),
                    ("Cookie", "c"),
                    ("Sec-WebSocket-Protocol", "p"),
                ],
            ),
        ];
        for (json, expected) in table {
            let expected: Vec<_> = expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            assert_eq!(read(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_the_handshake_owns_is_dropped_in_silence() {
        for name in [
            "Connection",
            "Upgrade",
            "Sec-WebSocket-Key",
            "Sec-WebSocket-Version",
            "Sec-WebSocket-Extensions",
            "Sec-WebSocket-Accept",
            "Content-Length",
            "Transfer-Encoding",
            "TE",
            "Trailer",
            "Keep-Alive",
            "Proxy-",
            "Proxy-Connection",
            "Proxy-Authorization",
            "Proxy-a b\\r\\n",
            "Proxy-ü",
        ] {
            for name in [name.to_owned(), name.to_ascii_lowercase()] {
                for value in ["\"x\"", "\"a\\r\\nb\"", "5", "null", "{}", "[]"] {
                    let json = format!("{{\"{name}\":{value},\"a\":\"1\"}}");
                    assert_eq!(read(&json), Ok(vec![("a".to_owned(), "1".to_owned())]), "{json}");
                }
            }
        }
        for name in ["Proxy", "Connections", "Sec-WebSocket-Protocol", "Trailers", "Proxÿ-"] {
            assert_ne!(read(&format!("{{\"{name}\":\"1\"}}")), Ok(vec![]), "{name}");
        }
    }

    #[test]
    fn what_is_not_legal_http_names_the_header() {
        let table = [
            (r#"{"":"1"}"#, "headers.: not a legal header name"),
            (r#"{"a b":"1"}"#, "headers.a b: not a legal header name"),
            (r#"{"a ":"1"}"#, "headers.a : not a legal header name"),
            (r#"{"a:":"1"}"#, "headers.a:: not a legal header name"),
            (r#"{":path":"1"}"#, "headers.:path: not a legal header name"),
            (r#"{"a\r\nb":"1"}"#, "headers.a\\r\\nb: not a legal header name"),
            (r#"{"ü":"1"}"#, "headers.ü: not a legal header name"),
            (r#"{"X":"a\rb"}"#, "headers.X: not a legal header value"),
            (r#"{"X":"a\n"}"#, "headers.X: not a legal header value"),
            (r#"{"X":"a\u0000"}"#, "headers.X: not a legal header value"),
            (r#"{"X":"a\u001f"}"#, "headers.X: not a legal header value"),
            (r#"{"X":"a\u007f"}"#, "headers.X: not a legal header value"),
            (r#"{"X":1}"#, "headers.X: must be a string, not a number"),
            (r#"{"X":null}"#, "headers.X: must be a string, not null"),
            (r#"{"X":true}"#, "headers.X: must be a string, not a boolean"),
            (r#"{"X":["a"]}"#, "headers.X: must be a string, not an array"),
            (r#"{"X":{"a":"b"}}"#, "headers.X: must be a string, not an object"),
            (r#"{"x":"1","X":2}"#, "headers.X: must be a string, not a number"),
        ];
        for (json, expected) in table {
            assert_eq!(read(json).expect_err(json).to_string(), expected, "{json}");
        }
    }
}
