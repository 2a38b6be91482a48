//! The proxy behind which an agent reaches a target: what a `proxy` says, taken apart once.
//!
//! Owns the reading of a proxy's URL. Where it leaves the port out, 1080 is meant for SOCKS5 (RFC 1928 section 3) and 80
//! for HTTP, as the URL Standard has it: a URL library leaves out that very port from what it writes. Must never show
//! user or password in an error, in `Debug` or in a log form.
use std::fmt;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use thiserror::Error;
use url::Url;

use crate::protocol::target::{Host, TargetError, looks_like_a_scheme};

/// The schemes that are read, for errors.
const SCHEMES: &str = "socks5://, socks5h:// or http://";

/// RFC 1929 section 2: each has its length in one byte.
const MAX_SOCKS_CREDENTIAL: usize = 255;
/// Of user and password together in HTTP, in bytes: less than any proxy takes as a header.
const MAX_HTTP_CREDENTIALS: usize = 4096;

/// A proxy to dial.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub kind: ProxyKind,
    pub host: Host,
    pub port: u16,
    pub credentials: Option<Credentials>,
}

/// What the proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// RFC 1928. `socks5` and `socks5h` are the same here: names go to the proxy as names.
    Socks5,
    /// CONNECT (RFC 9110 section 9.3.6).
    Http,
}

/// From `user:pass@`: the bytes that its percent-encoding stands for.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: Vec<u8>,
    pub password: Vec<u8>,
}

/// Why a text is no proxy. None of the messages repeats more of the text than its scheme.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProxyError {
    #[error("must start with {SCHEMES}")]
    NoScheme,
    #[error("must start with {SCHEMES}, not {0}://")]
    OtherScheme(String),
    #[error("must end behind its host and port: it has no path, query or fragment")]
    TooMuch,
    #[error("user and password may have at most {MAX_SOCKS_CREDENTIAL} bytes each with SOCKS5")]
    SocksCredentials,
    #[error("user and password may have at most {MAX_HTTP_CREDENTIALS} bytes")]
    HttpCredentials,
    #[error("{0}")]
    Address(#[from] TargetError),
}

impl Proxy {
    /// Reads a proxy's URL. Host names become lower case and ASCII, numeric spellings of IPv4 addresses.
    ///
    /// # Errors
    /// Another scheme, no host, a path, a query, a fragment, or credentials that the proxy's protocol cannot carry.
    pub fn parse(text: &str) -> Result<Self, ProxyError> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if text.chars().any(|c| c.is_ascii_control()) {
            return Err(TargetError::ControlCharacter.into());
        }
        let (scheme, rest) = text.split_once("://").ok_or(ProxyError::NoScheme)?;
        let kind = match scheme.to_ascii_lowercase().as_str() {
            "socks5" | "socks5h" => ProxyKind::Socks5,
            "http" => ProxyKind::Http,
            other if looks_like_a_scheme(other) => return Err(ProxyError::OtherScheme(other.to_owned())),
            _ => return Err(ProxyError::NoScheme),
        };
        if rest.is_empty() || rest.starts_with(['/', '\\', '?', '#']) {
            return Err(TargetError::NoHost.into());
        }
        // Read with schemes that the URL Standard knows: in the host of any other, `0x7f.1` would stay a name.
        let read = |scheme: &str| {
            Url::parse(&format!("{scheme}://{rest}")).map_err(|error| match error {
                url::ParseError::EmptyHost => TargetError::NoHost,
                other => TargetError::NotAUrl(other),
            })
        };
        let url = read("http")?;
        // A lone slash is what URL libraries write behind every host. Judged as written: a path like `/.` is gone by now.
        let behind = rest.find(['/', '\\', '?', '#']).map_or("", |at| &rest[at..]);
        if !matches!(behind, "" | "/") {
            return Err(ProxyError::TooMuch);
        }
        // Port 80 is left out of the one, and stands in the other.
        let port = url.port().or(read("https")?.port()).unwrap_or(kind.default_port());
        if port == 0 {
            return Err(TargetError::PortZero.into());
        }
        let credentials = Credentials::of(&url);
        if let Some(Credentials { user, password }) = &credentials {
            match kind {
                ProxyKind::Socks5 if user.len().max(password.len()) > MAX_SOCKS_CREDENTIAL => {
                    return Err(ProxyError::SocksCredentials);
                }
                ProxyKind::Http if user.len() + password.len() > MAX_HTTP_CREDENTIALS => {
                    return Err(ProxyError::HttpCredentials);
                }
                _ => {}
            }
        }
        Ok(Self { kind, host: Host::of(&url)?, port, credentials })
    }

    /// The URL that [`Self::parse`] makes this proxy of again, with the credentials in it, so for an agent only.
    #[must_use]
    pub fn to_url(&self) -> String {
        let user_pass = self.credentials.as_ref().map_or(String::new(), |Credentials { user, password }| {
            format!("{}:{}@", percent_encode(user, NON_ALPHANUMERIC), percent_encode(password, NON_ALPHANUMERIC))
        });
        format!("{}://{user_pass}{}:{}", self.kind.scheme(), self.host, self.port)
    }
}

