//! Before and behind the connect message: the client's side of a session that is being set up.
//!
//! Until the connect message has come, the gateway is an ordinary, strict WebSocket server: [`Setup`] reads frames
//! as RFC 6455 wants them, and says what to answer. Every frame behind it belongs to the target: [`Held`] keeps
//! those while the target is dialled, and looks only for what makes the dial pointless.
use super::{
    close::CloseBody,
    frame::{self, FrameCounts, Header, Opcode, Parsed, Scanner, Stop, Until},
};

/// The longest connect message, in bytes of text.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// The most that is held behind the connect message, in bytes of frames.
pub const MAX_HELD: usize = 64 * 1024;
/// RFC 6455 section 5.5: the longest payload of a control frame.
const MAX_CONTROL: u64 = 125;

/// What the bytes that came so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing yet: more bytes are needed.
    Incomplete,
    /// A ping, to be answered with a pong of this payload.
    Ping(Vec<u8>),
    /// The client closes, and is to be answered.
    Close(CloseBody),
    /// The connect message. What is left in the input are frames for the target.
    Message(Vec<u8>),
    /// The connect message is a binary one.
    Binary,
    /// The connect message is longer than [`MAX_MESSAGE`].
    TooLarge,
    /// A frame that breaks RFC 6455; the connection is failed with 1002 for this reason.
    Broken(&'static str),
}

/// Reads frames up to the connect message, which may come in fragments with control frames between them.
#[derive(Debug, Default)]
pub struct Setup {
    message: Vec<u8>,
    fragmented: bool,
    /// What of the input has been read; taken out of it together, since many small frames come at once.
    read: usize,
}

impl Setup {
    /// Reads the next whole frames of `input`, up to one that means something. What was read is taken out of it, at
    /// the latest with the first event other than a ping.
    pub fn next(&mut self, input: &mut Vec<u8>) -> Event {
        let event = self.read(input);
        if !matches!(event, Event::Ping(_)) {
            input.drain(..std::mem::take(&mut self.read));
        }
        event
    }

    fn read(&mut self, input: &[u8]) -> Event {
        loop {
            let input = &input[self.read..];
            let header = match Header::parse(input) {
                Parsed::Header(header) => header,
                Parsed::Incomplete => return Event::Incomplete,
                Parsed::LengthOverflow => return Event::Broken("frame length out of range"),
            };
            let Some(masking_key) = header.masking_key else { return Event::Broken("frame is not masked") };
            if let Err(event) = self.check(&header) {
                return event;
            }
            // `check` has bounded the payload, so these sums hold in any usize.
            let end = header.header_len + header.payload_len as usize;
            if input.len() < end {
                return Event::Incomplete;
            }
            let mut payload = input[header.header_len..end].to_vec();
            self.read += end;
            frame::mask(&mut payload, masking_key, 0);
            match header.opcode {
                Opcode::PING => return Event::Ping(payload),
                Opcode::PONG => {}
                Opcode::CLOSE => {
                    return CloseBody::parse(&payload).map_or(Event::Broken("illegal Close payload"), Event::Close);
                }
                _ => {
                    self.message.append(&mut payload);
                    self.fragmented = !header.fin;
                    if header.fin {
                        return Event::Message(std::mem::take(&mut self.message));
                    }
                }
            }
        }
    }

    fn check(&self, header: &Header) -> Result<(), Event> {
        let broken = |reason| Err(Event::Broken(reason));
        if header.reserved != 0 {
            return broken("reserved bit set");
        }
        if !header.is_minimal() {
            return broken("frame length not in its shortest form");
        }
        match header.opcode {
            Opcode::CLOSE | Opcode::PING | Opcode::PONG => match header {
                Header { fin: false, .. } => return broken("fragmented control frame"),
                Header { payload_len, .. } if *payload_len > MAX_CONTROL => return broken("control frame too long"),
                _ => return Ok(()),
            },
            Opcode::CONTINUATION if !self.fragmented => return broken("continuation of nothing"),
            Opcode::CONTINUATION => {}
            Opcode::TEXT | Opcode::BINARY if self.fragmented => return broken("new message inside another"),
            Opcode::TEXT => {}
            Opcode::BINARY => return Err(Event::Binary),
            _ => return broken("reserved opcode"),
        }
        if header.payload_len > (MAX_MESSAGE - self.message.len()) as u64 {
            return Err(Event::TooLarge);
        }
        Ok(())
    }
}

