//! One lane of a relayed session: receives from one side, sends to the other, bytes as they are.
//!
//! Does what the session's state machine says and nothing else. A lane waits for readiness without a buffer, borrows
//! one from the worker's pool when there is something to receive, and gives it back before it waits again. It sends
//! all of what it has received before it receives more, so back-pressure is TCP's own.
//!
//! While large frames come over two plain sockets, it borrows a pipe in the buffer's place, and their payload never
//! comes into user space.
use std::{rc::Rc, time::Instant};

use super::{Relay, buffers::Buffer, socket::Received, splice::Pipe};
use crate::protocol::{
    frame::{Header, MAX_HEADER, Opcode, Parsed},
    session::{Side, Step},
};

/// From so many bytes of one frame on, two system calls for a pipe cost less than copying them twice.
const LARGE: u64 = 64 * 1024;
/// After so many receives in a row without a large frame, it is not looked for any more: that costs a system call.
const SMALL_IN_A_ROW: u8 = 4;

/// The beginning of a frame header whose rest has not come yet: all that a lane ever holds back.
#[derive(Default)]
struct Carry {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl Carry {
    /// Puts what was held back in front of the next receive.
    fn restore(&self, buffer: &mut [u8]) -> usize {
        buffer[..self.len].copy_from_slice(&self.bytes[..self.len]);
        self.len
    }

    fn keep(&mut self, rest: &[u8]) {
        debug_assert!(rest.len() < MAX_HEADER, "a scan leaves less than a header");
        self.len = rest.len().min(MAX_HEADER);
        self.bytes[..self.len].copy_from_slice(&rest[..self.len]);
    }
}

/// Whether large frames come.
#[derive(Default)]
struct Bulk {
    /// So many more receives may go by without one before that is over. 0: it is.
    patience: u8,
    /// The frame in progress is one, if there is a frame in progress: its rest passes unseen, however short.
    large: bool,
}

impl Bulk {
    /// A receive was copied; so many bytes of its last frame are still to come and may pass unseen.
    fn copied(&mut self, relay: &Relay, to_come: u64) {
        self.large = to_come >= LARGE;
        if !self.large {
            self.patience = self.patience.saturating_sub(1);
        } else if self.patience > 0 || relay.prepare_for_splicing() {
            self.patience = SMALL_IN_A_ROW;
        }
    }

