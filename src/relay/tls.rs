//! TLS of one connection, driven with the worker's buffers.
//!
//! rustls performs the handshake and gives up the keys; from then on records are opened in the buffer that they were
//! received into, and sealed into the one that is sent. So an idle connection keeps its keys and no buffer, unless a
//! record has come in part, and plaintext is moved once each way.
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    ops::Range,
    task::{Poll, Waker},
};

use rustls::Error;

use self::{
    handshake::{Complete, Handshake},
    records::{End, Opened, Records},
};
use super::{
    buffers::Buffer,
    socket::{Received, Socket},
};

mod handshake;
mod records;

pub use handshake::Connection;

/// Ciphertext received at once in a handshake. What of it is behind the handshake waits on the heap.
const HANDSHAKE_CIPHERTEXT: usize = 4 * 1024;

#[derive(Debug)]
pub(super) struct Tls {
    state: RefCell<State>,
    /// Ciphertext that was received and not opened: as a rule the beginning of a record.
    rest: RefCell<Box<[u8]>>,
    /// A receive has something to give without anything new from the peer.
    has_plaintext: Cell<bool>,
    sending: SendLock,
}

#[allow(clippy::large_enum_variant)] // see its variants
enum State {
    /// On the heap, since it is many times as large and soon gone.
    Handshake(Box<Handshake>),
    /// What most connections are, so not on the heap once more.
    Relaying(Records),
    Failed(Error),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Handshake(_) => f.write_str("Handshake"),
            Self::Relaying(records) => records.fmt(f),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl Tls {
    pub fn new(connection: Connection) -> Self {
        Self {
            state: RefCell::new(State::Handshake(Box::new(Handshake::new(connection)))),
            rest: RefCell::default(),
            has_plaintext: Cell::default(),
            sending: SendLock::default(),
        }
    }

    pub fn has_plaintext(&self) -> bool {
        self.has_plaintext.get()
    }

    pub async fn handshake(&self, socket: &Socket, received: &[u8]) -> io::Result<()> {
        let mut complete = self.begin(socket, received).await?;
        while !complete {
            socket.readable().await?;
            complete = self.advance(socket).await?;
        }
        Ok(())
    }

    /// Begins the handshake with what was received before TLS took the connection over, and says whether that was
    /// all of it.
    pub async fn begin(&self, socket: &Socket, received: &[u8]) -> io::Result<bool> {
        let mut flight = Vec::new();
        let advanced = self.state.borrow_mut().advance(received, &mut flight);
        self.send_flight(socket, flight, advanced).await
    }

    /// Receives once, which waits if there is nothing, and says whether that completed the handshake.
    pub async fn advance(&self, socket: &Socket) -> io::Result<bool> {
        let (result, ciphertext) = socket.recv_tcp(Buffer::take(), 0..HANDSHAKE_CIPHERTEXT).await;
        let len = result?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut flight = Vec::new();
        let advanced = self.state.borrow_mut().advance(&ciphertext[..len], &mut flight);
        drop(ciphertext);
        self.send_flight(socket, flight, advanced).await
    }

    /// Sends what the handshake has to say, which may be an alert.
    async fn send_flight(
        &self,
        socket: &Socket,
        flight: Vec<u8>,
        advanced: Result<Option<Vec<u8>>, Error>,
    ) -> io::Result<bool> {
        let sent = self.send_sealed(socket, flight).await;
        let complete = advanced.map_err(invalid_data)?;
        sent?;
        let Some(rest) = complete else { return Ok(false) };
        // It may hold whole records.
        self.has_plaintext.set(!rest.is_empty());
        *self.rest.borrow_mut() = rest.into_boxed_slice();
        Ok(true)
    }

    pub async fn recv(&self, socket: &Socket, mut buffer: Buffer, at: usize) -> (io::Result<Received>, Buffer) {
        let rest = self.rest.take();
        let behind = at + rest.len();
        buffer[at..behind].copy_from_slice(&rest);
        drop(rest);
        let mut end = behind;
        if !self.has_plaintext.get() {
            let room = behind..buffer.len();
            let result;
            (result, buffer) = socket.recv_tcp(buffer, room).await;
            match result {
                Ok(0) => return (Ok(Received::End), buffer),
                Ok(len) => end += len,
                Err(error) => return (Err(error), buffer),
            }
        }
        let received = self.open(&mut buffer[at..end]);
        (self.answer(socket, received).await, buffer)
    }

    /// Returns a buffer, which need not be the one that it was given.
    pub async fn send(&self, socket: &Socket, buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        let _sending = self.sending.lock().await;
        let mut plaintext = range;
        let mut sealed = Buffer::take();
        loop {
            // In equal parts, if it takes more than one.
            let parts = plaintext.len().div_ceil(Records::fits(sealed.len())).max(1);
            let part = plaintext.start..plaintext.start + plaintext.len().div_ceil(parts);
            let done = self.state.borrow_mut().seal(&buffer[part], &mut sealed);
            let (taken, len) = match done {
                Ok(done) => done,
                Err(error) => {
                    // Its alert may still wait.
                    drop(buffer);
                    let len = self.state.borrow_mut().take_unsent(&mut sealed);
                    let (_, sealed) = self.send_last(socket, sealed, len).await;
                    return (Err(invalid_data(error)), sealed);
                }
            };
            plaintext.start += taken;
            if plaintext.is_empty() {
                // A peer that reads slowly holds one buffer, not two.
                drop(buffer);
                return self.send_last(socket, sealed, len).await;
            }
            let result;
            (result, sealed) = socket.send_tcp(sealed, 0..len).await;
            if let Err(error) = result {
                return (Err(error), buffer);
            }
        }
    }

    /// Sends what is in `sealed`, and what has come to wait meanwhile.
    async fn send_last(&self, socket: &Socket, mut sealed: Buffer, mut len: usize) -> (io::Result<()>, Buffer) {
        while len > 0 {
            let result;
            (result, sealed) = socket.send_tcp(sealed, 0..len).await;
            if result.is_err() {
                return (result, sealed);
            }
            len = self.state.borrow_mut().take_unsent(&mut sealed);
        }
        (Ok(()), sealed)
    }

    pub async fn send_close_notify(&self, socket: &Socket) {
        if let State::Relaying(records) = &mut *self.state.borrow_mut() {
            records.close();
        }
        let _ = self.flush(socket).await;
    }

    /// Opens what is in `bytes`, and keeps what has no end yet.
    fn open(&self, bytes: &mut [u8]) -> io::Result<Received> {
        let mut state = self.state.borrow_mut();
        let records = state.records().map_err(invalid_data)?;
        let Opened { plaintext, consumed } = records.open(bytes);
        *self.rest.borrow_mut() = bytes[consumed..].into();
        let end = records.end();
        self.has_plaintext.set(end.is_some());
        match end {
            // What came in front of the end counts as received, and comes first.
            _ if plaintext > 0 => Ok(Received::Data(plaintext)),
            None => Ok(Received::Nothing),
            Some(End::Closed) => Ok(Received::End),
            Some(End::Broken(error)) => Err(invalid_data(error.clone())),
        }
    }

    /// Sends what there is to say to what was received: an alert. If the other task is sending just now, it goes out
    /// with that task's flush.
    async fn answer(&self, socket: &Socket, received: io::Result<Received>) -> io::Result<Received> {
        if self.sending.is_locked() {
            return received;
        }
        let flushed = self.flush(socket).await;
        let received = received?;
        flushed?;
        Ok(received)
    }

    async fn flush(&self, socket: &Socket) -> io::Result<()> {
        if !self.state.borrow().has_unsent() {
            return Ok(());
        }
        let _sending = self.sending.lock().await;
        let mut buffer = Buffer::take();
        let len = self.state.borrow_mut().take_unsent(&mut buffer);
        self.send_last(socket, buffer, len).await.0
    }

    async fn send_sealed(&self, socket: &Socket, sealed: Vec<u8>) -> io::Result<()> {
        if sealed.is_empty() {
            return Ok(());
        }
        let mut buffer = Buffer::take();
        for part in sealed.chunks(buffer.len()) {
            buffer[..part.len()].copy_from_slice(part);
            let result;
            (result, buffer) = socket.send_tcp(buffer, 0..part.len()).await;
            result?;
        }
        Ok(())
    }
}

impl State {
    /// Goes on with the handshake. Once it is complete: what was received behind it.
    fn advance(&mut self, received: &[u8], flight: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Error> {
        let Self::Handshake(handshake) = self else { return Err(Error::General("the handshake is over".into())) };
        let complete = handshake.advance(received, flight);
        if let Ok(false) = complete {
            return Ok(None);
        }
        let Self::Handshake(handshake) = std::mem::replace(self, Self::Failed(Error::HandshakeNotComplete)) else {
            return Err(Error::HandshakeNotComplete);
        };
        match complete.and_then(|_| handshake.finish()) {
            Ok(Complete { records, rest }) => {
                *self = Self::Relaying(records);
                Ok(Some(rest))
            }
            Err(error) => {
                *self = Self::Failed(error.clone());
                Err(error)
            }
        }
    }

    fn records(&mut self) -> Result<&mut Records, Error> {
        match self {
            Self::Relaying(records) => Ok(records),
            Self::Handshake(_) => Err(Error::HandshakeNotComplete),
            Self::Failed(error) => Err(error.clone()),
        }
    }

    fn seal(&mut self, data: &[u8], out: &mut [u8]) -> Result<(usize, usize), Error> {
        self.records()?.seal_data(data, out)
    }

    fn has_unsent(&self) -> bool {
        matches!(self, Self::Relaying(records) if records.has_unsent())
    }

    fn take_unsent(&mut self, out: &mut [u8]) -> usize {
        match self {
            Self::Relaying(records) => records.take_unsent(out),
            _ => 0,
        }
    }
}

fn invalid_data(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Records must reach the wire in the order in which they were encrypted, whichever of the two tasks sends.
#[derive(Debug, Default)]
struct SendLock {
    locked: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

struct SendGuard<'a>(&'a SendLock);

impl SendLock {
    fn is_locked(&self) -> bool {
        self.locked.get()
    }

    async fn lock(&self) -> SendGuard<'_> {
        poll_fn(|context| {
            if self.locked.replace(true) {
                self.waiting.borrow_mut().push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        SendGuard(self)
    }
}

impl Drop for SendGuard<'_> {
    fn drop(&mut self) {
        self.0.locked.set(false);
        self.0.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream as StdStream},
        thread,
        time::Duration,
    };

    use futures_util::future::join;
    use monoio::net::TcpStream;
    use rustls::{
        AlertDescription, ClientConnection, DEFAULT_VERSIONS, crypto::aws_lc_rs::default_provider,
        server::UnbufferedServerConnection,
    };

    use super::*;
    use crate::runtime::driver::Driver;

    #[test]
    fn an_alert_waits_for_the_send_that_is_under_way_and_ends_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut theirs = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let (tcp, _) = listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (server, client) = testing::configs("localhost", default_provider(), DEFAULT_VERSIONS);
        let ours = thread::spawn(move || {
            Driver::Epoll(None).block_on(async move {
                let connection = UnbufferedServerConnection::new(server).unwrap();
                let tcp = TcpStream::from_std(tcp).unwrap();
                let socket = Socket::handshake(tcp, connection.into()).await.unwrap();
                let send = async {
                    let mut sent = 0;
                    loop {
                        let buffer = Buffer::take();
                        let len = buffer.len();
                        match socket.send(buffer, 0..len).await.0 {
                            Ok(()) => sent += len,
                            Err(error) => break (sent, error.kind()),
                        }
                    }
                };
                let recv = async {
                    loop {
                        socket.readable().await.unwrap();
                        if let (Err(error), _) = socket.recv(Buffer::take(), 0).await {
                            break error.kind();
                        }
                    }
                };
                join(send, recv).await
            })
        });
        let mut client = ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
        while client.is_handshaking() || client.wants_write() {
            client.complete_io(&mut theirs).unwrap();
        }
        // By now it can send nothing more; then comes a record that is none.
        thread::sleep(Duration::from_millis(300));
        theirs.write_all(&[23, 3, 3, 0, 32]).unwrap();
        theirs.write_all(&[0; 32]).unwrap();
        thread::sleep(Duration::from_millis(300));
        let (mut received, mut data) = (0, vec![0; 1 << 20]);
        let told = loop {
            assert!(client.read_tls(&mut theirs).unwrap() > 0, "it ended without an alert");
            let processed = client.process_new_packets();
            while let Ok(len @ 1..) = client.reader().read(&mut data) {
                received += len;
            }
            if let Err(error) = processed {
                break error;
            }
        };
        assert_eq!(told, Error::AlertReceived(AlertDescription::BadRecordMac));
        let ((sent, send_failed), recv_failed) = ours.join().unwrap().unwrap();
        assert_eq!((send_failed, recv_failed), (io::ErrorKind::InvalidData, io::ErrorKind::InvalidData));
        assert!(received >= sent, "all that was sent is there: {sent}, {received}");
    }
}
