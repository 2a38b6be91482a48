//! One lane of a relayed session: receives from one side, sends to the other, bytes as they are.
//!
//! Does what the session's state machine says and nothing else. A lane waits for readiness without a buffer, borrows
//! one from the worker's pool when there is something to receive, and gives it back before it waits again. It sends
//! all of what it has received before it receives more, so back-pressure is TCP's own.
use std::{rc::Rc, time::Instant};

use super::{Relay, buffers::Buffer, socket::Received};
use crate::protocol::{
    frame::MAX_HEADER,
    session::{Side, Step},
};

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

/// Runs the lane that reads from `from` to its end. `first` is what was received from that side before the relay.
pub(super) async fn run(relay: Rc<Relay>, from: Side, first: Vec<u8>) {
    let mut carry = Carry::default();
    let mut first = first;
    // An idle lane is as large as its largest state, so all but the wait for readiness is in boxes.
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
            Step::Receive if !first.is_empty() => {
                let mut buffer = Buffer::take();
                let at = carry.restore(&mut buffer);
                let len = first.len().min(buffer.len() - at);
                buffer[at..at + len].copy_from_slice(&first[..len]);
                first.drain(..len);
                if first.is_empty() {
                    first = Vec::new();
                }
                Box::pin(pass(&relay, from, buffer, at + len, &mut carry)).await;
            }
            Step::Receive => receive(&relay, from, &mut carry).await,
        }
    }
}

async fn receive(relay: &Rc<Relay>, from: Side, carry: &mut Carry) {
    let socket = relay.socket(from);
    // Whatever the wait says, the receive behind it tells what is the matter.
    let Some(_) = relay.lane(from).or(socket.readable()).await else { return };
    Box::pin(receive_now(relay, from, carry)).await;
}

async fn receive_now(relay: &Rc<Relay>, from: Side, carry: &mut Carry) {
    let socket = relay.socket(from);
    let mut buffer = Buffer::take();
    let at = carry.restore(&mut buffer);
    let (received, buffer) = socket.recv(buffer, at).await;
    match received {
        Ok(Received::Data(len)) => pass(relay, from, buffer, at + len, carry).await,
        Ok(Received::Nothing) => {}
        Ok(Received::End) | Err(_) => relay.change(|session| session.ended(from, Instant::now())),
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
    relay.change(|session| match sent {
        Ok(()) => session.sent(from),
        Err(_) => session.send_failed(from, Instant::now()),
    });
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
        assert!(size <= 1024, "a lane's future has {size} bytes");
    }
}
