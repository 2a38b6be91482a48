//! What is sent, and what must come back: messages that follow from a seed.
//!
//! Length, content and masking key of a message follow from the seed, its session and its number, so neither side of
//! the check keeps a copy. Contents are slices of one pool of random bytes; slices of different messages differ, so a
//! message that is lost, repeated or out of order is a difference like a flipped byte.
use ringway::protocol::frame::{MAX_HEADER, Opcode};

/// Where slices may begin. Small enough to stay in a core's cache.
const OFFSETS: usize = 256 * 1024;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub len: usize,
    offset: usize,
    key: [u8; 4],
}

/// All messages of a run.
#[derive(Debug)]
pub struct Payloads {
    pool: Box<[u8]>,
    seed: u64,
    min: usize,
    max: usize,
}

impl Payloads {
    /// Messages of `min` to `max` bytes, evenly distributed.
    pub fn new(seed: u64, min: usize, max: usize) -> Self {
        let words = (OFFSETS + max).div_ceil(8);
        let pool = (0..words as u64).flat_map(|at| mix(seed ^ at.wrapping_mul(0xD1B5_4A32_D192_ED03)).to_le_bytes());
        Self { pool: pool.collect(), seed, min, max }
    }

    /// Message `number` of session `session`.
    pub fn message(&self, session: u64, number: u64) -> Message {
        let random = mix(self.seed ^ mix((session << 40) ^ number));
        let len = if self.min == self.max {
            self.max
        } else {
            self.min + (mix(random) % (self.max - self.min + 1) as u64) as usize
        };
        let key = ((random >> 32) as u32).to_le_bytes();
        Message { len, offset: random as usize % OFFSETS, key }
    }

    /// The message's content.
    pub fn content(&self, message: &Message) -> &[u8] {
        &self.pool[message.offset..message.offset + message.len]
    }

    /// Writes the message's masked frame from byte `from` of the frame on into `out`. Returns how much was written.
    pub fn write_frame(&self, message: &Message, from: usize, out: &mut [u8]) -> usize {
        let (header, header_len) = header(message);
        let mut written = 0;
        if from < header_len {
            written = (header_len - from).min(out.len());
            out[..written].copy_from_slice(&header[from..from + written]);
        }
        let at = (from + written).saturating_sub(header_len);
        let content = &self.content(message)[at..];
        let len = content.len().min(out.len() - written);
        mask_into(&mut out[written..written + len], &content[..len], message.key, at);
        written + len
    }
}

/// Length of the message's frame, header included.
pub fn frame_len(message: &Message) -> usize {
    header(message).1 + message.len
}

fn header(message: &Message) -> ([u8; MAX_HEADER], usize) {
    let mut header = [0; MAX_HEADER];
    let len = write_header(&mut header, 0x80 | Opcode::BINARY.0, message.len as u64, Some(message.key));
    (header, len)
}

/// Writes a frame header with the shortest length form. Returns its length.
pub fn write_header(out: &mut [u8; MAX_HEADER], first: u8, len: u64, key: Option<[u8; 4]>) -> usize {
    let mask = if key.is_some() { 0x80 } else { 0 };
    out[0] = first;
    let mut at = 2;
    match len {
        0..=125 => out[1] = mask | len as u8,
        126..=0xFFFF => {
            out[1] = mask | 126;
            out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            at = 4;
        }
        _ => {
            out[1] = mask | 127;
            out[2..10].copy_from_slice(&len.to_be_bytes());
            at = 10;
        }
    }
    if let Some(key) = key {
        out[at..at + 4].copy_from_slice(&key);
        at += 4;
    }
    at
}

/// `out = content ^ key`, where `content` begins at byte `at` of the payload. Both have the same length.
pub fn mask_into(out: &mut [u8], content: &[u8], mut key: [u8; 4], at: usize) {
    key.rotate_left(at % 4);
    let word = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (words_in, tail_in) = content.as_chunks::<8>();
    let (words_out, tail_out) = out.as_chunks_mut::<8>();
    for (out, content) in words_out.iter_mut().zip(words_in) {
        *out = (u64::from_ne_bytes(*content) ^ word).to_ne_bytes();
    }
    for (index, (out, content)) in tail_out.iter_mut().zip(tail_in).enumerate() {
        *out = content ^ key[index % 4];
    }
}

/// The finalizer of SplitMix64.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use ringway::protocol::frame::{self, Header, Parsed};

    use super::*;

    #[test]
    fn a_frame_is_what_the_protocol_writes_from_wherever_it_is_continued() {
        for len in [0, 1, 7, 125, 126, 300, 65_535, 65_536] {
            let payloads = Payloads::new(7, len, len);
            let message = payloads.message(3, 9);
            let mut wanted = Vec::new();
            frame::write(&mut wanted, Opcode::BINARY, Some(message.key), payloads.content(&message));
            assert_eq!(frame_len(&message), wanted.len());
            for from in (0..wanted.len()).step_by(1 + len / 50) {
                let mut piece = [0; 37];
                let written = payloads.write_frame(&message, from, &mut piece);
                assert_eq!(written, piece.len().min(wanted.len() - from));
                assert_eq!(piece[..written], wanted[from..from + written], "{len} bytes from {from}");
            }
        }
    }

    #[test]
    fn lengths_keep_to_their_range_and_reach_its_ends() {
        let payloads = Payloads::new(1, 10, 13);
        let mut seen = [0; 4];
        for number in 0..1000 {
            seen[payloads.message(0, number).len - 10] += 1;
        }
        assert!(seen.iter().all(|&count| count > 150), "{seen:?}");
    }

    #[test]
    fn messages_differ() {
        let payloads = Payloads::new(1, 16, 16);
        let contents: std::collections::HashSet<&[u8]> = (0..50)
            .flat_map(|session| (0..50).map(move |number| (session, number)))
            .map(|(session, number)| payloads.content(&payloads.message(session, number)))
            .collect();
        // Two of 2500 may begin at the same place.
        assert!(contents.len() > 2450, "{}", contents.len());
    }

    #[test]
    fn headers_are_minimal() {
        for len in [0, 125, 126, 65_535, 65_536, 1 << 40] {
            let mut out = [0; MAX_HEADER];
            let written = write_header(&mut out, 0x82, len, None);
            let Parsed::Header(header) = Header::parse(&out[..written]) else { panic!("{out:?}") };
            assert!(header.is_minimal() && header.payload_len == len && header.header_len == written);
        }
    }
}
