//! The transparent form: an opening handshake that passes end to end, so that client and target agree on key, accept,
//! subprotocol and extensions with each other.
//!
//! Owns which headers pass, in both directions. What passes does so as it was written and in its order.
use percent_encoding::percent_decode;

use super::target::Target;

/// From so many bytes on, a key that stands somewhere in a header is no chance.
const MIN_TELLING: usize = 16;

/// The most headers of a head that passes.
const MAX_HEADERS: usize = 100;

/// Headers of ours in the answer; the target's own of these names do not pass.
const NODE_ID: &str = "Ringway-Node-Id";
const SESSION_ID: &str = "Ringway-Session-Id";

/// Where the client's API key was found, which decides what of its request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyCameIn {
    /// `X-API-Key`.
    Header,
    /// A page that opened this address in somebody's browser would send along what that browser holds for the gateway's
    /// name, so `Cookie` and `Authorization` do not pass.
    Query,
    /// `Authorization: Bearer`.
    Bearer,
}

/// The head of the request to the target, made of the client's: its headers, but for those that belong to one hop, carry
/// its key (`secret`), or tell who it is. `Host` is the target's.
pub fn request_head(target: &Target, headers: &[(String, Vec<u8>)], key: KeyCameIn, secret: &str) -> Vec<u8> {
    let options = ConnectionOptions::of(headers.iter().map(|(name, value)| (name.as_str(), &value[..])));
    let mut out = format!("GET {} HTTP/1.1\r\n", target.path_and_query).into_bytes();
    let mut authorized = false;
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        if lower == "host" {
            line(&mut out, name, target.authority().as_bytes());
            continue;
        }
        // In whatever else it stands: the same key as a bearer, the address as a proxy in front has noted it.
        let holds_key = !lower.starts_with("sec-websocket-") && holds(value, secret);
        let carried_key = holds_key
            || match key {
                KeyCameIn::Header => false,
                KeyCameIn::Query => matches!(lower.as_str(), "cookie" | "authorization"),
                KeyCameIn::Bearer => lower == "authorization",
            };
        let passes =
            !carried_key && lower != "x-api-key" && !tells_who(&lower) && !of_one_hop(&lower) && !options.name(&lower);
        if passes {
            authorized |= lower == "authorization";
            line(&mut out, name, value);
        }
    }
    if let (Some(basic), false) = (&target.basic, authorized) {
        line(&mut out, "Authorization", basic.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The head of the answer to the client, made of the target's 101. `None`: that is no such head.
pub fn answer_head(head: &[u8], node_id: &str, session_id: &str) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    if answer.parse(head) != Ok(httparse::Status::Complete(head.len())) || answer.code != Some(101) {
        return None;
    }
    let headers = answer.headers.iter().map(|header| (header.name, header.value));
    let options = ConnectionOptions::of(headers.clone());
    let mut out = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        let ours = [NODE_ID, SESSION_ID].iter().any(|ours| ours.eq_ignore_ascii_case(name));
        if !ours && !of_the_targets_name(&lower) && !of_one_hop(&lower) && !options.name(&lower) {
            line(&mut out, name, value);
        }
    }
    line(&mut out, NODE_ID, node_id.as_bytes());
    line(&mut out, SESSION_ID, session_id.as_bytes());
    out.extend_from_slice(b"\r\n");
    Some(out)
}

/// Whether that key stands in a header's value, percent-encoded or not.
fn holds(value: &[u8], secret: &str) -> bool {
    let stands_in = |value: &[u8]| value.windows(secret.len()).any(|part| part == secret.as_bytes());
    secret.len() >= MIN_TELLING && (stands_in(value) || stands_in(&percent_decode(value).collect::<Vec<u8>>()))
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The headers that `Connection` names: they are for one hop (RFC 9110 section 7.6.1).
struct ConnectionOptions(Vec<String>);

impl ConnectionOptions {
    fn of<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        let lists = headers.filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
        let options = lists.flat_map(|(_, list)| list.split(|byte| *byte == b','));
        Self(options.map(|option| String::from_utf8_lossy(option).trim().to_ascii_lowercase()).collect())
    }

    /// Whether it names this header. What the opening handshake is made of passes nevertheless.
    fn name(&self, lower: &str) -> bool {
        let of_the_handshake = lower == "connection" || lower == "upgrade" || lower.starts_with("sec-websocket-");
        !of_the_handshake && self.0.iter().any(|option| option == lower)
    }
}

