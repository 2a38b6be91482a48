//! Options that every TCP connection of ringway gets, whoever opened it.
#![allow(unsafe_code)] // monoio's streams do not lend their descriptor in the safe way
use std::{
    io,
    net::{Shutdown, TcpListener as StdListener},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use monoio::net::{TcpListener, TcpStream};
use socket2::{SockRef, TcpKeepalive};

/// Probes of an idle connection that stay unanswered before it is given up, and the seconds between them.
const KEEPALIVE_RETRIES: u32 = 3;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Frames go out at once (TCP_NODELAY), and a peer that has vanished is noticed after `keepalive` without traffic.
pub fn prepare(tcp: &TcpStream, keepalive: Duration) {
    let borrowed = borrow(tcp);
    let socket = SockRef::from(&borrowed);
    // A connection that is already gone cannot take options; whoever reads from it next finds out.
    let _ = socket.set_tcp_nodelay(true);
    let keepalive =
        TcpKeepalive::new().with_time(keepalive).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Resets the connection when what was sent stays unacknowledged for so long (RFC 5482); `None`: as long as TCP tries.
/// Never for a session: a peer that only stops reading would be reset, too.
pub fn limit_unacknowledged(socket: BorrowedFd<'_>, limit: Option<Duration>) {
    let _ = SockRef::from(&socket).set_tcp_user_timeout(limit);
}

/// Sends what the socket takes at once, without waiting, and ends the write side.
pub fn send_now(tcp: &TcpStream, bytes: &[u8]) {
    let socket = borrow(tcp);
    let _ = SockRef::from(&socket).send_with_flags(bytes, libc::MSG_DONTWAIT);
    let _ = SockRef::from(&socket).shutdown(Shutdown::Write);
}

/// A listener on the runtime of this thread.
///
/// # Errors
/// The runtime does not take it.
pub fn listener(listener: StdListener) -> io::Result<TcpListener> {
    // epoll wants accept to return at once, io_uring wants it to wait.
    listener.set_nonblocking(monoio::utils::is_legacy())?;
    TcpListener::from_std(listener)
}

fn borrow(tcp: &TcpStream) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `tcp` is borrowed.
    unsafe { BorrowedFd::borrow_raw(tcp.as_raw_fd()) }
}
