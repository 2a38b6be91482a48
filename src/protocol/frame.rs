//! RFC 6455 section 5.2: where frames begin and end.
//!
//! The scanner reads headers and skips payloads by arithmetic, so that a relay knows boundaries, opcodes and Closes
//! of a byte stream that it passes on as it is. It judges nothing: reserved bits and opcodes, masks that are missing
//! or too many, wrong length forms all pass. Only a 64-bit length with its top bit set stops it, since nobody can
//! know where such a frame ends.

/// The longest frame header: 2 bytes, 8 of extended length, 4 of masking key.
pub const MAX_HEADER: usize = 14;

/// Opcode of a frame, the low four bits of its first byte, reserved ones included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opcode(pub u8);

impl Opcode {
    pub const CONTINUATION: Self = Self(0x0);
    pub const TEXT: Self = Self(0x1);
    pub const BINARY: Self = Self(0x2);
    pub const CLOSE: Self = Self(0x8);
    pub const PING: Self = Self(0x9);
    pub const PONG: Self = Self(0xA);

    /// Section 5.5: control frames have the most significant bit of the opcode set.
    pub const fn is_control(self) -> bool {
        self.0 & 0x8 != 0
    }
}

/// A frame header, as it was on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub fin: bool,
    /// RSV1 to RSV3 in the low three bits.
    pub reserved: u8,
    pub opcode: Opcode,
    pub masking_key: Option<[u8; 4]>,
    /// Payload length; the length form used is not kept.
    pub payload_len: u64,
    /// Length of the header itself, 2 to 14 bytes.
    pub header_len: usize,
}

/// What the first bytes of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    Header(Header),
    /// More bytes are needed before anything can be said.
    Incomplete,
    /// The 64-bit length has its top bit set (section 5.2 forbids it), so the frame's end is unknowable.
    LengthOverflow,
}

impl Header {
    /// Reads the header that `bytes` begin with.
    pub fn parse(bytes: &[u8]) -> Parsed {
        let [first, second, rest @ ..] = bytes else { return Parsed::Incomplete };
        let (payload_len, rest) = match second & 0x7F {
            126 => match rest.split_first_chunk::<2>() {
                Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest),
                None => return Parsed::Incomplete,
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((len, _)) if len[0] & 0x80 != 0 => return Parsed::LengthOverflow,
                Some((len, rest)) => (u64::from_be_bytes(*len), rest),
                // The top bit alone decides: no need to wait for the other seven bytes.
                None if rest.first().is_some_and(|byte| byte & 0x80 != 0) => return Parsed::LengthOverflow,
                None => return Parsed::Incomplete,
            },
            short => (u64::from(short), rest),
        };
        let (masking_key, rest) = if second & 0x80 == 0 {
            (None, rest)
        } else {
            match rest.split_first_chunk::<4>() {
                Some((key, rest)) => (Some(*key), rest),
                None => return Parsed::Incomplete,
            }
        };
        Parsed::Header(Self {
            fin: first & 0x80 != 0,
            reserved: (first >> 4) & 0x7,
            opcode: Opcode(first & 0xF),
            masking_key,
            payload_len,
            header_len: bytes.len() - rest.len(),
        })
    }

    /// Whether the length is written in the shortest form, as section 5.2 demands.
    pub fn is_minimal(&self) -> bool {
        let extended = self.header_len - 2 - if self.masking_key.is_some() { 4 } else { 0 };
        match extended {
            0 => true,
            2 => self.payload_len > 125,
            _ => self.payload_len > u64::from(u16::MAX),
        }
    }
}

/// Section 5.3: the same operation masks and unmasks. `offset` is the payload offset of `bytes[0]`.
pub fn mask(bytes: &mut [u8], key: [u8; 4], offset: usize) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte ^= key[(offset + index) % 4];
    }
}

/// Appends an unfragmented frame to `out`, masked when a key is given.
pub fn write(out: &mut Vec<u8>, opcode: Opcode, masking_key: Option<[u8; 4]>, payload: &[u8]) {
    let mask_bit = if masking_key.is_some() { 0x80 } else { 0 };
    out.push(0x80 | opcode.0);
    match payload.len() {
        len @ 0..=125 => out.push(mask_bit | len as u8),
        len @ 126..=0xFFFF => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let Some(key) = masking_key else {
        out.extend_from_slice(payload);
        return;
    };
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    mask(&mut out[start..], key, 0);
}

/// How far a scan may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The end of the input.
    InputEnd,
    /// The end of the frame in progress; not a byte if there is none.
    FrameEnd,
}

