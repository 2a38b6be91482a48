//! What the targets share: a stream, and the pieces in which it comes.
use std::borrow::Cow;

/// More pieces than that find nothing new, and readers that look at all they have got again and again grow slow.
const MAX_PIECES: usize = 1024;

/// A stream and how it is cut. Its bytes are plain, so that seeds are easy to write and libFuzzer can splice them:
///
/// ```text
/// options | n | n lengths of pieces | (at, again: 2 bytes each, big-endian) | stream
/// ```
///
/// The lengths are gone through again and again until the stream ends. With both top bits of `options` set, the byte
/// `at` of the stream comes `again` times more, since no input of a few hundred bytes reaches a limit of 64 KiB.
pub struct Input<'a> {
    /// The low six bits mean what the target makes of them.
    pub options: u8,
    lens: &'a [u8],
    pub stream: Cow<'a, [u8]>,
}

impl<'a> Input<'a> {
    /// `None` if the data is too short.
    pub fn new(data: &'a [u8]) -> Option<Self> {
        const STRETCHED: u8 = 0xC0;
        let (&[options, count], data) = data.split_first_chunk()?;
        let (lens, data) = data.split_at_checked(usize::from(count))?;
        if options & STRETCHED != STRETCHED {
            return Some(Self { options, lens, stream: Cow::Borrowed(data) });
        }
        let (&[at_high, at_low, again_high, again_low], data) = data.split_first_chunk()?;
        let at = usize::from(u16::from_be_bytes([at_high, at_low]));
        let again = usize::from(u16::from_be_bytes([again_high, again_low]));
        let mut stream = data.to_vec();
        if let Some(byte) = data.get(at) {
            stream.splice(at..at, std::iter::repeat_n(*byte, again));
        }
        Some(Self { options, lens, stream: Cow::Owned(stream) })
    }

    /// Where the pieces end, in order; the last at the stream's end. There may be empty ones.
    pub fn ends(&self) -> Vec<usize> {
        let mut ends = Vec::new();
        let mut at = 0;
        for len in self.lens.iter().cycle().take(MAX_PIECES) {
            at += piece_len(*len);
            if at >= self.stream.len() {
                break;
            }
            ends.push(at);
        }
        ends.push(self.stream.len());
        ends
    }

    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends().into_iter().map(move |end| &self.stream[std::mem::replace(&mut start, end)..end])
    }
}

/// One byte for short pieces, which cut headers, and for some as long as a buffer.
fn piece_len(len: u8) -> usize {
    let len = usize::from(len);
    if len < 0xC0 { len } else { (len - 0xBF) * 256 }
}
