//! HTTP/1.1 of the public listener: reads request heads, writes answers. Nothing here knows what a path means.
//!
//! Written over httparse, since `/ws` needs header names and their order as they came, and the bytes behind the head.
use std::{borrow::Cow, time::SystemTime};

use serde::Serialize;

use crate::protocol::{answer::Failure, opening};

/// The longest request line, in bytes.
const MAX_REQUEST_LINE: usize = 16 * 1024;
/// The longest request head, in bytes, and its most headers.
pub const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;

/// A request head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: Option<String>,
    headers: Vec<(String, Vec<u8>)>,
    /// The connection may carry another request behind the answer to this one.
    pub keep_alive: bool,
    /// Bytes follow that are the request's body, and no frames.
    pub has_body: bool,
    http_1_0: bool,
}

/// A request that is answered with an error, without anybody looking at what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRequest {
    /// 400, with the reason.
    Broken(&'static str),
    /// 414.
    LineTooLong,
    /// 431.
    HeadTooLarge,
}

/// Finds the head's end as bytes come in, and parses it once it is whole.
#[derive(Debug, Default)]
pub struct HeadReader {
    /// Before this there is no end.
    searched: usize,
    /// When to look again whether this can become a request at all.
    next_look: usize,
}

impl HeadReader {
    /// Takes a whole head from the front of `input`; `None` while it is not whole.
    ///
    /// # Errors
    /// What is there is no request, or too large a one.
    pub fn next(&mut self, input: &mut Vec<u8>) -> Result<Option<Request>, BadRequest> {
        // RFC 9112 section 2.2: an empty line in front of a request line is to be ignored.
        let empty = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if empty > 0 && self.searched == 0 {
            input.drain(..empty);
        }
        let Some(end) = self.find_end(input) else {
            check_line(input)?;
            if input.len() >= MAX_HEAD {
                return Err(BadRequest::HeadTooLarge);
            }
            // Garbage is refused when it comes, not when its time is over. Looked at when the input has doubled, so
            // that a head that comes byte by byte costs no more than twice its length.
            if input.len() >= self.next_look {
                self.next_look = input.len() * 2;
                parse(input)?;
            }
            return Ok(None);
        };
        check_line(&input[..end])?;
        if end > MAX_HEAD {
            return Err(BadRequest::HeadTooLarge);
        }
        let request = parse(&input[..end])?;
        input.drain(..end);
        *self = Self::default();
        Ok(request)
    }

    fn find_end(&mut self, input: &[u8]) -> Option<usize> {
        let from = std::mem::replace(&mut self.searched, input.len());
        opening::head_end(input, from)
    }
}

fn check_line(head: &[u8]) -> Result<(), BadRequest> {
    let line = head.iter().take(MAX_REQUEST_LINE + 1).position(|byte| *byte == b'\n');
    if line.is_none() && head.len() > MAX_REQUEST_LINE { Err(BadRequest::LineTooLong) } else { Ok(()) }
}

fn parse(head: &[u8]) -> Result<Option<Request>, BadRequest> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(BadRequest::HeadTooLarge),
        Err(_) => return Err(BadRequest::Broken("not an HTTP/1.1 request")),
    }
    let target = origin_form(parsed.path.unwrap_or_default());
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let headers = parsed.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec()));
    let mut request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.map(str::to_owned),
        headers: headers.collect(),
        keep_alive: false,
        has_body: false,
        http_1_0: parsed.version == Some(0),
    };
    // RFC 9112 section 3.2.
    match request.all("host").collect::<Vec<_>>()[..] {
        [host] if is_host(host) => {}
        [] if request.http_1_0 => {}
        [] => return Err(BadRequest::Broken("the Host header is missing")),
        [_] => return Err(BadRequest::Broken("the Host header is not a host")),
        _ => return Err(BadRequest::Broken("more than one Host header")),
    }
    let chunked = request.has("transfer-encoding");
    let lengths: Vec<&[u8]> = request.all("content-length").collect();
    let has_body = match lengths[..] {
        [] => chunked,
        // RFC 9112 section 6.3: such requests are how smuggling is done.
        _ if chunked => return Err(BadRequest::Broken("both Content-Length and Transfer-Encoding")),
        [length] if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            length.iter().any(|digit| *digit != b'0')
        }
        _ => return Err(BadRequest::Broken("Content-Length is not a number")),
    };
    request.has_body = has_body;
    // Nothing here takes a body: what would be one is not read, so the connection cannot go on behind it.
    request.keep_alive = !request.http_1_0 && !request.lists("connection", "close") && !has_body;
    Ok(Some(request))
}