/// Why a scan stopped where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At the end of the input, less a header that is not complete yet.
    InputEnd,
    /// At the frame boundary that [`Until::FrameEnd`] asked for.
    FrameEnd,
    /// Behind the last byte of a Close frame.
    Close,
    /// In front of a frame whose length has its top bit set.
    LengthOverflow,
}

/// How much of the input was scanned, and why no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    pub len: usize,
    pub stop: Stop,
}

/// Frames that began in a stream, by opcode.
pub type FrameCounts = [u64; 16];

/// Follows the frames of one direction.
///
/// The caller passes the stream in order; what a scan leaves behind [`Scanned::len`] (at most 13 bytes of an
/// incomplete header, when it stopped at the input's end) comes again at the front of the next input.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    /// Payload bytes of the frame in progress that are still to come; 0 at a boundary.
    remaining: u64,
    in_data: bool,
    close: Option<CloseCode>,
    data_seen: bool,
}

/// Collects the code of a Close frame while its payload passes (section 5.5.1).
#[derive(Clone, Copy, Debug)]
struct CloseCode {
    masking_key: [u8; 4],
    code: [u8; 2],
    len: u8,
}

impl Scanner {
    /// Whether the last byte scanned was the last of a frame, so that another frame may be put in.
    pub fn at_boundary(&self) -> bool {
        self.remaining == 0
    }

    /// Payload bytes of the frame in progress that have not been scanned yet.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Whether the payload of the frame in progress may pass unseen: of a Close, the code is in it.
    pub fn may_skip(&self) -> bool {
        self.close.is_none()
    }

    /// So many bytes of payload of the frame in progress, and no more than [`Scanner::remaining`], pass unseen.
    pub fn skip(&mut self, len: u64) {
        debug_assert!(len <= self.remaining && self.may_skip(), "only payload passes unseen");
        self.remaining = self.remaining.saturating_sub(len);
        self.data_seen |= self.in_data && len > 0;
    }

    /// Whether a byte of a data frame has been scanned since the last call.
    pub fn take_data_seen(&mut self) -> bool {
        std::mem::take(&mut self.data_seen)
    }

    /// The code of the Close frame that the scan stopped behind, if that Close has one.
    pub fn close_code(&self) -> Option<u16> {
        self.close.filter(|close| close.len == 2).map(|close| u16::from_be_bytes(close.code))
    }

    /// Scans the next bytes of the stream and counts the frames that begin in them.
    pub fn scan(&mut self, input: &[u8], until: Until, counts: &mut FrameCounts) -> Scanned {
        let mut at = 0;
        loop {
            if self.remaining > 0 {
                let available = input.len() - at;
                let passed = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(available);
                self.pass_payload(&input[at..at + passed]);
                at += passed;
                if self.remaining > 0 {
                    return Scanned { len: at, stop: Stop::InputEnd };
                }
                if self.close.is_some() {
                    return Scanned { len: at, stop: Stop::Close };
                }
            }
            if until == Until::FrameEnd {
                return Scanned { len: at, stop: Stop::FrameEnd };
            }
            match Header::parse(&input[at..]) {
                Parsed::Incomplete => return Scanned { len: at, stop: Stop::InputEnd },
                Parsed::LengthOverflow => return Scanned { len: at, stop: Stop::LengthOverflow },
                Parsed::Header(header) => {
                    at += header.header_len;
                    counts[usize::from(header.opcode.0)] += 1;
                    self.begin(&header);
                    if self.remaining == 0 && self.close.is_some() {
                        return Scanned { len: at, stop: Stop::Close };
                    }
                }
            }
        }
    }

    fn begin(&mut self, header: &Header) {
        self.remaining = header.payload_len;
        self.in_data = !header.opcode.is_control();
        self.data_seen |= self.in_data;
        self.close = (header.opcode == Opcode::CLOSE).then(|| CloseCode {
            masking_key: header.masking_key.unwrap_or_default(),
            code: [0; 2],
            len: 0,
        });
    }

