//! The link between a gateway and an agent: what the two say to each other, as bytes in and values out.
//!
//! An agent dials the gateway's public listener twice over: once for a control link, which lives as long as both do, and
//! once for each data channel, which serves one session and is closed. Both begin as an HTTP/1.1 Upgrade whose headers
//! say who is there; then come messages, each a length (four bytes, big-endian) and that much JSON. On a data channel the
//! last message is followed by the session's WebSocket frames, as they are.
//!
//! Messages and fields that a later version adds are passed over by an earlier one, so two versions that have a
//! protocol number in common understand each other. Must never show a header, a cookie, a path or a
//! credential in `Debug`.
pub mod liveness;

use std::{borrow::Cow, fmt, ops::RangeInclusive, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
};
use thiserror::Error;

use super::answer::Failure;

/// The protocol numbers that this version speaks, the oldest and the newest.
pub const PROTOCOLS: RangeInclusive<u16> = 1..=1;

/// What stands in `Upgrade`.
pub const UPGRADE_TOKEN: &str = "ringway";

/// The paths below the address that an agent is given (`…/agent`).
pub const CONTROL: &str = "/control";
pub const DATA: &str = "/data";

/// The headers of the two requests and of their answers.
pub mod header {
    /// The newest protocol number of the agent; in an answer the one that is spoken.
    pub const PROTOCOL: &str = "Ringway-Protocol";
    /// The oldest one of the agent.
    pub const OLDEST_PROTOCOL: &str = "Ringway-Protocol-Oldest";
    pub const SLUG: &str = "Ringway-Slug";
    pub const COUNTRY: &str = "Ringway-Country";
    pub const NODE_ID: &str = "Ringway-Node-Id";
    /// Names the agent's process: a link that comes anew with it goes on.
    pub const PROCESS: &str = "Ringway-Process";
    /// Names the gateway's process: in the answer to the control link, and with each data channel.
    pub const INSTANCE: &str = "Ringway-Instance";
    /// How many sessions the agent takes at once.
    pub const MAX_SESSIONS: &str = "Ringway-Max-Sessions";
    /// How many data channels the gateway wants to have ready.
    pub const CHANNELS: &str = "Ringway-Channels";
}

/// The code of a dial that a draining agent has given up.
pub const DRAINED: &str = "draining";

/// The longest message, in bytes. A connect message has at most 64 KiB, of which JSON can make six times as much.
const MAX_MESSAGE: usize = 512 * 1024;

/// The longest text of an agent's that a client is told, in bytes.
const MAX_DETAIL: usize = 512;

/// The most data channels of one agent's process that wait for a session at a gateway.
pub const MAX_WAITING: u32 = 5120;

/// How often each side says that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long an agent may take to accept a session before another channel is tried.
pub const ACCEPT: Duration = Duration::from_secs(2);

/// Over the control link, from the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    /// With the sessions that it has of all gateways.
    Heartbeat { sessions: u64 },
    /// It takes no new sessions.
    Draining,
    #[serde(other)]
    Unknown,
}

/// Over the control link, from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromGateway {
    Heartbeat,
    /// Sessions wait: so many channels more than are ready are wanted now.
    Open {
        count: u32,
    },
    /// It takes no new sessions.
    Draining,
    #[serde(other)]
    Unknown,
}

/// Over a data channel, from the gateway: whom to dial. Everything has been validated, and goes out as it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The session's id in the gateway's log.
    pub session: String,
    /// Scheme, host, port, path and query.
    pub url: String,
    /// The `Host` header, its name as the client wrote it.
    pub host: (String, String),
    pub headers: Vec<(String, String)>,
    /// Which of these the target may select.
    pub subprotocols: Vec<String>,
    /// The head that goes out instead of one made of `host` and `headers` (the transparent form).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// The URL of the proxy behind which the target is, with its credentials. An agent that has read this says so in
    /// [`Reply::Accepted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The time that is left for all of DNS, TCP, proxy, TLS and opening handshake, in milliseconds.
    pub timeout_ms: u64,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("session", &self.session).finish_non_exhaustive()
    }
}

/// A head that passes as it is. Headers may hold bytes that are no UTF-8 (RFC 9110 section 5.5), which JSON cannot, so
/// each byte is the character of its number.
#[derive(Clone, PartialEq, Eq)]
pub struct Head(pub Vec<u8>);

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({} bytes)", self.0.len())
    }
}