/// Scheme, host and port only.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({}://{}:{})", self.kind.scheme(), self.host, self.port)
    }
}

impl ProxyKind {
    fn scheme(self) -> &'static str {
        match self {
            Self::Socks5 => "socks5",
            Self::Http => "http",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Socks5 => 1080,
            Self::Http => 80,
        }
    }
}

impl Credentials {
    fn of(url: &Url) -> Option<Self> {
        let (user, password) = (url.username(), url.password().unwrap_or_default());
        let decoded = |text: &str| percent_decode_str(text).collect();
        let any = !user.is_empty() || !password.is_empty();
        any.then(|| Self { user: decoded(user), password: decoded(password) })
    }
}

/// Nothing of either.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kind_host_and_port() {
        let table = [
            ("socks5://h.example", "socks5://h.example:1080"),
            ("socks5h://h.example", "socks5://h.example:1080"),
            ("SOCKS5H://H.Example.:1", "socks5://h.example.:1"),
            ("socks5://h:80", "socks5://h:80"),
            ("socks5://h:443", "socks5://h:443"),
            ("http://h", "http://h:80"),
            ("http://h/", "http://h:80"),
            ("http://h:80/", "http://h:80"),
            ("http://h:443", "http://h:443"),
            ("http://h:3128", "http://h:3128"),
            (" HTTP://bücher.example:3128\n", "http://xn--bcher-kva.example:3128"),
            ("socks5://0x7f.1", "socks5://127.0.0.1:1080"),
            ("socks5://2130706433:9", "socks5://127.0.0.1:9"),
            ("http://[2001:DB8::0:1]", "http://[2001:db8::1]:80"),
            ("socks5://[::1]:9", "socks5://[::1]:9"),
            ("socks5://:@h", "socks5://h:1080"),
        ];
        for (text, url) in table {
            let proxy = Proxy::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(proxy.to_url(), url, "{text}");
            assert_eq!(proxy.credentials, None, "{text}");
            assert_eq!(Proxy::parse(url), Ok(proxy), "{text}");
        }
    }

    #[test]
    fn credentials_are_decoded_once() {
        let longest = "x".repeat(255);
        let table = [
            ("user:pass", "user", "pass"),
            ("user", "user", ""),
            (":pass", "", "pass"),
            ("u%3A:p%40%2f%2541", "u:", "p@/%41"),
            ("u:a:b", "u", "a:b"),
            ("u:p@ss", "u", "p@ss"),
            ("ü:%", "ü", "%"),
            (&longest, &longest, ""),
        ];
        for (text, user, password) in table {
            for scheme in ["socks5", "http"] {
                let proxy = Proxy::parse(&format!("{scheme}://{text}@h")).unwrap();
                let credentials = proxy.credentials.clone().unwrap();
                assert_eq!(credentials.user, user.as_bytes(), "{text}");
                assert_eq!(credentials.password, password.as_bytes(), "{text}");
                assert_eq!(Proxy::parse(&proxy.to_url()), Ok(proxy), "{text}");
            }
        }
        let bytes = Proxy::parse("socks5://%ff:%00@h").unwrap().credentials.unwrap();
        assert_eq!((bytes.user, bytes.password), (vec![0xff], vec![0]));
    }

    #[test]
    fn what_is_no_proxy_says_why() {
        let long = format!("socks5://u:{}@h", "x".repeat(256));
        let longer = format!("http://u:{}@h", "x".repeat(4096));
        let table = [
            ("", "must start with socks5://, socks5h:// or http://"),
            ("h:1080", "must start with socks5://, socks5h:// or http://"),
            ("user:hunter2@h:1080", "must start with socks5://, socks5h:// or http://"),
            ("user:hunter2://h:1080", "must start with socks5://, socks5h:// or http://"),
            ("https://h", "must start with socks5://, socks5h:// or http://, not https://"),
            ("socks4://h", "must start with socks5://, socks5h:// or http://, not socks4://"),
            ("SOCKS://h", "must start with socks5://, socks5h:// or http://, not socks://"),
            ("socks5://h/p", "must end behind its host and port: it has no path, query or fragment"),
            ("socks5://h//", "must end behind its host and port: it has no path, query or fragment"),
            ("http://h/.", "must end behind its host and port: it has no path, query or fragment"),
            ("http://h/%2e", "must end behind its host and port: it has no path, query or fragment"),
            ("http://h\\", "must end behind its host and port: it has no path, query or fragment"),
            ("http://h?", "must end behind its host and port: it has no path, query or fragment"),
            ("http://h/#", "must end behind its host and port: it has no path, query or fragment"),
            ("http://h\\p", "must end behind its host and port: it has no path, query or fragment"),
            ("socks5://", "has no host"),
            ("socks5:///h", "has no host"),
            ("socks5://u:p@", "has no host"),
            ("socks5://u:p@:1", "has no host"),
            ("socks5://h:0", "port 0 cannot be dialled"),
            ("http://h:65536", "not a URL: invalid port number"),
            ("http://u:p@ss:word@h:x", "not a URL: invalid port number"),
            ("http://a b", "not a URL: invalid international domain name"),
            ("http://[::1", "not a URL: invalid IPv6 address"),
            ("socks5://256.1.1.1", "not a URL: invalid IPv4 address"),
            ("socks5://a..b", "has an illegal host name"),
            ("http://h\r\nX:y", "must not contain control characters"),
            (&long, "user and password may have at most 255 bytes each with SOCKS5"),
            (&longer, "user and password may have at most 4096 bytes"),
        ];
        for (text, expected) in table {
            let error = Proxy::parse(text).expect_err(text);
            assert_eq!(error.to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn debug_keeps_secrets() {
        let proxy = Proxy::parse("http://hunter2:hunter2@h:3128").unwrap();
        assert_eq!(format!("{proxy:?}"), "Proxy(http://h:3128)");
        assert_eq!(format!("{:?}", proxy.credentials), "Some(Credentials(not shown))");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_comes_out_of_its_own_url(
            text in "(socks5h?://|http://)?([a-z%0-9]{0,4}:\\PC{0,4}@)?(\\PC|[\\x00-\\x20]|[a-z0-9./:@?#%\\[\\]\\\\-]){0,40}",
        ) {
            if let Ok(proxy) = Proxy::parse(&text) {
                prop_assert_ne!(proxy.port, 0);
                prop_assert!(proxy.to_url().bytes().all(|b| b.is_ascii_graphic()), "{:?}", proxy);
                prop_assert_eq!(Proxy::parse(&proxy.to_url()), Ok(proxy));
            }
        }
    }
}