/// RFC 9112 section 3.2.2: a server takes `http://host/path` too. Every other target is its own path, which nothing is
/// found at.
fn origin_form(target: &str) -> &str {
    let absolute = ["http://", "https://"].iter().find_map(|scheme| {
        let given = target.get(..scheme.len())?;
        given.eq_ignore_ascii_case(scheme).then(|| &target[scheme.len()..])
    });
    match absolute {
        Some(rest) => rest.find(['/', '?']).map_or("/", |path| &rest[path..]),
        None => target,
    }
}

/// RFC 3986 section 3.2: what a host with its port is made of. An empty one is legal.
fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

impl Request {
    /// The value of a header as text; `None` if it is not there, or not ASCII or UTF-8. The first, if there are many.
    pub fn header<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All of them, as they came.
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    pub fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// Whether a header that holds a comma list has this item, in any case.
    pub fn lists(&self, name: &str, item: &str) -> bool {
        self.values(name).flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(item))
    }

    /// The values of all headers of that name that are text.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.all(name).filter_map(|value| std::str::from_utf8(value).ok())
    }

    /// RFC 6455 section 4.2.1: whether this asks for a WebSocket.
    pub fn wants_websocket(&self) -> bool {
        self.upgrades_to("websocket")
    }

    /// Whether this asks for an upgrade (RFC 9110 section 7.8) to that protocol.
    pub fn upgrades_to(&self, protocol: &str) -> bool {
        self.lists("upgrade", protocol) && self.lists("connection", "upgrade") && !self.http_1_0
    }

    /// The bearer token of the request (RFC 6750 section 2.1).
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
    }

    /// Whether Sec-WebSocket-Version is there once and says 13.
    pub fn is_version_13(&self) -> bool {
        self.all("sec-websocket-version").collect::<Vec<_>>() == [b"13"]
    }

    /// The value of Sec-WebSocket-Key.
    ///
    /// # Errors
    /// It is missing, or there are many.
    pub fn websocket_key(&self) -> Result<&[u8], BadRequest> {
        let mut keys = self.all("sec-websocket-key");
        match (keys.next(), keys.next()) {
            (Some(key), None) => Ok(key),
            (None, _) => Err(BadRequest::Broken("the Sec-WebSocket-Key header is missing")),
            _ => Err(BadRequest::Broken("more than one Sec-WebSocket-Key header")),
        }
    }

    /// The value of Sec-WebSocket-Accept for this request's key.
    ///
    /// # Errors
    /// The key is missing, there are many, or it is not 16 bytes in base64.
    pub fn websocket_accept(&self) -> Result<String, BadRequest> {
        let key = self.websocket_key()?;
        if !opening::is_key(key) {
            return Err(BadRequest::Broken("Sec-WebSocket-Key is not 16 bytes in base64"));
        }
        Ok(opening::accept_for(key))
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| &value[..])
    }
}

/// The body of every error, in the order in which errors are written everywhere.
#[derive(Serialize)]
struct Error<'a> {
    r#type: &'static str,
    message: &'a str,
    code: &'a str,
}

/// An answer, as a rule with a JSON body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    status: u16,
    content_type: &'static str,
    /// Of an error.
    code: Option<&'static str>,
    headers: Vec<(&'static str, String)>,
    body: Cow<'static, str>,
    /// The answer to HEAD: all but the body (RFC 9110 section 9.3.2).
    head_only: bool,
}

