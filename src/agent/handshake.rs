//! The opening handshake with a target (RFC 6455 section 4.1), as text: the request, and what an answer means.
//!
//! Written by hand since header names go out as the client wrote them and in its order.
use crate::protocol::{
    answer::Failure,
    connect::Handshake,
    opening::{self, accept_for},
    target::Target,
};

/// The largest answer head, in bytes, and its most headers.
const MAX_HEAD: usize = 64 * 1024;
pub(super) const MAX_HEADERS: usize = 100;

/// The most bytes of interim answers (RFC 9110 section 15.2) in front of the answer.
const MAX_INTERIM: usize = 64 * 1024;

/// The target accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// A handshake of ours, whose 101 is valid.
    Ours { subprotocol: Option<String> },
    /// The client's own: with the answer's head, for the client to judge.
    Passed(Vec<u8>),
}

/// What an answer has to be besides a 101.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// Valid for a request of ours with this Sec-WebSocket-Key, which offered these subprotocols.
    Ours { key: &'a str, subprotocols: &'a [String] },
    /// Nothing that we know of.
    Passed,
}

/// The request's bytes. `key` is the value of Sec-WebSocket-Key.
pub fn request(target: &Target, handshake: &Handshake, key: &str) -> Vec<u8> {
    let mut out = format!(
        "GET {} HTTP/1.1\r\n{}: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Version: 13\r\n",
        target.path_and_query, handshake.host.0, handshake.host.1
    );
    for (name, value) in &handshake.headers {
        out.push_str(name);
        out.push_str(": ");
        out.push_str(value);
        out.push_str("\r\n");
    }
    out.push_str("\r\n");
    out.into_bytes()
}

/// Finds the end of a target's answer as bytes come in, and judges it once it is whole.
#[derive(Debug, Default)]
pub struct AnswerReader(HeadReader);

/// Finds the end of an answer's head, behind the interim answers in front of it.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    /// Bytes of interim answers so far.
    interim: usize,
    /// Before this there is no end.
    searched: usize,
    /// When to look again whether this can become an answer at all.
    next_look: usize,
}

impl AnswerReader {
    /// Takes the answer from the front of `input`, and leaves what is behind it, which are frames. `None` while its
    /// head is not whole.
    ///
    /// # Errors
    /// The target spoke no HTTP, answered other than 101, or its 101 is not valid for what was asked.
    pub fn next(&mut self, input: &mut Vec<u8>, asked: Asked<'_>) -> Result<Option<Accepted>, Failure> {
        self.0.next(input, |head| judge(head, asked), |why| Failure::TargetUnreachable(why.into()))
    }
}

