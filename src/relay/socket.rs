//! One TCP connection of a session, plain or TLS, read and written at the same time by two tasks.
//!
//! Waiting is apart from receiving: [`Socket::readable`] owns no buffer and may be dropped at any time, while a
//! receive or a send, once begun, must be awaited to its end, since the kernel owns the buffer until then.
#![allow(unsafe_code)] // one connection is driven from two tasks of one thread, as monoio's own split halves do it
use std::{
    cell::{Cell, UnsafeCell},
    future::{Future, poll_fn},
    io,
    net::Shutdown,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    pin::pin,
    time::Duration,
};

use monoio::{
    buf::{IoBuf, IoBufMut},
    io::{AsyncReadRent, AsyncWriteRent},
    net::TcpStream,
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use socket2::SockRef;

use super::{
    buffers::Buffer,
    tls::{Connection, Tls},
    turn,
};
use crate::{protocol::session::Progress, runtime::sys};

/// How often in a row a connection may be readable at once before others have their turn, and for how long they have
/// it. With io_uring every wait is a turn for others. epoll's readiness is known without one, so a peer that always
/// has something ready would keep the thread, and with it the timers, which run only when nothing else does.
const AT_ONCE: u8 = 16;
const REST: Duration = Duration::from_millis(1);

/// What one receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, never 0.
    Data(usize),
    /// With TLS: what came was no application data, or not a whole record. On a non-blocking socket: there was nothing.
    Nothing,
    /// The peer has ended its side, with or without close_notify.
    End,
}

#[derive(Debug)]
pub struct Socket {
    tcp: UnsafeCell<TcpStream>,
    /// In a box: plain connections need not have room for it.
    tls: Option<Box<Tls>>,
    /// How often in a row it was readable at once.
    at_once: Cell<u8>,
}

/// A connection on its way to another thread.
#[derive(Debug)]
pub struct Parcel {
    tcp: OwnedFd,
    tls: Option<Box<Tls>>,
}

impl Parcel {
    /// Makes it a connection of this thread.
    ///
    /// # Errors
    /// The runtime does not take it.
    pub fn open(self) -> io::Result<Socket> {
        let tcp = TcpStream::from_std(self.tcp.into())?;
        Ok(Socket { tls: self.tls, ..Socket::plain(tcp) })
    }
}

