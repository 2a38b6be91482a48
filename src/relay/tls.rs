//! TLS of one connection, driven over rustls with the worker's buffers.
//!
//! Ciphertext is read into a buffer of the pool and written from one, so an idle connection keeps rustls' own state
//! only, and no record is left behind in a wrapper.
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::{self, BufRead, Read, Write},
    ops::Range,
    task::{Poll, Waker},
};

use rustls::Connection;

use super::{
    buffers::Buffer,
    socket::{Received, Socket},
};

/// Ciphertext received at once. With what may wait for its record's end, its plaintext always fits into one buffer.
const CIPHERTEXT: usize = 32 * 1024;
/// The same in a handshake, where nobody takes plaintext yet: little enough that rustls can keep what is in it.
const HANDSHAKE_CIPHERTEXT: usize = 4 * 1024;
/// Plaintext encrypted at once: three full records, which fit into one buffer with their overhead.
const PLAINTEXT: usize = 48 * 1024;

#[derive(Debug)]
pub(super) struct Tls {
    connection: RefCell<Connection>,
    /// A receive has something to give without anything new from the peer.
    has_plaintext: Cell<bool>,
    /// Why nothing can be read any more; reported behind what came before it.
    broken: RefCell<Option<rustls::Error>>,
    sending: SendLock,
}