impl HeadReader {
    /// Takes the answer from the front of `input`, and leaves what is behind it. `None` while its head is not whole.
    /// `judge` is shown the beginning of a head or a whole one, and has nothing to say of the former, nor of an interim
    /// answer.
    ///
    /// # Errors
    /// Those of `judge`, and `failed` with what is too much.
    pub(super) fn next<T, E>(
        &mut self,
        input: &mut Vec<u8>,
        judge: impl Fn(&[u8]) -> Result<Option<T>, E>,
        failed: impl Fn(&'static str) -> E,
    ) -> Result<Option<T>, E> {
        loop {
            let end = opening::head_end(input, std::mem::replace(&mut self.searched, input.len()));
            // Only looked at when it is whole or has doubled, so that a head that comes byte by byte costs no more than
            // twice its length.
            if end.is_none() && input.len() < self.next_look {
                return Ok(None);
            }
            self.next_look = input.len() * 2;
            let judged = judge(&input[..end.unwrap_or(input.len())])?;
            let Some(end) = end else {
                if input.len() >= MAX_HEAD {
                    return Err(failed("its answer's head is larger than 64 KiB"));
                }
                return Ok(None);
            };
            if end > MAX_HEAD {
                return Err(failed("its answer's head is larger than 64 KiB"));
            }
            input.drain(..end);
            if judged.is_some() {
                return Ok(judged);
            }
            self.interim += end;
            if self.interim > MAX_INTERIM {
                return Err(failed("it sent more than 64 KiB of interim answers"));
            }
            (self.searched, self.next_look) = (0, 0);
        }
    }
}

/// `None`: not whole, or an interim answer, which means nothing here.
fn judge(head: &[u8], asked: Asked<'_>) -> Result<Option<Accepted>, Failure> {
    let no_http = || Failure::TargetUnreachable("it did not answer in HTTP/1.1".into());
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Failure::TargetUnreachable("its answer has more than 100 headers".into()));
        }
        Err(_) => return Err(no_http()),
    }
    match response.code.unwrap_or_default() {
        // RFC 6455 section 4.1: HTTP/1.1 or higher. What says no may be older.
        101 if response.version != Some(1) => Err(no_http()),
        101 => match asked {
            Asked::Ours { key, subprotocols } => {
                let subprotocol =
                    check(response.headers, key, subprotocols).map_err(Failure::TargetHandshakeInvalid)?;
                Ok(Some(Accepted::Ours { subprotocol }))
            }
            Asked::Passed => Ok(Some(Accepted::Passed(head.to_vec()))),
        },
        100..=199 => Ok(None),
        ..100 => Err(no_http()),
        status => Err(Failure::TargetRejected { status }),
    }
}