impl Serialize for Head {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.iter().map(|byte| char::from(*byte)).collect::<String>())
    }
}

impl<'de> Deserialize<'de> for Head {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(deserializer)?;
        let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
        bytes.map(Self).map_err(|_| D::Error::custom("a character that is no byte"))
    }
}

/// Over a data channel, from the agent. `Connected`, `Failed` and `Refused` are the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// The request has come.
    Accepted {
        /// A proxy will be dialled, the client's or the agent's own. Until it has said yes, what goes wrong is the
        /// proxy's doing, the time's end too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        proxy: bool,
    },
    /// It is not this agent that will do it, and it has begun nothing.
    Refused { reason: String },
    /// The first packet to the target is about to go out: from now on nobody else may try.
    Dialing,
    /// The proxy has said yes.
    ProxyAccepted,
    /// The target has answered 101. Frames follow.
    Connected {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subprotocol: Option<String>,
        /// The answer's head, where the request had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        head: Option<Head>,
        #[serde(default)]
        took: Took,
    },
    Failed {
        /// As in the error message for the client.
        code: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        #[serde(default)]
        took: Took,
    },
    #[serde(other)]
    Unknown,
}

/// How long the parts of a dial took, in microseconds; those that came to a good end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_us: Option<u64>,
}

impl Reply {
    /// Tells the gateway of a failed dial.
    #[must_use]
    pub fn failed(failure: &Failure, took: Took) -> Self {
        let (detail, status) = match failure {
            Failure::TargetUnreachable(why) | Failure::TargetHandshakeInvalid(why) | Failure::ProxyFailed(why) => {
                (why.clone(), None)
            }
            Failure::TargetRejected { status } => (String::new(), Some(*status)),
            _ => (String::new(), None),
        };
        Self::Failed { code: failure.code().to_owned(), detail, status, took }
    }
}

/// What an agent wrote, as it may stand in a message to a client or in a line of a log.
#[must_use]
pub fn readable(text: &str) -> String {
    let mut text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.truncate(text.floor_char_boundary(MAX_DETAIL));
    text
}

/// What the client is told of a [`Reply::Failed`]. A code that no dial can end with, or that is not known here, is a
/// failure of the agent.
#[must_use]
pub fn failure(code: &str, detail: &str, status: Option<u16>) -> Failure {
    let detail = || readable(detail);
    match (code, status) {
        ("target_not_allowed", _) => Failure::TargetNotAllowed,
        ("target_unreachable", _) => Failure::TargetUnreachable(detail()),
        ("target_rejected", Some(status)) => Failure::TargetRejected { status },
        ("target_rejected", None) => Failure::TargetHandshakeInvalid(detail()),
        ("target_timeout", _) => Failure::TargetTimeout,
        ("proxy_failed", _) => Failure::ProxyFailed(detail()),
        _ => Failure::AgentFailure,
    }
}

/// Why the other side's messages cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LinkError {
    #[error("a message of {0} bytes, more than {MAX_MESSAGE}")]
    TooLong(usize),
    #[error("a message that is not what was expected")]
    NotAMessage,
}

/// One message, ready to be sent.
#[must_use]
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut out = vec![0; 4];
    // These types have string keys and plain values only, which always serialise.
    if simd_json::to_writer(&mut out, message).is_err() {
        out.truncate(4);
    }
    let len = u32::try_from(out.len() - 4).unwrap_or_default();
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

/// Takes one message from the front of `input`, and leaves what is behind it. `None` while it is not whole.
///
/// # Errors
/// A length that no message has, or JSON that is not this message.
pub fn decode<T: DeserializeOwned>(input: &mut Vec<u8>) -> Result<Option<T>, LinkError> {
    let Some(length) = input.first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes(*length) as usize;
    if len > MAX_MESSAGE {
        return Err(LinkError::TooLong(len));
    }
    let Some(json) = input.get_mut(4..4 + len) else { return Ok(None) };
    let message = simd_json::from_slice(json).map_err(|_| LinkError::NotAMessage)?;
    input.drain(..4 + len);
    Ok(Some(message))
}

/// The protocol number that a gateway and an agent of these ranges speak: the newest that both know.
#[must_use]
pub fn in_common(theirs: RangeInclusive<u16>) -> Option<u16> {
    let newest = *PROTOCOLS.end().min(theirs.end());
    (newest >= *PROTOCOLS.start() && newest >= *theirs.start()).then_some(newest)
}

#[cfg(test)]
mod tests;
