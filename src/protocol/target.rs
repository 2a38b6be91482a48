//! The target's address: what a client's `url` says, taken apart once.
//!
//! Owns the reading of a target URL (RFC 6455 section 3, parsed as the WHATWG URL Standard has it, which is what
//! browsers do) and the forms in which its parts are needed: dialled, on the request line, in `Host`, for the
//! certificate, in a log. The egress policy, the resolver and the handshake all see this one reading, so no two of
//! them can disagree about who the target is. Must never resolve or judge a host, and must never show path, query or
//! credentials in an error, in `Debug` or in a log form.
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use thiserror::Error;
use url::Url;

/// A WebSocket server to dial.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// `wss://`, so TLS.
    pub tls: bool,
    pub host: Host,
    /// The port to dial, the scheme's default filled in.
    pub port: u16,
    /// What goes on the request line: at least `/`, ASCII, nothing in it that would end the line or the word.
    pub path_and_query: String,
    /// From `user:pass@`: a ready-made `Authorization` value, `Basic …` (RFC 7617).
    pub basic: Option<String>,
}

/// Who the target is: a name still to be resolved, or an address that needs no resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Lower case and in ASCII (RFC 5891), with the trailing dot if the URL has one.
    Name(String),
    /// Numeric IPv4 spellings (`0x7f.1`, `2130706433`) have become addresses here.
    Ip(IpAddr),
}

/// Why a text is no target. None of the messages repeats more of the text than its scheme.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    #[error("must start with ws:// or wss://")]
    NoScheme,
    #[error("must start with ws:// or wss://, not {0}://")]
    OtherScheme(String),
    #[error("must not contain control characters")]
    ControlCharacter,
    #[error("must not have a fragment (write # as %23)")]
    Fragment,
    #[error("has no host")]
    NoHost,
    #[error("has an illegal host name")]
    HostName,
    #[error("port 0 cannot be dialled")]
    PortZero,
    #[error("not a URL: {0}")]
    NotAUrl(url::ParseError),
}

impl Target {
    /// Reads a `ws://` or `wss://` URL (RFC 6455 section 3).
    ///
    /// White space around it is ignored, as in a browser's address bar; path and query are percent-encoded where
    /// they must be, and dot segments in the path are resolved.
    ///
    /// # Errors
    /// Another scheme, a fragment (even an empty one), control characters, no host, one that cannot be a host
    /// name, port 0, and whatever else the URL Standard refuses.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        // The URL Standard drops tabs and line ends, and reads `ws:host` and `ws:///host` as `ws://host`. Refused
        // here: who writes that means something else.
        if text.chars().any(|c| c.is_ascii_control()) {
            return Err(TargetError::ControlCharacter);
        }
        let (tls, rest) = split_scheme(text)?;
        if rest.is_empty() || rest.starts_with(['/', '\\', '?', '#']) {
            return Err(TargetError::NoHost);
        }
        let url = Url::parse(text).map_err(|error| match error {
            url::ParseError::EmptyHost => TargetError::NoHost,
            other => TargetError::NotAUrl(other),
        })?;
        if url.fragment().is_some() {
            return Err(TargetError::Fragment);
        }
        let port = url.port_or_known_default().unwrap_or_else(|| default_port(tls));
        if port == 0 {
            return Err(TargetError::PortZero);
        }
        Ok(Self { tls, host: Host::of(&url)?, port, path_and_query: path_and_query(&url), basic: basic(&url) })
    }

    /// The value of the `Host` header: without the scheme's default port, IPv6 in brackets (RFC 9110 section 7.2).
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == default_port(self.tls) { self.host.to_string() } else { self.host_and_port() }
    }

    /// The URL that [`Self::parse`] makes this target of again, but for the credentials: its port always written, IPv6
    /// in brackets. Path and query are in it, so it is not for logs.
    #[must_use]
    pub fn to_url(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.host_and_port(), self.path_and_query)
    }

    /// `ws` or `wss`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls { "wss" } else { "ws" }
    }

    /// The form for logs: host and port, and nothing that could be a secret.
    #[must_use]
    pub fn host_and_port(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The name that the certificate must be for: without the trailing dot, which RFC 6066 section 3 forbids in SNI;
    /// an IPv6 address without brackets.
    #[must_use]
    pub fn server_name(&self) -> String {
        self.host.server_name()
    }
}

