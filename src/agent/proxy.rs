//! What an agent and a proxy say to each other until the connection is the target's: SOCKS5 in [`socks5`], HTTP CONNECT
//! in [`http`].
//!
//! [`Tunnel`] takes bytes and gives bytes; [`establish`] does the I/O. Whatever goes wrong is told in words in which "it"
//! is the proxy. Must never put user or password into them.
mod http;
mod socks5;

use std::io;

use super::dial::explain;
use crate::{
    protocol::connect::{Proxy, ProxyKind},
    protocol::target::{Host, Target},
    relay::{
        buffers::Buffer,
        socket::{Received, Socket},
    },
};

/// Whom the proxy is to connect to.
#[derive(Clone, Copy, Debug)]
struct Destination<'a> {
    host: &'a Host,
    port: u16,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Send this.
    Send(Vec<u8>),
    /// Receive more.
    More,
    /// It has said yes. What is left of the input is the target's.
    Done,
}

/// The conversation with one proxy. Does no I/O.
#[derive(Debug)]
enum Tunnel<'a> {
    Socks5(socks5::Conversation<'a>),
    Http(http::Conversation<'a>),
}

impl<'a> Tunnel<'a> {
    fn new(proxy: &'a Proxy, destination: Destination<'a>) -> Self {
        let credentials = proxy.credentials.as_ref();
        match proxy.kind {
            ProxyKind::Socks5 => Self::Socks5(socks5::Conversation::new(credentials, destination)),
            ProxyKind::Http => Self::Http(http::Conversation::new(credentials, destination)),
        }
    }

    /// Goes on with what was received and not taken yet; the first call is with nothing.
    ///
    /// # Errors
    /// The proxy refuses, or what answers is no such proxy.
    fn next(&mut self, input: &mut Vec<u8>) -> Result<Step, String> {
        match self {
            Self::Socks5(conversation) => conversation.next(input),
            Self::Http(conversation) => conversation.next(input),
        }
    }
}

/// Has the proxy at the other end of `socket` connect to the target. What was received behind its yes are the first bytes
/// of the target's.
///
/// # Errors
/// There is no connection to the target, in words.
pub(super) async fn establish(socket: &Socket, proxy: &Proxy, target: &Target) -> Result<Vec<u8>, String> {
    // As the egress policy has judged it.
    let host = match &target.host {
        Host::Ip(ip) => &Host::Ip(ip.to_canonical()),
        name @ Host::Name(_) => name,
    };
    let mut tunnel = Tunnel::new(proxy, Destination { host, port: target.port });
    let failed = |error: io::Error| explain(&error);
    let mut input = Vec::new();
    loop {
        match tunnel.next(&mut input)? {
            Step::Done => return Ok(input),
            // It may have answered already.
            Step::Send(bytes) => {
                socket.send_bytes(&bytes).await.map_err(failed)?;
                continue;
            }
            Step::More => {}
        }
        socket.readable().await.map_err(failed)?;
        let (received, buffer) = socket.recv(Buffer::take(), 0).await;
        match received.map_err(failed)? {
            Received::Data(len) => input.extend_from_slice(&buffer[..len]),
            Received::Nothing => {}
            Received::End => return Err("it closed the connection before its answer".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(name: &str) -> Host {
        Host::Name(name.to_owned())
    }

    /// The whole conversation, with what the proxy sends in pieces of so many bytes; what was sent to it, and what is left.
    fn converse(proxy: &str, host: &Host, answers: &[u8], piece: usize) -> Result<(Vec<Vec<u8>>, Vec<u8>), String> {
        let proxy = Proxy::parse(proxy).unwrap();
        let mut tunnel = Tunnel::new(&proxy, Destination { host, port: 443 });
        let (mut sent, mut input, mut pieces) = (Vec::new(), Vec::new(), answers.chunks(piece));
        loop {
            match tunnel.next(&mut input)? {
                Step::Done => {
                    input.extend(pieces.flatten());
                    return Ok((sent, input));
                }
                Step::Send(bytes) => {
                    sent.push(bytes);
                    continue;
                }
                Step::More => {}
            }
            let Some(piece) = pieces.next() else { return Err("closed".into()) };
            input.extend_from_slice(piece);
        }
    }

    const YES_V4: &[u8] = b"\x05\0\0\x01\0\0\0\0\0\0";

    #[test]
    fn socks5_however_its_answers_are_cut() {
        let plain: &[&[u8]] = &[b"\x05\x01\0", b"\x05\x01\0\x03\x09h.example\x01\xbb"];
        let with_password: &[&[u8]] = &[b"\x05\x02\0\x02", b"\x01\x01u\x02pw", plain[1]];
        for (proxy, answers, expected) in [
            ("socks5://p", [b"\x05\0", YES_V4].concat(), plain),
            ("socks5h://p", [b"\x05\0\x05\0\0\x03\x02ab\0\0", &b""[..]].concat(), plain),
            ("socks5://p", [b"\x05\0\x05\0\0\x04", &[7; 18][..]].concat(), plain),
            ("socks5://u:pw@p", [b"\x05\x02\x01\0", YES_V4].concat(), with_password),
            // Offered, and not asked for.
            ("socks5://u:pw@p", [b"\x05\0", YES_V4].concat(), &[b"\x05\x02\0\x02", plain[1]]),
        ] {
            let all = [&answers[..], b"\x81\x02hi"].concat();
            for piece in 1..=all.len() {
                let (sent, rest) = converse(proxy, &name("h.example"), &all, piece).unwrap();
                assert_eq!(sent, expected, "{proxy} {piece}");
                assert_eq!(rest, b"\x81\x02hi", "{proxy} {piece}");
            }
            for len in 0..answers.len() {
                assert_eq!(converse(proxy, &name("h.example"), &answers[..len], 1), Err("closed".into()), "{len}");
            }
        }
    }

    #[test]
    fn socks5_addresses_and_longest_names() {
        let request =
            |host: &Host| converse("socks5://p", host, &[b"\x05\0", YES_V4].concat(), 99).unwrap().0.remove(1);
        assert_eq!(request(&Host::Ip([1, 2, 3, 4].into())), b"\x05\x01\0\x01\x01\x02\x03\x04\x01\xbb");
        let v6 = [&b"\x05\x01\0\x04\x20\x01\x0d\xb8"[..], &[0; 11], b"\x01\x01\xbb"].concat();
        assert_eq!(request(&Host::Ip("2001:db8::1".parse().unwrap())), v6);
        let longest = format!("{}.example.", "a23456789.".repeat(25));
        assert_eq!(longest.len(), 259);
        let longest = &longest[5..];
        assert_eq!(request(&name(longest))[3..5], [3, 254]);
        let long = name(&"x".repeat(256));
        let error = converse("socks5://p", &long, &[b"\x05\0", YES_V4].concat(), 99).unwrap_err();
        assert_eq!(error, "the target's name is too long for SOCKS5");
    }

    #[test]
    fn socks5_refusals() {
        let table: &[(&str, &[u8], &str)] = &[
            ("socks5://p", b"HTTP/1.1 400 Bad\r\n\r\n", "it is no SOCKS5 proxy"),
            ("socks5://p", b"\0", "it is no SOCKS5 proxy"),
            ("socks5://p", b"\x05\xff", "it wants user and password"),
            ("socks5://u:p@p", b"\x05\xff", "it wants another authentication than user and password"),
            ("socks5://p", b"\x05\x02", "it chose an authentication that was not offered"),
            ("socks5://u:p@p", b"\x05\x01", "it chose an authentication that was not offered"),
            ("socks5://u:p@p", b"\x05\x02\x01\x01", "it refused user and password"),
            ("socks5://u:p@p", b"\x05\x02\x05\xff", "it refused user and password"),
            ("socks5://p", b"\x05\0\x04\0", "it is no SOCKS5 proxy"),
            ("socks5://p", b"\x05\0\x05\x01", "it reports a general failure"),
            ("socks5://p", b"\x05\0\x05\x02", "its rules do not allow the target"),
            ("socks5://p", b"\x05\0\x05\x03", "it cannot reach the target: network unreachable"),
            ("socks5://p", b"\x05\0\x05\x04", "it cannot reach the target: host unreachable"),
            ("socks5://p", b"\x05\0\x05\x05", "it cannot reach the target: connection refused"),
            ("socks5://p", b"\x05\0\x05\x06", "it cannot reach the target: TTL expired"),
            ("socks5://p", b"\x05\0\x05\x07", "it does not know the command CONNECT"),
            ("socks5://p", b"\x05\0\x05\x08", "it does not take this kind of address"),
            ("socks5://p", b"\x05\0\x05\xfe", "it answered with the unknown code 254"),
            ("socks5://p", b"\x05\0\x05\0\0\x02", "its answer has an unknown kind of address"),
        ];
        for (proxy, answers, expected) in table {
            for piece in [1, 99] {
                assert_eq!(converse(proxy, &name("h"), answers, piece), Err((*expected).into()), "{answers:?}");
            }
        }
    }

    #[test]
    fn http_however_its_answers_are_cut() {
        let asked = b"CONNECT h.example:443 HTTP/1.1\r\nHost: h.example:443\r\n";
        for (proxy, host, answers, expected) in [
            ("http://p", name("h.example"), "HTTP/1.1 200 OK\r\n\r\n", [&asked[..], b"\r\n"].concat()),
            (
                "http://u:p%40@p",
                name("h.example"),
                "HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\n",
                [&asked[..], b"Proxy-Authorization: Basic dTpwQA==\r\n\r\n"].concat(),
            ),
            (
                "http://p",
                Host::Ip("2001:db8::1".parse().unwrap()),
                // RFC 9110 section 9.3.6: lengths mean nothing in this answer.
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 299 x\nContent-Length: 99\nTransfer-Encoding: chunked\n\n",
                b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n".to_vec(),
            ),
        ] {
            let all = [answers.as_bytes(), b"\x81\x02hi"].concat();
            for piece in 1..=all.len() {
                let (sent, rest) = converse(proxy, &host, &all, piece).unwrap();
                assert_eq!(sent, [&expected[..]], "{proxy} {piece}");
                assert_eq!(rest, b"\x81\x02hi", "{proxy} {piece}");
            }
            for len in 0..answers.len() {
                assert_eq!(converse(proxy, &host, &answers.as_bytes()[..len], 1), Err("closed".into()), "{len}");
            }
        }
    }

    #[test]
    fn http_refusals() {
        let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(3000);
        let table = [
            ("http://p", "HTTP/1.1 403 Forbidden\r\n\r\n", "it answered HTTP 403"),
            ("http://p", "HTTP/1.0 502 hunter2\r\nContent-Length: 9\r\n\r\n", "it answered HTTP 502"),
            ("http://p", "HTTP/1.1 101 x\r\n\r\n", "it answered HTTP 101"),
            ("http://p", "HTTP/1.1 407 x\r\n\r\n", "it wants user and password (HTTP 407)"),
            ("http://u:p@p", "HTTP/1.1 407 x\r\n\r\n", "it refused user and password (HTTP 407)"),
            ("http://p", "\x05\u{1}", "it does not answer in HTTP"),
            ("http://p", "SSH-2.0-OpenSSH_9.2\r\n", "it does not answer in HTTP"),
            ("http://p", "HTTP/1.1 099 x\r\n\r\n", "it does not answer in HTTP"),
            ("http://p", &large, "its answer's head is larger than 64 KiB"),
            ("http://p", &many, "its answer has more than 100 headers"),
            ("http://p", &endless, "it sent more than 64 KiB of interim answers"),
        ];
        for (proxy, answers, expected) in table {
            for piece in [1, 1 << 20] {
                let failed = converse(proxy, &name("h"), answers.as_bytes(), piece).unwrap_err();
                assert_eq!(failed, expected, "{answers:.60}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_pieces_make_no_difference(
            socks in any::<bool>(), auth in any::<bool>(), begun in any::<bool>(), piece in 1..9_usize,
            mut bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0..9_u8, Just(b'\n')], 0..200),
        ) {
            let scheme = if socks { "socks5" } else { "http" };
            let user = if auth { "hunter2:hunter2@" } else { "" };
            if begun {
                let begin = if socks { &b"\x05\0\x05\0\0"[..] } else { b"HTTP/1.1 200 x\r\n" };
                bytes.splice(..0, begin.iter().copied());
            }
            let proxy = format!("{scheme}://{user}p");
            let whole = converse(&proxy, &name("h"), &bytes, 1 << 20);
            if let Err(why) = &whole {
                prop_assert!(!why.contains("hunter2"));
            }
            match (converse(&proxy, &name("h"), &bytes, piece), whole) {
                // An error may be found before the end of what is wrong.
                (Err(_), Err(_)) => {}
                (pieces, whole) => prop_assert_eq!(pieces, whole),
            }
        }
    }
}
