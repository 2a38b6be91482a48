//! The Upgrade with which a link begins, as text: the request, and what an answer means.
use std::{fmt::Write as _, time::Duration};

use serde::Deserialize;

use crate::protocol::{
    link::{PROTOCOLS, UPGRADE_TOKEN, header},
    opening,
};

/// The largest answer head and the largest body of a refusal, in bytes, and the most headers.
const MAX_HEAD: usize = 16 * 1024;
const MAX_BODY: usize = 4 * 1024;
const MAX_HEADERS: usize = 64;
/// What of a refusal's message is told, in characters.
const MAX_TOLD: usize = 200;

/// A request's bytes, with these headers behind those of every link.
pub(super) fn request(path: &str, authority: &str, token: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE_TOKEN}\r\n\
         Authorization: Bearer {token}\r\n{}: {}\r\n{}: {}\r\n",
        header::PROTOCOL,
        PROTOCOLS.end(),
        header::OLDEST_PROTOCOL,
        PROTOCOLS.start(),
    );
    for (name, value) in headers {
        let _ = write!(out, "{name}: {value}\r\n");
    }
    out.push_str("\r\n");
    out.into_bytes()
}

/// The gateway takes the link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// The link protocol that is spoken. This and what follows is told on the control link only.
    pub protocol: Option<u16>,
    pub instance: String,
    pub channels: u32,
}

/// The gateway does not take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 401
    Token,
    /// 403, with the gateway's reason
    Forbidden(String),
    /// 421
    Mismatch,
    /// 426, or a 101 with a protocol that we do not know; with the gateway's words
    Version(String),
    /// 503
    Busy { retry_after: Option<Duration>, why: String },
    /// What answers is no gateway, or none that we know.
    Other(String),
}

/// Takes the answer from the front of `input`, and leaves what is behind a 101. `None` while it is not whole.
pub(super) fn answer(input: &mut Vec<u8>) -> Result<Option<Accepted>, Refusal> {
    let Some(end) = opening::head_end(input, 0) else {
        return if input.len() > MAX_HEAD { Err(no_gateway("an answer whose head is too large")) } else { Ok(None) };
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    if !matches!(response.parse(&input[..end]), Ok(httparse::Status::Complete(_))) {
        return Err(no_gateway("no HTTP"));
    }
    let value = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(found.value).ok().map(str::trim)
    };
    let status = response.code.unwrap_or_default();
    if status == 101 {
        let upgraded = value("upgrade").is_some_and(|token| token.eq_ignore_ascii_case(UPGRADE_TOKEN));
        let protocol = value(header::PROTOCOL);
        let spoken = protocol.and_then(|number| number.parse().ok());
        let accepted = Accepted {
            protocol: spoken,
            instance: value(header::INSTANCE).unwrap_or_default().to_owned(),
            channels: value(header::CHANNELS).and_then(|channels| channels.parse().ok()).unwrap_or_default(),
        };
        if !upgraded {
            return Err(no_gateway("an Upgrade to something else"));
        }
        if let Some(theirs) = protocol
            && !spoken.is_some_and(|number| PROTOCOLS.contains(&number))
        {
            return Err(Refusal::Version(format!("it speaks link protocol {}", readable(theirs))));
        }
        input.drain(..end);
        return Ok(Some(accepted));
    }
    let length = value("content-length").and_then(|length| length.parse::<usize>().ok()).unwrap_or_default();
    if length <= MAX_BODY && input.len() < end + length {
        return Ok(None);
    }
    let why = || message(input.get(end..end.saturating_add(length)).unwrap_or_default());
    Err(match status {
        401 => Refusal::Token,
        403 => Refusal::Forbidden(why()),
        421 => Refusal::Mismatch,
        426 => Refusal::Version(why()),
        503 => {
            let retry_after = value("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
            Refusal::Busy { retry_after, why: why() }
        }
        status => no_gateway(&format!("HTTP {status}")),
    })
}

fn no_gateway(what: &str) -> Refusal {
    Refusal::Other(what.to_owned())
}

/// The message of a JSON error.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Error {
        message: String,
    }
    serde_json::from_slice::<Error>(body).map(|error| readable(&error.message)).unwrap_or_default()
}

