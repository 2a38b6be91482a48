//! The connect message: the one JSON object with which a client says whom it wants to reach; and the [`Query`] that says
//! the same in the transparent form.
//!
//! Owns what the fields mean and which of them are errors. A message is read in two steps because the gateway's checks
//! have an order (JSON, key, fields): [`parse`] takes the text apart, [`ConnectMessage::key`] gives the key to look up,
//! and only then [`ConnectMessage::validate`] judges the rest. What comes out can go on the wire as it is. Must never
//! look up a key, an agent or a name, and never let a key, a value or a credential into an error or `Debug`.
mod cookies;
mod error;
mod headers;
mod json;
mod proxy;
mod query;
mod selection;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

pub use self::error::{ConnectError, Field, Reason};
use self::headers::Headers;
use self::json::{Members, Message, Value};
pub use self::proxy::{Credentials, Proxy, ProxyError, ProxyKind};
pub use self::query::Query;
pub use self::selection::Selection;
use crate::protocol::target::Target;

/// The fields of the message; all others are ignored.
pub const FIELDS: [&str; 9] = ["apiKey", "key", "url", "headers", "cookies", "geo", "agent", "idle_timeout", "proxy"];

/// A connect message whose key can be looked up, with all other fields still unjudged.
pub struct ConnectMessage<'a> {
    message: Message<'a>,
}

/// What a client asks for, in either form: what to dial, what to say there, through whom.
#[derive(PartialEq, Eq)]
pub struct ConnectRequest {
    pub target: Target,
    pub opening: Opening,
    pub selection: Selection,
    /// How long the target may send no data message; `None` for as long as it likes.
    pub idle_timeout: Option<Duration>,
    /// Behind which the target is to be reached; `None`: as the agent likes.
    pub proxy: Option<Proxy>,
}

/// The opening handshake with the target.
#[derive(Clone, PartialEq, Eq)]
pub enum Opening {
    /// The agent's own, with what the client wants to say in it.
    Ours(Handshake),
    /// The client's own (the transparent form): this request head goes out as it is, and so does the answer come back.
    Passed(Vec<u8>),
}

/// What the client wants to say in an opening handshake that an agent makes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Handshake {
    /// The `Host` header to send, its name as written: the client's own if it gave one, else the target's.
    pub host: (String, String),
    /// What goes to the target after the handshake's own headers, in this order and as written; no `Host`.
    pub headers: Vec<(String, String)>,
    /// The subprotocols that `headers` offers, one of which the target may select (RFC 6455 section 4.1).
    pub subprotocols: Vec<String>,
}

/// Reads a connect message as far as its key. The bytes are changed in place.
///
/// # Errors
/// Text that is not UTF-8, not JSON (RFC 8259), nested deeper than 1024, or not an object; `apiKey` or `key` of a
/// wrong type.
pub fn parse(text: &mut [u8]) -> Result<ConnectMessage<'_>, ConnectError> {
    let message = ConnectMessage { message: Message::parse(text, &FIELDS)? };
    message.text("apiKey")?;
    message.text("key")?;
    Ok(message)
}

/// Reads an idle timeout in seconds. `None` is no timeout: 0, or longer than any clock needs to hold.
///
/// # Errors
/// A number that is negative or not finite.
pub fn idle_timeout(seconds: f64) -> Result<Option<Duration>, ConnectError> {
    /// 136 years. Nobody sees the difference to none, and no clock or timer overflows on it.
    const LONGEST_S: f64 = u32::MAX as f64;
    if !seconds.is_finite() || seconds < 0.0 {
        return Err(Reason::NotATimeout.of("idle_timeout"));
    }
    if seconds == 0.0 || seconds > LONGEST_S {
        return Ok(None);
    }
    // Less than a nanosecond is still a timeout.
    Ok(Duration::try_from_secs_f64(seconds).ok().map(|timeout| timeout.max(Duration::from_nanos(1))))
}

impl<'a> ConnectMessage<'a> {
    /// The API key: `apiKey`, else `key`, else the value of the upgrade's `X-API-Key` header. An empty key is none,
    /// and keeps the others from being looked at.
    pub fn key<'s>(&'s self, header: Option<&'s str>) -> Option<&'s str> {
        let field = |name| self.text(name).ok().flatten();
        field("apiKey").or_else(|| field("key")).or(header).filter(|key| !key.is_empty())
    }

    /// Judges all fields but the key.
    ///
    /// # Errors
    /// A missing `url`, a wrong type, an illegal value; the error names the field.
    pub fn validate(self) -> Result<ConnectRequest, ConnectError> {
        let url = self.text("url")?.ok_or_else(|| Reason::Missing.of("url"))?;
        let target = Target::parse(url).map_err(|error| Reason::from(error).of("url"))?;

        let mut headers = self.object("headers")?.map(Headers::read).transpose()?.unwrap_or_default();
        let cookies = self.object("cookies")?.map(cookies::read).transpose()?.unwrap_or_default();
        let host = headers.remove("Host").unwrap_or_else(|| ("Host".to_owned(), target.authority()));
        if let Some(basic) = &target.basic {
            headers.add_if_absent("Authorization", basic.clone());
        }
        headers.merge_cookies(&cookies);
        let subprotocols = comma_list(headers.get("Sec-WebSocket-Protocol").unwrap_or_default());

        let selection = Selection::new(self.text("geo")?, self.text("agent")?);
        let idle_timeout = idle_timeout(self.number("idle_timeout")?.unwrap_or_default())?;
        let proxy = self.text("proxy")?.map(read_proxy).transpose()?;
        let opening = Opening::Ours(Handshake { host, headers: headers.into_list(), subprotocols });
        Ok(ConnectRequest { target, opening, selection, idle_timeout, proxy })
    }

    fn text(&self, name: &'static str) -> Result<Option<&'a str>, ConnectError> {
        match self.message.field(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, "a string", other)),
        }
    }

    fn number(&self, name: &'static str) -> Result<Option<f64>, ConnectError> {
        match self.message.field(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number)),
            Some(other) => Err(wrong_type(name, "a number", other)),
        }
    }

    fn object(&self, name: &'static str) -> Result<Option<Members<'_, 'a>>, ConnectError> {
        match self.message.field(name) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(members)),
            Some(other) => Err(wrong_type(name, "an object", other)),
        }
    }
}

/// Nothing of what the client sent.
impl fmt::Debug for ConnectMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectMessage").finish_non_exhaustive()
    }
}

/// Nothing that could be a secret.
impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("target", &self.target)
            .field("opening", &self.opening)
            .field("selection", &self.selection)
            .field("idle_timeout", &self.idle_timeout)
            .field("proxy", &self.proxy)
            .finish()
    }
}

/// Names of headers, not their values.
impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours(handshake) => handshake.fmt(f),
            Self::Passed(head) => write!(f, "Passed({} bytes)", head.len()),
        }
    }
}

/// Names of headers, not their values.
impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.headers.iter().map(|(name, _)| name)).finish()
    }
}

fn read_proxy(text: &str) -> Result<Proxy, ConnectError> {
    Proxy::parse(text).map_err(|error| Reason::from(error).of("proxy"))
}

fn wrong_type(field: &'static str, expected: &'static str, found: Value<'_, '_>) -> ConnectError {
    Reason::WrongType { expected, found: found.kind() }.of(field)
}

/// The items of a comma list as HTTP has it (RFC 9110 section 5.6.1): empty ones are none.
fn comma_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}