    fn pass_payload(&mut self, payload: &[u8]) {
        self.remaining -= payload.len() as u64;
        self.data_seen |= self.in_data && !payload.is_empty();
        if let Some(close) = &mut self.close {
            for byte in payload.iter().take(2 - usize::from(close.len)) {
                let index = usize::from(close.len);
                close.code[index] = byte ^ close.masking_key[index];
                close.len += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame with every header bit free, for streams that no endpoint would send.
    #[derive(Clone, Debug)]
    struct AnyFrame {
        first: u8,
        form: u8,
        masking_key: Option<[u8; 4]>,
        payload: Vec<u8>,
    }

    impl AnyFrame {
        /// The slow, obvious reference: this is how the bytes come about.
        fn bytes(&self) -> Vec<u8> {
            let mask_bit = if self.masking_key.is_some() { 0x80 } else { 0 };
            let len = self.payload.len();
            let mut out = vec![self.first];
            match self.form {
                0 if len <= 125 => out.push(mask_bit | len as u8),
                0 | 1 => {
                    out.push(mask_bit | 126);
                    out.extend((len as u16).to_be_bytes());
                }
                _ => {
                    out.push(mask_bit | 127);
                    out.extend((len as u64).to_be_bytes());
                }
            }
            out.extend(self.masking_key.iter().flatten());
            out.extend(&self.payload);
            out
        }
    }

    fn any_frame() -> impl Strategy<Value = AnyFrame> {
        (any::<u8>(), 0..3u8, any::<Option<[u8; 4]>>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(
            |(first, form, masking_key, payload)| AnyFrame {
                // A Close ends a scan: streams of several frames are made of the other opcodes.
                first: if first & 0xF == 8 { first ^ 1 } else { first },
                form,
                masking_key,
                payload,
            },
        )
    }

    /// Feeds `stream` in the given pieces, carrying what the scanner leaves, and returns what was passed on.
    fn scan_pieces(scanner: &mut Scanner, stream: &[u8], cuts: &[usize], counts: &mut FrameCounts) -> (usize, Stop) {
        let mut carried = 0;
        let mut start = 0;
        let mut stop = Stop::InputEnd;
        for end in cuts.iter().copied().chain([stream.len()]) {
            let scanned = scanner.scan(&stream[start - carried..end], Until::InputEnd, counts);
            let consumed = start - carried + scanned.len;
            stop = scanned.stop;
            if stop != Stop::InputEnd {
                return (consumed, stop);
            }
            carried = end - consumed;
            assert!(carried < MAX_HEADER, "held back {carried} bytes");
            start = end;
        }
        (stream.len() - carried, stop)
    }

    proptest! {
        #[test]
        fn frames_are_found_whatever_the_cuts(
            frames in prop::collection::vec(any_frame(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(AnyFrame::bytes).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let mut counts = FrameCounts::default();
            let mut scanner = Scanner::default();
            let (passed, stop) = scan_pieces(&mut scanner, &stream, &cuts, &mut counts);
            prop_assert_eq!((passed, stop), (stream.len(), Stop::InputEnd));
            prop_assert!(scanner.at_boundary());
            let mut expected = FrameCounts::default();
            for frame in &frames {
                expected[usize::from(frame.first & 0xF)] += 1;
            }
            prop_assert_eq!(counts, expected);
            prop_assert_eq!(scanner.take_data_seen(), frames.iter().any(|frame| frame.first & 0x8 == 0));
        }

        #[test]
        fn a_close_stops_the_scan_behind_it_and_tells_its_code(
            before in prop::collection::vec(any_frame(), 0..4),
            key in any::<Option<[u8; 4]>>(),
            code in any::<Option<u16>>(),
            reason in prop::collection::vec(any::<u8>(), 0..200),
            behind in prop::collection::vec(any::<u8>(), 0..40),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let mut payload = Vec::new();
            if let Some(code) = code {
                payload.extend(code.to_be_bytes());
                payload.extend(&reason);
                mask(&mut payload, key.unwrap_or_default(), 0);
            }
            let close = AnyFrame { first: 0x88, form: 0, masking_key: key, payload };
            let mut stream: Vec<u8> = before.iter().flat_map(AnyFrame::bytes).collect();
            stream.extend(close.bytes());
            let end = stream.len();
            stream.extend(&behind);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let mut scanner = Scanner::default();
            let found = scan_pieces(&mut scanner, &stream, &cuts, &mut FrameCounts::default());
            prop_assert_eq!(found, (end, Stop::Close));
            prop_assert_eq!(scanner.close_code(), code);
        }

        #[test]
        fn no_input_panics_and_the_tail_is_never_longer_than_a_header(input in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut scanner = Scanner::default();
            let mut at = 0;
            loop {
                let scanned = scanner.scan(&input[at..], Until::InputEnd, &mut FrameCounts::default());
                at += scanned.len;
                match scanned.stop {
                    Stop::Close => continue,
                    Stop::InputEnd => { prop_assert!(input.len() - at < MAX_HEADER); break }
                    _ => break,
                }
            }
        }

        #[test]
        fn what_is_written_is_read(key in any::<Option<[u8; 4]>>(), len in prop_oneof![0..200usize, 65_500..65_600usize]) {
            let payload: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
            let mut out = Vec::new();
            write(&mut out, Opcode::BINARY, key, &payload);
            let Parsed::Header(header) = Header::parse(&out) else { panic!("no header") };
            prop_assert!(header.fin && header.is_minimal() && header.reserved == 0);
            prop_assert_eq!((header.opcode, header.masking_key, header.payload_len), (Opcode::BINARY, key, len as u64));
            let mut body = out[header.header_len..].to_vec();
            mask(&mut body, key.unwrap_or_default(), 0);
            prop_assert_eq!(body, payload);
        }
    }

    #[test]
    fn a_63_bit_length_is_followed() {
        let mut stream = vec![0x82, 127];
        stream.extend((u64::MAX >> 1).to_be_bytes());
        stream.extend([7; 100]);
        let mut scanner = Scanner::default();
        let scanned = scanner.scan(&stream, Until::InputEnd, &mut FrameCounts::default());
        assert_eq!(scanned, Scanned { len: stream.len(), stop: Stop::InputEnd });
        assert_eq!(scanner.remaining(), (u64::MAX >> 1) - 100);
    }

    #[test]
    fn a_length_with_its_top_bit_set_stops_in_front_of_its_frame() {
        let stream = [0x81, 1, b'x', 0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
        for len in 6..stream.len() {
            let scanned = Scanner::default().scan(&stream[..len], Until::InputEnd, &mut FrameCounts::default());
            assert_eq!(scanned, Scanned { len: 3, stop: Stop::LengthOverflow });
        }
    }

    #[test]
    fn until_frame_end_stops_at_the_boundary_and_takes_nothing_there() {
        let mut scanner = Scanner::default();
        let counts = &mut FrameCounts::default();
        let scanned = scanner.scan(&[0x81, 3, b'a'], Until::InputEnd, counts);
        assert_eq!(scanned, Scanned { len: 3, stop: Stop::InputEnd });
        let scanned = scanner.scan(&[b'b', b'c', 0x81, 0], Until::FrameEnd, counts);
        assert_eq!(scanned, Scanned { len: 2, stop: Stop::FrameEnd });
        let scanned = scanner.scan(&[0x81, 0], Until::FrameEnd, counts);
        assert_eq!(scanned, Scanned { len: 0, stop: Stop::FrameEnd });
    }

    #[test]
    fn minimal_length_forms() {
        for (bytes, minimal) in [
            (&[0x81, 125][..], true),
            (&[0x81, 126, 0, 125], false),
            (&[0x81, 126, 0, 126], true),
            (&[0x81, 127, 0, 0, 0, 0, 0, 0, 255, 255], false),
            (&[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0], true),
            (&[0x81, 0x80 | 126, 0, 125, 1, 2, 3, 4], false),
        ] {
            let Parsed::Header(header) = Header::parse(bytes) else { panic!("{bytes:?}") };
            assert_eq!(header.is_minimal(), minimal, "{bytes:?}");
        }
    }
}