/// Section 4.1, what a client must validate of the server's handshake.
fn check(headers: &[httparse::Header<'_>], key: &str, subprotocols: &[String]) -> Result<Option<String>, String> {
    let values = |name: &'static str| {
        let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
    };
    let lists = |name, item: &str| {
        values(name).any(|value| value.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(item)))
    };
    if !lists("upgrade", "websocket") {
        return Err("Upgrade is not websocket".into());
    }
    if !lists("connection", "upgrade") {
        return Err("Connection is not Upgrade".into());
    }
    match &values("sec-websocket-accept").collect::<Vec<_>>()[..] {
        [] => return Err("Sec-WebSocket-Accept is missing".into()),
        [accept] if *accept == accept_for(key.as_bytes()) => {}
        [_] => return Err("Sec-WebSocket-Accept does not fit the key".into()),
        _ => return Err("more than one Sec-WebSocket-Accept".into()),
    }
    if values("sec-websocket-extensions").any(|value| !value.is_empty()) {
        return Err("an extension that was not asked for".into());
    }
    match &values("sec-websocket-protocol").collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [chosen] if subprotocols.iter().any(|offered| offered == chosen) => Ok(Some(chosen.clone())),
        [_] => Err("a subprotocol that was not asked for".into()),
        _ => Err("more than one subprotocol".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const GOOD: &str = "Upgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

    fn read(head: &str, offered: &[&str]) -> Result<Option<Accepted>, Failure> {
        let offered: Vec<String> = offered.iter().map(|&name| name.into()).collect();
        AnswerReader::default().next(&mut head.into(), Asked::Ours { key: KEY, subprotocols: &offered })
    }

    #[test]
    fn a_valid_answer_and_what_is_behind_it() {
        let head = format!("HTTP/1.1 101 Switching Protocols\r\n{GOOD}Sec-WebSocket-Protocol: b\r\n\r\n");
        let mut input = format!("{head}\u{1}behind").into_bytes();
        let subprotocols = ["a".into(), "b".into()];
        let accepted = AnswerReader::default().next(&mut input, Asked::Ours { key: KEY, subprotocols: &subprotocols });
        assert_eq!(accepted, Ok(Some(Accepted::Ours { subprotocol: Some("b".into()) })));
        assert_eq!(input, b"\x01behind");
        let (mut reader, mut input) = (AnswerReader::default(), Vec::new());
        for (at, byte) in head.bytes().enumerate() {
            input.push(byte);
            let accepted = reader.next(&mut input, Asked::Ours { key: KEY, subprotocols: &subprotocols }).unwrap();
            assert_eq!(accepted.is_some(), at + 1 == head.len(), "byte {at}");
        }
        for len in 0..head.len() {
            assert_eq!(read(&head[..len], &["b"]), Ok(None), "{len} bytes");
        }
    }

    #[test]
    fn interim_answers_are_passed_over() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        let head = format!("{interim}HTTP/1.1 101 OK\r\n{GOOD}\r\n");
        assert!(read(&head, &[]).unwrap().is_some());
        assert_eq!(read(interim, &[]), Ok(None));
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(3000);
        assert!(matches!(read(&endless, &[]), Err(Failure::TargetUnreachable(_))));
    }

    #[test]
    fn other_answers() {
        for status in [200, 301, 401, 403, 404, 426, 500, 599] {
            let answer = format!("HTTP/1.1 {status} X\r\nLocation: ws://elsewhere/\r\n\r\n");
            assert_eq!(read(&answer, &[]), Err(Failure::TargetRejected { status }));
        }
        let older = "HTTP/1.0 404 File not found\r\nServer: SimpleHTTP/0.6\r\n\r\n";
        assert_eq!(read(older, &[]), Err(Failure::TargetRejected { status: 404 }));
        let older = format!("HTTP/1.0 101 X\r\n{GOOD}\r\n");
        assert!(matches!(read(&older, &[]), Err(Failure::TargetUnreachable(_))));
        for no_http in ["SSH-2.0-OpenSSH_9.2\r\n", "\x15\x03\x01\0\x02\x02\x46", "HTTP/3 101\r\n\r\n"] {
            assert!(matches!(read(no_http, &[]), Err(Failure::TargetUnreachable(_))), "{no_http:?}");
        }
    }

    #[test]
    fn an_answer_that_passes_is_not_judged() {
        let head = b"HTTP/1.1 101 X\r\nUpgrade: odd\r\nSec-WebSocket-Accept: \xfc\r\n\r\n".to_vec();
        let mut input = [b"HTTP/1.1 100 Continue\r\n\r\n", &head[..], b"behind"].concat();
        let accepted = AnswerReader::default().next(&mut input, Asked::Passed);
        assert_eq!(accepted, Ok(Some(Accepted::Passed(head))));
        assert_eq!(input, b"behind");
        let mut input = b"HTTP/1.1 403 X\r\n\r\n".to_vec();
        let refused = AnswerReader::default().next(&mut input, Asked::Passed);
        assert_eq!(refused, Err(Failure::TargetRejected { status: 403 }));
    }

    #[test]
    fn invalid_handshakes() {
        for (from, to, expected) in [
            ("Upgrade: WebSocket", "Upgrade: h2c", "Upgrade is not websocket"),
            ("Connection: keep-alive, upgrade", "Connection: close", "Connection is not Upgrade"),
            ("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "x", "Sec-WebSocket-Accept does not fit the key"),
            ("Sec-WebSocket-Accept", "X-Accept", "Sec-WebSocket-Accept is missing"),
            (
                "\r\nConnection",
                "\r\nSec-WebSocket-Extensions: permessage-deflate\r\nConnection",
                "an extension that was not asked for",
            ),
            ("\r\nConnection", "\r\nSec-WebSocket-Protocol: c\r\nConnection", "a subprotocol that was not asked for"),
            (
                "\r\nConnection",
                "\r\nSec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\nConnection",
                "more than one subprotocol",
            ),
        ] {
            let head = format!("HTTP/1.1 101 X\r\n{}\r\n", GOOD.replacen(from, to, 1));
            assert_eq!(read(&head, &["a", "b"]), Err(Failure::TargetHandshakeInvalid(expected.into())), "{head}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), http in any::<bool>()) {
            let mut head = if http { b"HTTP/1.1 101 X\r\n".to_vec() } else { Vec::new() };
            head.extend(bytes);
            let _ = AnswerReader::default().next(&mut head, Asked::Ours { key: KEY, subprotocols: &[] });
        }
    }
}
