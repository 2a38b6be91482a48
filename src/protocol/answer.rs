//! What the gateway says to a client: the "connected" message, and every failure with its text, code and close code.
//!
//! A failure knows where it came from, and that decides all of it in this one place.
use std::time::Duration;

use serde::Serialize;

use super::frame::{self, Opcode};

/// RFC 6455 section 7.4.1: a policy was violated, and an unexpected condition.
const POLICY_VIOLATION: u16 = 1008;
const INTERNAL_ERROR: u16 = 1011;
/// From IANA's registry of close codes.
const TRY_AGAIN_LATER: u16 = 1013;

/// Sent once the target has answered. Keys may only be added behind these.
#[derive(Serialize)]
struct Connected<'a> {
    r#type: &'static str,
    status: u16,
    node_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subprotocol: Option<&'a str>,
}

#[derive(Serialize)]
struct Error<'a> {
    r#type: &'static str,
    message: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_status: Option<u16>,
}

/// The "connected" message as one text frame.
pub fn connected(node_id: &str, subprotocol: Option<&str>) -> Vec<u8> {
    text(&json(&Connected { r#type: "connected", status: 101, node_id, subprotocol }))
}

/// Why a session did not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    InvalidKey,
    RateLimited {
        retry_after: Duration,
    },
    TooManySessions,
    /// The gateway reached its limit while this client was between its upgrade, where it is looked at first, and its
    /// connect message.
    Overloaded,
    /// With what is wrong, naming the field.
    InvalidConnectMessage(String),
    /// The same, of a request in the transparent form.
    InvalidRequest(String),
    TargetNotAllowed,
    NoAgent,
    /// With the cause in words.
    TargetUnreachable(String),
    /// The target answered other than 101.
    TargetRejected {
        status: u16,
    },
    /// The target's 101 is not valid, with what is wrong with it.
    TargetHandshakeInvalid(String),
    TargetTimeout,
    /// The proxy in front of the target could not be reached, or has not said yes; with the cause in words.
    ProxyFailed(String),
    /// The agent was lost before the target had answered.
    AgentFailure,
}

impl Failure {
    /// The text for people.
    pub fn message(&self) -> String {
        match self {
            Self::InvalidConnectMessage(what) | Self::InvalidRequest(what) => format!("{}: {what}", self.summary()),
            Self::TargetUnreachable(why) | Self::ProxyFailed(why) => format!("{}: {why}", self.summary()),
            Self::TargetRejected { status } => format!("Target answered HTTP {status}"),
            Self::TargetHandshakeInvalid(what) => format!("{}: {what}", self.summary()),
            _ => self.summary().into(),
        }
    }

    /// The stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InvalidKey => "invalid_key",
            Self::RateLimited { .. } => "rate_limited",
            Self::TooManySessions => "too_many_sessions",
            Self::Overloaded => "overloaded",
            Self::InvalidConnectMessage(_) => "invalid_connect_message",
            Self::InvalidRequest(_) => "invalid_request",
            Self::TargetNotAllowed => "target_not_allowed",
            Self::NoAgent => "no_agent",
            Self::TargetUnreachable(_) => "target_unreachable",
            Self::TargetRejected { .. } | Self::TargetHandshakeInvalid(_) => "target_rejected",
            Self::TargetTimeout => "target_timeout",
            Self::ProxyFailed(_) => "proxy_failed",
            Self::AgentFailure => "agent_failure",
        }
    }

    /// The close code behind the error message.
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::InvalidKey
            | Self::RateLimited { .. }
            | Self::TooManySessions
            | Self::InvalidConnectMessage(_)
            | Self::InvalidRequest(_)
            | Self::TargetNotAllowed => POLICY_VIOLATION,
            Self::Overloaded => TRY_AGAIN_LATER,
            Self::NoAgent
            | Self::TargetUnreachable(_)
            | Self::TargetRejected { .. }
            | Self::TargetHandshakeInvalid(_)
            | Self::TargetTimeout
            | Self::ProxyFailed(_)
            | Self::AgentFailure => INTERNAL_ERROR,
        }
    }

    /// The status of the answer in the transparent form.
    pub const fn status(&self) -> u16 {
        match self {
            Self::InvalidConnectMessage(_) | Self::InvalidRequest(_) => 400,
            Self::InvalidKey => 401,
            Self::TargetNotAllowed => 403,
            Self::RateLimited { .. } | Self::TooManySessions => 429,
            Self::TargetUnreachable(_)
            | Self::TargetRejected { .. }
            | Self::TargetHandshakeInvalid(_)
            | Self::ProxyFailed(_)
            | Self::AgentFailure => 502,
            Self::NoAgent | Self::Overloaded => 503,
            Self::TargetTimeout => 504,
        }
    }

    /// How long to wait before another try, where that is known.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } => Some(*retry_after),
            Self::TooManySessions | Self::NoAgent | Self::Overloaded => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The error message.
    pub fn to_json(&self) -> Vec<u8> {
        let retry_after_ms = match self {
            Self::RateLimited { retry_after } => Some(whole_milliseconds(*retry_after)),
            _ => None,
        };
        let target_status = match self {
            Self::TargetRejected { status } => Some(*status),
            _ => None,
        };
        let message = self.message();
        json(&Error { r#type: "error", message: &message, code: self.code(), retry_after_ms, target_status })
    }

    /// The error message and the Close behind it, as two frames.
    pub fn to_frames(&self) -> Vec<u8> {
        let mut frames = text(&self.to_json());
        let mut body = self.close_code().to_be_bytes().to_vec();
        body.extend_from_slice(self.summary().as_bytes());
        frame::write(&mut frames, Opcode::CLOSE, None, &body);
        frames
    }

    /// The part of the message that is always the same, short enough for the reason of a Close.
    const fn summary(&self) -> &'static str {
        match self {
            Self::InvalidKey => "Invalid or missing API key",
            Self::RateLimited { .. } => "Rate limit exceeded",
            Self::TooManySessions => "Too many concurrent sessions",
            Self::Overloaded => "Gateway overloaded",
            Self::InvalidConnectMessage(_) => "Invalid connect message",
            Self::InvalidRequest(_) => "Invalid request",
            Self::TargetNotAllowed => "Target not allowed",
            Self::NoAgent => "No agent available",
            Self::TargetUnreachable(_) => "Target connection failed",
            Self::TargetRejected { .. } => "Target rejected the connection",
            Self::TargetHandshakeInvalid(_) => "Target answered an invalid handshake",
            Self::TargetTimeout => "Target timed out",
            Self::ProxyFailed(_) => "Proxy connection failed",
            Self::AgentFailure => "Agent failure",
        }
    }
}

