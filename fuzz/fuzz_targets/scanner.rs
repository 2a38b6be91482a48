//! `Scanner` finds the frames that a walk over the whole stream finds, wherever the stream is cut.
#![no_main]
use libfuzzer_sys::fuzz_target;
use ringway::protocol::frame::{self, FrameCounts, Header, MAX_HEADER, Opcode, Parsed, Scanned, Scanner, Stop, Until};
use ringway_fuzz::Input;

/// Where a frame lies in the stream. Its end may be far behind the stream's.
struct Frame {
    start: u64,
    body: u64,
    end: u64,
    header: Header,
}

/// The slow, obvious reference: the frames of a stream that is there as a whole, up to the first Close.
struct Walk<'a> {
    stream: &'a [u8],
    frames: Vec<Frame>,
}

impl<'a> Walk<'a> {
    fn new(stream: &'a [u8]) -> Self {
        let mut frames: Vec<Frame> = Vec::new();
        let mut start = 0;
        while start <= stream.len() as u64 {
            let Parsed::Header(header) = Header::parse(&stream[start as usize..]) else { break };
            let body = start + header.header_len as u64;
            let end = body + header.payload_len;
            frames.push(Frame { start, body, end, header });
            if header.opcode == Opcode::CLOSE {
                break;
            }
            start = end;
        }
        Self { stream, frames }
    }

    /// How many frames have begun when everything before `at` is scanned.
    fn begun(&self, at: u64) -> usize {
        self.frames.partition_point(|frame| frame.body <= at)
    }

    /// The frame whose payload goes on at `at`.
    fn in_progress(&self, at: u64) -> Option<&Frame> {
        self.frames[..self.begun(at)].last().filter(|frame| at < frame.end)
    }

    /// Where a scan from `from` must stop when the stream has come as far as `seen`.
    fn stop(&self, from: u64, seen: u64, until: Until) -> (u64, Stop) {
        let boundary = match until {
            Until::FrameEnd => match self.in_progress(from) {
                None => return (from, Stop::FrameEnd),
                Some(frame) if frame.end > seen => return (seen, Stop::InputEnd),
                Some(frame) if frame.header.opcode != Opcode::CLOSE => return (frame.end, Stop::FrameEnd),
                Some(frame) => return (frame.end, Stop::Close),
            },
            Until::InputEnd => match self.frames[..self.begun(seen)].last() {
                None => 0,
                Some(frame) if frame.end > seen => return (seen, Stop::InputEnd),
                Some(frame) if frame.header.opcode == Opcode::CLOSE => return (frame.end, Stop::Close),
                Some(frame) => frame.end,
            },
        };
        match Header::parse(&self.stream[boundary as usize..seen as usize]) {
            Parsed::Incomplete => (boundary, Stop::InputEnd),
            Parsed::LengthOverflow => (boundary, Stop::LengthOverflow),
            Parsed::Header(header) => panic!("a frame that the walk has not: {header:?}"),
        }
    }

    /// Whether a byte of a data frame is between these two.
    fn has_data(&self, from: u64, to: u64) -> bool {
        let behind = self.frames.partition_point(|frame| frame.end <= from);
        let mut frames = self.frames[behind..].iter().take_while(|frame| frame.start < to);
        from < to && frames.any(|frame| !frame.header.opcode.is_control())
    }

    /// A frame's payload as it was before masking, if it is there as a whole.
    fn payload(&self, frame: &Frame) -> Option<Vec<u8>> {
        let mut payload = self.stream.get(frame.body as usize..frame.end as usize)?.to_vec();
        frame::mask(&mut payload, frame.header.masking_key.unwrap_or_default(), 0);
        Some(payload)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    let walk = Walk::new(&input.stream);
    written_is_read(&walk);
    scan(&walk, &input.ends(), input.options);
});

/// Scans the stream as it comes, as a relay does: what a scan leaves comes again with the next piece. Each bit of
/// `options` is a piece that is first scanned to the end of the frame in progress.
fn scan(walk: &Walk<'_>, ends: &[usize], options: u8) {
    let mut scanner = Scanner::default();
    let mut counts = FrameCounts::default();
    let mut at = 0;
    for (piece, seen) in ends.iter().enumerate() {
        let seen = *seen as u64;
        let frame_end_first = options >> (piece % 6) & 1 != 0;
        let untils: &[Until] = if frame_end_first { &[Until::FrameEnd, Until::InputEnd] } else { &[Until::InputEnd] };
        for until in untils {
            let from = at;
            let scanned = scanner.scan(&walk.stream[from as usize..seen as usize], *until, &mut counts);
            at += scanned.len as u64;
            let Scanned { stop, .. } = scanned;
            assert_eq!((at, stop), walk.stop(from, seen, *until), "{until:?} from {from}, as far as {seen}");

            let remaining = walk.in_progress(at).map_or(0, |frame| frame.end - at);
            assert_eq!((scanner.remaining(), scanner.at_boundary()), (remaining, remaining == 0), "at {at}");
            assert_eq!(scanner.take_data_seen(), walk.has_data(from, at), "from {from} to {at}");
            assert!(!scanner.take_data_seen());
            assert_eq!(counts.iter().sum::<u64>(), walk.begun(at) as u64, "at {at}");
            match stop {
                Stop::InputEnd => assert!(seen - at < MAX_HEADER as u64, "held back {} bytes", seen - at),
                Stop::FrameEnd => {}
                Stop::Close => {
                    assert_eq!(scanner.close_code(), close_code(walk));
                    assert_counts(&counts, walk, at);
                    return;
                }
                Stop::LengthOverflow => {
                    assert_counts(&counts, walk, at);
                    return;
                }
            }
        }
    }
    assert_counts(&counts, walk, at);
}

fn assert_counts(counts: &FrameCounts, walk: &Walk<'_>, at: u64) {
    let mut expected = FrameCounts::default();
    for frame in &walk.frames[..walk.begun(at)] {
        expected[usize::from(frame.header.opcode.0)] += 1;
    }
    assert_eq!(*counts, expected);
}

fn close_code(walk: &Walk<'_>) -> Option<u16> {
    let frame = walk.frames.last()?;
    assert_eq!(frame.header.opcode, Opcode::CLOSE);
    walk.payload(frame)?.first_chunk::<2>().map(|code| u16::from_be_bytes(*code))
}

/// A frame that an endpoint could have written is what `write` writes; any other is not.
fn written_is_read(walk: &Walk<'_>) {
    // A stream can have thousands, most of them alike.
    for frame in walk.frames.iter().take(64) {
        let Some(payload) = walk.payload(frame) else { return };
        let Frame { start, end, header, .. } = frame;
        let mut written = Vec::new();
        frame::write(&mut written, header.opcode, header.masking_key, &payload);
        let could_be = header.fin && header.reserved == 0 && header.is_minimal();
        assert_eq!(written == walk.stream[*start as usize..*end as usize], could_be, "{header:?}");
    }
}