/// RFC 9110 section 7.6.1 without `Connection` and `Upgrade`, of which the opening handshake is made; and what frames a
/// body, of which there is none.
fn of_one_hop(lower: &str) -> bool {
    matches!(lower, "keep-alive" | "te" | "trailer" | "transfer-encoding" | "content-length")
        || lower.starts_with("proxy-")
}

/// What a proxy in front of the gateway has noted of the client.
fn tells_who(lower: &str) -> bool {
    matches!(lower, "forwarded" | "x-real-ip" | "via" | "true-client-ip")
        || lower.starts_with("x-forwarded-")
        || lower.starts_with("cf-")
}

/// What a target says for its own name, which a browser would take as the gateway's.
fn of_the_targets_name(lower: &str) -> bool {
    matches!(lower, "set-cookie" | "set-cookie2" | "strict-transport-security" | "alt-svc" | "clear-site-data")
        || lower.starts_with("access-control-")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HANDSHAKE: &str = "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: k\r\n";

    fn passed(url: &str, headers: &str, key: KeyCameIn) -> String {
        let headers: Vec<_> = headers
            .split_terminator("\r\n")
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
            .collect();
        let head = request_head(&Target::parse(url).unwrap(), &headers, key, "rw_0123456789 +%");
        String::from_utf8(head).unwrap()
    }

    #[test]
    fn a_request_passes_as_it_was_written() {
        let ours = "hOST: target.example:81\r\n";
        let rest = format!("{HANDSHAKE}sec-websocket-extensions: permessage-deflate; x=1\r\nX-a: 1\r\nx-A: 2\r\n");
        let head = passed("ws://target.example:81/p?q", &format!("hOST: gateway\r\n{rest}"), KeyCameIn::Header);
        assert_eq!(head, format!("GET /p?q HTTP/1.1\r\n{ours}{rest}\r\n"));
    }

    #[test]
    fn what_belongs_to_a_hop_or_tells_who_does_not_pass() {
        for name in [
            "Keep-Alive",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Content-Length",
            "Proxy-Authorization",
            "Forwarded",
            "X-Forwarded-For",
            "X-Forwarded-Client-Cert",
            "x-real-ip",
            "VIA",
            "True-Client-IP",
            "CF-Connecting-IP",
            "X-API-Key",
            "X-Named",
        ] {
            let named = "Connection: x-named, Upgrade, sec-websocket-key\r\nSec-WebSocket-Key: k\r\n";
            let head = passed("ws://h/", &format!("Host: g\r\n{named}{name}: secret\r\n"), KeyCameIn::Header);
            assert_eq!(head, format!("GET / HTTP/1.1\r\nHost: h\r\n{named}\r\n"), "{name}");
        }
    }

    #[test]
    fn what_carried_the_key_does_not_pass() {
        let (authorization, cookie) = ("Authorization: Bearer b\r\n", "Cookie: a=b\r\n");
        for (key, expected) in [
            (KeyCameIn::Header, format!("{authorization}{cookie}")),
            (KeyCameIn::Bearer, cookie.to_owned()),
            (KeyCameIn::Query, String::new()),
        ] {
            let head = passed("ws://h/", &format!("Host: g\r\n{authorization}{cookie}"), key);
            assert_eq!(head, format!("GET / HTTP/1.1\r\nHost: h\r\n{expected}\r\n"), "{key:?}");
        }
    }

    #[test]
    fn a_key_does_not_pass_in_any_other_header() {
        for line in [
            "Authorization: Bearer rw_0123456789 +%",
            "X-Original-URI: /ws?url=ws://h/&key=rw_0123456789%20%2b%25",
            "Referer: http://g/ws?key=rw_0123456789 +%&url=x",
        ] {
            let head = passed("ws://h/", &format!("Host: g\r\n{line}\r\nX-Like: rw_0123456789\r\n"), KeyCameIn::Header);
            assert_eq!(head, "GET / HTTP/1.1\r\nHost: h\r\nX-Like: rw_0123456789\r\n\r\n", "{line}");
        }
    }

    #[test]
    fn credentials_of_the_url_are_sent_unless_others_pass() {
        let url = "ws://u:p@h/";
        let head = passed(url, "Host: g\r\nAuthorization: Bearer b\r\n", KeyCameIn::Bearer);
        assert_eq!(head, "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Basic dTpw\r\n\r\n");
        let head = passed(url, "Host: g\r\nAuthorization: Bearer b\r\n", KeyCameIn::Header);
        assert_eq!(head, "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer b\r\n\r\n");
    }

    #[test]
    fn an_answer_passes_without_what_is_the_targets_own() {
        let passes = format!("{HANDSHAKE}Sec-WebSocket-Accept: a\r\nX-Odd: \u{fc}\r\nServer: s\r\n");
        let stays = "Set-Cookie: a=b\r\nset-cookie2: c\r\nStrict-Transport-Security: x\r\nAlt-Svc: x\r\n\
            Clear-Site-Data: x\r\nAccess-Control-Allow-Origin: *\r\nKeep-Alive: 5\r\nContent-Length: 0\r\n\
            ringway-node-id: forged\r\nRingway-Session-Id: forged\r\n";
        let head = format!("HTTP/1.1 101 Whatever\r\n{passes}{stays}\r\n");
        let ours = "Ringway-Node-Id: node\r\nRingway-Session-Id: 0a\r\n";
        let expected = format!("HTTP/1.1 101 Switching Protocols\r\n{passes}{ours}\r\n");
        let answer = answer_head(head.as_bytes(), "node", "0a").unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), expected);
    }

    /// A header as it can come in: its name is often one that means something here.
    fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
        const KNOWN: [&str; 8] =
            ["Host", "Connection", "Upgrade", "Cookie", "Authorization", "X-API-Key", "Via", "Set-Cookie"];
        let name =
            prop_oneof![prop::sample::select(&KNOWN[..]).prop_map(str::to_owned), "[!#-'*+.0-9A-Z^_`a-z|~-]{1,9}"];
        // What a parser leaves of a value: no control character but tab, no white space around it.
        let byte = prop_oneof![Just(b'\t'), 0x20..0x7Fu8, 0x80..=0xFFu8];
        let value = prop::collection::vec(byte, 0..40).prop_map(|value| value.trim_ascii().to_vec());
        (name, value)
    }

    proptest! {
        #[test]
        fn what_goes_on_is_one_head_of_the_same_headers(
            headers in prop::collection::vec(header(), 0..20),
            key in prop::sample::select(&[KeyCameIn::Header, KeyCameIn::Query, KeyCameIn::Bearer][..]),
        ) {
            let target = Target::parse("ws://u:p@h.example/p").unwrap();
            let head = request_head(&target, &headers, key, "rw_0123456789abc");
            let mut parsed = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut parsed);
            prop_assert_eq!(request.parse(&head), Ok(httparse::Status::Complete(head.len())));
            let ours = [("Authorization", &b"Basic dTpw"[..]), ("Host", b"h.example")];
            let mut given = headers.iter();
            for header in request.headers.iter() {
                let is_ours = ours.iter().any(|(name, value)| header.name.eq_ignore_ascii_case(name) && header.value == *value);
                let from_client = given.clone().position(|(name, value)| name == header.name && value == header.value);
                match from_client {
                    Some(at) => drop(given.nth(at)),
                    None => prop_assert!(is_ours, "{} was made up, or comes too late", header.name),
                }
            }
            let answer = [&b"HTTP/1.1 101 X\r\n"[..], &head[head.windows(2).position(|two| two == b"\r\n").unwrap() + 2..]].concat();
            let answer = answer_head(&answer, "n", "s").unwrap();
            let mut response = httparse::Response::new(&mut parsed);
            prop_assert_eq!(response.parse(&answer), Ok(httparse::Status::Complete(answer.len())));
        }
    }

    #[test]
    fn what_is_no_answer() {
        for head in ["", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 101 X\r\n", "HTTP/1.1 101 X\r\n\r\nmore", "\x16\x03"] {
            assert_eq!(answer_head(head.as_bytes(), "n", "s"), None, "{head:?}");
        }
    }
}
