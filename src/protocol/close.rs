//! Close codes and reasons (RFC 6455 section 7.4): which a peer may send, and which ringway sends itself.
//!
//! A Close that a peer sent is never built anew: the relay passes its bytes. What is built here are Closes of ours.
use super::frame::{self, Opcode};

/// A Close frame of ours: always a code and a reason, both fixed texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    pub code: u16,
    pub reason: &'static str,
}

impl Close {
    pub const IDLE: Self = Self { code: 1000, reason: "Idle timeout" };
    pub const CLIENT_GONE: Self = Self { code: 1001, reason: "Client disconnected" };
    pub const CLIENT_BROKE: Self = Self { code: 1001, reason: "Client protocol error" };
    pub const RESTART_TARGET: Self = Self { code: 1001, reason: "Service restart" };
    pub const RESTART_CLIENT: Self = Self { code: 1012, reason: "Service restart" };
    pub const PROTOCOL_ERROR: Self = Self { code: 1002, reason: "Protocol error" };
    pub const CONNECT_TIMEOUT: Self = Self { code: 1008, reason: "Connect timeout" };
    pub const GATEWAY_LOST: Self = Self { code: 1001, reason: "Gateway lost" };
    pub const AGENT_LOST: Self = Self { code: 1011, reason: "Agent lost" };
    pub const TARGET_LOST: Self = Self { code: 1011, reason: "Target connection lost" };
    pub const TARGET_BROKE: Self = Self { code: 1011, reason: "Target protocol error" };

    /// The frame's bytes, masked when a key is given: towards a target, never towards a client (section 5.1).
    pub fn to_bytes(self, masking_key: Option<[u8; 4]>) -> Vec<u8> {
        let mut payload = self.code.to_be_bytes().to_vec();
        payload.extend_from_slice(self.reason.as_bytes());
        let mut out = Vec::with_capacity(payload.len() + 6);
        frame::write(&mut out, Opcode::CLOSE, masking_key, &payload);
        out
    }
}

/// A Close frame without a body is answered in kind; any other with its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseBody {
    Empty,
    Code(u16),
}

impl CloseBody {
    /// Reads an unmasked Close payload. `None` if it is not a legal one: one byte, a code that must not be sent, or
    /// a reason that is not UTF-8 (sections 5.5.1 and 7.4).
    pub fn parse(payload: &[u8]) -> Option<Self> {
        match payload {
            [] => Some(Self::Empty),
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                (may_be_sent(code) && std::str::from_utf8(reason).is_ok()).then_some(Self::Code(code))
            }
            _ => None,
        }
    }

    /// The payload of the Close that answers this one.
    pub fn answer(self) -> Vec<u8> {
        match self {
            Self::Empty => Vec::new(),
            Self::Code(code) => code.to_be_bytes().to_vec(),
        }
    }
}

/// Whether an endpoint may put this code into a Close frame: those that RFC 6455 and its registry define, less 1004,
/// 1005, 1006 and 1015, and the ranges for libraries and applications.
pub fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_of_ours_is_one_legal_frame() {
        assert_eq!(Close::IDLE.to_bytes(None), b"\x88\x0e\x03\xe8Idle timeout");
        let masked = Close::IDLE.to_bytes(Some([1, 2, 3, 4]));
        assert_eq!(masked[..6], [0x88, 0x8e, 1, 2, 3, 4]);
        let mut payload = masked[6..].to_vec();
        frame::mask(&mut payload, [1, 2, 3, 4], 0);
        assert_eq!(payload, b"\x03\xe8Idle timeout");
    }

    #[test]
    fn close_bodies() {
        for (payload, expected) in [
            (&b""[..], Some(CloseBody::Empty)),
            (b"\x03", None),
            (b"\x03\xe8", Some(CloseBody::Code(1000))),
            (b"\x03\xe8bye", Some(CloseBody::Code(1000))),
            (b"\x03\xe8\xff", None),
            (b"\x03\xed", None), // 1005
            (b"\x03\xee", None), // 1006
            (b"\x03\xf7", None), // 1015
            (b"\x03\xec", None), // 1004
            (b"\x00\x00", None),
            (b"\x03\xe7", None), // 999
            (b"\x03\xf4", Some(CloseBody::Code(1012))),
            (b"\x0b\xb7", None), // 2999
            (b"\x0b\xb8", Some(CloseBody::Code(3000))),
            (b"\x13\x87", Some(CloseBody::Code(4999))),
            (b"\x13\x88", None), // 5000
        ] {
            assert_eq!(CloseBody::parse(payload), expected, "{payload:?}");
        }
    }
}