impl Response {
    pub fn json(status: u16, body: impl Into<Cow<'static, str>>) -> Self {
        Self::text(status, "application/json", body)
    }

    /// A body that is something else.
    pub fn text(status: u16, content_type: &'static str, body: impl Into<Cow<'static, str>>) -> Self {
        Self { status, content_type, code: None, headers: Vec::new(), body: body.into(), head_only: false }
    }

    /// An error, in the shape that all errors of the gateway have.
    pub fn error(status: u16, code: &'static str, message: &str) -> Self {
        let body = serde_json::to_string(&Error { r#type: "error", message, code }).unwrap_or_default();
        Self { code: Some(code), ..Self::json(status, body) }
    }

    /// An error's code.
    pub fn code(&self) -> Option<&'static str> {
        self.code
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Fits it to the request that it answers.
    pub fn to(self, request: &Request) -> Self {
        Self { head_only: request.method == "HEAD", ..self }
    }

    pub fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let mut out = format!(
            "HTTP/1.1 {} {}\r\nDate: {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n",
            self.status,
            reason(self.status),
            httpdate::fmt_http_date(SystemTime::now()),
            self.content_type,
            self.body.len()
        );
        for (name, value) in &self.headers {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        // RFC 9110 section 7.8: who sends Upgrade names it in Connection too.
        let upgrade = self.headers.iter().any(|(name, _)| *name == "Upgrade").then_some("Upgrade");
        let connection: Vec<&str> = upgrade.into_iter().chain((!keep_alive).then_some("close")).collect();
        if !connection.is_empty() {
            out.push_str(&format!("Connection: {}\r\n", connection.join(", ")));
        }
        out.push_str("\r\n");
        if !self.head_only {
            out.push_str(&self.body);
        }
        out.into_bytes()
    }
}

impl From<&Failure> for Response {
    fn from(failure: &Failure) -> Self {
        let body = String::from_utf8(failure.to_json()).unwrap_or_default();
        let mut answer = Self { code: Some(failure.code()), ..Self::json(failure.status(), body) };
        if let Some(after) = failure.retry_after() {
            // RFC 9110 section 10.2.3: whole seconds, and who comes then must not come too early.
            answer = answer.with("Retry-After", after.as_nanos().div_ceil(1_000_000_000).max(1).to_string());
        }
        if *failure == Failure::InvalidKey {
            answer = answer.with("WWW-Authenticate", "Bearer");
        }
        answer
    }
}

impl From<BadRequest> for Response {
    fn from(bad: BadRequest) -> Self {
        match bad {
            BadRequest::Broken(reason) => Self::error(400, "invalid_request", &format!("Bad request: {reason}")),
            BadRequest::LineTooLong => Self::error(414, "uri_too_long", "The request line is longer than 16 KiB"),
            BadRequest::HeadTooLarge => Self::error(
                431,
                "head_too_large",
                "The request head is larger than 64 KiB, or has more than 100 headers",
            ),
        }
    }
}

/// The answer to a WebSocket opening handshake (RFC 6455 section 4.2.2): no extension, no subprotocol.
pub fn switching_protocols(accept: &str) -> Vec<u8> {
    switching_to("websocket", &[("Sec-WebSocket-Accept", accept)])
}

/// The answer to an upgrade to that protocol (RFC 9110 section 15.2.2), with these headers behind the two of its own.
pub fn switching_to(protocol: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n");
    for (name, value) in headers {
        answer += &format!("{name}: {value}\r\n");
    }
    answer += "\r\n";
    answer.into_bytes()
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<Request>, BadRequest> {
        HeadReader::default().next(&mut bytes.to_vec())
    }

    #[test]
    fn a_head_comes_whole_whatever_the_pieces() {
        let head = b"GET /ws?a=b HTTP/1.1\r\nHost: h\r\nX-Y: z\r\n\r\n";
        let whole = read(head).unwrap().unwrap();
        assert_eq!((&whole.path[..], whole.query.as_deref(), whole.header("x-y")), ("/ws", Some("a=b"), Some("z")));
        let mut reader = HeadReader::default();
        let mut input = b"\r\n".to_vec();
        for (at, byte) in head.iter().enumerate() {
            input.push(*byte);
            let request = reader.next(&mut input).unwrap();
            assert_eq!(request.is_some(), at + 1 == head.len(), "byte {at}");
            if let Some(request) = request {
                assert_eq!(request, whole);
            }
        }
        assert!(input.is_empty());
    }

    #[test]
    fn absolute_targets_are_paths_too() {
        for (target, path, query) in [
            ("/ws?a", "/ws", Some("a")),
            ("http://h/ws?a", "/ws", Some("a")),
            ("HTTPS://h:1", "/", None),
            ("http://h?a", "", Some("a")),
            ("*", "*", None),
            ("http:/ws", "http:/ws", None),
        ] {
            let request = read(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap().unwrap();
            assert_eq!((&request.path[..], request.query.as_deref()), (path, query), "{target}");
        }
    }

    #[test]
    fn what_follows_stays() {
        let mut input = b"GET / HTTP/1.1\nHost: h\n\nGET /next HTTP/1.1\r\nHost: h\r\n\r\n\x81".to_vec();
        let mut reader = HeadReader::default();
        assert_eq!(reader.next(&mut input).unwrap().unwrap().path, "/");
        assert_eq!(reader.next(&mut input).unwrap().unwrap().path, "/next");
        assert_eq!(input, b"\x81");
    }

    #[test]
    fn broken_requests() {
        let many: String = (0..101).map(|number| format!("H{number}: v\r\n")).collect();
        for (head, expected) in [
            ("\x16\x03\x01\x02\x00\x01\x00".to_owned(), BadRequest::Broken("not an HTTP/1.1 request")),
            ("GET /\r\n\r\n".into(), BadRequest::Broken("not an HTTP/1.1 request")),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n".into(), BadRequest::Broken("not an HTTP/1.1 request")),
            ("GET / HTTP/1.1\r\n\r\n".into(), BadRequest::Broken("the Host header is missing")),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), BadRequest::Broken("more than one Host header")),
            ("GET / HTTP/1.1\r\nHost: a\"b\r\n\r\n".into(), BadRequest::Broken("the Host header is not a host")),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n".into(), BadRequest::Broken("the Host header is not a host")),
            (
                "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                BadRequest::Broken("both Content-Length and Transfer-Encoding"),
            ),
            (
                "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n".into(),
                BadRequest::Broken("Content-Length is not a number"),
            ),
            (format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(16 * 1024)), BadRequest::LineTooLong),
            (format!("GET /{}", "x".repeat(16 * 1024)), BadRequest::LineTooLong),
            (format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "x".repeat(64 * 1024)), BadRequest::HeadTooLarge),
            (format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024)), BadRequest::HeadTooLarge),
            (format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n"), BadRequest::HeadTooLarge),
        ] {
            assert_eq!(read(head.as_bytes()).unwrap_err(), expected, "{:.60}", head);
        }
    }

    #[test]
    fn a_body_ends_keep_alive() {
        for (headers, keep_alive) in [
            ("", true),
            ("Content-Length: 0\r\n", true),
            ("Content-Length: 5\r\n", false),
            ("Transfer-Encoding: chunked\r\n", false),
            ("Connection: x, Close\r\n", false),
        ] {
            let request = read(format!("POST / HTTP/1.1\r\nHost: h\r\n{headers}\r\n").as_bytes()).unwrap().unwrap();
            assert_eq!(request.keep_alive, keep_alive, "{headers}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut reader = HeadReader::default();
            let mut input = Vec::new();
            for chunk in chunks {
                input.extend(chunk);
                if reader.next(&mut input).is_err() {
                    break;
                }
            }
        }
    }
}