/// Rounded up, so that a client that waits so long does not come too early.
fn whole_milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn json(message: &impl Serialize) -> Vec<u8> {
    // These types have string keys and plain values only, which always serialise.
    serde_json::to_vec(message).unwrap_or_default()
}

fn text(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() + 4);
    frame::write(&mut out, Opcode::TEXT, None, json);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connected_message_has_its_keys_in_order() {
        assert_eq!(
            &connected("scraping-de1", None)[2..],
            br#"{"type":"connected","status":101,"node_id":"scraping-de1"}"#
        );
        assert_eq!(
            &connected("n", Some("mqtt"))[2..],
            br#"{"type":"connected","status":101,"node_id":"n","subprotocol":"mqtt"}"#
        );
    }

    #[test]
    fn a_failure_is_a_message_and_a_close() {
        let frames = Failure::RateLimited { retry_after: Duration::from_micros(1_200_001) }.to_frames();
        let json = br#"{"type":"error","message":"Rate limit exceeded","code":"rate_limited","retry_after_ms":1201}"#;
        let close = [&[0x88, 21, 0x03, 0xF0][..], b"Rate limit exceeded"].concat();
        assert_eq!(frames, [&[0x81, json.len() as u8][..], json, &close].concat());
    }

    #[test]
    fn a_rejection_tells_the_status() {
        let failure = Failure::TargetRejected { status: 403 };
        assert_eq!(failure.message(), "Target answered HTTP 403");
        let frames = String::from_utf8_lossy(&failure.to_frames()).into_owned();
        assert!(frames.contains(r#""code":"target_rejected","target_status":403}"#), "{frames}");
    }
}