impl Socket {
    /// Takes the connection off this thread. Nothing may be in flight on it.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn into_parcel(self) -> io::Result<Parcel> {
        // A copy of the descriptor: monoio gives its own only when no wait is left, also none that was dropped.
        let tcp = self.as_fd().try_clone_to_owned()?;
        Ok(Parcel { tcp, tls: self.tls })
    }

    pub fn plain(tcp: TcpStream) -> Self {
        Self { tcp: UnsafeCell::new(tcp), tls: None, at_once: Cell::new(0) }
    }

    /// Performs the TLS handshake over `tcp`.
    ///
    /// # Errors
    /// The connection failed or ended, or the peer was refused: then the error's inner error is a `rustls::Error`.
    pub async fn handshake(tcp: TcpStream, connection: Connection) -> io::Result<Self> {
        Self::plain(tcp).secure(connection, &[]).await
    }

    /// The same connection with TLS on top, whose handshake is performed here. `received`: what the peer has sent
    /// already.
    ///
    /// # Errors
    /// As for [`Socket::handshake`].
    pub async fn secure(self, connection: Connection, received: &[u8]) -> io::Result<Self> {
        let socket = self.with_tls(connection);
        if let Some(tls) = &socket.tls {
            tls.handshake(&socket, received).await?;
        }
        Ok(socket)
    }

    /// The same connection with TLS on top; the handshake has not begun.
    #[must_use]
    pub fn with_tls(self, connection: Connection) -> Self {
        Self { tls: Some(Box::new(Tls::new(connection))), ..self }
    }

    /// Begins the TLS handshake of a server, with what was received so far. Whether it is complete; if not, wait
    /// until the socket is readable and [`Socket::advance_handshake`]. Must be awaited to its end.
    ///
    /// # Errors
    /// As for [`Socket::handshake`]; the peer has been sent an alert.
    pub async fn begin_handshake(&self, received: &[u8]) -> io::Result<bool> {
        match &self.tls {
            Some(tls) => tls.begin(self, received).await,
            None => Ok(true),
        }
    }

    /// Receives more of a handshake, and says whether it is complete. Must be awaited to its end.
    ///
    /// # Errors
    /// As for [`Socket::begin_handshake`].
    pub async fn advance_handshake(&self) -> io::Result<bool> {
        match &self.tls {
            Some(tls) => tls.advance(self).await,
            None => Ok(true),
        }
    }

    /// Waits until a receive will not wait. May be dropped: nothing is read.
    ///
    /// # Errors
    /// The wait itself failed; a receive then tells why.
    pub async fn readable(&self) -> io::Result<()> {
        if self.tls.as_ref().is_some_and(|tls| tls.has_plaintext()) {
            return Ok(());
        }
        let mut waited = false;
        let result = {
            let mut readable = pin!(self.tcp().readable(false));
            poll_fn(|context| {
                let polled = readable.as_mut().poll(context);
                waited |= polled.is_pending();
                polled
            })
            .await
        };
        turn::ready();
        let at_once = if waited { 0 } else { self.at_once.get() + 1 };
        self.at_once.set(at_once % AT_ONCE);
        if at_once == AT_ONCE {
            // On the heap: an idle session need not have room for it.
            Box::pin(monoio::time::sleep(REST)).await;
        }
        result
    }

    /// Receives into `buffer` from `at` on. Must be awaited to its end.
    ///
    /// # Errors
    /// The connection failed: a reset, or a TLS record that is not one.
    pub async fn recv(&self, buffer: Buffer, at: usize) -> (io::Result<Received>, Buffer) {
        match &self.tls {
            None => {
                let (result, buffer) = self.recv_tcp(buffer, at..super::buffers::BUFFER_LEN).await;
                let received = match result {
                    Ok(0) => Ok(Received::End),
                    Ok(len) => Ok(Received::Data(len)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
                    Err(error) => Err(error),
                };
                (received, buffer)
            }
            Some(tls) => tls.recv(self, buffer, at).await,
        }
    }

    /// Sends that part of `buffer`, all of it. Must be awaited to its end. The buffer that comes back holds anything.
    ///
    /// # Errors
    /// The connection failed, or its write side was ended.
    pub async fn send(&self, buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        match &self.tls {
            None => self.send_tcp(buffer, range).await,
            Some(tls) => tls.send(self, buffer, range).await,
        }
    }

    /// Sends bytes of ours, all of them.
    ///
    /// # Errors
    /// As for [`Socket::send`].
    pub async fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut buffer = Buffer::take();
        for chunk in bytes.chunks(buffer.len()) {
            buffer[..chunk.len()].copy_from_slice(chunk);
            let result;
            (result, buffer) = self.send(buffer, 0..chunk.len()).await;
            result?;
        }
        Ok(())
    }

    /// Ends the write side: close_notify where there is TLS, then FIN.
    pub async fn end_write(&self) {
        if let Some(tls) = &self.tls {
            tls.send_close_notify(self).await;
        }
        let _ = SockRef::from(self).shutdown(Shutdown::Write);
    }

    /// Wakes every pending receive and send of this connection with an end or an error, and lets the close that
    /// follows reset it, so that nothing of it stays in the kernel.
    pub fn abort(&self) {
        let socket = SockRef::from(self);
        let _ = socket.set_linger(Some(Duration::ZERO));
        let _ = socket.shutdown(Shutdown::Both);
    }

    /// What the peer's TCP has taken of what was sent.
    pub fn progress(&self) -> Progress {
        sys::progress(self.as_fd())
    }

    pub(super) async fn recv_tcp(&self, mut buffer: Buffer, range: Range<usize>) -> (io::Result<usize>, Buffer) {
        if turn::is_quiet() {
            match rustix::net::recv(self, &mut buffer[range.clone()], RecvFlags::DONTWAIT) {
                Ok((_, len)) => return (Ok(len), buffer),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return (Err(error.into()), buffer),
            }
        }
        let (result, slice) = self.tcp_mut().read(buffer.slice_mut(range)).await;
        (result, slice.into_inner())
    }

    pub(super) async fn send_tcp(&self, buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        let Range { mut start, end } = range;
        let mut buffer = buffer;
        if start < end && turn::is_quiet() {
            match rustix::net::send(self, &buffer[start..end], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => start += sent,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return (Err(error.into()), buffer),
            }
        }
        while start < end {
            let (result, slice) = self.tcp_mut().write(IoBuf::slice(buffer, start..end)).await;
            buffer = slice.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(sent) => start += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await,
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Waits until a send can do something, or tells what is the matter. May be dropped.
    pub(super) async fn writable(&self) {
        let _ = self.tcp().writable(false).await;
    }

    pub(super) fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Has system calls on this socket return at once, for good. Those through the ring then do so, too; without this
    /// they wait, where monoio drives io_uring.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        SockRef::from(self).set_nonblocking(true)
    }

    fn tcp(&self) -> &TcpStream {
        // SAFETY: see `tcp_mut`.
        unsafe { &*self.tcp.get() }
    }

    #[allow(clippy::mut_from_ref)]
    fn tcp_mut(&self) -> &mut TcpStream {
        // SAFETY: this type is not Sync, so all use is on one thread. monoio's read and write take `&mut self` but
        // touch nothing of the stream besides cloning its shared descriptor, which is why monoio declares
        // `unsafe impl Split for TcpStream` and hands out two owners of one stream itself. No reference to the
        // stream outlives the call that makes the operation.
        unsafe { &mut *self.tcp.get() }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the stream that `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.tcp().as_raw_fd()) }
    }
}
