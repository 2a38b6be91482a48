//! Options that every TCP connection of ringway gets, whoever opened it.
#![allow(unsafe_code)] // monoio's streams do not lend their descriptor in the safe way
use std::{
    io,
    net::{Shutdown, TcpListener as StdListener, TcpStream as StdStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd},
    time::Duration,
};

use monoio::net::{TcpListener, TcpStream};
use socket2::{SockRef, TcpKeepalive};

/// Probes of an idle connection that stay unanswered before it is given up, and the seconds between them.
const KEEPALIVE_RETRIES: u32 = 3;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Frames go out at once (TCP_NODELAY), and a peer that has vanished is noticed after `keepalive` without traffic.
pub fn prepare(tcp: &TcpStream, keepalive: Duration) {
    set(SockRef::from(&borrow(tcp)), keepalive);
}

/// The same for all that this listener accepts from now on, which inherit it (Linux does so), so that each need not be
/// asked for it in five system calls.
pub fn prepare_accepted(listener: &StdListener, keepalive: Duration) {
    set(SockRef::from(listener), keepalive);
}

fn set(socket: SockRef<'_>, keepalive: Duration) {
    // A connection that is already gone cannot take options; whoever reads from it next finds out.
    let _ = socket.set_tcp_nodelay(true);
    let keepalive =
        TcpKeepalive::new().with_time(keepalive).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// How long a link or an idle channel may leave data or probes without an answer.
pub const DEAD_LINK: Duration = Duration::from_secs(20);

/// Gives a connection up when its peer has acknowledged nothing for so long (TCP_USER_TIMEOUT); `None`: the system's own
/// patience. Not for sessions: it ends slow readers, too.
pub fn set_user_timeout(socket: &impl AsFd, timeout: Option<Duration>) {
    let socket = socket.as_fd();
    let _ = SockRef::from(&socket).set_tcp_user_timeout(timeout);
}

/// Sends what the socket takes at once, without waiting, and ends the write side.
pub fn send_now(tcp: &TcpStream, bytes: &[u8]) {
    let socket = borrow(tcp);
    let _ = SockRef::from(&socket).send_with_flags(bytes, libc::MSG_DONTWAIT);
    let _ = SockRef::from(&socket).shutdown(Shutdown::Write);
}

/// Takes a connection off this thread that nothing has been received from or sent to: only then is nothing in flight.
pub fn detach(tcp: TcpStream) -> StdStream {
    // SAFETY: the descriptor is open, and the stream has just given it up.
    unsafe { StdStream::from_raw_fd(tcp.into_raw_fd()) }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_accepted_has_the_options_of_its_listener() {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        prepare_accepted(&listener, Duration::from_secs(77));
        let _client = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(77));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
    }
}
