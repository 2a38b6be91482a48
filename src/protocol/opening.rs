//! The values that both ends of an opening handshake exchange (RFC 6455 section 4).
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

/// Section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether this may stand in Sec-WebSocket-Key: 16 bytes in base64.
pub fn is_key(key: &[u8]) -> bool {
    STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// A Sec-WebSocket-Key for these random bytes.
pub fn key_from(nonce: [u8; 16]) -> String {
    STANDARD.encode(nonce)
}

/// The Sec-WebSocket-Accept that answers a key (section 4.2.2).
pub fn accept_for(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Where the first head in `bytes` ends, that is behind its first empty line; `from` is how much of them is known to
/// hold no end. Lines may end in LF alone (RFC 9112 section 2.2).
pub fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    // The terminator may straddle two reads.
    let from = from.saturating_sub(3);
    let line_ends = bytes.get(from..)?.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    line_ends.map(|(at, _)| from + at).find_map(|at| match &bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_own_example() {
        assert_eq!(accept_for(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(key_from(*b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
    }

    #[test]
    fn what_is_no_key() {
        for key in [&b""[..], b"x", b"dGhlIHNhbXBsZSBub25jZQ", b"AAAA", b"dGhlIHNhbXBsZSBub25jZQ== "] {
            assert!(!is_key(key), "{key:?}");
        }
    }
}
