//! Why a connect message is not usable, in words for the client.
//!
//! Owns the texts behind `Invalid connect message: `. They name the field, are bounded in length whatever was sent,
//! and must never repeat a value: only names of fields, headers and cookies are shown, shortened and escaped.
use std::fmt;

use thiserror::Error;

use super::proxy::ProxyError;
use crate::protocol::target::TargetError;

/// Why a connect message, or the query of the transparent form, is not usable. `Display` is the text behind `Invalid
/// connect message: ` or `Invalid request: `.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// A binary message came; found by the caller.
    #[error("must be a text message, not a binary one")]
    Binary,
    /// The message is over the limit; found by the caller.
    #[error("larger than 64 KiB")]
    TooLarge,
    #[error("not UTF-8")]
    NotUtf8,
    /// RFC 8259 is broken at this byte, or a number there is beyond a 64-bit float.
    #[error("not JSON{}", at_byte(*.0))]
    NotJson(usize),
    #[error("must be a JSON object, not {0}")]
    NotAnObject(&'static str),
    #[error("{field}: {reason}")]
    Field { field: Field, reason: Reason },
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    #[error("is required")]
    Missing,
    #[error("must be {expected}, not {found}")]
    WrongType { expected: &'static str, found: &'static str },
    #[error("not a JSON value, or a number that is not finite")]
    NotJson,
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("not a legal header name")]
    HeaderName,
    #[error("not a legal header value")]
    HeaderValue,
    #[error("not a legal cookie name")]
    CookieName,
    #[error("not a legal cookie value")]
    CookieValue,
    #[error("must be a finite number, 0 or more")]
    NotATimeout,
    #[error("not UTF-8")]
    NotUtf8,
    #[error("{0}")]
    Proxy(#[from] ProxyError),
}

impl Reason {
    /// The error of this reason for a field at the top of the message.
    pub(super) fn of(self, field: &'static str) -> ConnectError {
        ConnectError::Field { field: Field { name: field, member: None }, reason: self }
    }

    /// The error of this reason for one member of `headers` or `cookies`.
    pub(super) fn of_member(self, field: &'static str, member: &str) -> ConnectError {
        ConnectError::Field { field: Field { name: field, member: Some(shown(member)) }, reason: self }
    }
}

/// A field's name as errors show it: `url`, `headers.X-Custom`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    name: &'static str,
    /// Chosen by the client, so made harmless by `shown`.
    member: Option<String>,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.member.iter().try_for_each(|member| write!(f, ".{member}"))
    }
}

/// A name that a client chose, fit for an error text and a log line: escaped, and cut after 64 characters.
fn shown(name: &str) -> String {
    const SHOWN_MAX_CHARS: usize = 64;
    let mut escaped = name.chars().flat_map(char::escape_debug);
    let mut shown: String = escaped.by_ref().take(SHOWN_MAX_CHARS).collect();
    if escaped.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Not every error of the parser has a place, and at 0 a message was seen to begin well or badly without any help.
fn at_byte(index: usize) -> String {
    if index == 0 { String::new() } else { format!(" (byte {index})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_harmless_and_short() {
        let table = [
            ("X-Custom", "X-Custom".to_owned()),
            ("", String::new()),
            ("a\r\nb\0\u{1b}[31m", "a\\r\\nb\\0\\u{1b}[31m".to_owned()),
            ("ü\u{202e}", "ü\\u{202e}".to_owned()),
            (&"x".repeat(64), "x".repeat(64)),
            (&"x".repeat(65), "x".repeat(64) + "…"),
            (&"\0".repeat(65_536), "\\0".repeat(32) + "…"),
        ];
        for (name, expected) in table {
            assert_eq!(shown(name), expected);
        }
    }

    #[test]
    fn texts_name_the_field() {
        assert_eq!(Reason::Missing.of("url").to_string(), "url: is required");
        assert_eq!(
            Reason::Target(TargetError::OtherScheme("http".to_owned())).of("url").to_string(),
            "url: must start with ws:// or wss://, not http://"
        );
        assert_eq!(Reason::HeaderName.of_member("headers", "a b").to_string(), "headers.a b: not a legal header name");
    }
}