    /// Some of a large frame has passed unseen.
    fn spliced(&mut self) {
        *self = Self { patience: SMALL_IN_A_ROW, large: true };
    }
}

/// What was taken from a side and has yet to be passed on.
enum Taken {
    Bytes(Vec<u8>),
    Piped(Pipe),
}

/// Runs the lane that reads from `from` to its end. `first` is what was received from that side before the relay.
///
/// An idle lane is as large as its largest state, so all but the wait for readiness is in boxes. And this is no async
/// function, which would have room for each parameter twice.
pub(super) fn run(relay: Rc<Relay>, from: Side, first: Vec<u8>) -> impl Future<Output = ()> {
    let mut taken = Taken::Bytes(first);
    let mut carry = Carry::default();
    let mut bulk = Bulk::default();
    async move {
        loop {
            let step = relay.session.borrow().step(from);
            match step {
                Step::Done => return,
                Step::Wait => relay.lane(from).wait().await,
                Step::SendClose(close) => {
                    let sent = Box::pin(relay.send_close(from.other(), close)).await;
                    let now = Instant::now();
                    relay.change(|session| match sent {
                        Ok(()) => session.close_sent(from, now),
                        Err(_) => session.send_failed(from, now),
                    });
                }
                Step::EndWrite => {
                    Box::pin(relay.socket(from.other()).end_write()).await;
                    relay.change(|session| session.write_ended(from, Instant::now()));
                }
                Step::Receive => match &mut taken {
                    Taken::Bytes(first) if !first.is_empty() => {
                        let mut buffer = Buffer::take();
                        let at = carry.restore(&mut buffer);
                        let len = first.len().min(buffer.len() - at);
                        buffer[at..at + len].copy_from_slice(&first[..len]);
                        first.drain(..len);
                        if first.is_empty() {
                            *first = Vec::new();
                        }
                        Box::pin(pass(&relay, from, buffer, at + len, &mut carry)).await;
                    }
                    Taken::Bytes(_) => {
                        // Whatever the wait says, the receive behind it tells what is the matter.
                        if relay.lane(from).or(relay.socket(from).readable()).await.is_some() {
                            match take_unseen(&relay, from, &carry, &bulk) {
                                Some(pipe) => taken = Taken::Piped(pipe),
                                None => Box::pin(receive(&relay, from, None, &mut carry, &mut bulk)).await,
                            }
                        }
                    }
                    Taken::Piped(pipe) => {
                        Box::pin(pass_piped(&relay, from, pipe, &mut carry, &mut bulk)).await;
                        if pipe.held() == 0 {
                            taken = Taken::Bytes(Vec::new());
                        }
                    }
                },
            }
        }
    }
}

/// Passes on what comes next, copied: from a pipe, or else from the socket.
async fn receive(relay: &Rc<Relay>, from: Side, pipe: Option<&mut Pipe>, carry: &mut Carry, bulk: &mut Bulk) {
    let mut buffer = Buffer::take();
    let at = carry.restore(&mut buffer);
    let (received, buffer) = match pipe {
        Some(pipe) => (pipe.read(&mut buffer[at..]).map(Received::Data), buffer),
        None => relay.socket(from).recv(buffer, at).await,
    };
    match received {
        Ok(Received::Data(len)) => {
            pass(relay, from, buffer, at + len, carry).await;
            bulk.copied(relay, relay.session.borrow().may_pass_unseen(from).unwrap_or_default());
        }
        Ok(Received::Nothing) => {}
        Ok(Received::End) | Err(_) => relay.change(|session| session.ended(from, Instant::now())),
    }
}

/// While large frames come: takes what there is into a pipe. `None`: a receive is what is needed, be it to learn why.
///
/// Taken first and looked at then: a look at the socket (MSG_PEEK) would send an acknowledgement of its own.
fn take_unseen(relay: &Rc<Relay>, from: Side, carry: &Carry, bulk: &Bulk) -> Option<Pipe> {
    if bulk.patience == 0 {
        return None;
    }
    may_pass_unseen(relay, from, carry, bulk)?;
    let mut pipe = Pipe::take()?;
    let len = pipe.fill(relay.socket(from)).ok()?;
    (len > 0).then_some(pipe)
}

/// How much of the large frame in progress may pass unseen: 0 at a frame boundary. `None`: what comes must be looked at.
fn may_pass_unseen(relay: &Rc<Relay>, from: Side, carry: &Carry, bulk: &Bulk) -> Option<u64> {
    let payload = relay.session.borrow().may_pass_unseen(from)?;
    (carry.len == 0 && (payload == 0 || bulk.large)).then_some(payload)
}

/// Passes on what comes next in the pipe: what there is of a large frame unseen, and with it its header, which would
/// wake its receiver a second time if it were sent alone; anything else copied.
async fn pass_piped(relay: &Rc<Relay>, from: Side, pipe: &mut Pipe, carry: &mut Carry, bulk: &mut Bulk) {
    let mut bytes = [0; MAX_HEADER];
    let unseen = match may_pass_unseen(relay, from, carry, bulk) {
        Some(0) => large_header(pipe, &mut bytes).map(|Header { header_len, payload_len, .. }| {
            (&bytes[..header_len], payload_len.saturating_add(header_len as u64))
        }),
        payload => payload.map(|payload| (&[][..], payload)),
    };
    let Some((header, len)) = unseen else {
        return receive(relay, from, Some(pipe), carry, bulk).await;
    };
    let mut left = usize::try_from(len).unwrap_or(usize::MAX).min(pipe.held());
    bulk.spliced();
    relay.receive_unseen(from, header, left);
    let to = relay.socket(from.other());
    let sent = loop {
        match pipe.give(to, &mut left) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => to.writable().await,
            done => break done,
        }
    };
    if sent.is_err() {
        pipe.skip(left);
    }
    relay.sent(from, sent.is_ok());
}

/// The header at the pipe's beginning, if a large frame begins there that may pass unseen. Its bytes are then in `bytes`.
fn large_header(pipe: &Pipe, bytes: &mut [u8; MAX_HEADER]) -> Option<Header> {
    let len = pipe.peek(bytes);
    match Header::parse(&bytes[..len]) {
        Parsed::Header(header) if header.opcode != Opcode::CLOSE && header.payload_len >= LARGE => Some(header),
        _ => None,
    }
}

/// Passes on what of `buffer[..len]` the session says.
async fn pass(relay: &Rc<Relay>, from: Side, buffer: Buffer, len: usize, carry: &mut Carry) {
    let received = relay.receive(from, &buffer[..len]);
    carry.keep(&buffer[received.consumed..len]);
    if received.forward == 0 {
        return;
    }
    let (sent, _buffer) = relay.socket(from.other()).send(buffer, 0..received.forward).await;
    if let (Ok(()), Some(code)) = (&sent, received.close) {
        relay.close_passed(from.other(), code);
    }
    relay.sent(from, sent.is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_small() {
        // The size of the future that every lane of every session keeps. An idle session has two of them.
        fn size<F>(_: fn(Rc<Relay>, Side, Vec<u8>) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(run);
        assert!(size <= 256, "a lane's future has {size} bytes");
        // What the lanes have in common.
        let size = size_of::<Relay>();
        assert!(size <= 368, "a relay has {size} bytes");
    }
}