impl Tls {
    pub fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(None);
        Self {
            connection: RefCell::new(connection),
            has_plaintext: Cell::default(),
            broken: RefCell::default(),
            sending: SendLock::default(),
        }
    }

    pub fn has_plaintext(&self) -> bool {
        self.has_plaintext.get()
    }

    pub async fn handshake(&self, socket: &Socket) -> io::Result<()> {
        let mut complete = self.begin(socket, &[]).await?;
        while !complete {
            socket.readable().await?;
            complete = self.advance(socket).await?;
        }
        Ok(())
    }

    /// Begins the handshake with what was received before TLS took the connection over, and says whether that was
    /// all of it.
    pub async fn begin(&self, socket: &Socket, received: &[u8]) -> io::Result<bool> {
        for ciphertext in received.chunks(HANDSHAKE_CIPHERTEXT) {
            let processed = self.process(ciphertext, &mut []);
            self.answer(socket, processed).await?;
        }
        self.flush(socket).await?;
        Ok(!self.connection.borrow().is_handshaking())
    }

    /// Receives once, which waits if there is nothing, and says whether that completed the handshake.
    pub async fn advance(&self, socket: &Socket) -> io::Result<bool> {
        let received = self.recv_records(socket, HANDSHAKE_CIPHERTEXT, &mut []).await?;
        let complete = !self.connection.borrow().is_handshaking();
        if received == Received::End && !complete {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(complete)
    }

    pub async fn recv(&self, socket: &Socket, mut buffer: Buffer, at: usize) -> (io::Result<Received>, Buffer) {
        let received = if self.has_plaintext.get() {
            self.process(&[], &mut buffer[at..])
        } else {
            self.recv_records(socket, CIPHERTEXT, &mut buffer[at..]).await
        };
        (received, buffer)
    }

    pub async fn send(&self, socket: &Socket, buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        let _sending = self.sending.lock().await;
        for start in range.clone().step_by(PLAINTEXT) {
            let plaintext = &buffer[start..range.end.min(start + PLAINTEXT)];
            if let Err(error) = self.connection.borrow_mut().writer().write_all(plaintext) {
                return (Err(error), buffer);
            }
            if let Err(error) = self.flush_locked(socket).await {
                return (Err(error), buffer);
            }
        }
        (Ok(()), buffer)
    }

    pub async fn send_close_notify(&self, socket: &Socket) {
        self.connection.borrow_mut().send_close_notify();
        let _ = self.flush(socket).await;
    }

    /// Receives ciphertext once and takes its plaintext into `out`.
    async fn recv_records(&self, socket: &Socket, ciphertext_len: usize, out: &mut [u8]) -> io::Result<Received> {
        let (result, ciphertext) = socket.recv_tcp(Buffer::take(), 0..ciphertext_len).await;
        let len = result?;
        if len == 0 {
            return Ok(Received::End);
        }
        let processed = self.process(&ciphertext[..len], out);
        drop(ciphertext);
        self.answer(socket, processed).await
    }

    /// Sends what rustls has to say to what was received: the next handshake message, a key update, an alert. If the
    /// other task is sending just now, it goes out with that task's flush.
    async fn answer(&self, socket: &Socket, received: io::Result<Received>) -> io::Result<Received> {
        if self.sending.is_locked() {
            return received;
        }
        let flushed = self.flush(socket).await;
        let received = received?;
        flushed?;
        Ok(received)
    }

    fn process(&self, ciphertext: &[u8], out: &mut [u8]) -> io::Result<Received> {
        let mut connection = self.connection.borrow_mut();
        let processed = self.process_records(&mut connection, ciphertext, out);
        // rustls' own buffer may have grown to the size of a record. It gives that back when it reads next, which may be
        // long from now.
        let _ = connection.read_tls(&mut NothingYet);
        processed
    }

    fn process_records(
        &self,
        connection: &mut Connection,
        mut ciphertext: &[u8],
        out: &mut [u8],
    ) -> io::Result<Received> {
        let mut taken = 0;
        loop {
            let drained = drain(connection, &mut out[taken..])?;
            taken += drained.len;
            self.has_plaintext.set(drained.more);
            if self.broken.borrow().is_some() {
                // What came in front of the broken record counts as received, and comes first.
                if taken > 0 {
                    self.has_plaintext.set(true);
                    return Ok(Received::Data(taken));
                }
                let error = self.broken.take().unwrap_or_else(|| rustls::Error::General("broken record".into()));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            if drained.ended {
                self.has_plaintext.set(true);
                return Ok(if taken > 0 { Received::Data(taken) } else { Received::End });
            }
            // Behind close_notify rustls takes nothing more.
            if ciphertext.is_empty() || connection.read_tls(&mut ciphertext)? == 0 {
                return Ok(if taken > 0 { Received::Data(taken) } else { Received::Nothing });
            }
            if let Err(error) = connection.process_new_packets() {
                *self.broken.borrow_mut() = Some(error);
            }
        }
    }

    async fn flush(&self, socket: &Socket) -> io::Result<()> {
        if !self.connection.borrow().wants_write() {
            return Ok(());
        }
        let _sending = self.sending.lock().await;
        self.flush_locked(socket).await
    }

    /// Sends all records that wait, as many as fit in one go.
    async fn flush_locked(&self, socket: &Socket) -> io::Result<()> {
        let mut buffer = Buffer::take();
        loop {
            let len = self.take_records(&mut buffer)?;
            if len == 0 {
                return Ok(());
            }
            let result;
            (result, buffer) = socket.send_tcp(buffer, 0..len).await;
            result?;
        }
    }

    fn take_records(&self, out: &mut [u8]) -> io::Result<usize> {
        let mut connection = self.connection.borrow_mut();
        let room = out.len();
        let mut rest = out;
        while connection.wants_write() && !rest.is_empty() {
            connection.write_tls(&mut rest)?;
        }
        Ok(room - rest.len())
    }
}

/// A source that has nothing just now.
struct NothingYet;

impl Read for NothingYet {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

struct Drained {
    len: usize,
    /// The plaintext did not fit.
    more: bool,
    /// close_notify has come, and everything in front of it has been taken.
    ended: bool,
}

fn drain(connection: &mut Connection, out: &mut [u8]) -> io::Result<Drained> {
    let mut reader = connection.reader();
    let mut len = 0;
    while len < out.len() {
        match reader.read(&mut out[len..]) {
            Ok(0) => return Ok(Drained { len, more: false, ended: true }),
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Drained { len, more: false, ended: false });
            }
            Err(error) => return Err(error),
        }
    }
    match reader.fill_buf() {
        Ok(rest) => Ok(Drained { len, more: !rest.is_empty(), ended: rest.is_empty() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Drained { len, more: false, ended: false }),
        Err(error) => Err(error),
    }
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