/// What the held frames mean for the dial that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// There is room for more, and nothing against the dial.
    On,
    /// Nothing more is to be read: it is full, or a Close is among it, whose turn comes behind the frames before it.
    Blind,
    /// The client closes without having sent anything else: the dial is pointless. `None`: not a legal Close.
    Closed(Option<CloseBody>),
}

/// Whether a client may send a control frame with this header.
fn is_strict(header: &Header) -> bool {
    header.fin
        && header.reserved == 0
        && header.masking_key.is_some()
        && header.payload_len <= 125
        && header.is_minimal()
}

/// Frames behind the connect message, kept for the target in the order they came.
#[derive(Debug)]
pub struct Held {
    bytes: Vec<u8>,
    /// Everything before this has been looked at.
    at: usize,
    /// From the first frame on that is neither ping nor pong.
    scanner: Option<Scanner>,
    watch: Watch,
}

impl Held {
    /// Begins with what was received together with the connect message.
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut held = Self { bytes, at: 0, scanner: None, watch: Watch::On };
        held.look();
        held
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.look();
    }

    pub fn watch(&self) -> Watch {
        self.watch
    }

    /// How many bytes may still be held.
    pub fn room(&self) -> usize {
        MAX_HELD.saturating_sub(self.bytes.len())
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn look(&mut self) {
        if self.watch != Watch::On {
            return;
        }
        self.skip_pings();
        if let Some(scanner) = &mut self.scanner {
            let scanned = scanner.scan(&self.bytes[self.at..], Until::InputEnd, &mut FrameCounts::default());
            self.at += scanned.len;
            if scanned.stop != Stop::InputEnd {
                self.watch = Watch::Blind;
            }
        }
        if self.room() == 0 && self.watch == Watch::On {
            self.watch = Watch::Blind;
        }
    }

    /// Passes whole pings and pongs; the frame behind them decides.
    fn skip_pings(&mut self) {
        while self.scanner.is_none() {
            let Parsed::Header(header) = Header::parse(&self.bytes[self.at..]) else { return };
            let body = self.at + header.header_len;
            let end = usize::try_from(header.payload_len).ok().and_then(|len| body.checked_add(len));
            let whole = end.filter(|end| *end <= self.bytes.len());
            match (header.opcode, whole) {
                (Opcode::PING | Opcode::PONG, Some(end)) => self.at = end,
                // The frame itself breaks RFC 6455 (sections 5.1, 5.2 and 5.5), whatever its payload will be.
                (Opcode::CLOSE, _) if !is_strict(&header) => {
                    self.watch = Watch::Closed(None);
                    return;
                }
                (Opcode::CLOSE, Some(end)) => {
                    let mut payload = self.bytes[body..end].to_vec();
                    frame::mask(&mut payload, header.masking_key.unwrap_or_default(), 0);
                    self.watch = Watch::Closed(CloseBody::parse(&payload));
                    return;
                }
                (Opcode::PING | Opcode::PONG | Opcode::CLOSE, None) => return,
                _ => self.scanner = Some(Scanner::default()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

    fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame::write(&mut out, opcode, KEY, payload);
        out
    }

    fn not_final(mut frame: Vec<u8>) -> Vec<u8> {
        frame[0] &= 0x7F;
        frame
    }

    fn first_event(bytes: Vec<u8>) -> Event {
        Setup::default().next(&mut { bytes })
    }

    #[test]
    fn a_message_in_fragments_with_a_ping_between_them() {
        let mut input = not_final(frame(Opcode::TEXT, b"{\"a\""));
        input.extend(frame(Opcode::PONG, b""));
        input.extend(frame(Opcode::PING, b"hi"));
        input.extend(frame(Opcode::CONTINUATION, b":1}"));
        input.extend(b"behind");
        let mut setup = Setup::default();
        assert_eq!(setup.next(&mut input), Event::Ping(b"hi".to_vec()));
        assert_eq!(setup.next(&mut input), Event::Message(b"{\"a\":1}".to_vec()));
        assert_eq!(input, b"behind");
    }

    #[test]
    fn what_breaks_rfc_6455_is_refused() {
        let mut unmasked = Vec::new();
        frame::write(&mut unmasked, Opcode::TEXT, None, b"x");
        let mut reserved = frame(Opcode::TEXT, b"x");
        reserved[0] |= 0x40;
        for bytes in [
            unmasked,
            reserved,
            frame(Opcode(0x3), b""),
            frame(Opcode(0xB), b""),
            not_final(frame(Opcode::PING, b"")),
            frame(Opcode::PING, &[0; 126]),
            frame(Opcode::CONTINUATION, b"x"),
            frame(Opcode::CLOSE, b"\x03"),
            frame(Opcode::CLOSE, b"\x03\xed"),
            [&not_final(frame(Opcode::TEXT, b"x"))[..], &frame(Opcode::TEXT, b"x")].concat(),
            vec![0x81, 0x80 | 126, 0, 5, 1, 2, 3, 4],
            vec![0x81, 0x80 | 127, 0x80],
        ] {
            let event = first_event(bytes.clone());
            assert!(matches!(event, Event::Broken(_)), "{bytes:?}: {event:?}");
        }
    }

    #[test]
    fn limits() {
        assert_eq!(first_event(frame(Opcode::BINARY, b"x")), Event::Binary);
        assert!(matches!(first_event(frame(Opcode::TEXT, &[b'x'; MAX_MESSAGE])), Event::Message(_)));
        assert_eq!(first_event(frame(Opcode::TEXT, &[b'x'; MAX_MESSAGE + 1])), Event::TooLarge);
        // Refused on its header, before a byte of it has come.
        assert_eq!(first_event(vec![0x81, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4]), Event::TooLarge);
        let mut fragments = not_final(frame(Opcode::TEXT, &[b'x'; MAX_MESSAGE]));
        fragments.extend(frame(Opcode::CONTINUATION, b"x"));
        assert_eq!(first_event(fragments), Event::TooLarge);
        assert_eq!(first_event(frame(Opcode::CLOSE, b"")), Event::Close(CloseBody::Empty));
        assert_eq!(first_event(frame(Opcode::CLOSE, b"\x0f\xa0why")), Event::Close(CloseBody::Code(4000)));
    }

    #[test]
    fn a_close_behind_nothing_but_pings_ends_the_dial() {
        for (frames, expected) in [
            (vec![], Watch::On),
            (vec![frame(Opcode::PING, b"")], Watch::On),
            (vec![frame(Opcode::CLOSE, b"\x03\xe8")], Watch::Closed(Some(CloseBody::Code(1000)))),
            (vec![frame(Opcode::CLOSE, b"\x03")], Watch::Closed(None)),
            (vec![frame(Opcode::CLOSE, &[0; 126])], Watch::Closed(None)),
            (vec![not_final(frame(Opcode::CLOSE, b""))], Watch::Closed(None)),
            (vec![b"\x88\x00".to_vec()], Watch::Closed(None)),
            (vec![b"\xC8\x80\0\0\0\0".to_vec()], Watch::Closed(None)),
            (vec![b"\x88\xFE\0\x02\0\0\0\0\x03\xE8".to_vec()], Watch::Closed(None)),
            (
                vec![frame(Opcode::PING, b"a"), frame(Opcode::PONG, b""), frame(Opcode::CLOSE, b"")],
                Watch::Closed(Some(CloseBody::Empty)),
            ),
            (vec![frame(Opcode::TEXT, b"x")], Watch::On),
            (vec![frame(Opcode::TEXT, b"x"), frame(Opcode::CLOSE, b"")], Watch::Blind),
            (vec![frame(Opcode(0xB), b"x"), frame(Opcode::CLOSE, b"")], Watch::Blind),
            (vec![frame(Opcode::TEXT, &[0; MAX_HELD])], Watch::Blind),
        ] {
            let bytes = frames.concat();
            let mut held = Held::new(Vec::new());
            for byte in &bytes {
                held.push(&[*byte]);
            }
            assert_eq!(held.watch(), expected, "{frames:?}");
            assert_eq!(Held::new(bytes.clone()).watch(), expected, "{frames:?}");
            assert_eq!(held.into_bytes(), bytes);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
            let mut setup = Setup::default();
            let mut held = Held::new(Vec::new());
            let mut input = Vec::new();
            for chunk in chunks {
                held.push(&chunk);
                input.extend(chunk);
                while !matches!(setup.next(&mut input), Event::Incomplete | Event::Broken(_) | Event::Binary | Event::TooLarge) {}
            }
        }
    }
}