/// Scheme, host and port only.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({}://{})", self.scheme(), self.host_and_port())
    }
}

impl Host {
    /// The longest name that DNS can carry, written without its trailing dot (RFC 1035 section 2.3.4).
    const NAME_MAX_BYTES: usize = 253;

    /// As [`Target::server_name`].
    #[must_use]
    pub fn server_name(&self) -> String {
        match self {
            Self::Name(name) => name.strip_suffix('.').unwrap_or(name).to_owned(),
            Self::Ip(ip) => ip.to_string(),
        }
    }

    pub(super) fn of(url: &Url) -> Result<Self, TargetError> {
        match url.host() {
            Some(url::Host::Domain(name)) => {
                let bare = name.strip_suffix('.').unwrap_or(name);
                if bare.len() > Self::NAME_MAX_BYTES || bare.split('.').any(str::is_empty) {
                    return Err(TargetError::HostName);
                }
                Ok(Self::Name(name.to_owned()))
            }
            Some(url::Host::Ipv4(ip)) => Ok(Self::Ip(ip.into())),
            Some(url::Host::Ipv6(ip)) => Ok(Self::Ip(ip.into())),
            None => Err(TargetError::NoHost),
        }
    }
}

/// As in a URL: IPv6 in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{}]", shortest(*ip)),
        }
    }
}

/// The URL Standard's spelling (RFC 5952 without dotted quads), so that `Host` says what a browser would say.
fn shortest(ip: Ipv6Addr) -> String {
    url::Host::<&str>::Ipv6(ip).to_string().trim_matches(['[', ']']).to_owned()
}

/// Whether it is `wss`, and what follows the `://`.
fn split_scheme(text: &str) -> Result<(bool, &str), TargetError> {
    let (scheme, rest) = text.split_once("://").ok_or(TargetError::NoScheme)?;
    match scheme.to_ascii_lowercase().as_str() {
        "ws" => Ok((false, rest)),
        "wss" => Ok((true, rest)),
        other if looks_like_a_scheme(other) => Err(TargetError::OtherScheme(other.to_owned())),
        _ => Err(TargetError::NoScheme),
    }
}

/// Whether the word can be shown to the client again: a short one of the letters that RFC 3986 section 3.1 allows.
pub(super) fn looks_like_a_scheme(word: &str) -> bool {
    const SHOWN_MAX_BYTES: usize = 16;
    (1..=SHOWN_MAX_BYTES).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn path_and_query(url: &Url) -> String {
    match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    }
}