/// What somebody else wrote, as it may stand in a log line.
fn readable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TOLD).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: Ringway\r\n\
        ringway-protocol: 1\r\nringway-instance: 00ff\r\nringway-channels: 8\r\n\r\n";

    fn read(text: &str) -> Result<Option<Accepted>, Refusal> {
        answer(&mut text.as_bytes().to_vec())
    }

    #[test]
    fn a_request() {
        let request = request("/agent/data", "gw1.example.com", "secret", &[("Ringway-Slug", "de1")]);
        let expected = "GET /agent/data HTTP/1.1\r\nHost: gw1.example.com\r\nConnection: Upgrade\r\nUpgrade: ringway\r\n\
            Authorization: Bearer secret\r\nRingway-Protocol: 1\r\nRingway-Protocol-Oldest: 1\r\nRingway-Slug: de1\r\n\r\n";
        assert_eq!(String::from_utf8(request).unwrap(), expected);
    }

    #[test]
    fn an_accepted_link_and_what_is_behind_it() {
        for len in 0..GOOD.len() {
            assert_eq!(read(&GOOD[..len]), Ok(None), "{len} bytes");
        }
        let mut input = format!("{GOOD}behind").into_bytes();
        assert_eq!(answer(&mut input), Ok(Some(Accepted { protocol: Some(1), instance: "00ff".into(), channels: 8 })));
        assert_eq!(input, b"behind");
        let bare = "HTTP/1.1 101 X\r\nUpgrade: ringway\r\n\r\n";
        assert_eq!(read(bare), Ok(Some(Accepted { protocol: None, instance: String::new(), channels: 0 })));
    }

    #[test]
    fn refusals() {
        let busy = Refusal::Busy { retry_after: Some(Duration::from_secs(3)), why: "off\u{2009}now".into() };
        for (head, body, expected) in [
            ("401 Unauthorized\r\nContent-Length: 0", "", Refusal::Token),
            (
                "403 Forbidden\r\nContent-Length: 28",
                r#"{"message":"not your\u0007 slug"}"#,
                Refusal::Forbidden(String::new()),
            ),
            (
                "403 Forbidden\r\nContent-Length: 33",
                r#"{"message":"not your\u0007 slug"}"#,
                Refusal::Forbidden("not your slug".into()),
            ),
            ("403 Forbidden", "", Refusal::Forbidden(String::new())),
            ("421 Misdirected\r\nContent-Length: 2", "{}", Refusal::Mismatch),
            ("426 X", "", Refusal::Version(String::new())),
            ("426 X\r\nContent-Length: 17", r#"{"message":"old"}"#, Refusal::Version("old".into())),
            ("503 X\r\nRetry-After: 3\r\nContent-Length: 23", "{\"message\":\"off\u{2009}now\"}", busy),
            ("503 X\r\nContent-Length: 999999999", "", Refusal::Busy { retry_after: None, why: String::new() }),
            ("426 X\r\nContent-Length: 18446744073709551615", "", Refusal::Version(String::new())),
            ("404 Not Found", "", no_gateway("HTTP 404")),
            ("200 OK", "", no_gateway("HTTP 200")),
            ("101 X\r\nUpgrade: websocket\r\nRingway-Protocol: 1", "", no_gateway("an Upgrade to something else")),
            (
                "101 X\r\nUpgrade: ringway\r\nRingway-Protocol: 2",
                "",
                Refusal::Version("it speaks link protocol 2".into()),
            ),
            (
                "101 X\r\nUpgrade: ringway\r\nRingway-Protocol: x",
                "",
                Refusal::Version("it speaks link protocol x".into()),
            ),
        ] {
            assert_eq!(read(&format!("HTTP/1.1 {head}\r\n\r\n{body}")), Err(expected), "{head}");
        }
        assert_eq!(read("HTTP/1.1 401 X\r\nContent-Length: 5\r\n\r\n1234"), Ok(None));
        assert_eq!(read("SSH-2.0-X\r\n\r\n"), Err(no_gateway("no HTTP")));
        assert!(read(&"x".repeat(MAX_HEAD + 1)).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), status in 0u16..700) {
            let mut input = format!("HTTP/1.1 {status} X\r\nContent-Length: 9\r\n").into_bytes();
            input.extend(bytes);
            input.extend(b"\r\n\r\n");
            let _ = answer(&mut input);
        }
    }
}