/// `user:pass@` as RFC 7617 wants it: the bytes that the percent-encoding stands for, joined and in base64.
fn basic(url: &Url) -> Option<String> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut user_pass: Vec<u8> = percent_decode_str(url.username()).collect();
    user_pass.push(b':');
    user_pass.extend(percent_decode_str(url.password().unwrap_or_default()));
    Some(format!("Basic {}", STANDARD.encode(user_pass)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Target {
        Target::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn scheme_host_and_port() {
        // url, tls, host in URL form, port, authority, server name
        let table = [
            ("ws://relay.example.com", false, "relay.example.com", 80, "relay.example.com", "relay.example.com"),
            ("wss://relay.example.com/", true, "relay.example.com", 443, "relay.example.com", "relay.example.com"),
            ("WsS://Relay.Example.COM", true, "relay.example.com", 443, "relay.example.com", "relay.example.com"),
            ("ws://a.example:80/", false, "a.example", 80, "a.example", "a.example"),
            ("ws://a.example:443/", false, "a.example", 443, "a.example:443", "a.example"),
            ("wss://a.example:80/", true, "a.example", 80, "a.example:80", "a.example"),
            ("wss://a.example:8443/", true, "a.example", 8443, "a.example:8443", "a.example"),
            ("ws://a.example:/", false, "a.example", 80, "a.example", "a.example"),
            ("ws://a.example:65535/", false, "a.example", 65535, "a.example:65535", "a.example"),
            ("wss://a.example.:8443", true, "a.example.", 8443, "a.example.:8443", "a.example"),
            ("ws://localhost:9001", false, "localhost", 9001, "localhost:9001", "localhost"),
            ("ws://my_host:1/", false, "my_host", 1, "my_host:1", "my_host"),
            (
                "ws://bücher.example/",
                false,
                "xn--bcher-kva.example",
                80,
                "xn--bcher-kva.example",
                "xn--bcher-kva.example",
            ),
            ("ws://%61.example/", false, "a.example", 80, "a.example", "a.example"),
            ("ws://127.0.0.1:9001", false, "127.0.0.1", 9001, "127.0.0.1:9001", "127.0.0.1"),
            ("ws://127.1", false, "127.0.0.1", 80, "127.0.0.1", "127.0.0.1"),
            ("ws://0x7f.1/", false, "127.0.0.1", 80, "127.0.0.1", "127.0.0.1"),
            ("ws://2130706433/", false, "127.0.0.1", 80, "127.0.0.1", "127.0.0.1"),
            ("ws://0177.0.0.1/", false, "127.0.0.1", 80, "127.0.0.1", "127.0.0.1"),
            ("ws://127.0.0.1./", false, "127.0.0.1", 80, "127.0.0.1", "127.0.0.1"),
            ("ws://１２７.0.0.1/", false, "127.0.0.1", 80, "127.0.0.1", "127.0.0.1"),
            ("ws://[::1]/", false, "[::1]", 80, "[::1]", "::1"),
            ("wss://[2001:DB8::0:1]:8443/", true, "[2001:db8::1]", 8443, "[2001:db8::1]:8443", "2001:db8::1"),
            ("ws://user:pw@a.example:81/", false, "a.example", 81, "a.example:81", "a.example"),
            ("  ws://a.example\n", false, "a.example", 80, "a.example", "a.example"),
        ];
        for (text, tls, host, port, authority, server_name) in table {
            let target = parse(text);
            assert_eq!((target.tls, target.port), (tls, port), "{text}");
            assert_eq!(target.host.to_string(), host, "{text}");
            assert_eq!(target.authority(), authority, "{text}");
            assert_eq!(target.host_and_port(), format!("{host}:{port}"), "{text}");
            assert_eq!(target.server_name(), server_name, "{text}");
        }
    }

    #[test]
    fn an_address_is_an_address_however_it_is_written() {
        for text in ["ws://127.0.0.1", "ws://0x7f.1", "ws://2130706433", "ws://017700000001"] {
            assert_eq!(parse(text).host, Host::Ip([127, 0, 0, 1].into()), "{text}");
        }
        let mapped = parse("ws://[::ffff:127.0.0.1]/");
        assert_eq!(mapped.host, Host::Ip("::ffff:7f00:1".parse().unwrap()));
        assert_eq!(mapped.authority(), "[::ffff:7f00:1]");
    }

    #[test]
    fn path_and_query_are_legal_on_a_request_line() {
        let table = [
            ("ws://h", "/"),
            ("ws://h/", "/"),
            ("ws://h?a=1", "/?a=1"),
            ("ws://h/p?", "/p?"),
            ("ws://h/a b?c d", "/a%20b?c%20d"),
            ("ws://h/\"q\"?\"q\"", "/%22q%22?%22q%22"),
            ("ws://h/ü?ü=€", "/%C3%BC?%C3%BC=%E2%82%AC"),
            ("ws://h/\u{2028}\u{85}?\u{feff}", "/%E2%80%A8%C2%85?%EF%BB%BF"),
            ("ws://h/%0d%0a?%00", "/%0d%0a?%00"),
            ("ws://h/<>`{}?<>'", "/%3C%3E%60%7B%7D?%3C%3E%27"),
            ("ws://h/a/../b/./c", "/b/c"),
            ("ws://h/a\\b?a\\b", "/a/b?a\\b"),
            ("ws://h/a?b=ws://x/?y", "/a?b=ws://x/?y"),
            ("ws://h/%zz", "/%zz"),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).path_and_query, expected, "{text}");
        }
    }

    #[test]
    fn a_url_of_its_parts() {
        for (text, url) in [
            ("ws://h", "ws://h:80/"),
            ("WSS://Bücher.Example./a b?", "wss://xn--bcher-kva.example.:443/a%20b?"),
            ("wss://user:hunter2@[2001:DB8::1]:8443/a?b=c", "wss://[2001:db8::1]:8443/a?b=c"),
            ("ws://0x7f.1:443?x", "ws://127.0.0.1:443/?x"),
            ("ws://[::ffff:127.0.0.1]/", "ws://[::ffff:7f00:1]:80/"),
        ] {
            let target = parse(text);
            assert_eq!(target.to_url(), url, "{text}");
            assert_eq!(parse(url), Target { basic: None, ..target }, "{text}");
        }
    }

    #[test]
    fn userinfo_becomes_basic() {
        let table = [
            ("ws://h/", None),
            ("ws://@h/", None),
            ("ws://:@h/", None),
            ("ws://Aladdin:open%20sesame@h/", Some("Aladdin:open sesame")),
            ("ws://user@h/", Some("user:")),
            ("ws://:pw@h/", Some(":pw")),
            ("ws://u:p@ss@h/", Some("u:p@ss")),
            ("ws://u:a:b@h/", Some("u:a:b")),
            ("ws://u:%3A%40%2f@h/", Some("u::@/")),
            ("ws://ü:ß@h/", Some("ü:ß")),
            ("ws://u:%@h/", Some("u:%")),
        ];
        for (text, user_pass) in table {
            assert_eq!(parse(text).basic, user_pass.map(|u| format!("Basic {}", STANDARD.encode(u))), "{text}");
        }
        assert_eq!(parse("ws://u:%ff@h/").basic, Some(format!("Basic {}", STANDARD.encode(b"u:\xff"))));
    }

    #[test]
    fn what_is_no_target_says_why() {
        let long_name = format!("ws://{}example/", "a123456789.".repeat(30));
        let table = [
            ("", "must start with ws:// or wss://"),
            ("relay.example.com", "must start with ws:// or wss://"),
            ("ws:relay.example.com", "must start with ws:// or wss://"),
            ("ws:/relay.example.com", "must start with ws:// or wss://"),
            ("ws:\\\\relay.example.com", "must start with ws:// or wss://"),
            ("http://h/", "must start with ws:// or wss://, not http://"),
            ("HTTPS://h/", "must start with ws:// or wss://, not https://"),
            ("w s://h/", "must start with ws:// or wss://"),
            ("not-a-scheme-but-somebodys-key://h/", "must start with ws:// or wss://"),
            ("ws://", "has no host"),
            ("ws:///h", "has no host"),
            ("ws://\\h", "has no host"),
            ("ws://?q", "has no host"),
            ("ws://:80/", "has no host"),
            ("ws://u:p@/", "has no host"),
            ("ws://h:0/", "port 0 cannot be dialled"),
            ("ws://h:65536/", "not a URL: invalid port number"),
            ("ws://h:8x/", "not a URL: invalid port number"),
            ("ws://h/#", "must not have a fragment (write # as %23)"),
            ("ws://h/a?b#c", "must not have a fragment (write # as %23)"),
            ("ws://h/a\r\nX: y", "must not contain control characters"),
            ("ws://h\t/", "must not contain control characters"),
            ("ws://h/\0x", "must not contain control characters"),
            ("ws://h/\u{7f}", "must not contain control characters"),
            ("ws://a b/", "not a URL: invalid international domain name"),
            ("ws://[::1/", "not a URL: invalid IPv6 address"),
            ("ws://[fe80::1%25eth0]/", "not a URL: invalid IPv6 address"),
            ("ws://1.2.3.4.5/", "not a URL: invalid IPv4 address"),
            ("ws://256.1.1.1/", "not a URL: invalid IPv4 address"),
            ("ws://./", "has an illegal host name"),
            ("ws://a..b/", "has an illegal host name"),
            ("ws://a.../", "has an illegal host name"),
            (&long_name, "has an illegal host name"),
        ];
        for (text, expected) in table {
            let error = Target::parse(text).expect_err(text);
            assert_eq!(error.to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn debug_keeps_secrets() {
        let shown = format!("{:?}", parse("wss://user:hunter2@h.example:1/secret?token=secret"));
        assert_eq!(shown, "Target(wss://h.example:1)");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_can_be_sent(text in "(wss?://)?(\\PC|[\\x00-\\x20]|[a-z0-9./:@?#%\\[\\]\\\\-]){0,60}") {
            if let Ok(target) = Target::parse(&text) {
                prop_assert!(target.path_and_query.starts_with('/'));
                prop_assert!(target.path_and_query.bytes().all(|b| b.is_ascii_graphic() && b != b'#'));
                prop_assert!(target.authority().bytes().all(|b| b.is_ascii_graphic()));
                prop_assert_ne!(target.port, 0);
                // Reading our own spelling again gives the same target.
                let url = target.to_url();
                prop_assert_eq!(parse(&url), Target { basic: None, ..target }, "{}", url);
            }
        }
    }
}
